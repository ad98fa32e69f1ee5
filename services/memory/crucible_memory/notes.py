"""A Markdown note as a memory sees it: title, text, tags and links. Pure.

Tags and links are looked for in the text that a reader sees, as CommonMark has it: not in code, HTML or addresses.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import msgspec
from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from crucible_core.protocol.memory import Link

from .frontmatter import split
from .state import MAX_LINKS, MAX_TAG, MAX_TAGS, MAX_WORD, clean_tag, unique

NOTE_LINK = "wikilink"
"""The type of the links that `[[…]]` makes."""
MAX_TITLE = 1000
_ENDINGS = (".md", ".markdown")
_MAX_WIKILINK = 500

MAX_READ = 128 * 1024
"""Characters in which tags and links are looked for: a Markdown parser is slow, and hostile texts make it slower."""

# As Obsidian has it: letters, digits, _, - and /, at least one of them no digit, after a space or an opening mark.
_TAG = re.compile(r"(?:(?<=^)|(?<=[\s(\[{,;\"'“«*_~]))#(?=[\d_/-]*[^\W\d_])[\w/-]+", re.MULTILINE)
_DESTINATION = re.compile(r"\]\([^)\n]{0,2000}\)")
"""The address of a link: its anchor is no tag."""
_HIDDEN = "\ufffc"
"""Stands in the text for what a reader does not take for words."""


class Note(msgspec.Struct, frozen=True):
    """`content` is the text below the front matter; `metadata` what else the front matter says."""

    title: str
    content: str
    tags: list[str]
    links: list[Link]
    metadata: dict[str, Any]


def is_note(path: str) -> bool:
    return path.lower().endswith(_ENDINGS)


def parse(text: str, path: str) -> Note:
    """Raises InvalidError where the front matter cannot be read. More tags or links than a memory may have are cut."""
    head, body = split(text)
    tags = [tag for tag in map(clean_tag, _words(_take(head, "tags", "tag"))) if tag and len(tag) <= MAX_TAG]
    targets: list[str] = []
    heading = ""
    for is_heading, token in _inlines(body[:MAX_READ]):
        words, linked = _read(token)
        tags += _tags_in(words)
        targets += linked
        heading = heading or (_plain_text(token.content) if is_heading else "")
    title = head.pop("title", None)
    aliases = unique(_lines(_take(head, "aliases", "alias")))
    return Note(
        title=_title(title) or heading or PurePosixPath(path).stem,
        content=body,
        tags=unique(tags)[:MAX_TAGS],
        links=[Link(target=target, type=NOTE_LINK) for target in unique(targets)[:MAX_LINKS]],
        metadata=head | ({"aliases": aliases} if aliases else {}),
    )


# ---- front matter ----------------------------------------------------------------------------------------------------


def _take(head: dict[str, Any], *names: str) -> Any:
    found = [head.pop(name, None) for name in names]
    return next((value for value in found if value is not None), None)


def _words(value: Any) -> Iterator[str]:
    """The members of a list, or the words of a text: `a, b` and `a b` are two."""
    if isinstance(value, str):
        yield from re.split(r"[,\s]+", value)
    elif isinstance(value, list):
        yield from (str(item) for item in value if isinstance(item, str | int | float))
    elif isinstance(value, int | float):
        yield str(value)


def _title(value: Any) -> str:
    return str(value).strip()[:MAX_TITLE] if isinstance(value, str | int | float) else ""


def _lines(value: Any) -> Iterator[str]:
    """The members of a list, or the parts of a text between commas."""
    for name in value.split(",") if isinstance(value, str) else _words(value):
        if name.strip():
            yield name.strip()


# ---- text ------------------------------------------------------------------------------------------------------------


def _wikilink(state: StateInline, silent: bool) -> bool:
    """A rule for markdown-it: `[[target|shown]]`."""
    if not state.src.startswith("[[", state.pos):
        return False
    end = state.src.find("]]", state.pos + 2, state.pos + _MAX_WIKILINK)
    inner = state.src[state.pos + 2 : end]
    if end < 0 or not inner.strip() or any(mark in inner for mark in "\n[]"):
        return False
    if not silent:
        state.push("wikilink", "", 0).content = inner
    state.pos = end + 2
    return True


def _reader() -> MarkdownIt:
    reader = MarkdownIt("commonmark")
    reader.inline.ruler.before("link", "wikilink", _wikilink)
    # Joined, an escaped \# would look like any other. The rest is not asked for, and slow.
    return reader.disable(["text_join", "reference", "link", "image", "emphasis"])


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
                targets += [target] if 0 < len(target) <= MAX_WORD else []
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
    """(target, what is shown) of `target#heading|shown`; in tables the bar is escaped."""
    target, _, shown = inner.replace("\\|", "|").partition("|")
    target = target.partition("#")[0].strip()
    return target, shown.strip() or target


def _tags_in(text: str) -> Iterator[str]:
    for match in _TAG.finditer(_DESTINATION.sub("]", text)):
        tag = match[0].rstrip("/_")
        if len(tag) <= MAX_TAG:
            yield tag


def _plain_text(heading: str) -> str:
    """A heading without its marks."""
    reader = MarkdownIt("commonmark")
    reader.inline.ruler.before("link", "wikilink", _wikilink)
    tokens = reader.parseInline(heading[:MAX_TITLE])[0].children or []
    words = (_parts(token.content)[1] if token.type == "wikilink" else token.content for token in tokens)
    return "".join(words).strip()
