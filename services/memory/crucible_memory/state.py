"""A memory as its events have made it, the checks of its parts, and the one spelling of each tag and name."""

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
from crucible_memory.search.words import composed, tag_key

MEMORY = service_principal("memory")
"""Who asks where this service acts for nobody else."""
SOURCE = Source("system", "memory")
"""Whose the events are that this service makes of notes."""
_MOST_GIVEN = 4
"""Times as long as its one spelling a name may come: with spaces around it, or decomposed."""

_UNSEEN = regex.compile(r"[[\p{Cc}--\s]\u00AD\u061C\u200B\u200E\u200F\u202A-\u202E\u2060-\u206F\uFEFF]", regex.V1)
"""What nobody sees and no script needs within a word."""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """`sequence` is its last event, `key` the one that created it.

    A note's memory has the watched folder in `root` (empty where that is not known; None where it is no note's), and
    where it was before in `former_paths`, the latest first. `added_tags`, `added_links` and `added_metadata` were put
    on by others than the note: they stay when it changes.
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
    """The one spelling of a name: composed, without what nobody sees, and with one space between two words."""
    return " ".join(composed(_UNSEEN.sub("", text)).split())


def clean_tag(text: str) -> str | None:
    """The one spelling of a tag, with its `#`; None where nothing is left of it. Its case stays."""
    name = clean_name(text).lstrip("#＃").strip(" /")
    return f"#{name}" if tag_key(name) else None


def clean_tags(tags: Iterable[str]) -> list[str]:
    """Each in its one spelling; of several with one key, the first."""
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


# ---- checks of what users send ---------------------------------------------------------------------------------------


def checked_tag(text: str, path: str = "tag") -> str:
    """The tag's one spelling. Raises InvalidError at `path`."""
    tag = clean_tag(text)
    if tag is None:
        raise InvalidError.field(path, "a tag is a # and a name")
    if len(tag) > MEMORY_TAG_CHARS or len(text) > _MOST_GIVEN * MEMORY_TAG_CHARS:
        raise InvalidError.field(path, f"a tag may have {MEMORY_TAG_CHARS} characters")
    return tag


def checked_tags(tags: list[str], path: str = "tags") -> list[str]:
    """Each in its one spelling, and once."""
    _bound(tags, MEMORY_TAGS, path)
    return unique_tags(checked_tag(tag, f"{path}.{place}") for place, tag in enumerate(tags))


def checked_words(words: list[str], path: str) -> list[str]:
    _bound(words, MEMORY_ENTITIES, path)
    return unique(_checked_word(word, f"{path}.{place}") for place, word in enumerate(words))


def checked_link(link: Link, path: str = "link") -> Link:
    target, kind = _checked_word(link.target, f"{path}.target"), _checked_word(link.type, f"{path}.type")
    return Link(target=target, type=kind, weight=link.weight)


def checked_links(links: list[Link], path: str = "links") -> list[Link]:
    """Of two that stand for one link, the first counts."""
    _bound(links, MEMORY_LINKS, path)
    return unique_links(checked_link(link, f"{path}.{place}") for place, link in enumerate(links))


def checked_content(content: str, path: str = "content") -> str:
    if not content.strip():
        raise InvalidError.field(path, "a memory needs some content")
    return content


def unique(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _checked_word(text: str, path: str) -> str:
    word = composed(text).strip()
    if not 0 < len(word) <= MEMORY_WORD_CHARS or len(text) > _MOST_GIVEN * MEMORY_WORD_CHARS:
        raise InvalidError.field(path, f"must have 1 to {MEMORY_WORD_CHARS} characters")
    return word


def _bound(items: list[Any], most: int, path: str) -> None:
    if len(items) > most:
        raise InvalidError.field(path, f"may hold {most}, this one holds {len(items)}")


EPOCH_MS = 1_735_689_600_000
"""2025-01-01: the moment in the id of every note's memory. It never changes: a name gives the same id for ever."""


def note_id(world: str, path: str, root: str = "", *again: str) -> str:
    """The id of the memory that is made from the first note at a path below a watched folder: two folders may each have
    a note of the same path. `again` tells a later one from it, when that has been moved away."""
    return derive_id("mem", EPOCH_MS, "note", world, root, path, *again)


def new_id(given: str | None) -> str:
    """The id that the caller wants, else a fresh one. Raises InvalidError for what is no memory's id."""
    if given is None:
        return fresh_id("mem")
    if not is_id("mem", given):
        raise InvalidError.field("id", "a memory's id is mem_ and up to 64 letters, digits, _ or -")
    return given
