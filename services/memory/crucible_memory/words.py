"""The one normalisation of text, for what is stored and what is asked: search, tags, names and links. Pure.

`fold` is Unicode's NFKC_Casefold, and on top of it what readers of a script take for the same letter: accents of Latin,
Greek and Cyrillic, Hebrew and Arabic points, the forms of alef, nasals of Devanagari, colours of emoji.

Scripts that put no spaces between words are indexed one character a word; a query asks for them by `grams`, runs of two
or three characters, as phrases. Korean is among them, since its particles are written to the word.
"""

from collections.abc import Iterator
from typing import NamedTuple
from unicodedata import digit, normalize

import regex

VERSION = f"1 {regex.__version__}"
"""What the index was made with: another one makes it anew."""
MAX_WORD = 64
"""Characters; a longer word is several."""

_CJK = r"[[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Hangul}\p{Yi}ー]&&[\p{L}\p{N}\p{M}]]"
_ALPHABETIC = (
    r"[[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\p{Javanese}\p{Balinese}]"
    r"&&[\p{L}\p{N}\p{M}]]"
)
_SYMBOL = r"[\p{So}--[\u2500-\u259F]]"
"""Emoji and other pictures, but no lines and boxes."""
_WORD = rf"[[\p{{L}}\p{{N}}\p{{M}}]--{_CJK}--{_ALPHABETIC}]"

_WORDS = regex.compile(rf"{_CJK}|{_ALPHABETIC}|{_SYMBOL}|{_WORD}{{1,{MAX_WORD}}}", regex.V1)
_ASCII_WORDS = regex.compile(rf"[a-z0-9]{{1,{MAX_WORD}}}")
_RUNS = regex.compile(rf"(?P<pair>{_CJK}+|{_SYMBOL}+)|(?P<triple>{_ALPHABETIC}+)|{_WORD}{{1,{MAX_WORD}}}", regex.V1)
_HIRAGANA = regex.compile(r"\p{Hiragana}")

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
    """What a query asks for: a word, or a phrase of characters. `weight` guesses how telling it is."""

    text: str
    weight: int
    is_word: bool


def fold(text: str) -> str:
    """The text by which others are compared; the same for all that a reader takes for the same."""
    if text.isascii():
        return text.lower()
    plain = normalize("NFKD", normalize("NFKC", text).casefold())
    plain = normalize("NFC", _LOST.sub("", plain)).translate(_LETTERS)
    return _DIGITS.sub(_digit, _NASALS.sub("ं", plain))


def indexed(text: str) -> str:
    """The words of a text, with a space between each two."""
    folded = fold(text)
    return " ".join((_ASCII_WORDS if folded.isascii() else _WORDS).findall(folded))


def grams(text: str) -> Iterator[Gram]:
    """What a query of this text asks for, in order."""
    folded = fold(text)
    if folded.isascii():
        yield from (Gram(word, len(word), True) for word in _ASCII_WORDS.findall(folded))
        return
    for match in _RUNS.finditer(folded):
        if match["pair"] or match["triple"]:
            yield from _phrases(match[0], 2 if match["pair"] else 3)
        else:
            yield Gram(match[0], len(match[0]), True)


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


def _phrases(run: str, length: int) -> Iterator[Gram]:
    for start in range(max(len(run) - length, 0) + 1):
        part = run[start : start + length]
        yield Gram(" ".join(part), 3 * len(part) - 2 * len(_HIRAGANA.findall(part)), False)


def _digit(match: regex.Match[str]) -> str:
    return str(digit(match[0]))
