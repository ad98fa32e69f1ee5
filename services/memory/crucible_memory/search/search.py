"""Search: the terms of a text, their weights, the check of a query, and its matches by full text (BM25), tags and
filters.

A match's score is the share of the query's words that the memory has, each weighed by its rarity (`worth`): 1 has them
all. It depends on the two texts, hardly on the other memories, so that a threshold keeps its meaning. Equal scores are
ordered by BM25 (k1 1.2, b 0.75; the title counts four times, tags and entities twice). Without a text the newest come
first, and every score is 1.
"""

import contextlib
import math
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

import aiosqlite
import msgspec

from crucible_core.access import EVERYTHING, Scope
from crucible_core.errors import InvalidError
from crucible_core.filters.filter import DocumentPredicate, compile_document_filter
from crucible_core.limits import MEMORY_QUERY_LIMIT, MEMORY_QUERY_TERMS, MEMORY_TAGS
from crucible_core.protocol.memory import MemoryList, MemoryQuery, MemoryView, ScoredMemory
from crucible_kit.index.connections import Reader
from crucible_kit.index.index import Index
from crucible_memory.search.visibility import Visibility, visible_to
from crucible_memory.search.words import Gram, compose, grams, tag_key
from crucible_memory.state import check_tag
from crucible_memory.store import read_memories, views

MAX_CANDIDATES = 60
_SHORT = 3
_FEW = 100
_AT_ONCE = 100
_COMPOSED = ("tags", "entities", "links", "path")
_WEIGHTS = "4.0, 1.0, 2.0"
_Match = tuple[int, float]
"""A memory's key and its score."""


class Term(NamedTuple):
    """`query` is FTS5 syntax; `boost` is 1 + ln of the word's count in the query; for short words 1, since they are
    frequent in any text."""

    query: str
    boost: float


class Search(msgspec.Struct, frozen=True):
    """A checked query; without a text it has no terms. `tags` are keys, and `matches` is the filter."""

    terms: list[Term] | None
    tags: list[str]
    matches: DocumentPredicate | None
    limit: int
    world_id: str
    room_id: str | None
    visible: Visibility
    id_prefix: str = ""


async def open_searcher(index: Index) -> Reader:
    """A connection of its own to the index: a search of many matches takes time, and other readers do not wait for
    it."""

    async def prepare(searcher: aiosqlite.Connection) -> None:
        await searcher.create_function("idf_ratio", 2, idf_ratio, deterministic=True)
        await searcher.create_function("worth", 2, worth, deterministic=True)

    return await index.open_reader(prepare)


def prepare(query: MemoryQuery, scope: Scope = EVERYTHING) -> Search:
    """The checked query. Raises InvalidError, also for a world or room that the scope does not show."""
    if not scope.has_place(query.world_id, query.room_id):
        raise InvalidError.field("world_id", f"there is no such place as {query.world_id[:64]}")
    if not 1 <= query.limit <= MEMORY_QUERY_LIMIT:
        raise InvalidError.field("limit", f"must be 1 to {MEMORY_QUERY_LIMIT}")
    if len(query.tags) > MEMORY_TAGS:
        raise InvalidError.field("tags", f"may hold {MEMORY_TAGS}")
    tags = [tag_key(check_tag(tag, f"tags.{index}")) for index, tag in enumerate(query.tags)]
    filter = _normalize(query.filter) if query.filter else None
    holds = compile_document_filter(filter, MemoryView.__struct_fields__) if filter else None
    text = (query.text or "").strip()
    terms = terms_of(text) if text else None
    visible, prefix = visible_to(scope), _id_prefix(query.filter or {})
    return Search(terms, tags, holds, query.limit, query.world_id, query.room_id, visible, prefix)


