"""Queries: what was asked, checked; how the index is scanned for it, in bounded pages; and cursors."""

import base64
import hashlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec

from crucible_core.catalogue import ANY_CUSTOM, CATALOGUE
from crucible_core.errors import CrucibleError, FieldError, InvalidError
from crucible_core.filters import Predicate, compile_filter
from crucible_core.protocol import QueryReply, QueryRequest
from crucible_core.times import parse_time
from crucible_kit.index import Index

from . import store
from .store import Sized

MAX_LIMIT = 1000
MAX_SEQUENCE = 2**63 - 1
MAX_TYPES = 100
PAGE = 1000
BUDGET = 200_000
"""What one request may cost: a row that is looked at costs 1, one that is decoded for the filter as `_cost` says. Then
it is answered with what was found, and a cursor."""

_CHUNK_BYTES = 4 * 1024 * 1024
_CURSOR_BYTES = 300

EQUAL = ("correlation_id", "entity", "actor", "world_id", "room_id")
"""The parameters that are a column's value."""

# Which of the given parameters finds the rows by its index, the first of these; the others are tested on each row.
_DRIVERS = ("correlation_id", "entity", "type", "actor", "world_id")
_INDEXES = {"correlation_id": "by_correlation_id", "entity": "by_entity", "actor": "by_actor", "world_id": "by_place"}


A = TypeVar("A")
B = TypeVar("B")


class Query(msgspec.Struct, frozen=True):
    """A request that was checked: `types` are canonical or `Custom.*` (None: all); times are microseconds; `position`
    is the sequence where the page before ended."""

    types: frozenset[str] | None
    equal: dict[str, str]
    start: int | None
    end: int | None
    after: int
    descending: bool
    predicate: Predicate | None
    limit: int
    position: int | None
    fingerprint: str


class Branch(NamedTuple):
    """Rows that one index finds, in order of sequence."""

    by: str | None
    condition: str
    values: tuple[Any, ...]


class Scan(NamedTuple):
    """How the rows of a query are read. `wanted` is tested on each row that the branches find."""

    branches: tuple[Branch, ...]
    wanted: str
    values: tuple[Any, ...]
    low: int
    high: int
    descending: bool


class _Cursor(msgspec.Struct):
    query: str
    position: int


# ---- what was asked --------------------------------------------------------------------------------------------------


def checked(request: QueryRequest) -> Query:
    """Raises InvalidError with every mistake of the request."""
    errors: list[FieldError] = []

    def read(value: A | None, reader: Callable[[A], B]) -> B | None:
        try:
            return None if value is None else reader(value)
        except CrucibleError as error:
            errors.extend(error.errors)
            return None

    fingerprint = _fingerprint(request)
    types = read(request.type or None, _types)
    start = read(request.from_time, partial(parse_time, path="from_time"))
    end = read(request.to_time, partial(parse_time, path="to_time"))
    predicate = read(request.filter or None, partial(_predicate, types))
    position = read(request.cursor, partial(_position, fingerprint))
    for path, value, least, most in (
        ("limit", request.limit, 1, MAX_LIMIT),
        ("after", request.after, 0, MAX_SEQUENCE),
        ("min_sequence", request.min_sequence, 0, MAX_SEQUENCE),
    ):
        if value is not None and not least <= value <= most:
            errors.append(FieldError(path, f"must be {least} to {most}"))
    if errors:
        raise InvalidError("; ".join(f"{error.path}: {error.message}" for error in errors), errors=errors)
    equal = {name: value for name in EQUAL if (value := getattr(request, name)) is not None}
    return Query(
        types=types,
        equal=equal,
        start=start,
        end=end,
        after=request.after or 0,
        descending=request.order == "desc",
        predicate=predicate,
        limit=request.limit,
        position=position,
        fingerprint=fingerprint,
    )


def _types(patterns: list[str]) -> frozenset[str] | None:
    if len(patterns) > MAX_TYPES:
        raise InvalidError("too many types", errors=[FieldError("type", f"may be given {MAX_TYPES} times")])
    expanded = [CATALOGUE.expand(pattern) for pattern in patterns]
    if None in expanded:
        return None
    return frozenset[str]().union(*(types for types in expanded if types is not None))


def _predicate(types: frozenset[str] | None, spec: dict[str, Any]) -> Predicate:
    return compile_filter(spec, check=partial(CATALOGUE.check_path, types))


def _fingerprint(request: QueryRequest) -> str:
    """The same for two requests that differ only in how much of the answer they want."""
    same = msgspec.structs.replace(request, cursor=None, limit=0, min_sequence=None)
    return hashlib.sha256(msgspec.json.encode(same, order="sorted")).hexdigest()[:16]


def _position(fingerprint: str, cursor: str) -> int:
    message = "is not a cursor of this query"
    try:
        padded = cursor.encode("ascii")[:_CURSOR_BYTES] + b"=" * (-len(cursor) % 4)
        decoded = msgspec.json.decode(base64.b64decode(padded, altchars=b"-_", validate=True), type=_Cursor)
    except (ValueError, msgspec.DecodeError):
        decoded = None
    if decoded is None or decoded.query != fingerprint or not 0 <= decoded.position <= MAX_SEQUENCE:
        raise InvalidError(f"cursor {message}", errors=[FieldError("cursor", message)])
    return decoded.position


def _cursor(query: Query, position: int) -> str:
    raw = msgspec.json.encode(_Cursor(query.fingerprint, position))
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


