"""The one normalisation of text, in memories and in queries: search, tags, names and links. Pure.

`fold` is Unicode's NFKC_Casefold, and on top of it the variants of one letter to readers of a script: accents of Latin,
Greek and Cyrillic, Hebrew and Arabic points, the forms of alef, nasals of Devanagari, colours of emoji.

Scripts that put no spaces between words are indexed one character a word; a query asks for them by `grams`, runs of two
or three characters, as phrases. Korean is among them, since its particles are written to the word.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple
from unicodedata import digit, normalize, unidata_version

import regex

from crucible_core.limits import MEMORY_QUERY_CHARS

VERSION = f"2 {unidata_version} {regex.__version__}"
"""The version of the index: another one rebuilds it."""
MAX_WORD = 64
"""Characters; a longer word is several."""
_PIECE = 16_384
"""Characters that are processed at once: meanwhile nothing else runs in this process."""

_MOST_FOLDED = 2 * _PIECE
"""One character may fold into 18 (U+FDFA): a text of such would be as much work as one that no event may have."""

# Letters and marks without their punctuation; digits and other forms are folded away.
_CJK = (
    "\u1100-\u11ff\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c"
    "\u3041-\u3096\u3099\u309a\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u3131-\u318e\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua48c\ua960-\ua97c\uac00-\ud7a3\ud7b0-\ud7fb\uf900-\ufaff"
    "\U0001aff0-\U0001b167\U00020000-\U000323af"
)
"""Chinese, Japanese, Korean and Yi."""
_ALPHABETIC = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u0edc-\u0edf"
    "\u1000-\u103f\u1050-\u109d\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaa76\uaa7a-\uaa7f"
    "\u1780-\u17d3\u17d7\u17dc\u17dd"
    "\u1950-\u1974\u1980-\u19c9\u1a20-\u1a7c\uaa80-\uaadd\ua980-\ua9c0\u1b00-\u1b4b"
)
"""Thai, Lao, Burmese, Khmer, the scripts of the Tai, Javanese and Balinese."""
_UNSPACED = re.compile(f"(?P<pair>[{_CJK}]+)|[{_ALPHABETIC}]+")
_SYMBOL = r"(?:(?![\u2500-\u259F])\p{So})"
"""Emoji and other pictures, but no lines and boxes."""
_WORDS = regex.compile(rf"[\p{{L}}\p{{N}}\p{{M}}]{{1,{MAX_WORD}}}|{_SYMBOL}")
_SYMBOLS = regex.compile(rf"[\p{{L}}\p{{N}}\p{{M}}]{{1,{MAX_WORD}}}|(?P<pair>{_SYMBOL}+)")
_ASCII_WORDS = re.compile(rf"[a-z0-9]{{1,{MAX_WORD}}}")
_HIRAGANA = regex.compile(r"\p{Hiragana}")
_MARKS = regex.compile(r"(\p{M}{30})\p{M}+")
"""More marks on one letter than Unicode's Stream-Safe Text Format allows (UAX 15): to put n of them in order takes
Python n² steps."""

_LOST = regex.compile(
    r"[\p{Default_Ignorable_Code_Point}\u0640\U0001F3FB-\U0001F3FF"
    r"\u1AB0-\u1AFF\u1DC0-\u1DFF\u20D0-\u20FF\uFE20-\uFE2F"  # marks of any script
    r"\u0300-\u0305\u0307\u0309-\u036F\u0483-\u0487"
    r"\u0591-\u05BD\u05BF\u05C1\u05C2\u05C4\u05C5\u05C7"  # Hebrew
    r"\u0610-\u061A\u064B-\u065F\u0670\u06D6-\u06DC\u06DF-\u06E8\u06EA-\u06ED\u08D3-\u08FF"  # Arabic
    r"\u093C]"  # the dot of Devanagari
    r"|(?<![иу])\u0306|(?<!і)\u0308",  # й, ў and ї are letters of their own; ё is written as е
    regex.V1,
)
_NASALS = regex.compile(r"\u0901|(?:ङ(?=्[क-घ])|ञ(?=्[च-झ])|ण(?=्[ट-ढ])|न(?=्[त-ध])|म(?=्[प-भ]))्")
"""Before a consonant of their own place, Hindi writes them as a dot as well."""
_DIGITS = regex.compile(r"[\p{Nd}--[0-9]]", regex.V1)
_LETTERS = str.maketrans(
    {"đ": "d", "ð": "d", "ø": "o", "ł": "l", "ħ": "h", "ŧ": "t", "ı": "i", "æ": "ae", "œ": "oe", "þ": "th"}
    | {"ى": "ي", "ی": "ي", "ک": "ك", "ة": "ه", "ٱ": "ا"}
)


class Gram(NamedTuple):
    """A part of a query: a word, or a phrase of characters. `weight` estimates its rarity."""

    text: str
    weight: int
    is_word: bool


def compose(text: str) -> str:
    """NFC, in linear time."""
    return text if text.isascii() else normalize("NFC", _MARKS.sub(r"\1", text))


def fold(text: str) -> str:
    """The folded text, for comparison; the same for all spellings that a reader takes for the same."""
    if text.isascii():
        return text.lower()
    plain = normalize("NFKD", normalize("NFKC", _MARKS.sub(r"\1", text)).casefold())
    plain = normalize("NFC", _LOST.sub("", plain)).translate(_LETTERS)
    return _DIGITS.sub(_digit, _NASALS.sub("ं", plain))


def index_words(text: str) -> str:
    """The words of a text, with a space between each two."""
    return " ".join(word for piece in _pieces(text) for word in _words(fold(piece)[:_MOST_FOLDED]))


def grams(text: str) -> Iterator[Gram]:
    """The parts of a query, in order; only those of the beginning of a long text."""
    folded = fold(text[:MEMORY_QUERY_CHARS])[:MEMORY_QUERY_CHARS]
    start = 0
    for match in _UNSPACED.finditer(folded):
        yield from _word_grams(folded[start : match.start()])
        yield from _phrase_grams(match[0], 2 if match["pair"] else 3)
        start = match.end()
    yield from _word_grams(folded[start:])


def tag_key(tag: str) -> str:
    """The key of a tag's name; its levels are between slashes."""
    levels = (" ".join(level.split()) for level in fold(tag.lstrip("#")).split("/"))
    return "/".join(level for level in levels if level)


