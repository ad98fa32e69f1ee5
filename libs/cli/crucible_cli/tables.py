"""Views of lists and single things, one function for each kind; none prints."""

import re
from collections.abc import Sequence

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.json import JSON
from rich.panel import Panel
from rich.text import Text

from crucible_cli.display import clean, duration, headline, reason, summarise
from crucible_cli.layout import SHORT_ID, Cell, Column, FittedLine, Listing
from crucible_cli.tree import type_text
from crucible_client import Count
from crucible_core.envelope import Event
from crucible_core.protocol.events import EventType
from crucible_core.protocol.hooks import HookView, RunRecord
from crucible_core.protocol.memory import MemoryView, ScoredMemory
from crucible_core.protocol.parts import Check, Counters
from crucible_core.protocol.replays import Replay, ReplayTarget
from crucible_core.protocol.retention import RetentionView
from crucible_core.protocol.webhooks import AttemptRecord, WebhookView
from crucible_core.protocol.worlds import RoomView, WorldView

GOOD = ("active", "live", "accepts connections", "ok", "delivered", "running", "done")
IDLE = ("disabled", "skipped", "retrying", "dry", "paused", "cancelled")
_WORD = re.compile(r"\w[\w.-]{0,12}", re.ASCII)
"""A name that a shell takes as it is, and that is short enough for a line."""
LONG = 200
"""Characters of a cell or summary where the width does not cut it."""
_ROOMS = 20
COUNTS = (
    Column("matched", 3, right=True),
    Column("ok", 5, right=True),
    Column("failed", 1, right=True),
    Column("skipped", 6, right=True),
)


def state_text(state: str) -> Text:
    """A state or outcome in its colour; `inert: <reason>` keeps its reason."""
    colour = "green" if state in GOOD else "yellow" if state in IDLE else "red"
    return Text(clean(state, 300), colour)


def event_line(event: Event, *, wide: bool = False) -> RenderableType:
    """One event on one line; `wide` adds its id."""
    line = Text.assemble((f"{event.sequence or '-':>6}", "dim"), "  ", (clock(event.metadata.timestamp), "dim"), "  ")
    line.append(type_text(event)).append("  ")
    tail = Text(f"  {clean(event.metadata.actor, 40)}", "dim")
    if wide:
        tail.append(f"  {event.metadata.id}")
    return FittedLine(line, Text(summarise(event, LONG)), tail)


def event_panel(event: Event) -> RenderableType:
    return Group(event_line(event), as_json(event))


def count_table(count: Count) -> RenderableType:
    total = Text.assemble((f"{count.count:,}", "bold"), " event" if count.count == 1 else " events")
    if not count.groups:
        return total
    columns = (Column("group", floor=20), Column("count", right=True), Column("share", right=True))
    rows = [(clean(key, LONG), f"{number:,}", f"{number / count.count:.1%}") for key, number in count.groups.items()]
    return Group(Listing(columns, rows), total)


def as_json(value: object) -> JSON:
    return JSON(_printable(msgspec.json.encode(value).decode()))


def hooks_table(hooks: Sequence[HookView]) -> RenderableType:
    columns = (
        Column("hook", floor=16),
        Column("state", floor=12),
        Column("timing", 2),
        Column("order", 6, right=True),
        *COUNTS,
        Column("last fired", 4),
        Column("from", 8, floor=12),
    )
    rows: list[tuple[Cell, ...]] = [
        (
            hook.name,
            _state_of(hook),
            hook.timing or "",
            "" if hook.order is None else str(hook.order),
            *_counter_cells(hook.counters),
            clean(hook.origin, LONG),
        )
        for hook in hooks
    ]
    none = Text("No hooks yet. Add one: `crucible hooks add --help` shows how", "dim")
    return Listing(columns, rows) if rows else none


def _state_of(handler: HookView | WebhookView) -> Text:
    if not handler.warnings:
        return state_text(handler.state)
    return Text(clean("; ".join([handler.state, *handler.warnings]), 300), "yellow")


def webhooks_table(webhooks: Sequence[WebhookView]) -> RenderableType:
    columns = (
        Column("id", ids=True),
        Column("name", floor=10),
        Column("state", floor=10),
        Column("events", 5, floor=12),
        Column("url", 4, floor=16),
        *COUNTS,
        Column("last fired", 7),
    )
    rows: list[tuple[Cell, ...]] = [
        (
            hook.id,
            clean(hook.name, LONG),
            _state_of(hook),
            clean(" ".join(entry.event_type for entry in hook.event_filters), LONG),
            clean(hook.url, LONG),
            *_counter_cells(hook.counters),
        )
        for hook in webhooks
    ]
    none = Text("No webhooks yet. Make one: crucible webhooks create NAME URL --on TYPE", "dim")
    return Listing(columns, rows) if rows else none