# ---- how it is scanned -----------------------------------------------------------------------------------------------


def plan(query: Query, low: int, high: int) -> Scan:
    """`low` and `high` are the sequences, both included, that can have the times asked for."""
    given = set(query.equal) | ({"type"} if query.types is not None else set())
    driver = next((name for name in _DRIVERS if name in given), None)
    if driver == "type":
        assert query.types is not None
        branches = _type_branches(query.types)
    elif driver is not None:
        branches = (Branch(_INDEXES[driver], f"{driver} = ?", (query.equal[driver],)),)
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
    wanted = " AND ".join(condition for condition, _ in tests) or "1"
    values = tuple(value for _, some in tests for value in some)
    low = max(low, query.after + 1)
    if query.position is not None:
        low, high = (low, min(high, query.position - 1)) if query.descending else (max(low, query.position + 1), high)
    return Scan(branches, wanted, values, low, high, query.descending)


def _parts(types: frozenset[str]) -> tuple[list[str], list[str]]:
    """Whole categories, and single types of others."""
    categories = sorted({name.partition(".")[0] for name in types})
    whole = [name for name in categories if (CATALOGUE.expand(f"{name}.*") or frozenset()) <= types]
    return whole, sorted(name for name in types if name.partition(".")[0] not in whole and name != ANY_CUSTOM)


def _type_branches(types: frozenset[str]) -> tuple[Branch, ...]:
    whole, single = _parts(types)
    return (
        *(Branch("by_category", "category = ?", (name,)) for name in whole),
        *(Branch("by_type", "type = ?", (name,)) for name in single),
    )


def _type_test(types: frozenset[str]) -> tuple[str, tuple[str, ...]]:
    whole, single = _parts(types)
    marks = [", ".join("?" * len(names)) for names in (whole, single)]
    return f"(category IN ({marks[0]}) OR type IN ({marks[1]}))", (*whole, *single)


def page_statement(scan: Scan, low: int, high: int, most: int) -> tuple[str, list[Any]]:
    """The statement that reads up to `most` rows. SQLite merges the branches: none is read further than needed."""
    parts = []
    values: list[Any] = []
    for branch in scan.branches:
        source = f"events INDEXED BY {branch.by}" if branch.by else "events"
        parts.append(
            f"SELECT sequence, CASE WHEN {scan.wanted} THEN length(raw) END FROM {source}"
            f" WHERE {branch.condition} AND sequence BETWEEN ? AND ?"
        )
        values += [*scan.values, *branch.values, low, high]
    order = "DESC" if scan.descending else "ASC"
    return f"{' UNION ALL '.join(parts)} ORDER BY 1 {order} LIMIT ?", [*values, most]


async def pages(index: Index, scan: Scan, most: int) -> AsyncIterator[list[Sized]]:
    """Pages of rows, each of `most` but the last."""
    low, high = scan.low, scan.high
    while low <= high:
        statement, values = page_statement(scan, low, high, most)
        rows = [Sized(*row) for row in await store.select(index, statement, values)]
        yield rows
        if len(rows) < most:
            return
        low, high = (low, rows[-1].sequence - 1) if scan.descending else (rows[-1].sequence + 1, high)


# ---- the answer ------------------------------------------------------------------------------------------------------


class Answer:
    """The events of one answer, as long as there is room and budget for more."""

    def __init__(self, query: Query, most_bytes: int) -> None:
        self.events: list[msgspec.Raw] = []
        self._query = query
        self._room = most_bytes
        self._budget = BUDGET

    @property
    def spent(self) -> bool:
        return self._budget <= 0

    def passed(self) -> None:
        self._budget -= 1

    def takes(self, sequence: int, raw: bytes) -> bool:
        """False where there is no room for a match; it is for the next answer then. There is always room for one."""
        if self._query.predicate is not None:
            self._budget -= _cost(len(raw))
            if not self._query.predicate(store.decoded(sequence, raw)):
                return True
        event = store.public(sequence, raw)
        size = len(memoryview(event))
        if self.events and (len(self.events) >= self._query.limit or size > self._room):
            return False
        self.events.append(event)
        self._room -= size
        return True


def _cost(size: int) -> int:
    return 10 + size // 200


async def run(index: Index, query: Query, most_bytes: int) -> QueryReply:
    """Answers with at most `limit` events and `most_bytes`. A cursor says that there may be more: either a match is
    left over, or the budget of one request is spent."""
    low, high = await store.bounds(index, query.start, query.end) if _timed(query) else (0, MAX_SEQUENCE)
    scan = plan(query, low, high)
    answer = Answer(query, most_bytes)
    plain = query.predicate is None and scan.wanted == "1"
    async for rows in pages(index, scan, query.limit + 1 if plain else PAGE):
        for chunk in chunks(rows, query.limit + 1 if query.predicate is None else PAGE):
            fetched = dict(await store.raws(index, [row.sequence for row in chunk if row.size is not None]))
            for row in chunk:
                raw = fetched.get(row.sequence)
                before = row.sequence + (1 if query.descending else -1)
                if raw is not None and not answer.takes(row.sequence, raw):
                    return QueryReply(events=answer.events, next_cursor=_cursor(query, before))
                answer.passed()
                if answer.spent:
                    return QueryReply(events=answer.events, next_cursor=_cursor(query, row.sequence))
    return QueryReply(events=answer.events)


def _timed(query: Query) -> bool:
    return query.start is not None or query.end is not None


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
