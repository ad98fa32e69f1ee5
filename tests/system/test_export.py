"""The log taken out and put into an empty system: the same events, ids, times, order and retention, and what is made
of them."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crucible_client import Crucible
from crucible_core.errors import NotFoundError

from .conftest import Stack, until

TEXTS = ("plain", "größer, 東京 🦀", 'quotes " and \\ and \n a break', "\u2028 and a nul \u0000", "x" * 3000)
NOTE = (
    "---\ntitle: On logs\ntags: [research]\n---\nRetrieval with a log. It is long enough for a hook. [[Clocks]]\n" * 3
)


def test_export_wipe_import(make_stack: Callable[..., Stack], tmp_path: Path) -> None:
    before, after, types = tmp_path / "before.ndjson", tmp_path / "after.ndjson", tmp_path / "types.json"
    stack = make_stack()
    stack.install_hooks()
    with stack.client() as crucible:
        memories = _live(crucible)
        _settle(stack, crucible)
        views = {id: crucible.memory.get(id) for id in memories}
    stack.run("events", "export", str(before))
    stack.run("events", "types", "export", str(types))
    stack.stop()

    stack = make_stack()
    stack.install_hooks()
    with stack.client() as crucible:
        exported = _lines(before)
        print(len(exported), "events:", Counter(f"{event['type']}.{event['data']['event']}" for event in exported))
        refused = stack.run("events", "import", str(before), check=False)
        assert (refused.returncode, refused.stdout) == (1, ""), "nothing is sent while a type is missing"
        assert "Order.Placed: 3 events" in refused.stderr
        stack.run("events", "types", "add", str(types))
        told = json.loads(stack.run("events", "import", str(before), "--json").stdout)
        assert (told["committed"], told["duplicates"], told["refused"]) == (len(exported), 0, 0), told
        told = json.loads(stack.run("events", "import", str(before), "--json").stdout)
        assert (told["committed"], told["duplicates"], told["refused"]) == (0, len(exported), 0)
        _settle(stack, crucible)
        stack.run("events", "export", str(after))

        imported = _lines(after)
        known = {event["metadata"]["id"] for event in exported}
        assert _bytes(after, known) == _bytes(before, known), "byte for byte, in the same order"
        assert {event["type"] for event in imported if event["metadata"]["id"] not in known} <= {"Hook", "System"}
        assert not _effects(imported, known), "nothing reacts to an import"
        for id, view in views.items():
            found = crucible.memory.get(id)
            assert _content(found) == _content(view)
        with pytest.raises(NotFoundError):
            crucible.memory.get("mem_forgotten")


def _live(crucible: Crucible) -> list[str]:
    """A few thousand events of all sorts; the ids of the memories that are left."""
    items = list(crucible.events.append_many(_mixed(2500)))
    assert all(item.sequence for item in items)
    made = [crucible.memory.create(f"Memory {n}: {TEXTS[n % 3]}", tags=["#research"]).id for n in range(20)]
    for id in made[::3]:
        crucible.memory.update(id, content="Changed, and longer than it was. " * 8)
    crucible.events.append("Memory.Created", {"id": "mem_forgotten", "content": "soon gone"}, retention="forever")
    crucible.memory.delete("mem_forgotten")
    crucible.memory.delete(made[1])
    crucible.events.append_batch([{"type": "Custom.Part", "payload": {"n": n}} for n in range(300)], atomic=True)
    crucible.events.append("File.Created", {"path": "notes/logs.md", "content": NOTE})
    crucible.events.append("File.Created", {"path": "notes/gone.md", "content": NOTE})
    crucible.events.append("File.Deleted", {"path": "notes/gone.md"})
    crucible.events.append("File.Modified", {"path": "notes/logs.md", "content": NOTE + "More."})
    _ordered(crucible)
    return [id for id in made if id != made[1]]


def _ordered(crucible: Crucible) -> None:
    """Events of both versions of a registered type, one of them in a world of its own, one of them redacted."""
    fields = {"id": {"type": "string"}}
    strict = {"type": "object", "properties": fields, "required": ["id"], "additionalProperties": False}
    crucible.events.register_type("Order.Placed", strict, aliases=["new_order"])
    crucible.events.append("new_order", {"id": "o_1"}, retention="forever")
    wider = {**strict, "properties": {**fields, "note": {"type": "string"}}}
    crucible.events.register_type("Order.Placed", wider, version="1.1.0")
    crucible.worlds.create("acme")
    crucible.rooms.create("acme", "lab")
    crucible.events.append("Order.Placed", {"id": "o_2", "note": "2"}, world_id="acme", room_id="lab")
    crucible.events.redact(crucible.events.append("Order.Placed", {"id": "o_3"}).id, reason="asked for")


def _mixed(count: int) -> Iterator[dict[str, Any]]:
    for n in range(count):
        event: dict[str, Any] = {
            "type": ("Custom.Counted", "Task.Claimed", "Agent.MessageSent")[n % 3],
            "payload": [
                {"n": n, "half": n / 2, "text": TEXTS[n % 5], "deep": {"list": [None, True, {"ä": 1}]}},
                {"id": f"task_{n % 7}"},
                {"agent_id": "agent_1", "message": TEXTS[n % 5]},
            ][n % 3],
            "id": f"evt_mixed{n}",
        }
        if n % 4 == 0:
            event["retention"] = "forever"
        if n % 5 == 0 and n:
            event |= {"causation_id": f"evt_mixed{n - 1}", "correlation_id": f"cor_{n // 50}"}
        if n % 7 == 0:
            category, _, name = event.pop("type").partition(".")
            metadata = {
                "id": event.pop("id"),
                "timestamp": f"2026-01-0{1 + n % 9}T10:00:00.{n:06}Z",
                "version": "2.1.0",
                "source": {"kind": "agent", "id": "älva"},
                "actor": "agent:älva",
                "hop": n % 8,
                "correlation_id": event.pop("correlation_id", None),
                "causation_id": event.pop("causation_id", None),
                "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                "extensions": {"partitionkey": "p1"},
            }
            event = {
                "type": category,
                "data": {"event": name, "payload": event.pop("payload")},
                "metadata": metadata,
                **event,
            }
        yield event


def _settle(stack: Stack, crucible: Crucible) -> None:
    """Returns once the log has stopped growing: hooks and notes are done with it."""

    def quiet() -> bool:
        with stack.http() as http:
            runs = http.get("/api/v1/hooks/auto-link-related").json()["counters"]
        first = crucible.events.count().count
        until(lambda: True, 1)
        return _unchanged(crucible, first) and runs["matched"] == runs["invoked"] + runs["skipped"]

    until(quiet, 60)


def _unchanged(crucible: Crucible, first: int) -> bool:
    return all(crucible.events.count().count == first for _ in range(40))


def _lines(file: Path) -> list[dict[str, Any]]:
    raw = file.read_bytes()
    assert raw.endswith(b"}\n\n"), "the export is complete"
    events = [json.loads(line) for line in raw.splitlines() if line]
    sequences = [event["sequence"] for event in events]
    assert sequences == sorted(set(sequences))
    return events


def _bytes(file: Path, ids: set[str]) -> list[bytes]:
    """The lines of some events without their sequences."""
    lines = [line for line in file.read_bytes().splitlines() if line and json.loads(line)["metadata"]["id"] in ids]
    return [re.sub(rb',"sequence":\d+(,"retention":"forever")?}$', rb"\1}", line) for line in lines]


def _effects(imported: list[dict[str, Any]], known: set[str]) -> list[dict[str, Any]]:
    new = [event for event in imported if event["metadata"]["id"] not in known]
    return [event for event in new if event["metadata"]["causation_id"] in known]


def _content(view: Any) -> tuple[Any, ...]:
    return (view.id, view.content, view.tags, view.links, view.metadata, view.created_at, view.updated_at)