def webhook_panel(webhook: WebhookView) -> RenderableType:
    """A webhook with its new secret."""
    name = clean(webhook.name)
    lines = Text.assemble((webhook.id, "bold"), f"  {name} → ", clean(webhook.url, 200))
    if isinstance(webhook.secret, str):
        lines.append("\nsecret ").append(webhook.secret, "bold")
        lines.append("\nIt is not shown again. Receivers verify with it: crucible listen --secret …", "dim")
        which = name if _WORD.fullmatch(name) else webhook.id[:SHORT_ID]
        lines.append(f"\nTry it: crucible webhooks test {which} · then: crucible webhooks attempts {which}", "dim")
    if webhook.old_secret_until is not None:
        lines.append(f"\nThe secret before signs, too, until {clean(webhook.old_secret_until)}.", "dim")
    return lines.append_text(_warnings_text(webhook))


def webhook_view(webhook: WebhookView) -> RenderableType:
    """One webhook: whether it works, what it wants, and what waits for it."""
    head = Text.assemble((webhook.id, "bold"), "  ", clean(webhook.name), "  ", state_text(webhook.state))
    head.append_text(_warnings_text(webhook))
    head.append(f"\n→ {clean(webhook.url, LONG)}")
    for entry in webhook.event_filters:
        wanted = f"  {clean(msgspec.json.encode(entry.filter).decode(), LONG)}" if entry.filter else ""
        head.append(f"\n{clean(entry.event_type)}", "cyan").append(wanted, "dim")
    if isinstance(webhook.waiting, int):
        head.append(f"\n{webhook.waiting:,} waiting")
    head.append(f"\nauth {webhook.auth_type}, {clean(msgspec.json.encode(webhook.options).decode(), LONG)}", "dim")
    if webhook.old_secret_until is not None:
        head.append(f"\nthe secret before the last rotation signs until {clean(webhook.old_secret_until)}", "dim")
    return head


def _warnings_text(webhook: WebhookView) -> Text:
    return Text("".join(f"\n{clean(warning, 300)}" for warning in webhook.warnings), "yellow")


def runs_table(runs: Sequence[RunRecord]) -> RenderableType:
    columns = (
        Column("started"),
        Column("outcome"),
        Column("event", 4, floor=14),
        Column("attempt", 6, right=True),
        Column("took", 3, right=True),
        Column("run", 1, ids=True),
        Column("said", 2, floor=16),
    )
    rows = [
        (
            clock(run.started_at),
            state_text(run.outcome),
            run.event_type,
            str(run.attempt),
            duration(run.duration_ms),
            run.run_id,
            clean(_run_text(run), LONG),
        )
        for run in runs
    ]
    return Listing(columns, rows) if rows else Text("No runs yet.", "dim")


def run_view(attempts: Sequence[RunRecord]) -> RenderableType:
    """One run, the first attempt first: what each logged, gave and did."""
    parts: list[RenderableType] = []
    for run in reversed(attempts):
        head = Text.assemble((run.run_id, "bold"), f"  {clean(run.hook)}  ", state_text(run.outcome))
        head.append(f"  attempt {run.attempt}  {run.started_at}  {duration(run.duration_ms)}", "dim")
        head.append(f"\n{run.event_type} {run.event_id}", "dim")
        if run.error:
            head.append("\n").append(_printable(run.error), "red")
        for said in run.log:
            head.append(f"\nlog     {_printable(said)}")
        for effect in run.effects:
            head.append(f"\neffect  {_printable(effect)}", "green")
        if run.next_attempt_at:
            head.append(f"\nagain at {run.next_attempt_at}", "yellow")
        parts.append(head)
        if run.output is not None:
            parts += [Text("output"), as_json(run.output)]
    return Group(*parts)


def _run_text(run: RunRecord) -> str:
    """The error of a run, else what it logged, else its output."""
    output = "" if run.output is None else msgspec.json.encode(run.output).decode()
    return reason(run.error or "") or " · ".join([*run.log, *([output] if output else [])])


def attempts_table(attempts: Sequence[AttemptRecord]) -> RenderableType:
    columns = (
        Column("started"),
        Column("outcome"),
        Column("status", 2, right=True),
        Column("event", 4, floor=10),
        Column("attempt", 6, right=True),
        Column("took", 5, right=True),
        Column("delivery", 3, ids=True),
        Column("error", 1, floor=20),
    )
    rows = [
        (
            clock(attempt.started_at),
            state_text(attempt.outcome),
            "" if attempt.status is None else str(attempt.status),
            attempt.event_type,
            str(attempt.attempt),
            duration(attempt.duration_ms),
            attempt.delivery_id,
            clean(attempt.error or "", LONG),
        )
        for attempt in attempts
    ]
    return Listing(columns, rows) if rows else Text("No attempts yet.", "dim")


def replays_table(replays: Sequence[Replay]) -> RenderableType:
    columns = (
        Column("id", ids=True),
        Column("state", floor=10),
        Column("into", 1, floor=10),
        Column("from", 4, right=True),
        Column("to", 4, right=True),
        Column("progress", 2, right=True),
        Column("sent", 3, right=True),
        Column("skipped", 6, right=True),
        Column("started", 7),
    )
    rows = [
        (
            replay.id,
            state_text(replay.state),
            clean(target_text(replay.target), LONG),
            str(replay.start),
            str(replay.to),
            f"{replay.progress:.0%}",
            str(replay.sent),
            str(replay.skipped),
            clean(replay.created_at[:19]),
        )
        for replay in replays
    ]
    return Listing(columns, rows) if rows else Text("No replays yet. Start one: crucible events replay", "dim")


