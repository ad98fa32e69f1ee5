"""Scans of the index for a query: one of its parameters finds rows, the others are tested on each row, page by page, as
far as the budget of one request and the limits of its answer go."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import msgspec

from crucible_core.limits import QUERY_STEPS
from crucible_core.position import Position, decoded
from crucible_core.protocol.events import QueryReply
from crucible_core.subjects import Names
from crucible_core.types.catalogue import CATALOGUE
from crucible_core.types.payloads import CATEGORIES
from crucible_events import store
from crucible_events.query.query import MAX_SEQUENCE, Query, cursor_at
from crucible_events.store import Sized
from crucible_kit.index.index import Index
from crucible_kit.tasks import Turn

# The first of these that the query has finds the rows, by its index.
_DRIVERS = ("causation_id", "correlation_id", "entity", "type", "actor", "room_id", "world_id")
_CHUNK_BYTES = 4 * 1024 * 1024
SIZE = "CASE WHEN {wanted} THEN length(raw) END"
PAGE = 1000


class Branch(NamedTuple):
    """Rows that one index finds, in order of sequence."""

    by: str | None
    condition: str
    values: tuple[Any, ...]


class Scan(NamedTuple):
    """The reading of a query's rows: each row that the branches find is tested by `wanted`. `parts` has, for each
    stream of the log that may have matches, the stretches of sequences; they begin after `position`."""

    branches: tuple[Branch, ...]
    wanted: str
    values: tuple[Any, ...]
    parts: tuple[tuple[tuple[int, int], ...], ...]
    position: Position
    descending: bool


async def find_events(index: Index, query: Query, most_bytes: int) -> QueryReply:
    """At most `limit` events and `most_bytes`. A cursor says that there may be more: a match is left over, or the
    budget of the request is spent."""
    scan = await plan(index, query)
    answer, turn, at = Answer(query, most_bytes), Turn(), scan.position
    async for rows in pages(index, scan, PAGE, first=query.limit + 1):
        for chunk in chunks(rows, query.limit + 1 if query.predicate is None else PAGE):
            wanted = [row.sequence for row in chunk if row.size is not None]
            fetched = dict(await store.read_raw(index, wanted))
            forever = await store.find_forever(index, wanted) if query.with_retention else frozenset()
            sequences = [row.sequence for row in chunk]
            for number, sequence in enumerate(sequences):
                if turn.over:
                    await turn.pass_on()
                raw = fetched.get(sequence)
                if raw is not None and not answer.take(sequence, raw, sequence in forever):
                    return QueryReply(events=answer.events, next_cursor=cursor_at(query, at.past(sequences[:number])))
                answer.count_row()
                if answer.spent:
                    cursor = cursor_at(query, at.past(sequences[: number + 1]))
                    return QueryReply(events=answer.events, next_cursor=cursor)
            at = at.past(sequences)
    return QueryReply(events=answer.events)


class Answer:
    """The events of one answer, within its limits and the budget."""

    def __init__(self, query: Query, most_bytes: int) -> None:
        self.events: list[msgspec.Raw] = []
        self._query = query
        self._bytes_left = most_bytes
        self._budget = QUERY_STEPS

    @property
    def spent(self) -> bool:
        return self._budget <= 0

    def count_row(self) -> None:
        self._budget -= 1

    def take(self, sequence: int, raw: bytes, forever: bool = False) -> bool:
        """Adds an event if it matches. False where a match passes the limits: the next answer begins with it. The first
        match always fits."""
        if self._query.predicate is not None:
            self._budget -= _cost(len(raw))
            if not self._query.predicate(store.decode(sequence, raw)):
                return True
        event = store.encode_public(sequence, raw, forever)
        size = len(memoryview(event))
        if self.events and (len(self.events) >= self._query.limit or size > self._bytes_left):
            return False
        self.events.append(event)
        self._bytes_left -= size
        return True


def _cost(size: int) -> int:
    return 10 + size // 200


async def plan(index: Index, query: Query) -> Scan:
    timed = query.start is not None or query.end is not None
    stretches = await store.stretches(index, query.start, query.end) if timed else [(0, MAX_SEQUENCE)]
    streams, world = len(index.streams), query.equal.get("world_id")
    after, until = await store.position_of(index, query.after), await store.position_of(index, query.until)
    if query.position is not None:
        position = decoded(query.position, streams)
    else:
        position = Position.end(streams) if query.descending else Position.start(streams)
    parts = []
    for number in range(streams) if world is None else [Names(streams=streams).number_of(world)]:
        least, most = after.end_of(number) + 1, until.end_of(number)
        if query.descending:
            most = min(most, position.end_of(number) - 1)
        else:
            least = max(least, position.end_of(number) + 1)
        clipped = [(max(low, least), min(high, most)) for low, high in stretches]
        if left := [(low, high) for low, high in clipped if low <= high]:
            parts.append(tuple(reversed(left) if query.descending else left))
    return make_scan(query, tuple(parts), position)


def make_scan(query: Query, parts: tuple[tuple[tuple[int, int], ...], ...], position: Position) -> Scan:
    present = set(query.equal) | ({"type"} if query.types is not None else set())
    driver = next((name for name in _DRIVERS if name in present), None)
    if driver == "type":
        assert query.types is not None
        branches = _type_branches(query.types)
    elif driver is not None:
        branches = (Branch(f"by_{driver}", f"{driver} = ?", (query.equal[driver],)),)
    else:
        branches = (Branch(None, "1", ()),)
    tests: list[tuple[str, tuple[Any, ...]]] = [
        (f"{name} = ?", (value,)) for name, value in query.equal.items() if name != driver
    ]
    if query.types is not None and driver != "type":
        tests.append(_type_test(query.types))
    if query.start is not None:
        tests.append(("time >= ?", (query.start,)))
    if query.end is not None:
        tests.append(("time < ?", (query.end,)))
    tests += query.conditions  # the dearest come last
    wanted = " AND ".join(f"({condition})" for condition, _ in tests) or "1"
    values = tuple(value for _, some in tests for value in some)
    return Scan(branches, wanted, values, parts, position, query.descending)


def _group_types(types: frozenset[str]) -> tuple[list[str], list[str]]:
    """Whole categories, and single types of others."""
    categories = sorted({name.partition(".")[0] for name in types})
    whole = [name for name in categories if f"{name}.*" in types or _all_of(name) <= types]
    return whole, sorted(name for name in types if name.partition(".")[0] not in whole)


def _all_of(category: str) -> frozenset[str]:
    return (CATALOGUE.expand(f"{category}.*") if category in CATEGORIES else None) or frozenset({f"{category}.*"})


def _type_branches(types: frozenset[str]) -> tuple[Branch, ...]:
    whole, single = _group_types(types)
    return (
        *(Branch("by_category", "category = ?", (name,)) for name in whole),
        *(Branch("by_type", "type = ?", (name,)) for name in single),
    )


def _type_test(types: frozenset[str]) -> tuple[str, tuple[str, ...]]:
    whole, single = _group_types(types)
    marks = [", ".join("?" * len(names)) for names in (whole, single)]
    return f"(category IN ({marks[0]}) OR type IN ({marks[1]}))", (*whole, *single)


def rows_statement(scan: Scan, columns: str, low: int, high: int, most: int) -> tuple[str, list[Any]]:
    """The statement that reads up to `most` rows of one stream: their sequence and these columns, in which `{wanted}`
    stands for the test. SQLite merges the branches: none is read further than needed."""
    parts = []
    values: list[Any] = []
    for branch in scan.branches:
        source = f"events INDEXED BY {branch.by}" if branch.by else "events"
        parts.append(
            f"SELECT sequence, {columns.format(wanted=scan.wanted)} FROM {source}"
            f" WHERE {branch.condition} AND sequence BETWEEN ? AND ?"
        )
        values += [*scan.values, *branch.values, low, high]
    order = "DESC" if scan.descending else "ASC"
    return f"{' UNION ALL '.join(parts)} ORDER BY 1 {order} LIMIT ?", [*values, most]


def merged_statement(scan: Scan, columns: str, within: Sequence[tuple[int, int]], most: int) -> tuple[str, list[Any]]:
    """The same of several streams, merged by the time of the commit, with that as the last column. A stream's own order
    stays as it is, whatever its clock did."""
    parts = []
    values: list[Any] = []
    order, extreme = ("DESC", "min") if scan.descending else ("ASC", "max")
    for number, (low, high) in enumerate(within):
        rows, some = rows_statement(scan, f"{columns}, stored_ms AS at", low, high, most)
        merged = f"{extreme}(at) OVER (ORDER BY sequence {order} ROWS UNBOUNDED PRECEDING)"
        parts.append(f"SELECT *, {merged} AS moment, {number} AS part FROM ({rows})")
        values += some
    return f"{' UNION ALL '.join(parts)} ORDER BY moment {order}, sequence {order} LIMIT ?", [*values, most]


async def pages(index: Index, scan: Scan, most: int, first: int | None = None) -> AsyncIterator[list[Sized]]:
    """Pages of `most` rows, the last of each stretch of fewer. They may begin smaller, with `first` rows, and
    double."""
    size = most if first is None else first
    if len(scan.parts) > 1:
        async for rows in _merged_pages(index, scan, most, size):
            yield rows
        return
    for low, high in scan.parts[0] if scan.parts else ():
        while low <= high:
            statement, values = rows_statement(scan, SIZE, low, high, size)
            rows = [Sized(*row) for row in await store.select(index, statement, values)]
            yield rows
            if len(rows) < size:
                break
            low, high = (low, rows[-1].sequence - 1) if scan.descending else (rows[-1].sequence + 1, high)
            size = min(2 * size, most)


async def _merged_pages(index: Index, scan: Scan, most: int, size: int) -> AsyncIterator[list[Sized]]:
    within = hulls(scan)
    while True:
        statement, values = merged_statement(scan, SIZE, within, size)
        rows = await store.select(index, statement, values)
        yield [Sized(*row[:2]) for row in rows]
        if len(rows) < size:
            return
        for row in rows:
            low, high = within[row[-1]]
            within[row[-1]] = (low, row[0] - 1) if scan.descending else (row[0] + 1, high)
        size = min(2 * size, most)


def hulls(scan: Scan) -> list[tuple[int, int]]:
    """The first and last sequence of each stream to read. Events of other times, between its stretches, fail the
    test."""
    return [(part[-1][0], part[0][1]) if scan.descending else (part[0][0], part[-1][1]) for part in scan.parts]


def chunks(rows: list[Sized], most: int) -> list[list[Sized]]:
    """Neighbours whose bytes may be in memory at once: up to `most` wanted rows, and 4 MiB (or a single row)."""
    found: list[list[Sized]] = [[]]
    wanted = size = 0
    for row in rows:
        if row.size is not None:
            if wanted and (wanted >= most or size + row.size > _CHUNK_BYTES):
                found.append([])
                wanted = size = 0
            wanted += 1
            size += row.size
        found[-1].append(row)
    return found
