"""What people see of lists and single things: one function for each kind, none of which prints."""

from collections.abc import Iterable, Sequence

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.json import JSON
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from crucible_client import Count
from crucible_core.envelope import Event
from crucible_core.protocol.events import EventType
from crucible_core.protocol.hooks import HookView, RunRecord
from crucible_core.protocol.memory import MemoryView, ScoredMemory
from crucible_core.protocol.replays import Replay, ReplayTarget
from crucible_core.protocol.retention import RetentionView
from crucible_core.protocol.shared import Check, Counters
from crucible_core.protocol.webhooks import AttemptRecord, WebhookView
from crucible_core.protocol.worlds import RoomView, WorldView

from .summary import clean, duration, headline, summarise
from .tree import type_text

GOOD = ("active", "live", "ok", "delivered", "running", "done")
IDLE = ("disabled", "skipped", "retrying", "dry", "paused", "cancelled")


def state_text(state: str) -> Text:
    """A state or outcome in its colour; `inert: <reason>` keeps its reason."""
    colour = "green" if state in GOOD else "yellow" if state in IDLE else "red"
    return Text(clean(state, 300), colour)


def event_line(event: Event) -> Text:
    """One event on one line."""
    line = Text.assemble((f"{event.sequence or '-':>6}", "dim"), "  ", (clock(event.metadata.timestamp), "dim"), "  ")
    line.append(type_text(event)).append("  ").append(summarise(event))
    return line.append(f"  {clean(event.metadata.actor, 40)}", "dim")


def event_panel(event: Event) -> RenderableType:
    return Group(event_line(event), as_json(event))


def count_table(count: Count) -> RenderableType:
    total = Text.assemble((f"{count.count:,}", "bold"), " event" if count.count == 1 else " events")
    if not count.groups:
        return total
    table = _table("group", "count", "share")
    for key, number in count.groups.items():
        table.add_row(clean(key, 200), f"{number:,}", f"{number / count.count:.1%}")
    return Group(table, total)


def as_json(value: object) -> JSON:
    return JSON(_printable(msgspec.json.encode(value).decode()))


def hooks_table(hooks: Sequence[HookView]) -> RenderableType:
    table = _table("hook", "state", "timing", "order", *COUNTS, "last fired", "from")
    for hook in hooks:
        order = "" if hook.order is None else str(hook.order)
        counts, last = _counted(hook.counters)
        table.add_row(
            hook.name, state_text(hook.state), hook.timing or "", order, *counts, last, clean(hook.origin, 60)
        )
    return table if hooks else Text("No hooks yet. Add one: crucible hooks add FILE.md", "dim")


def webhooks_table(webhooks: Sequence[WebhookView]) -> RenderableType:
    table = _table("id", "name", "state", "events", "url", *COUNTS, "last fired")
    for hook in webhooks:
        events = " ".join(entry.event_type for entry in hook.event_filters)
        counts, last = _counted(hook.counters)
        table.add_row(hook.id, hook.name, state_text(hook.state), clean(events), clean(hook.url, 200), *counts, last)
    return table if webhooks else Text("No webhooks yet. Make one: crucible webhooks create NAME URL --on TYPE", "dim")


def webhook_panel(webhook: WebhookView) -> RenderableType:
    """A new webhook, with its secret."""
    lines = Text.assemble((webhook.id, "bold"), "  ", clean(webhook.name), " → ", clean(webhook.url, 200))
    if isinstance(webhook.secret, str):
        lines.append("\nsecret ").append(webhook.secret, "bold")
        lines.append("\nIt is not shown again. Receivers verify with it: crucible listen --secret …", "dim")
    return lines


def runs_table(runs: Sequence[RunRecord]) -> RenderableType:
    table = _table("started", "outcome", "event", "attempt", "took", "run", "error")
    for run in runs:
        table.add_row(
            clock(run.started_at),
            state_text(run.outcome),
            run.event_type,
            str(run.attempt),
            duration(run.duration_ms),
            run.run_id,
            clean(run.error or "", 120),
        )
    return table if runs else Text("No runs yet.", "dim")


