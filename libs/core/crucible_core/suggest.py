"""Did you mean: the nearest of the known names."""

import difflib
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

_LEAST = 0.6
_SLOTS = 4


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name` (case ignored), or None where nothing comes close."""
    folded = name.casefold()[:200]
    by_folded = {candidate.casefold(): candidate for candidate in known}
    # difflib takes 20 µs for each candidate, and there may be hundreds for each of many mistakes.
    letters, more = _letters.__wrapped__(folded)
    near = []
    for candidate in by_folded:
        theirs, theirs_more = _letters(candidate)
        shared = (letters & theirs).bit_count() + min(more, theirs_more)
        if 2 * shared >= _LEAST * (len(folded) + len(candidate)):
            near.append(candidate)
    found = difflib.get_close_matches(folded, near, n=1, cutoff=_LEAST)
    return by_folded[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean "x"?)`, or nothing: made to end a message."""
    found = nearest(name, known)
    return f' (did you mean "{found}"?)' if found else ""


@lru_cache(maxsize=8192)
def _letters(text: str) -> tuple[int, int]:
    """A set of bits, `_SLOTS` for each kind of letter, with as many of them set as the text has such letters, and how
    many letters found no place. Two texts have at most so many letters in common as their sets have bits."""
    bits = more = 0
    for letter, count in Counter(ord(char) & 127 for char in text).items():
        bits |= ((1 << min(count, _SLOTS)) - 1) << letter * _SLOTS
        more += max(count - _SLOTS, 0)
    return bits, more
