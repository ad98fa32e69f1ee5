"""The words of the mission through all of Crucible: accepted as written, found under either name, and readable."""

import json
import time
from typing import Any
from urllib.parse import quote

import httpx

from .conftest import Stack, until

EVENTS = "/api/v1/events"
AHEAD = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2 * 86_400))
WRITTEN: list[tuple[str, dict[str, Any]]] = [
    ("Memory.Created", {"id": "m", "content": "x", "entities": [], "links": ["n"], "tags": ["#a"], "metadata": {}}),
    ("Memory.Updated", {"id": "m", "previous_hash": "a", "new_hash": "b", "changes": {"content": "y"}}),
    ("Memory.Linked", {"from": "m", "to": "n", "link_type": "cites", "strength": 0.5}),
    ("Memory.Tagged", {"id": "m", "tag": "#b"}),
    ("Memory.Accessed", {"id": "m", "query": "x", "relevance": 0.9}),
    ("Memory.Consolidated", {"original_ids": ["m", "n"], "summary_id": "s"}),
    ("entry.created", {"id": "e", "kb": "project-kb", "type": "backlog_item", "title": "Do it"}),
    ("entry.created", {"entry_id": "g", "kb_name": "bare", "type": "note", "actor": "alice", "timestamp": 1795860000}),
    ("entry.created", {"entry_id": "f", "kb_name": "other", "entry_type": "note", "title": "Or that"}),
    ("File.Created", {"path": "a.md", "content": "# Here"}),
    ("File.Renamed", {"from": "a.md", "to": "b.md", "content": "# Here"}),
    ("Graph.EdgeCreated", {"from": "a", "to": "b"}),
    ("Flow.Started", {"id": "run_1", "name": "research", "trigger": "manual", "inputs": {}}),
]
FOUND: list[tuple[str, dict[str, Any], int]] = [
    ("Memory.Linked", {"from": "m"}, 1),
    ("Memory.Linked", {"source": "m", "target": "n", "weight": {"gt": 0.1}}, 1),
    ("Memory.Linked", {"type": "cites", "link_type": "cites"}, 1),
    ("entry.created", {"kb": "project-kb", "type": "backlog_item"}, 1),
    ("entry.created", {"kb_name": {"in": ["project-kb", "other"]}}, 2),
    ("File.Renamed", {"old_path": "a.md", "path": "b.md"}, 1),
    ("Flow.*", {"flow": "research", "run_id": "run_1"}, 1),
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"type": "Memory.Created", "payload": {"id": "p", "content": ""}, "entity": "q"}, "entity"),
    ({"type": "Memory.Deleted", "payload": {"id": "m", "weight": 1}}, "payload.weight"),
    ({"type": "Memory.Created", "payload": {"id": "p/q", "content": ""}}, "payload.id"),
    ({"type": "Custom", "data": {"event": "X"}, "metadata": {"timestamp": AHEAD}}, "timestamp"),
]
ODD_IDS = [" m ", "ключ", "😀", "a?b#c%20&", "x" * 200]


def test_words_are_accepted_found_and_read(shared: Stack) -> None:
    with shared.http() as http:
        hook = {"name": "ci", "url": "http://127.0.0.1:9/", "event_filters": [{"event_type": "entry.*"}]}
        hook["event_filters"][0]["filter"] = {"kb": "project-kb", "type": "backlog_item"}  # type: ignore[index]
        webhook = http.post("/api/v1/webhooks", json=hook).raise_for_status().json()["id"]
        last = 0
        for kind, payload in WRITTEN:
            answer = http.post(EVENTS, json={"type": kind, "payload": payload})
            assert answer.status_code == 201, (kind, answer.text)
            last = answer.json()["sequence"]
        for kind, wanted, count in FOUND:
            asked = {"type": kind, "filter": json.dumps(wanted), "min_sequence": last}
            found = http.get(EVENTS, params=asked).raise_for_status().json()["events"]
            assert len(found) == count, (kind, wanted)
        for event, path in REFUSED:
            answer = http.post(EVENTS, json=event)
            assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, path), event
        assert [link["target"] for link in memory(http, "m")["links"]] == ["n", "n"]
        assert (memory(http, "m")["content"], memory(http, "m")["tags"]) == ("y", ["#a", "#b"])
        assert (memory(http, "e")["content"], memory(http, "g")["content"]) == ("Do it", "")
        until(lambda: paths(http) == ["b.md"], 10)
        until(lambda: http.get(f"/api/v1/webhooks/{webhook}").json()["counters"]["matched"] == 1, 10)


def test_ids_of_any_form_are_read(shared: Stack) -> None:
    with shared.http() as http:
        for id in ODD_IDS:
            event = {"type": "Memory.Created", "payload": {"id": id, "content": "found"}}
            http.post(EVENTS, json=event).raise_for_status()
            assert memory(http, id)["content"] == "found"


def memory(http: httpx.Client, id: str) -> Any:
    return http.get(f"/api/v1/memory/{quote(id, safe='')}").raise_for_status().json()


def paths(http: httpx.Client) -> list[str]:
    found = http.post("/api/v1/memory/query", json={"text": "Here"}).raise_for_status().json()["memories"]
    return [each["path"] for each in found]
