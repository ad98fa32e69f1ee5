"""How the index is read for a query: one of its parameters finds rows, the others are tested on each, page by page."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from crucible_core.catalogue import CATALOGUE
from crucible_core.payloads import CATEGORIES
from crucible_kit.index import Index

from . import store
from .query import Query
from .store import Sized

# Which of the given parameters finds the rows by its index: the first of these.
_DRIVERS = ("causation_id", "correlation_id", "entity", "type", "actor", "room_id", "world_id")
_CHUNK_BYTES = 4 * 1024 * 1024


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
    stretches: tuple[tuple[int, int], ...]
    descending: bool


def plan(query: Query, stretches: Sequence[tuple[int, int]]) -> Scan:
    """`stretches` are of the sequences, both ends included and in order, that can have the times asked for."""
    given = set(query.equal) | ({"type"} if query.types is not None else set())
    driver = next((name for name in _DRIVERS if name in given), None)
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
    least, most = query.after + 1, query.until
    if query.position is not None:
        least, most = (
            (least, min(most, query.position - 1)) if query.descending else (max(least, query.position + 1), most)
        )
    clipped = [(max(low, least), min(high, most)) for low, high in stretches]
    left = [(low, high) for low, high in clipped if low <= high]
    return Scan(branches, wanted, values, tuple(reversed(left) if query.descending else left), query.descending)


def _parts(types: frozenset[str]) -> tuple[list[str], list[str]]:
    """Whole categories, and single types of others."""
    categories = sorted({name.partition(".")[0] for name in types})
    whole = [name for name in categories if f"{name}.*" in types or _all_of(name) <= types]
    return whole, sorted(name for name in types if name.partition(".")[0] not in whole)


def _all_of(category: str) -> frozenset[str]:
    return (CATALOGUE.expand(f"{category}.*") if category in CATEGORIES else None) or frozenset({f"{category}.*"})


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


async def pages(index: Index, scan: Scan, most: int, first: int | None = None) -> AsyncIterator[list[Sized]]:
    """Pages of `most` rows, the last of each stretch of fewer. They may begin smaller, with what an answer needs where
    all rows that are found are wanted, and grow from there."""
    size = most if first is None else first
    for low, high in scan.stretches:
        while low <= high:
            statement, values = page_statement(scan, low, high, size)
            rows = [Sized(*row) for row in await store.select(index, statement, values)]
            yield rows
            if len(rows) < size:
                break
            low, high = (low, rows[-1].sequence - 1) if scan.descending else (rows[-1].sequence + 1, high)
            size = min(2 * size, most)


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
