"""Every table at the widths that people have, with names and texts that are markup, control characters or very long."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

from crucible_cli.commands.doctor import Diagnosis, Finding, Health, Service, diagnosis_view, health_view, loss_text
from crucible_cli.layout import UNCUT, Column, Listing, shorten_ids
from crucible_cli.tables import (
    attempts_table,
    count_table,
    event_line,
    hooks_table,
    memories_table,
    replays_table,
    retention_table,
    rooms_table,
    runs_table,
    types_table,
    webhook_panel,
    webhook_view,
    webhooks_table,
    worlds_table,
)
from crucible_client import Count
from crucible_core.envelope import Data, Event, Metadata, Source
from crucible_core.protocol.events import EventType
from crucible_core.protocol.hooks import HookView, RunRecord
from crucible_core.protocol.losses import Loss
from crucible_core.protocol.memory import MemoryStatus, ScoredMemory, SkippedEvent
from crucible_core.protocol.parts import Check, CheckStep, Counters, TypeFilter
from crucible_core.protocol.replays import Replay, ReplayTarget
from crucible_core.protocol.retention import RetentionRule, RetentionView
from crucible_core.protocol.webhooks import AttemptRecord, WebhookOptions, WebhookView
from crucible_core.protocol.worlds import RoomView, WorldView

HOSTILE = "[/red] [bold]x[/bold] [[wikilink]] list[int] :smile: \x1b[2J\n👩‍💻 会議 " + "long " * 60
AT = "2026-11-29T10:00:00.123456Z"
COUNTERS = Counters(matched=1_000_000, invoked=9, ok=123_456, failed=7, skipped=3, last_fired=AT)


def hook(name: str = HOSTILE) -> HookView:
    return HookView(name, f"inert: {HOSTILE}", "Post", 100, HOSTILE, None, COUNTERS, AT, 3)


def webhook(number: int = 0) -> WebhookView:
    id = f"whk_01kb5t8pgvf8rr2q5a2qy4ch{number:02}"
    filters = [TypeFilter("Memory.*"), TypeFilter("Custom.Something")]
    url = f"https://example.org/{HOSTILE}"
    return WebhookView(id, HOSTILE, url, filters, "hmac", WebhookOptions(), "active", COUNTERS, AT, AT)


def run(outcome: str = "failed") -> RunRecord:
    return RunRecord(
        run_id="run_01kb5t8pgvf8rr2q5a2qy4ch2m",
        hook=HOSTILE,
        timing="Post",
        event_id="evt_1",
        event_type="Memory.Created",
        correlation_id="cor_1",
        attempt=1,
        outcome=outcome,
        started_at=AT,
        duration_ms=12.5,
        error=HOSTILE,
    )


def attempt() -> AttemptRecord:
    return AttemptRecord(
        "dlv_01kb5t8pgvf8rr2q5a2qy4ch2m", "whk_1", "evt_1", "Memory.Created", 1, "cor_1", 1, "retrying", AT, 1.0, 500,
        HOSTILE,
    )  # fmt: skip


def replay() -> Replay:
    return Replay(
        id="rpl_01kb5t8pgvf8rr2q5a2qy4ch2m",
        state="running",
        start=0,
        to=10**9,
        position=1,
        matched=3,
        sent=123_456,
        skipped=2,
        total=3,
        progress=0.5,
        target=ReplayTarget(webhook=HOSTILE),
        filters=[],
        rate=None,
        world_id=None,
        room_id=None,
        created_at=AT,
        updated_at=AT,
    )


def memory() -> ScoredMemory:
    return ScoredMemory(
        id="mem_01kb5t8pgvf8rr2q5a2qy4ch2m",
        content=HOSTILE,
        tags=["#[/b]"],
        entities=[],
        links=[],
        metadata={},
        world_id="default",
        room_id="main",
        created_at=AT,
        updated_at=AT,
        sequence=1,
        score=0.5,
    )


def event() -> Event:
    metadata = Metadata(
        id="evt_01kb5t8pgvf8rr2q5a2qy4ch2m", timestamp=AT, source=Source("user", "alice"),
        actor="user:[red]alice", correlation_id="cor_1",
    )  # fmt: skip
    return Event("Memory", Data("Created", {"content": HOSTILE, "tags": ["#[b]"]}), metadata, 123_456)


SKIPPED = [SkippedEvent(sequence=7, reason=HOSTILE)] * 9

SHOWN: dict[str, Callable[[], RenderableType]] = {
    "hooks": lambda: hooks_table([hook(), hook("b")]),
    "webhooks": lambda: webhooks_table([webhook(1), webhook(2)]),
    "runs": lambda: runs_table([run(), run("ok")]),
    "attempts": lambda: attempts_table([attempt()]),
    "replays": lambda: replays_table([replay()]),
    "memories": lambda: memories_table([memory()]),
    "worlds": lambda: worlds_table([WorldView("w" * 60, HOSTILE, AT, [RoomView("main", AT)] * 30)]),
    "rooms": lambda: rooms_table([RoomView("main", AT)]),
    "retention": lambda: retention_table(RetentionView([RetentionRule(HOSTILE, "forever", HOSTILE)], "30d", 3)),
    "types": lambda: types_table([EventType("Custom.x", HOSTILE, ["a" * 80] * 5, True, {}, registered=True)]),
    "count": lambda: count_table(Count(10, {HOSTILE: 10})),
    "event": lambda: event_line(event()),
    "health": lambda: health_view(
        Health(
            [Service("events", "ready", HOSTILE, 1, 10_000, 12_345), Service("memory", "hangs")],
            memory=MemoryStatus(
                sequence=9, memories=1, skipped=2000, latest=[SkippedEvent(sequence=7, reason=HOSTILE)] * 9
            ),
        )
    ),
    "doctor": lambda: diagnosis_view(
        Diagnosis(
            False, [Finding("hook", "x", Check(HOSTILE, "inert", HOSTILE, 1.0, [CheckStep("a", False, HOSTILE)]))]
        )
    ),
}


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"kind": "missing", "first": 3, "last": 4, "count": 2}, "2 events of the log: sequences 3 to 4, noticed"),
        (
            {"kind": "end", "first": 3, "last": 4, "count": 2, "stream": "KV_hooks"},
            "2 messages at the end of KV_hooks: seq",
        ),
        (
            {"kind": "log", "first": 1, "last": 4, "count": 4, "stream": "ATTEMPTS"},
            "4 messages of the former ATTEMPTS: seq",
        ),
        (
            {"kind": "unreadable", "first": 0, "last": 0, "count": 0, "stream": "HOOK_RUNS", "bytes": 11_680},
            "11,680 bytes that JetStream cannot read, of HOOK_RUNS, noticed",
        ),
    ],
)
def test_a_loss_is_said_with_its_stream(about: dict[str, Any], said: str) -> None:
    assert loss_text(Loss(log=AT, found_at=AT, **about)).plain.startswith(said)


def test_what_was_put_aside_is_said() -> None:
    assert "#7  [/red] [bold]x[/bold]" in rendered(SHOWN["health"](), UNCUT)
    memory = MemoryStatus(sequence=9, memories=1, skipped=2000, latest=SKIPPED)
    shown = rendered(health_view(Health([Service("events", "ready", parked=12_345)], memory=memory)), UNCUT)
    assert "12,345 messages of all services are parked" in shown
    assert "memory could not read 2,000 events" in shown
    assert shown.count("#7  ") == 5


def rendered(view: RenderableType, width: int, **options: Any) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, markup=False, emoji=False, **options)
    console.print(view)
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("name", SHOWN)
def test_table_fits_the_width(name: str, width: int) -> None:
    shown = rendered(SHOWN[name](), width)
    assert max(cell_len(line) for line in shown.splitlines()) <= width
    assert "\x1b" not in shown


@pytest.mark.parametrize("name", ["hooks", "webhooks", "runs", "attempts", "memories", "retention", "count", "event"])
def test_text_from_data_is_no_markup(name: str) -> None:
    assert "[/red] [bold]x[/bold] [[wikilink]] list[int] :smile:" in rendered(SHOWN[name](), UNCUT)


@pytest.mark.parametrize("name", SHOWN)
def test_colours_change_no_character(name: str) -> None:
    coloured = rendered(SHOWN[name](), 80, force_terminal=True, color_system="truecolor")
    assert Text.from_ansi(coloured).plain.rstrip() == rendered(SHOWN[name](), 80).rstrip()


@pytest.mark.parametrize("name", SHOWN)
def test_every_row_is_one_line(name: str) -> None:
    if name in ("doctor", "health"):
        return
    view = SHOWN[name]()
    assert len(rendered(view, 80).split("cut:")[0].splitlines()) <= len(rendered(view, UNCUT).splitlines()) + 1


def test_ids_are_short_whole_and_unique_where_the_width_is_small() -> None:
    narrow = rendered(webhooks_table([webhook(1), webhook(2)]), 80).splitlines()
    ids = [line.split()[0] for line in narrow[1:3]]
    assert len(set(ids)) == 2
    assert all(webhook(number).id.startswith(id) for number, id in zip((1, 2), ids, strict=True))
    wide = rendered(webhooks_table([webhook(1), webhook(2)]), UNCUT).splitlines()
    assert wide[1].split()[0] == webhook(1).id


def test_why_a_webhook_may_wait_for_ever_is_shown() -> None:
    waits = msgspec.structs.replace(webhook(1), warnings=["nobody emits Memory.Pruned yet"])
    for view in (webhooks_table([waits]), webhook_view(waits), webhook_panel(waits)):
        assert "nobody emits Memory.Pruned yet" in rendered(view, UNCUT)


def test_cut_says_what_is_missing() -> None:
    shown = rendered(SHOWN["webhooks"](), 80)
    assert "left out:" in shown
    assert "--wide" in shown
    assert "--wide" not in rendered(SHOWN["webhooks"](), UNCUT)


def test_columns_go_by_rank_and_the_widest_cell_gives_way() -> None:
    columns = (Column("a"), Column("b", 1, floor=4), Column("c", 2))
    shown = rendered(Listing(columns, [("x" * 10, "y" * 30, "z" * 10)]), 30).splitlines()
    assert shown[1] == "x" * 10 + "  " + "y" * 5 + "…" + "  " + "z" * 10
    shown = rendered(Listing(columns, [("x" * 10, "y" * 30, "z" * 10)]), 20).splitlines()
    assert shown[1] == "x" * 10 + "  " + "y" * 7 + "…"


@pytest.mark.parametrize(
    ("ids", "short"),
    [
        ([], []),
        (["whk_01kb5t8pgvf8rr2q"], ["whk_01kb5t8pgv"]),
        (["whk_01kb5t8pgvaa", "whk_01kb5t8pgvab"], ["whk_01kb5t8pgvaa", "whk_01kb5t8pgvab"]),
        (["short", "short"], ["short", "short"]),
    ],
)
def test_ids_are_shortened_to_what_tells_them_apart(ids: Sequence[str], short: Sequence[str]) -> None:
    assert shorten_ids(ids) == short