def replay_view(replay: Replay) -> RenderableType:
    head = Text.assemble((replay.id, "bold"), "  ", state_text(replay.state), f"  {replay.progress:.0%}")
    head.append(f"  into {clean(target_text(replay.target), 80)}", "dim")
    counts = f"{replay.sent} sent, {replay.skipped} refused by its filters, of {replay.total} looked at or to look at"
    head.append(f"\n#{replay.start} to #{replay.to}, now at #{replay.position}: {counts}")
    if replay.error and not replay.state.startswith("failed"):
        head.append(f"\nwaiting: {clean(replay.error, 300)}", "yellow")
    return head


def target_text(target: ReplayTarget) -> str:
    return target.hook or target.webhook or target.subscription or ""


def check_view(check: Check) -> RenderableType:
    """One handler's check, step by step."""
    head = Text.assemble((clean(check.name), "bold"), "  ", state_text(check.verdict))
    if check.duration_ms is not None:
        head.append(f"  {duration(check.duration_ms)}", "dim")
    if check.reason:
        head.append(f"\n{clean(check.reason, 400)}")
    return Group(head, steps_text(check))


def steps_text(check: Check) -> Text:
    """The links of the chain, one a line."""
    lines = [
        Text.assemble(("✓ ", "green") if step.ok else ("✗ ", "red"), step.step, (f"  {clean(step.detail, 200)}", "dim"))
        for step in check.steps
    ]
    return Text("\n").join(lines)


def memory_panel(memory: MemoryView) -> RenderableType:
    foot = Text.assemble((memory.id, "bold"), (f"  #{memory.sequence}  {memory.updated_at}", "dim"))
    if memory.path:
        foot.append(f"\n{clean(memory.path, 300)}", "dim")
    for problem in memory.problems:
        foot.append(f"\nto mend: {clean(problem, 400)}", "yellow")
    if memory.tags:
        foot.append("\n" + clean(" ".join(memory.tags), 300), "cyan")
    for link in memory.links:
        foot.append(f"\n→ {clean(link.target, 200)} ({clean(link.type)})", "green")
    return Group(Panel(Text(_printable(memory.content)), box=box.ROUNDED, border_style="dim", expand=False), foot)


def memories_table(memories: Sequence[ScoredMemory]) -> RenderableType:
    columns = (
        Column("score", right=True),
        Column("id", ids=True),
        Column("memory", floor=24),
        Column("tags", 1, floor=10),
    )
    rows = [
        (f"{memory.score:.2f}", memory.id, clean(headline(memory.content), LONG), clean(" ".join(memory.tags), LONG))
        for memory in memories
    ]
    return Listing(columns, rows) if rows else Text("Nothing found.", "dim")


def worlds_table(worlds: Sequence[WorldView]) -> RenderableType:
    columns = (Column("world"), Column("description", 2, floor=12), Column("rooms", 1, floor=12), Column("created", 3))
    rows = []
    for world in worlds:
        rooms = " ".join(room.id for room in world.rooms[:_ROOMS]) + (" …" if len(world.rooms) > _ROOMS else "")
        rows.append((world.id, clean(world.description, LONG), clean(rooms, LONG), world.created_at[:19]))
    return Listing(columns, rows)


def rooms_table(rooms: Sequence[RoomView]) -> RenderableType:
    return Listing((Column("room"), Column("created", 1)), [(room.id, room.created_at[:19]) for room in rooms])


def retention_table(retention: RetentionView) -> RenderableType:
    columns = (Column("type", floor=20), Column("world", floor=12), Column("keep"))
    rows = [(clean(rule.type, LONG), clean(rule.world_id or "any", LONG), rule.keep) for rule in retention.rules]
    foot = Text(f"All other events: {retention.default}. Revision {retention.revision}.", "dim")
    return Group(Listing(columns, rows), foot) if rows else foot


def types_table(kinds: Sequence[EventType]) -> RenderableType:
    columns = (
        Column("type", floor=20),
        Column("version", 1),
        Column("count", 1, right=True),
        Column("registered", 5),
        Column("other names", 4, floor=14),
        Column("when", 3, floor=20),
    )
    rows = []
    for kind in kinds:
        mark = Text("✓", "green") if kind.registered else Text("")
        aliases = clean(" ".join(kind.aliases[:4]), LONG) + (" …" if len(kind.aliases) > 4 else "")
        rows.append((kind.type, kind.version, str(kind.count), mark, aliases, clean(kind.description, LONG)))
    none = Text("No types are registered. Add one: crucible events types add FILE.json", "dim")
    return Listing(columns, rows) if rows else none


def clock(timestamp: str) -> str:
    """The time of day in an RFC 3339 timestamp, to the millisecond."""
    return clean(timestamp[11:23].rstrip("Z"), 12)


def _counter_cells(counters: Counters) -> tuple[str, ...]:
    numbers = (counters.matched, counters.ok, counters.failed, counters.skipped)
    return *map(str, numbers), (counters.last_fired or "never")[:19]


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)
