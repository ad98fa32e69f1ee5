"""Parser of Markdown notes: title, text, tags, links, and the problems of the front matter. Pure.

Tags and links count in the text that a reader sees, as CommonMark has it: not in code, HTML or addresses.
"""

import functools
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import msgspec
import regex
from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from crucible_core.errors import InvalidError
from crucible_core.limits import (
    MEMORY_LINKS,
    MEMORY_TAG_CHARS,
    MEMORY_TAGS,
    MEMORY_TITLE_CHARS,
    MEMORY_WORD_CHARS,
    NOTE_KEYS,
    NOTE_LINK_CHARS,
    NOTE_READ_CHARS,
)
from crucible_core.protocol.memory import Link
from crucible_core.yaml import load, read_front_matter
from crucible_memory.state import clean_name, clean_tags, unique, unique_links

NOTE_LINK = "wikilink"
"""The type of the links that `[[…]]` makes in the text; in front matter it is the key that has it."""
IN_PLACE = 16_384
"""Characters that are read without a thread: less than a moment of everybody else's time."""
_ENDINGS = (".md", ".markdown")

_AS_WRITTEN = ("title", "tags", "tag", "aliases", "alias")
_TAGS = ("tags", "tag")
_ALIASES = ("aliases", "alias")
_KEY = re.compile(r"^(?=[^\s#-])([^:\n]{1,200}):(?=\s|$)", re.MULTILINE)
"""The beginning of a key of the first level."""

# As Obsidian has it: letters, digits, emoji, _, - and /, at least one of them no digit, after a space or an opening
# mark. The marks within words are those of Twitter's hashtags, such as the middle dots of Catalan and of katakana.
_IN_TAG = r"[\p{L}\p{M}\p{N}\p{So}\U0001F3FB-\U0001F3FF\u200C\u200D\U000E0020-\U000E007F_/\-·־׳״・゠〜～゛゜་༌]"
_TAG = regex.compile(
    rf"(?:(?<=^)|(?<=[\s(\[{{,;\"'“‘«*_~|（「『【〈《、。，；：！？]))#{_IN_TAG}+", regex.MULTILINE | regex.V1
)
_NO_TAG = regex.compile(r"#(\p{N}*|[^\p{L}\p{N}\p{So}]*)")
_DESTINATION = re.compile(r"\]\([^)\n]{0,2000}\)")
"""The address of a link: its anchor is no tag."""
_LINKED = re.compile(r"\[\[([^\[\]\n]{1,500})\]\]")
_LONE_CR = re.compile(r"\r(?!\n)")
_HIDDEN = "\ufffc"
"""Stands in the text for parts that are no words to a reader."""


class Note(msgspec.Struct, frozen=True):
    """`content` is the text below the front matter, `metadata` the other keys of the front matter, `problems` the
    faults that its writer should mend, each with its line."""

    title: str
    content: str
    tags: list[str]
    links: list[Link]
    metadata: dict[str, Any]
    problems: list[str] = []


class Marks(NamedTuple):
    """The `#tags` and `[[links]]` of a text, and its first heading."""

    tags: list[str]
    links: list[Link]
    heading: str = ""


NO_MARKS = Marks([], [])


def is_note(path: str) -> bool:
    return path.lower().endswith(_ENDINGS)


def parse(text: str, path: str) -> Note:
    """Never fails: front matter that does not parse is a problem of the note, which has all keys that do parse."""
    head, body, problems = _split(text)
    named_tags, aliases, title = _take(head, _TAGS), unique(_lines(_take(head, _ALIASES))), head.pop("title", None)
    links = list(_front_links(head, NOTE_LINK))
    marks = read_marks(body)
    tags = _clean([*_words(named_tags), *marks.tags])
    links = unique_links([*links, *marks.links])
    return Note(
        title=_title(title) or marks.heading or PurePosixPath(path).stem,
        content=body,
        tags=tags[:MEMORY_TAGS],
        links=links[:MEMORY_LINKS],
        metadata=head | ({"aliases": aliases} if aliases else {}),
        problems=[*problems, *_too_many(tags, MEMORY_TAGS, "tags"), *_too_many(links, MEMORY_LINKS, "links")],
    )


def read_marks(text: str) -> Marks:
    """The marks that a reader sees in a text, up to the limit of notes."""
    tags: list[str] = []
    links: list[Link] = []
    heading = ""
    for is_heading, token in _inlines(text[:NOTE_READ_CHARS]):
        words, targets = _read(token)
        tags += _tags_in(words)
        links += [Link(target=target, type=NOTE_LINK) for target in targets]
        heading = heading or (_plain_text(token.content) if is_heading else "")
    return Marks(_clean(tags), unique_links(links), heading)


def _clean(tags: list[str]) -> list[str]:
    return [tag for tag in clean_tags(tags) if len(tag) <= MEMORY_TAG_CHARS]


def _too_many(found: list[Any], most: int, name: str) -> list[str]:
    return [f"{len(found)} {name}: the first {most} count"] if len(found) > most else []


# ---- front matter ----------------------------------------------------------------------------------------------------


def _split(text: str) -> tuple[dict[str, Any], str, list[str]]:
    """The front matter, the text after it, and its problems."""
    found, head, body, problem = read_front_matter(_LONE_CR.sub("\n", text), as_text=_AS_WRITTEN)
    problems = [f"front matter, {problem}"] if problem else []
    return (_key_by_key(head) if found is None else found), body, problems