async def search(reader: Reader, wanted: Search, most_bytes: int) -> MemoryList:
    """The best matches, within `most_bytes`."""
    found: list[ScoredMemory] = []
    size = 0
    async with contextlib.aclosing(_find_matches(reader, wanted)) as matches:
        async for view, score in matches:
            scored = ScoredMemory(**msgspec.structs.asdict(view), score=_round(score))
            size += len(msgspec.json.encode(scored))
            if found and size > most_bytes:
                break
            found.append(scored)
            if len(found) == wanted.limit:
                break
    return MemoryList(memories=found)


# ---- terms -----------------------------------------------------------------------------------------------------------


def terms_of(text: str) -> list[Term]:
    """At most `MAX_CANDIDATES`, those of the greatest weight. The last word of a short text also
    stands for those that begin with it."""
    found = list(grams(text))
    counted = Counter(found)
    chosen = sorted(counted, key=lambda gram: -gram.weight)[:MAX_CANDIDATES]
    terms = [Term(f'"{gram.text}"', _boost(gram, counted[gram])) for gram in chosen]
    if 0 < len(terms) < MEMORY_QUERY_TERMS and found[-1].is_word:
        terms.append(Term(f'"{found[-1].text}"*', 1.0))
    return terms


def select_terms(terms: Sequence[Term], counts: Sequence[int], total: int) -> list[Term]:
    """The terms of the greatest worth, from the number of texts that have each; without those that none has. A term of
    only one text comes last: where the query is a memory's own text, it finds nothing else."""
    worths = [
        (count == 1, -term.boost * idf(count, total), term) for term, count in zip(terms, counts, strict=True) if count
    ]
    return [term for _, _, term in sorted(worths)[:MEMORY_QUERY_TERMS]]


def idf(count: int, total: int) -> float:
    return math.log(1 + (total - count + 0.5) / (count + 0.5))


def worth(count: int, total: int) -> float:
    """The worth of a word for a memory that has it: its idf, as among at least `_FEW` memories, since among two or
    three nearly every word is rare or common by chance."""
    return idf(count, max(total, _FEW))


def idf_ratio(count: int, total: int) -> float:
    """Our idf over the one in SQLite's `bm25()` (fts5_aux.c: ln((N - n + 0.5) / (n + 0.5)), at least 1e-6)."""
    theirs = math.log((total - count + 0.5) / (count + 0.5)) if count <= total else 0.0
    return idf(min(count, total), total) / (theirs if theirs > 0 else 1e-6)


def _boost(gram: Gram, count: int) -> float:
    return 1 + math.log(count if gram.is_word and len(gram.text) > _SHORT else 1)


# ---- queries ---------------------------------------------------------------------------------------------------------


def _normalize(filter: Any) -> Any:
    """The filter with its values for tags, names and paths in NFC, as memories have them."""
    if not isinstance(filter, dict):
        return filter
    return {
        path: [_normalize(part) for part in wanted]
        if path in ("$and", "$or") and isinstance(wanted, list)
        else _normalize(wanted)
        if path == "$not"
        else _compose(wanted)
        if str(path).partition(".")[0] in _COMPOSED
        else wanted
        for path, wanted in filter.items()
    }


def _compose(wanted: Any) -> Any:
    match wanted:
        case str():
            return compose(wanted)
        case list():
            return [_compose(one) for one in wanted]
        case dict():
            return {name: _compose(one) for name, one in wanted.items()}
    return wanted


def _id_prefix(filter: dict[str, Any]) -> str:
    """The prefix of the ids that a filter accepts, where it is a plain condition: the index finds these."""
    wanted = filter.get("id")
    found = wanted.get("starts_with") if isinstance(wanted, dict) else wanted
    return found if isinstance(found, str) else ""


def _round(score: float) -> float:
    """In two digits, so that a stored score, as a link's weight, does not change with every other memory."""
    return min(max(round(score, 2), 0.01), 1.0)


async def _find_matches(reader: Reader, wanted: Search) -> AsyncGenerator[tuple[MemoryView, float]]:
    async with contextlib.aclosing(_rank(reader, wanted)) as candidates:
        async for part in candidates:
            scores = dict(part)
            found = await read_memories(reader, list(scores))
            for memory, view in zip(found, await views(reader, found) if found else [], strict=True):
                if wanted.visible.shows(view) and (wanted.matches is None or wanted.matches(msgspec.to_builtins(view))):
                    yield view, scores[memory.key]