def tag_keys(tag: str) -> list[str]:
    """The keys that find a tag: `#a/b/c` is also `a/b` and `a`."""
    levels = tag_key(tag).split("/")
    return ["/".join(levels[:length]) for length in range(len(levels), 0, -1)]


def name_key(name: str) -> str:
    """The key of a note's name or path."""
    return " ".join(fold(name).split()).removeprefix("./").strip("/")


def _pieces(text: str) -> Iterator[str]:
    """Parts that end between two words, where the text has a space."""
    start = 0
    while start < len(text):
        end = start + _PIECE
        if end < len(text):
            end = max(text.rfind(" ", start, end), text.rfind("\n", start, end)) + 1 or end
        yield text[start:end]
        start = end


def _words(folded: str) -> Iterator[str]:
    if folded.isascii():
        yield from _ASCII_WORDS.findall(folded)
        return
    start = 0
    for match in _UNSPACED.finditer(folded):
        yield from _WORDS.findall(folded, start, match.start())
        yield from match[0]
        start = match.end()
    yield from _WORDS.findall(folded, start)


def _word_grams(text: str) -> Iterator[Gram]:
    for match in _SYMBOLS.finditer(text):
        if match["pair"]:
            yield from _phrase_grams(match[0], 2)
        else:
            yield Gram(match[0], len(match[0]), True)


def _phrase_grams(run: str, length: int) -> Iterator[Gram]:
    for start in range(max(len(run) - length, 0) + 1):
        part = run[start : start + length]
        yield Gram(" ".join(part), 3 * len(part) - 2 * len(_HIRAGANA.findall(part)), False)


def _digit(match: regex.Match[str]) -> str:
    return str(digit(match[0]))
