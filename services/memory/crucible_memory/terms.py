"""From a text that somebody looks for to full-text queries of one word or phrase each, and what each is worth. Pure.

A word's worth is Lucene's BM25 idf, ln(1 + (N - n + 0.5) / (n + 0.5)) for n of N texts, which stays above zero where
SQLite's does not: among few memories, a word that most of them have still tells that they are alike.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from .words import Gram, grams

MAX_TERMS = 20
"""Words of a query. Of a longer text, such as another memory's content, the most telling ones are taken."""
MAX_CANDIDATES = 60
_SHORT = 3
_FEW = 100


class Term(NamedTuple):
    """`query` is FTS5 syntax; `boost` says how often the word was asked for: 1 + ln count. That of short words is 1,
    since they come often in any text."""

    query: str
    boost: float


def terms_of(text: str) -> list[Term]:
    """At most `MAX_CANDIDATES`, those that promise most where there are more. The last word of a short text also stands
    for those that begin with it."""
    found = list(grams(text))
    counted = Counter(found)
    chosen = sorted(counted, key=lambda gram: -gram.weight)[:MAX_CANDIDATES]
    terms = [Term(f'"{gram.text}"', _boost(gram, counted[gram])) for gram in chosen]
    if 0 < len(terms) < MAX_TERMS and found[-1].is_word:
        terms.append(Term(f'"{found[-1].text}"*', 1.0))
    return terms


def telling(terms: Sequence[Term], counts: Sequence[int], total: int) -> list[Term]:
    """The terms that are worth most, by how many of all texts have each; without those that none has. What only one
    text has comes last: where the text that is asked with is a memory itself, it finds nothing else."""
    worths = [
        (count == 1, -term.boost * idf(count, total), term) for term, count in zip(terms, counts, strict=True) if count
    ]
    return [term for _, _, term in sorted(worths)[:MAX_TERMS]]


def idf(count: int, total: int) -> float:
    return math.log(1 + (total - count + 0.5) / (count + 0.5))


def worth(count: int, total: int) -> float:
    """How much a word says of a memory that has it: its idf, as among at least `_FEW` memories, since among two or
    three nearly every word is rare or common by chance."""
    return idf(count, max(total, _FEW))


def idf_ratio(count: int, total: int) -> float:
    """Our idf over the one in SQLite's `bm25()` (fts5_aux.c: ln((N - n + 0.5) / (n + 0.5)), at least 1e-6)."""
    theirs = math.log((total - count + 0.5) / (count + 0.5)) if count <= total else 0.0
    return idf(min(count, total), total) / (theirs if theirs > 0 else 1e-6)


def _boost(gram: Gram, count: int) -> float:
    return 1 + math.log(count if gram.is_word and len(gram.text) > _SHORT else 1)
