"""From a text that somebody looks for to a full-text query: the words that tell most, never FTS5 syntax. Pure."""

import math
import re
import unicodedata
from collections import Counter

MAX_TERMS = 20
"""Words of a query. Of a longer text, such as another memory's content, the most telling ones are taken."""
_MAX_TEXT = 100_000
_LONG = 12
_WORD = re.compile(r"[^\W_]+")
_MAX_WORD = 64


def match_query(text: str) -> str | None:
    """An FTS5 query that any of the text's words matches, the last one of a short text also as the beginning of a
    word; None where there is no word in it."""
    terms = _terms(text[:_MAX_TEXT])
    if not terms:
        return None
    if len(terms) > MAX_TERMS:
        return " OR ".join(f'"{term}"' for term in _telling(terms))
    return " OR ".join([*(f'"{term}"' for term in terms), f'"{_words(text)[-1]}"*'])


def _words(text: str) -> list[str]:
    return [word[:_MAX_WORD] for word in _WORD.findall(unicodedata.normalize("NFC", text).casefold())]


def _terms(text: str) -> Counter[str]:
    return Counter(_words(text))


def _telling(terms: Counter[str]) -> list[str]:
    """Long words are rare in a language, and those that come often in a text are what it is about: the weight is
    length x (1 + ln count), length counted up to 12."""

    def weight(term: str) -> float:
        return min(len(term), _LONG) * (1 + math.log(terms[term]))

    return sorted(terms, key=lambda term: (-weight(term), term))[:MAX_TERMS]
