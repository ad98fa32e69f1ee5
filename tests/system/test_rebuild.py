"""The indexes hold nothing of their own: deleted while stopped, they are rebuilt and answer the same."""

from collections import Counter
from typing import Any

from .conftest import SERVICES, Stack, until
from .receiver import endpoint

NOTE = "Retrieval augmented generation combines a language model with a search over documents. #research"


def test_answers_are_the_same_without_the_sqlite_files(stack: Stack) -> None:
    stack.install_hooks()
    with endpoint() as receiver:
        with stack.http() as http:
            wanted = {"name": "w", "url": receiver.url, "event_filters": [{"event_type": "Memory.Created"}]}
            webhook = http.post("/api/v1/webhooks", json=wanted).json()["id"]
            for number in range(3):
                body = {"content": f"{NOTE} Part {number} of it. It is long enough to match.", "tags": ["#research"]}
                assert http.post("/api/v1/memory", json=body).status_code == 201
        until(lambda: len(_settled(stack, webhook)["attempts"]) >= 3, 20)
        before = until(lambda: _quiet(stack, webhook), 30)
    stack.stop()
    files = list((stack.data / "index").rglob("*.sqlite*"))
    assert len({file.parent for file in files}) == 4, files
    for file in files:
        file.unlink()
    stack.start()
    assert _settled(stack, webhook) == before
    for event in ("Started", "Shutdown"):
        until(lambda event=event: _told(stack, event) == dict.fromkeys(SERVICES, 1) | _again(event), 20)


def _again(event: str) -> dict[str, int]:
    return dict.fromkeys(SERVICES, 2) if event == "Started" else {}


def _told(stack: Stack, event: str) -> dict[str, int]:
    """How often each service has told of its start or its end."""
    with stack.http() as http:
        found = http.get("/api/v1/events", params={"type": f"System.{event}", "limit": 100}).json()["events"]
    return dict(Counter(one["data"]["payload"]["service"] for one in found))


def _quiet(stack: Stack, webhook: str) -> dict[str, Any] | None:
    """The answers, once two in a row are the same and every hook run has ended."""
    first = _settled(stack, webhook)
    return first if _settled(stack, webhook) == first and len(first["runs"]) >= 3 else None


def _settled(stack: Stack, webhook: str) -> dict[str, Any]:
    with stack.http() as http:
        return {
            "events": [
                event
                for event in http.get("/api/v1/events", params={"limit": 1000}).json()["events"]
                if event["type"] != "System" and event["data"]["event"] != "Accessed"  # by the questions below
            ],
            "found": http.post("/api/v1/memory/query", json={"text": "retrieval documents"}).json()["memories"],
            "runs": http.get("/api/v1/hooks/auto-link-related/runs").json()["runs"],
            "attempts": http.get(f"/api/v1/webhooks/{webhook}/attempts").json()["attempts"],
        }
