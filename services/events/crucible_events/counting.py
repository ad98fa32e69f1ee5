"""How many events match a query, in all and by group: counted a window of rows at a time, within a budget of time."""

import time
from collections import Counter
from typing import Any

from crucible_core.envelope import Event
from crucible_core.protocol.events import CountBy, CountGroup, CountReply
from crucible_core.times import format_time, parse_time
from crucible_kit.index import Index
from crucible_kit.tasks import Turn

from . import store
from .query import MAX_SEQUENCE, Query
from .scan import Scan, chunks, pages, plan

BUDGET_S = 2.0
"""What one request may take; then it is answered with what was counted, and where to go on."""
WINDOW = 2_000
"""Rows that one statement looks at: whoever else reads the index waits no longer than for these."""
MAX_KEYS = 2_000
"""With so many groups an answer ends, whose size is thereby bounded."""
_AT_ONCE = 200
"""Events that are decoded without a pause."""
_DAY = 86_400_000_000
_KEYS: dict[CountBy | None, str] = {
    None: "0",
    "type": "type",
    "world_id": "world_id",
    "room_id": "room_id",
    "actor": "actor",
    "day": f"time / {_DAY}",
}


class Tally:
    """The counts so far, by key."""

    def __init__(self, budget_s: float, window: int) -> None:
        self.window = window
        self.counts: Counter[Any] = Counter()
        self.counted_to = 0
        self._ends = time.monotonic() + budget_s

    @property
    def spent(self) -> bool:
        return time.monotonic() > self._ends or len(self.counts) >= MAX_KEYS

    def reply(self, by: CountBy | None, complete: bool) -> CountReply:
        ranked = sorted(self.counts.items(), key=lambda entry: (-entry[1], entry[0])) if by else []
        groups = [CountGroup(key=_shown(key, by), count=count) for key, count in ranked]
        return CountReply(count=self.counts.total(), groups=groups, complete=complete, counted_to=self.counted_to)


async def count(
    index: Index, query: Query, by: CountBy | None, budget_s: float = BUDGET_S, window: int = WINDOW
) -> CountReply:
    """Counts in the log's order, for at least one window."""
    timed = query.start is not None or query.end is not None
    scan = plan(query, await store.stretches(index, query.start, query.end) if timed else [(0, MAX_SEQUENCE)])
    held = index.position.end_of(0)
    tally = Tally(budget_s, window)
    counting = _matched(index, query, scan, by, tally) if query.predicate else _grouped(index, scan, by, tally)
    complete = await counting
    if complete:
        tally.counted_to = max(tally.counted_to, min(held, query.until))
    return tally.reply(by, complete)


async def _grouped(index: Index, scan: Scan, by: CountBy | None, tally: Tally) -> bool:
    """Counts where SQLite alone can tell; False where the budget ended it."""
    for low, high in scan.stretches:
        while low <= high:
            statement, values = _window(scan, by, low, high, tally.window)
            rows = await store.select(index, statement, values)
            for key, wanted, _, last in rows:
                if wanted:
                    tally.counts[key] += wanted
                tally.counted_to = max(tally.counted_to, last)
            if sum(row[2] for row in rows) < tally.window:
                break
            if tally.spent:
                return False
            low = tally.counted_to + 1
    return True


def _window(scan: Scan, by: CountBy | None, low: int, high: int, most: int) -> tuple[str, list[Any]]:
    """By key: how many rows are wanted, how many were looked at, and the last one's sequence."""
    parts = []
    values: list[Any] = []
    for branch in scan.branches:
        source = f"events INDEXED BY {branch.by}" if branch.by else "events"
        parts.append(
            f"SELECT sequence, {_KEYS[by]} AS key, ({scan.wanted}) AS wanted FROM {source}"
            f" WHERE {branch.condition} AND sequence BETWEEN ? AND ?"
        )
        values += [*scan.values, *branch.values, low, high]
    rows = f"{' UNION ALL '.join(parts)} ORDER BY 1 LIMIT ?"
    return f"SELECT key, sum(wanted), count(*), max(sequence) FROM ({rows}) GROUP BY key", [*values, most]


async def _matched(index: Index, query: Query, scan: Scan, by: CountBy | None, tally: Tally) -> bool:
    """Counts what the filter's predicate accepts, event by event."""
    assert query.predicate is not None
    turn = Turn()
    async for rows in pages(index, scan, tally.window):
        for chunk in chunks(rows, _AT_ONCE):
            for sequence, raw in await store.raws(index, [row.sequence for row in chunk if row.size is not None]):
                if turn.over:
                    await turn.pass_on()
                event = store.decoded(sequence, raw)
                if query.predicate(event):
                    tally.counts[_key(event, by)] += 1
            if chunk:
                tally.counted_to = chunk[-1].sequence
            if tally.spent and rows[-1:] != chunk[-1:]:
                return False
        if tally.spent and len(rows) == tally.window:
            return False
    return True


def _key(event: Event, by: CountBy | None) -> Any:
    """What the columns of `_KEYS` say of an event."""
    about = event.metadata
    match by:
        case None:
            return 0
        case "type":
            return event.dotted
        case "day":
            return parse_time(about.timestamp, "timestamp") // _DAY
        case _:
            return getattr(about, by)


def _shown(key: Any, by: CountBy | None) -> str:
    return format_time(key * _DAY)[:10] if by == "day" else str(key)
