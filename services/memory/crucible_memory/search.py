"""Finding memories: full text by BM25, tags and filters.

A match's score is its BM25 weight (SQLite's `bm25()`, the title counting four times and tags and entities twice) divided
by that of the best match in the answer. Without a text the newest come first, and every score is 1.
"""

from collections.abc import AsyncIterator

import aiosqlite
import msgspec

from crucible_core.filters import DocumentPredicate, compile_document_filter
from crucible_core.protocol import MemoryList, MemoryQuery, MemoryView, ScoredMemory

from .state import MAX_TAGS, checked_tag, refused
from .store import memories, views
from .terms import match_query

MAX_LIMIT = 100
MAX_REPLY_BYTES = 900_000
"""A NATS server's smallest usual message. The last matches are left out where memories are that large."""
_AT_ONCE = 100
_WEIGHTS = "4.0, 1.0, 2.0"
_Match = tuple[int, float]
"""A memory's key and its BM25 weight."""


class Search(msgspec.Struct, frozen=True):
    """A query that was checked."""

    match: str | None
    tags: list[str]
    holds: DocumentPredicate | None
    limit: int
    world_id: str
    room_id: str | None


def prepare(query: MemoryQuery) -> Search | None:
    """None where nothing can match: a text without a word. Raises InvalidError."""
    if not 1 <= query.limit <= MAX_LIMIT:
        raise refused("limit", f"must be 1 to {MAX_LIMIT}")
    if len(query.tags) > MAX_TAGS:
        raise refused("tags", f"may hold {MAX_TAGS}")
    tags = [checked_tag(tag, f"tags.{place}") for place, tag in enumerate(query.tags)]
    holds = compile_document_filter(query.filter, MemoryView.__struct_fields__) if query.filter else None
    text = (query.text or "").strip()
    match = match_query(text) if text else None
    if text and match is None:
        return None
    return Search(match, tags, holds, query.limit, query.world_id, query.room_id)


async def search(reader: aiosqlite.Connection, wanted: Search) -> MemoryList:
    found: list[ScoredMemory] = []
    size, best = 0, 0.0
    async for view, weight in _matches(reader, wanted):
        best = best or weight
        scored = ScoredMemory(**msgspec.structs.asdict(view), score=weight / best if wanted.match else 1.0)
        size += len(msgspec.json.encode(scored))
        if found and size > MAX_REPLY_BYTES:
            break
        found.append(scored)
        if len(found) == wanted.limit:
            break
    return MemoryList(memories=found)


async def _matches(reader: aiosqlite.Connection, wanted: Search) -> AsyncIterator[tuple[MemoryView, float]]:
    async for part in _candidates(reader, wanted):
        weights = dict(part)
        found = await memories(reader, list(weights))
        for memory, view in zip(found, await views(reader, found) if found else [], strict=True):
            if wanted.holds is None or wanted.holds(msgspec.to_builtins(view)):
                yield view, weights[memory.key]


async def _candidates(reader: aiosqlite.Connection, wanted: Search) -> AsyncIterator[list[_Match]]:
    """What the index alone can tell apart, the best first, some at a time."""
    query, values = _sql(wanted)
    async with reader.execute(query, values) as rows:
        while part := await rows.fetchmany(_AT_ONCE):
            yield [(key, weight) for key, weight in part]


def _sql(wanted: Search) -> tuple[str, list[str]]:
    conditions, values = ["m.world = ?"], [wanted.world_id]
    if wanted.room_id is not None:
        conditions.append("m.room = ?")
        values.append(wanted.room_id)
    for tag in wanted.tags:
        conditions.append("EXISTS (SELECT 1 FROM tags t WHERE t.tag = ? AND t.memory = m.key)")
        values.append(tag)
    where = " AND ".join(conditions)
    if wanted.match is None:
        return f"SELECT m.key, 1.0 FROM memories m WHERE {where} ORDER BY m.key DESC", values
    return (
        f"SELECT m.key, -bm25(texts, {_WEIGHTS}) AS weight FROM texts JOIN memories m ON m.key = texts.rowid"
        f" WHERE texts MATCH ? AND {where} ORDER BY weight DESC, m.key DESC"
    ), [wanted.match, *values]
