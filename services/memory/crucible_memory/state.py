"""A memory as its events have made it, the bounds on its parts, and the one spelling of a tag."""

from collections.abc import Iterable
from typing import Any

import msgspec

from crucible_core.errors import FieldError, InvalidError
from crucible_core.protocol.memory import Link

MAX_TAGS = 100
MAX_TAG = 100
MAX_ENTITIES = 1000
MAX_LINKS = 1000
MAX_WORD = 200
"""Characters of an entity, a link's target or a link's type."""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """`sequence` is its last event, `key` the one that created it.

    `added_tags` and `added_links` were put on by events of their own (Tagged, Linked): they stay when the note that the
    memory was made from changes.
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
    added_tags: list[str] = []
    added_links: list[Link] = []
    created_at: str
    updated_at: str
    key: int
    sequence: int


def clean_tag(text: str) -> str | None:
    """The one spelling of a tag, with its `#`; None where nothing is left of it."""
    name = text.strip().lstrip("#").strip()
    return f"#{name}" if name else None


def same_link(one: Link, other: Link) -> bool:
    """Whether both stand for one link; its weight may differ."""
    return (one.target, one.type) == (other.target, other.type)


# ---- checks of what users send ---------------------------------------------------------------------------------------


def checked_tag(text: str, path: str = "tag") -> str:
    """The tag's one spelling. Raises InvalidError at `path`."""
    tag = clean_tag(text)
    if tag is None:
        raise refused(path, "a tag is a # and a name")
    if len(tag) > MAX_TAG:
        raise refused(path, f"a tag may have {MAX_TAG} characters")
    return tag


def checked_tags(tags: list[str], path: str = "tags") -> list[str]:
    """Each in its one spelling, and once."""
    _bound(tags, MAX_TAGS, path)
    return unique(checked_tag(tag, f"{path}.{place}") for place, tag in enumerate(tags))


def checked_words(words: list[str], path: str) -> list[str]:
    _bound(words, MAX_ENTITIES, path)
    return unique(_checked_word(word, f"{path}.{place}") for place, word in enumerate(words))


def checked_link(link: Link, path: str = "link") -> Link:
    target, kind = _checked_word(link.target, f"{path}.target"), _checked_word(link.type, f"{path}.type")
    return Link(target=target, type=kind, weight=link.weight)


def checked_links(links: list[Link], path: str = "links") -> list[Link]:
    """Of two that stand for one link, the first counts."""
    _bound(links, MAX_LINKS, path)
    found: dict[tuple[str, str], Link] = {}
    for place, link in enumerate(links):
        checked = checked_link(link, f"{path}.{place}")
        found.setdefault((checked.target, checked.type), checked)
    return list(found.values())


def checked_content(content: str, path: str = "content") -> str:
    if not content.strip():
        raise refused(path, "a memory needs some content")
    return content


def unique(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def refused(path: str, message: str) -> InvalidError:
    return InvalidError(f"{path}: {message}", errors=[FieldError(path, message)])


def _checked_word(text: str, path: str) -> str:
    word = text.strip()
    if not 0 < len(word) <= MAX_WORD:
        raise refused(path, f"must have 1 to {MAX_WORD} characters")
    return word


def _bound(items: list[Any], most: int, path: str) -> None:
    if len(items) > most:
        raise refused(path, f"may hold {most}, this one holds {len(items)}")
