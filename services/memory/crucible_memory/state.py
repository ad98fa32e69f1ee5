"""Memories: the state of one, the single spelling of its tags and names, the checks of its parts, and its ids."""

from collections.abc import Iterable
from typing import Any

import msgspec
import regex

from crucible_core.access import service_principal
from crucible_core.envelope import Source
from crucible_core.errors import InvalidError
from crucible_core.ids import derive_id, is_id
from crucible_core.limits import (
    MEMORY_ENTITIES,
    MEMORY_LINKS,
    MEMORY_TAG_CHARS,
    MEMORY_TAGS,
    MEMORY_WORD_CHARS,
)
from crucible_core.protocol.memory import Link
from crucible_kit.clock import fresh_id
from crucible_memory.search.words import compose, tag_key

MEMORY = service_principal("memory")
"""The principal of this service's own requests."""
SOURCE = Source("system", "memory")
"""The source of the events that this service appends for notes."""
_MOST_LONGER = 4
"""Times the length of its single spelling that a name may have: with spaces around it, or decomposed."""

_INVISIBLE = regex.compile(r"[[\p{Cc}--\s]\u00AD\u061C\u200B\u200E\u200F\u202A-\u202E\u2060-\u206F\uFEFF]", regex.V1)
"""Characters that are invisible, and that no script needs within a word."""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """`sequence` is its last event, `key` the one that created it.

    A note's memory has the watched folder in `root` (empty where that is unknown; None for a memory of no note), and
    its earlier paths in `former_paths`, the latest first. Others than the note added `added_tags`, `added_links` and
    `added_metadata`: they stay when the note changes.
    """

    id: str
    world_id: str
    room_id: str
    content: str
    title: str | None = None
    path: str | None = None
    tags: list[str] = []
    entities: list[str] = []
    links: list[Link] = []
    metadata: dict[str, Any] = {}
    problems: list[str] = []
    root: str | None = None
    former_paths: list[str] = []
    added_tags: list[str] = []
    added_links: list[Link] = []
    added_metadata: dict[str, Any] = {}
    created_at: str
    updated_at: str
    key: int
    sequence: int


def clean_name(text: str) -> str:
    """The single spelling of a name: composed, without invisible characters, and with one space between two words."""
    return " ".join(compose(_INVISIBLE.sub("", text)).split())


def clean_tag(text: str) -> str | None:
    """The single spelling of a tag, with its `#`; None where nothing is left of it. Its case stays."""
    name = clean_name(text).lstrip("#＃").strip(" /")
    return f"#{name}" if tag_key(name) else None


def clean_tags(tags: Iterable[str]) -> list[str]:
    """Each in its single spelling; of several with one key, the first."""
    return unique_tags(tag for tag in map(clean_tag, tags) if tag)


def unique_tags(tags: Iterable[str]) -> list[str]:
    found: dict[str, str] = {}
    for tag in tags:
        found.setdefault(tag_key(tag), tag)
    return list(found.values())


def link_key(link: Link) -> tuple[str, str]:
    """The same for two that are written alike; their weights may differ. Two notes may have names of one key."""
    return clean_name(link.target), link.type


def unique_links(links: Iterable[Link]) -> list[Link]:
    """Of several that stand for one link, the first."""
    found: dict[tuple[str, str], Link] = {}
    for link in links:
        found.setdefault(link_key(link), link)
    return list(found.values())


# ---- checks ----------------------------------------------------------------------------------------------------------


def check_tag(text: str, path: str = "tag") -> str:
    """The tag's single spelling. Raises InvalidError at `path`."""
    tag = clean_tag(text)
    if tag is None:
        raise InvalidError.field(path, "a tag is a # and a name")
    if len(tag) > MEMORY_TAG_CHARS or len(text) > _MOST_LONGER * MEMORY_TAG_CHARS:
        raise InvalidError.field(path, f"a tag may have {MEMORY_TAG_CHARS} characters")
    return tag


def check_tags(tags: list[str], path: str = "tags") -> list[str]:
    """Each in its single spelling, and once."""
    _check_count(tags, MEMORY_TAGS, path)
    return unique_tags(check_tag(tag, f"{path}.{index}") for index, tag in enumerate(tags))


def check_words(words: list[str], path: str) -> list[str]:
    _check_count(words, MEMORY_ENTITIES, path)
    return unique(_check_word(word, f"{path}.{index}") for index, word in enumerate(words))


def check_link(link: Link, path: str = "link") -> Link:
    target, kind = _check_word(link.target, f"{path}.target"), _check_word(link.type, f"{path}.type")
    return Link(target=target, type=kind, weight=link.weight)


def check_links(links: list[Link], path: str = "links") -> list[Link]:
    """Of two that stand for one link, the first counts."""
    _check_count(links, MEMORY_LINKS, path)
    return unique_links(check_link(link, f"{path}.{index}") for index, link in enumerate(links))


def check_content(content: str, path: str = "content") -> str:
    if not content.strip():
        raise InvalidError.field(path, "a memory needs some content")
    return content


def unique(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _check_word(text: str, path: str) -> str:
    word = compose(text).strip()
    if not 0 < len(word) <= MEMORY_WORD_CHARS or len(text) > _MOST_LONGER * MEMORY_WORD_CHARS:
        raise InvalidError.field(path, f"must have 1 to {MEMORY_WORD_CHARS} characters")
    return word


def _check_count(items: list[Any], most: int, path: str) -> None:
    if len(items) > most:
        raise InvalidError.field(path, f"may hold {most}, this one holds {len(items)}")


# ---- ids -------------------------------------------------------------------------------------------------------------

EPOCH_MS = 1_735_689_600_000
"""2025-01-01: the time in the id of every note's memory. It never changes: a name has the same id for ever."""


def note_id(world: str, path: str, root: str = "", *again: str) -> str:
    """The id of the memory of the first note at a path below a watched folder: two folders may each have a note of the
    same path. `again` distinguishes a later note, when the first has moved away."""
    return derive_id("mem", EPOCH_MS, "note", world, root, path, *again)


def new_id(id: str | None) -> str:
    """The caller's id, else a fresh one. Raises InvalidError for an id of no memory."""
    if id is None:
        return fresh_id("mem")
    if not is_id("mem", id):
        raise InvalidError.field("id", "a memory's id is mem_ and up to 64 letters, digits, _ or -")
    return id
