"""A trace as a tree: each effect under its cause, with times."""

import io
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from crucible_cli.display import clean, duration, headline, summarise
from crucible_cli.tree import render_trace
from crucible_core.envelope import Data, Event, Metadata, Source
from crucible_core.protocol.events import TracedDelivery, TraceNode, TraceReply


def event(dotted: str, payload: dict[str, Any]) -> Event:
    category, _, name = dotted.partition(".")
    metadata = Metadata(id="evt_1", timestamp="", source=Source("user", "a"), actor="user:a", correlation_id="cor_1")
    return Event(category, Data(name, payload), metadata, 1)


def node(dotted: str, elapsed_ms: float, payload: dict[str, Any], *effects: TraceNode) -> TraceNode:
    return TraceNode(msgspec.Raw(msgspec.json.encode(event(dotted, payload))), elapsed_ms, list(effects))


def test_effects_stand_under_their_causes() -> None:
    linked = node("Memory.Linked", 140.2, {"id": "mem_a", "target": "mem_b", "weight": 0.82})
    ran = node("Hook.Executed", 151.0, {"hook": "auto-link-related", "run_id": "run_1", "duration_ms": 31.0})
    updated = node("Memory.Updated", 38.4, {"id": "mem_a", "title": "Clocks", "tags": ["#time"]}, linked, ran)
    trace = TraceReply("cor_1", 4, False, [node("File.Modified", 0.0, {"path": "clocks.md"}, updated)])
    console = Console(width=100, file=io.StringIO())
    with console.capture() as capture:
        console.print(render_trace(trace))
    assert [line.rstrip() for line in capture.get().splitlines()] == [
        "trace cor_1  4 events",
        "└── File.Modified  clocks.md  +0.0 ms",
        "    └── Memory.Updated  Clocks #time  +38 ms",
        "        ├── Memory.Linked  mem_a → mem_b (0.82)  +140 ms",
        "        └── Hook.Executed  auto-link-related 31 ms  +151 ms",
    ]


def test_deliveries_stand_under_their_events() -> None:
    def shown(**fields: Any) -> str:
        found = node("Custom.X", 0.0, {})
        found.deliveries = [
            TracedDelivery("dlv_1", "whk_1", "ci", "evt_1", ended_at="", elapsed_ms=12.0, **fields),
        ]
        console = Console(width=100, file=io.StringIO())
        with console.capture() as capture:
            console.print(render_trace(TraceReply("cor_1", 1, False, [found], complete=False)))
        return capture.get()

    assert "└── webhook delivered  ci  dlv_1  +12 ms" in shown(outcome="delivered", attempts=1)
    assert "webhook exhausted  ci  dlv_1  attempt 5  503  +12 ms" in shown(outcome="exhausted", attempts=5, error="503")
    assert "without deliveries: webhooks is away" in shown(outcome="delivered", attempts=1)


def test_summaries_say_what_matters() -> None:
    assert summarise(event("File.Renamed", {"path": "b.md", "old_path": "a.md"})) == "a.md → b.md"
    assert summarise(event("File.Renamed", {"from": "a.md", "to": "b.md"})) == "a.md → b.md"
    assert summarise(event("File.Processed", {"path": "a.md", "status": "created"})) == "a.md created"
    refused = {"path": "a.md", "status": "refused", "error": "a.md: too long"}
    assert summarise(event("File.Processed", refused)) == "a.md refused: too long"
    assert (
        summarise(event("Memory.Linked", {"from": "mem_1", "to": "mem_2", "strength": 0.5})) == "mem_1 → mem_2 (0.50)"
    )
    assert summarise(event("Hook.Failed", {"hook": "h", "error": "timed out"})) == "h timed out"
    assert summarise(event("Memory.Tagged", {"id": "mem_1", "tag": "#x"})) == "mem_1 #x"
    assert summarise(event("Custom.X", {"a": [1]})) == '{"a":[1]}'
    assert summarise(event("Custom.X", {})) == ""


def test_headline_passes_over_front_matter() -> None:
    assert headline("---\ntitle: x\n---\n\n## Vector clocks\n") == "Vector clocks"
    assert headline("---\nno end") == "---"
    assert headline("") == ""


def test_durations() -> None:
    assert [duration(ms) for ms in (0.04, 9.96, 12.4, 9999.0, 61_234.0)] == [
        "0.0 ms",
        "10.0 ms",
        "12 ms",
        "9999 ms",
        "61.2 s",
    ]


@given(st.text(), st.integers(1, 80))
def test_clean_text_is_one_short_printable_line(text: str, length: int) -> None:
    cleaned = clean(text, length)
    assert len(cleaned) <= length
    assert cleaned.isprintable()


FIELDS = ("path", "old_path", "content", "title", "id", "target", "weight", "tags", "hook", "duration_ms", "reason")
VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.just([1]), st.just({}))


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5))
def test_any_payload_has_a_summary(payload: dict[str, Any]) -> None:
    for dotted in (
        "File.Created",
        "Memory.Created",
        "Memory.Linked",
        "Memory.Tagged",
        "Hook.Failed",
        "Webhook.Failing",
    ):
        assert summarise(event(dotted, payload)).isprintable()
