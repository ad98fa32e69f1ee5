"""What is refused leaves nothing behind in a process."""

import socket
from typing import Any

import pytest

from .conftest import Stack

_TIMES = 80
_MOST_GROWTH = 40 * 2**20
_TEXT = "x" * 900_000
_LATE = {"type": "Custom.A", "payload": {"id": "a", "text": _TEXT}, "expected_sequence": 99}


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("events", 422, {"json": {"type": "Memory.Tagged", "payload": {"id": 1, "tag": _TEXT}}}),
        ("events", 409, {"json": _LATE}),
        ("events", 200, {"json": [_LATE]}),
        ("events", 413, {"json": {"type": "Custom.A", "payload": {"text": 2 * _TEXT}}}),
        ("memory", 400, {"content": f'{{"content": "{_TEXT}", "tags": [], "tags": []}}'}),
    ],
    ids=["schema", "version", "batch", "size", "keys"],
)
def test_refused_payloads_are_let_go(shared: Stack, path: str, status: int, body: dict[str, Any]) -> None:
    """An error that is kept with its traceback would keep the payload too, until the garbage collector comes."""
    assert grown(shared, path, status, body) < _MOST_GROWTH


def test_events_that_a_guard_could_not_judge_are_let_go(shared: Stack) -> None:
    with socket.socket() as closed, shared.http() as http:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        trigger = {"events": [{"type": "Custom", "event": "A"}], "timing": "Pre"}
        hook = {"name": "away", "trigger": trigger, "action": {"type": "HTTP", "url": url}}
        http.post("/api/v1/hooks", json=hook).raise_for_status()
        body = {"json": {"type": "Custom.A", "payload": {"text": _TEXT}}}
        assert grown(shared, "events", 422, body) < _MOST_GROWTH


def grown(stack: Stack, path: str, status: int, body: dict[str, Any]) -> int:
    """Bytes that the process grew by that grew most, while the same request came again and again."""
    processes = [stack.pid(service) for service in ("gateway", "events", "hooks")]
    with stack.http() as http:
        assert http.post(f"/api/v1/{path}", **body).status_code == status
        before = [process.memory_info().rss for process in processes]
        for _ in range(_TIMES):
            http.post(f"/api/v1/{path}", **body)
    return max(process.memory_info().rss - was for process, was in zip(processes, before, strict=True))