def _key_by_key(head: str) -> dict[str, Any]:
    """The keys that parse by themselves; a value of one line that does not stays as it is written."""
    starts = [match.start() for match in _KEY.finditer(head)][:NOTE_KEYS]
    found: dict[str, Any] = {}
    for start, end in pairwise([*starts, len(head)]):
        part = head[start:end]
        try:
            value = load(part, as_text=_AS_WRITTEN)
        except InvalidError:
            key, _, written = part.partition(":")
            value = {} if "\n" in written.rstrip() else {key.strip(): written.strip()[:MEMORY_TITLE_CHARS]}
        found = (value if isinstance(value, dict) else {}) | found
    return found


def _take(head: dict[str, Any], names: tuple[str, ...]) -> Any:
    found = [head.pop(name, None) for name in names]
    return next((value for value in found if value is not None), None)


def _words(value: Any) -> Iterator[str]:
    """The members of a list, or the words of a text: `a, b` and `a b` are two."""
    if isinstance(value, str):
        yield from re.split(r"[,\s]+", value)
    elif isinstance(value, list):
        yield from (item for item in value if isinstance(item, str))


def _title(value: Any) -> str:
    return value.strip()[:MEMORY_TITLE_CHARS] if isinstance(value, str) else ""


def _lines(value: Any) -> Iterator[str]:
    """The members of a list, or the parts of a text between commas."""
    for name in value.split(",") if isinstance(value, str) else _words(value):
        if name.strip():
            yield name.strip()


def _front_links(value: Any, type: str) -> Iterator[Link]:
    """The `[[…]]` in a value and its members. Without quotes, YAML reads them as a list in a list."""
    match value:
        case str():
            for match_ in _LINKED.finditer(value):
                yield from _link(match_[1], type)
        case [[str() as name]]:
            yield from _link(name, type)
        case list():
            for item in value:
                yield from _front_links(item, type)
        case dict():
            for key, item in value.items():
                yield from _front_links(item, clean_name(key)[:MEMORY_WORD_CHARS] or type)


def _link(inner: str, type: str) -> Iterator[Link]:
    target, _ = _parts(inner)
    if 0 < len(target) <= MEMORY_WORD_CHARS:
        yield Link(target=target, type=type)


# ---- text ------------------------------------------------------------------------------------------------------------


def _wikilink(state: StateInline, silent: bool) -> bool:
    """A rule for markdown-it: `[[target|shown]]`."""
    if not state.src.startswith("[[", state.pos):
        return False
    end = state.src.find("]]", state.pos + 2, state.pos + NOTE_LINK_CHARS)
    inner = state.src[state.pos + 2 : end]
    if end < 0 or not inner.strip() or any(mark in inner for mark in "\n[]"):
        return False
    if not silent:
        state.push("wikilink", "", 0).content = inner
    state.pos = end + 2
    return True


@functools.cache
def _reader() -> MarkdownIt:
    """The parser, which takes longer to build than to read a note; the state of a text is in the text's own tokens."""
    # Joined, an escaped \# would look like any other. The other rules are not needed, and slow.
    return _with_wikilinks().disable(["text_join", "reference", "link", "image", "emphasis"])


@functools.cache
def _heading_reader() -> MarkdownIt:
    return _with_wikilinks()


def _with_wikilinks() -> MarkdownIt:
    reader = MarkdownIt("commonmark")
    reader.inline.ruler.before("link", "wikilink", _wikilink)
    return reader


def _inlines(body: str) -> Iterator[tuple[bool, Token]]:
    """Every run of text, and whether it is a heading."""
    heading = False
    for token in _reader().parse(body):
        if token.type == "inline":
            yield heading, token
        heading = token.type == "heading_open"


def _read(token: Token) -> tuple[str, list[str]]:
    """The words of a run of text, and the targets of its wikilinks."""
    words: list[str] = []
    targets: list[str] = []
    address = False
    for child in token.children or []:
        match child.type:
            case "wikilink":
                target, _ = _parts(child.content)
                words.append(_HIDDEN)
                targets += [target] if 0 < len(target) <= MEMORY_WORD_CHARS else []
            case "link_open" | "link_close":
                address = child.type == "link_open"
            case "text" if not address:
                words.append(child.content)
            case "text_special":
                words.append(_HIDDEN if child.content == "#" else child.content)
            case "softbreak" | "hardbreak":
                words.append("\n")
            case _:
                words.append(_HIDDEN)
    return "".join(words), targets


def _parts(inner: str) -> tuple[str, str]:
    """(target, shown text) of `target#heading|shown`; in tables the bar is escaped."""
    target, _, shown = inner.replace("\\|", "|").partition("|")
    target = clean_name(target.partition("#")[0])
    return target, shown.strip() or target


def _tags_in(text: str) -> Iterator[str]:
    for match in _TAG.finditer(_DESTINATION.sub("]", text)):
        tag = match[0].rstrip("/_")
        if not _NO_TAG.fullmatch(tag):
            yield tag


def _plain_text(heading: str) -> str:
    """A heading without its marks."""
    tokens = _heading_reader().parseInline(heading[:MEMORY_TITLE_CHARS])[0].children or []
    words = (_parts(token.content)[1] if token.type == "wikilink" else token.content for token in tokens)
    return "".join(words).strip()
