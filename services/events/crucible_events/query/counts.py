"""Counts of the events that match a query, in all and by group: a window of rows at a time, within a budget of time."""

import time
from collections import Counter
from typing import Any

from crucible_core.envelope import Event
from crucible_core.limits import COUNT_GROUPS, COUNT_S
from crucible_core.position import counted
from crucible_core.protocol.events import CountBy, CountGroup, CountReply
from crucible_core.times import format_time, parse_time
from crucible_events import store
from crucible_events.query.query import MAX_SEQUENCE, Query
from crucible_events.query.scan import Scan, chunks, hulls, merged_statement, pages, plan, rows_statement
from crucible_kit.index.index import Index
from crucible_kit.tasks import Turn

WINDOW = 2_000
"""Rows of one statement: other readers of the index wait no longer than for these."""
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


class Counts:
    """The counts so far, by key."""

    def __init__(self, budget_s: float, window: int) -> None:
        self.window = window
        self.counts: Counter[Any] = Counter()
        self.counted_to = 0
        self._ends = time.monotonic() + budget_s

    @property
    def spent(self) -> bool:
        return time.monotonic() > self._ends or len(self.counts) >= COUNT_GROUPS

    def reply(self, by: CountBy | None, complete: bool) -> CountReply:
        ranked = sorted(self.counts.items(), key=lambda entry: (-entry[1], entry[0])) if by else []
        groups = [CountGroup(key=_key_text(key, by), count=count) for key, count in ranked]
        return CountReply(count=self.counts.total(), groups=groups, complete=complete, counted_to=self.counted_to)


async def count(
    index: Index, query: Query, by: CountBy | None, budget_s: float = COUNT_S, window: int = WINDOW
) -> CountReply:
    """Counts in the log's order, for at least one window."""
    scan = await plan(index, query)
    last = await store.last_sequence(index)
    counts = Counts(budget_s, window)
    counting = (
        _count_matches(index, query, scan, by, counts) if query.predicate else _count_groups(index, scan, by, counts)
    )
    complete = await counting
    if complete and len(index.streams) == 1:
        counts.counted_to = max(counts.counted_to, min(last, counted(query.until)))
    elif complete:
        counts.counted_to = last if query.until == MAX_SEQUENCE else counted(query.until)
    return counts.reply(by, complete)


async def _count_groups(index: Index, scan: Scan, by: CountBy | None, counts: Counts) -> bool:
    """Counts where SQLite alone decides; False where the budget ended it."""
    if len(scan.parts) > 1:
        return await _count_merged_groups(index, scan, by, counts)
    for low, high in scan.parts[0] if scan.parts else ():
        while low <= high:
            rows = rows_statement(scan, _columns(by), low, high, counts.window)
            if not await _count_window(index, rows, "0", "sequence", counts):
                break
            if counts.spent:
                return False
            low = counts.counted_to + 1
    return True


async def _count_merged_groups(index: Index, scan: Scan, by: CountBy | None, counts: Counts) -> bool:
    """The same over several streams, in the order in which they are merged."""
    within = hulls(scan)
    while True:
        statement, values = merged_statement(scan, _columns(by), within, counts.window)
        rows = f"SELECT *, row_number() OVER () AS number FROM ({statement})", values
        if not (last := await _count_window(index, rows, "part", "number", counts)):
            return True
        if counts.spent:
            return False
        within = [(max(low, last.get(part, 0) + 1), high) for part, (low, high) in enumerate(within)]


def _columns(by: CountBy | None) -> str:
    return f"{_KEYS[by]} AS key, ({{wanted}}) AS wanted"


async def _count_window(
    index: Index, rows: tuple[str, list[Any]], part: str, order: str, counts: Counts
) -> dict[int, int]:
    """Adds a window's rows to the counts: `part` is a row's stream, `order` grows from row to row. Returns the last
    sequence by stream; nothing where there are no more rows than these."""
    columns = f"key, sum(wanted), count(*), max(sequence), {part} AS stream, max({order})"
    rows_read = last_order = 0
    last: dict[int, int] = {}
    for key, wanted, count, sequence, stream, at in await store.select(
        index, f"SELECT {columns} FROM ({rows[0]}) GROUP BY key, stream", rows[1]
    ):
        if wanted:
            counts.counts[key] += wanted
        rows_read += count
        last[stream] = max(sequence, last.get(stream, 0))
        if at > last_order:
            last_order, counts.counted_to = at, sequence
    return last if rows_read == counts.window else {}


async def _count_matches(index: Index, query: Query, scan: Scan, by: CountBy | None, counts: Counts) -> bool:
    """Counts the events that the filter's predicate accepts, one by one."""
    assert query.predicate is not None
    turn = Turn()
    async for rows in pages(index, scan, counts.window):
        for chunk in chunks(rows, _AT_ONCE):
            for sequence, raw in await store.read_raw(index, [row.sequence for row in chunk if row.size is not None]):
                if turn.over:
                    await turn.pass_on()
                event = store.decode(sequence, raw)
                if query.predicate(event):
                    counts.counts[_key(event, by)] += 1
            if chunk:
                counts.counted_to = chunk[-1].sequence
            if counts.spent and rows[-1:] != chunk[-1:]:
                return False
        if counts.spent and len(rows) == counts.window:
            return False
    return True


def _key(event: Event, by: CountBy | None) -> Any:
    """The group of an event, as the columns of `_KEYS` have it."""
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


def _key_text(key: Any, by: CountBy | None) -> str:
    return format_time(key * _DAY)[:10] if by == "day" else str(key)