async def _rank(reader: Reader, wanted: Search) -> AsyncGenerator[list[_Match]]:
    """The keys and scores that the index alone finds, the best first, some at a time."""
    terms = wanted.terms
    if terms is not None and len(terms) > MEMORY_QUERY_TERMS:
        terms = await _select_terms(reader, terms, wanted.visible)
    if terms is None or terms:
        query, values = _sql(wanted, terms)
        async with contextlib.aclosing(reader.parts(query, values, _AT_ONCE)) as parts:
            async for part in parts:
                yield [(row[0], row[1]) for row in part]


def _corpus(visible: Visibility) -> tuple[str, str]:
    """The query for the number of memories, and the condition on `texts`, for the rarity of a word among the visible
    memories: the count of others would show in a score."""
    if not visible.sql:
        return "SELECT count(*) FROM memories", ""
    return f"SELECT count(*) FROM memories m WHERE {visible.sql}", (
        f" AND rowid IN (SELECT m.key FROM memories m WHERE {visible.sql})"
    )


async def _select_terms(reader: Reader, terms: list[Term], visible: Visibility) -> list[Term]:
    total, within = _corpus(visible)
    count = f"(SELECT count(*) FROM texts WHERE texts MATCH ?{within})"
    query = f"SELECT ({total}), {', '.join([count] * len(terms))}"
    values = [*visible.values, *(value for term in terms for value in (term.query, *visible.values))]
    [(total, *counts)] = await reader.execute_fetchall(query, values)
    return select_terms(terms, counts, total)


def _sql(wanted: Search, terms: list[Term] | None) -> tuple[str, list[str | float]]:
    conditions = ["m.world = ?"]
    values: list[str | float] = [wanted.world_id]
    if wanted.room_id is not None:
        conditions.append("m.room = ?")
        values.append(wanted.room_id)
    if wanted.visible.sql:
        conditions.append(wanted.visible.sql)
        values += wanted.visible.values
    if wanted.id_prefix:
        conditions.append("m.id >= ? AND m.id < ?")
        values += [wanted.id_prefix, wanted.id_prefix + "\U0010ffff"]
    for tag in wanted.tags:
        conditions.append("EXISTS (SELECT 1 FROM tags t WHERE t.tag = ? AND t.memory = m.key)")
        values.append(tag)
    where = " AND ".join(conditions)
    if terms is None:
        return f"SELECT m.key, 1.0 FROM memories m WHERE {where} ORDER BY m.key DESC", values
    total, within = _corpus(wanted.visible)
    # Each term apart, so that each one's idf can be made ours; in one statement, so that all see the same memories.
    hit = (
        f"SELECT ? AS term, ? AS boost, rowid AS key, -bm25(texts, {_WEIGHTS}) AS weight"
        f" FROM texts WHERE texts MATCH ?{within}"
    )
    known = wanted.visible.values
    term_values: list[str | float] = []
    for number, term in enumerate(terms):
        term_values += (number, term.boost, term.query, *known)
    return (
        f"WITH hits AS MATERIALIZED ({' UNION ALL '.join([hit] * len(terms))}), factors AS MATERIALIZED"
        f" (SELECT term, idf_ratio(count(*), ({total})) AS factor,"
        f" boost * worth(count(*), ({total})) AS worth FROM hits GROUP BY term)"
        " SELECT m.key, round(sum(f.worth) / (SELECT sum(worth) FROM factors), 2) AS score,"
        " sum(h.weight * h.boost * f.factor) AS total"
        " FROM hits h JOIN factors f ON f.term = h.term JOIN memories m ON m.key = h.key"
        f" WHERE {where} GROUP BY m.key ORDER BY score DESC, total DESC, m.key DESC"
    ), [*term_values, *known, *known, *values]