def attempts_table(attempts: Sequence[AttemptRecord]) -> RenderableType:
    table = _table("started", "outcome", "status", "event", "attempt", "took", "delivery", "error")
    for attempt in attempts:
        table.add_row(
            clock(attempt.started_at),
            state_text(attempt.outcome),
            "" if attempt.status is None else str(attempt.status),
            attempt.event_type,
            str(attempt.attempt),
            duration(attempt.duration_ms),
            attempt.delivery_id,
            clean(attempt.error or "", 120),
        )
    return table if attempts else Text("No attempts yet.", "dim")


def replays_table(replays: Sequence[Replay]) -> RenderableType:
    table = _table("id", "state", "into", "from", "to", "progress", "sent", "skipped", "started")
    for replay in replays:
        table.add_row(
            replay.id,
            state_text(replay.state),
            clean(target_text(replay.target), 80),
            str(replay.start),
            str(replay.to),
            f"{replay.progress:.0%}",
            str(replay.sent),
            str(replay.skipped),
            clean(replay.created_at[:19]),
        )
    return table if replays else Text("No replays yet. Start one: crucible events replay", "dim")


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
    if memory.tags:
        foot.append("\n" + clean(" ".join(memory.tags), 300), "cyan")
    for link in memory.links:
        foot.append(f"\n→ {clean(link.target, 200)} ({clean(link.type)})", "green")
    return Group(Panel(Text(_printable(memory.content)), box=box.ROUNDED, border_style="dim"), foot)


def memories_table(memories: Sequence[ScoredMemory]) -> RenderableType:
    table = _table("score", "id", "memory", "tags")
    for memory in memories:
        table.add_row(
            f"{memory.score:.2f}", memory.id, clean(headline(memory.content), 100), clean(" ".join(memory.tags))
        )
    return table if memories else Text("Nothing found.", "dim")


def worlds_table(worlds: Sequence[WorldView]) -> RenderableType:
    table = _table("world", "description", "rooms", "created")
    for world in worlds:
        rooms = " ".join(room.id for room in world.rooms[:_ROOMS]) + (" …" if len(world.rooms) > _ROOMS else "")
        table.add_row(world.id, clean(world.description, 100), clean(rooms, 400), world.created_at[:19])
    return table


def rooms_table(rooms: Sequence[RoomView]) -> RenderableType:
    table = _table("room", "created")
    for room in rooms:
        table.add_row(room.id, room.created_at[:19])
    return table


def retention_table(retention: RetentionView) -> RenderableType:
    table = _table("type", "world", "keep")
    for rule in retention.rules:
        table.add_row(clean(rule.type), clean(rule.world_id or "any"), rule.keep)
    foot = Text(f"All other events: {retention.default}. Revision {retention.revision}.", "dim")
    return Group(table, foot) if retention.rules else foot


def types_table(kinds: Sequence[EventType]) -> RenderableType:
    table = _table("type", "version", "count", "registered", "other names", "when")
    for kind in kinds:
        mark = Text("✓", "green") if kind.registered else Text("")
        aliases = clean(" ".join(kind.aliases[:4]), 120) + (" …" if len(kind.aliases) > 4 else "")
        table.add_row(kind.type, kind.version, str(kind.count), mark, aliases, clean(kind.description, 100))
    return table if kinds else Text("No types are registered. Add one: crucible events types add FILE.json", "dim")


def clock(timestamp: str) -> str:
    """The time of day in an RFC 3339 timestamp, to the millisecond."""
    return clean(timestamp[11:23].rstrip("Z"), 12)


_ROOMS = 20
COUNTS = ("matched", "ok", "failed", "skipped")


def _counted(counters: Counters) -> tuple[Iterable[str], str]:
    numbers = (counters.matched, counters.ok, counters.failed, counters.skipped)
    return map(str, numbers), (counters.last_fired or "never")[:19]


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in columns:
        right = column in (*COUNTS, "attempt", "took", "order", "score", "count", "share")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    return table


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)
