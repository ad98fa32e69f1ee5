"""Changes of memories: the Memory event that follows from a request or a note, or None where nothing changes. Pure."""

import hashlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from crucible_core.errors import ConflictError, InvalidError, NotFoundError
from crucible_core.ids import is_id
from crucible_core.limits import MEMORY_LINKS, MEMORY_TAGS
from crucible_core.merge import merge_patch
from crucible_core.protocol.memory import CreateMemory, Link, UpdateMemory
from crucible_memory.notes.note import NO_MARKS, Marks, Note
from crucible_memory.search.words import name_key, tag_key
from crucible_memory.state import (
    Memory,
    check_content,
    check_link,
    check_links,
    check_tag,
    check_tags,
    check_words,
    link_key,
    unique_links,
    unique_tags,
)


class Location(NamedTuple):
    """The location of a note: its path below a watched folder `root`, which is empty where the event does not have
    it."""

    root: str
    path: str


class Change(msgspec.Struct, frozen=True):
    """A Memory event to be: `event` is its name within the category."""

    event: str
    payload: dict[str, Any]


_FIELDS = ("content", "title", "path", "root", "tags", "entities", "links", "metadata", "problems")


def require(memory: Memory | None, id: str) -> Memory:
    if memory is None:
        raise NotFoundError(f"there is no memory {id[:200]}")
    return memory


def create(memory: Memory | None, id: str, wanted: CreateMemory, marks: Marks = NO_MARKS) -> Change:
    """`marks` are those of the text. Raises ConflictError where there is such a memory, and InvalidError."""
    if memory is not None:
        raise ConflictError(f"there is a memory {id} already", current_sequence=memory.sequence)
    state = {
        "content": check_content(wanted.content),
        "tags": unique_tags([*check_tags(wanted.tags), *marks.tags])[:MEMORY_TAGS],
        "entities": check_words(wanted.entities, "entities"),
        "links": unique_links([*check_links(wanted.links), *marks.links])[:MEMORY_LINKS],
        "metadata": wanted.metadata,
    }
    return Change("Created", _payload(id, state))


def update(memory: Memory, wanted: UpdateMemory, before: Marks = NO_MARKS, after: Marks = NO_MARKS) -> Change | None:
    """A merge patch (RFC 7396). Of a new text, the marks of the one `before` go and those of the one `after` come."""
    new: dict[str, Any] = {}
    if wanted.content is not UNSET:
        new["content"] = check_content(wanted.content)
    if wanted.tags is not UNSET:
        new["tags"] = check_tags(wanted.tags or [])
    if wanted.entities is not UNSET:
        new["entities"] = check_words(wanted.entities or [], "entities")
    if wanted.links is not UNSET:
        new["links"] = check_links(wanted.links or [])
    if wanted.metadata is not UNSET:
        new["metadata"] = {} if wanted.metadata is None else merge_patch(memory.metadata, wanted.metadata)
    if before.tags or after.tags:
        staying = {tag_key(tag) for tag in after.tags}
        gone = {tag_key(tag) for tag in before.tags} - staying
        tags = new.get("tags", [tag for tag in memory.tags if tag_key(tag) not in gone])
        new["tags"] = unique_tags([*tags, *after.tags])[:MEMORY_TAGS]
    if before.links or after.links:
        lost = set(map(link_key, before.links)) - set(map(link_key, after.links))
        links = new.get("links", [link for link in memory.links if link_key(link) not in lost])
        new["links"] = unique_links([*links, *after.links])[:MEMORY_LINKS]
    return _update(memory, new)


def delete(memory: Memory) -> Change:
    return Change("Deleted", {"id": memory.id})


def tag(memory: Memory, wanted: str) -> Change | None:
    tag = check_tag(wanted)
    if tag_key(tag) in map(tag_key, memory.tags):
        return None
    if len(memory.tags) >= MEMORY_TAGS:
        raise InvalidError.field("tag", f"a memory may have {MEMORY_TAGS} tags")
    return Change("Tagged", {"id": memory.id, "tag": tag})


def link(memory: Memory, wanted: Link, ids: Mapping[str, str]) -> Change | None:
    """`ids` has the memory that each name leads to, of the wanted target and of those that are linked already."""
    link = check_link(wanted)
    target = ids.get(link.target, link.target)
    if target == memory.id:
        raise InvalidError.field("link.target", "a memory cannot be linked to itself")
    for known in memory.links:
        if (_target(known, ids), known.type) == (_target(link, ids), link.type):
            if link.weight is None or link.weight == known.weight:
                return None
            # The link keeps its name, so that the new weight belongs to the same link.
            return _link_change(memory, Link(known.target, known.type, link.weight))
    if len(memory.links) >= MEMORY_LINKS:
        raise InvalidError.field("link", f"a memory may have {MEMORY_LINKS} links")
    return _link_change(memory, Link(target, link.type, link.weight))


def note(
    memory: Memory | None, id: str, location: Location, note: Note, earlier: Memory | None = None
) -> Change | None:
    """The memory of a note, with the tags, links and metadata that others added; `earlier` has these of a restored
    note."""
    before = memory or earlier
    added_tags, added_links = (before.added_tags, before.added_links) if before else ([], [])
    state = {
        "content": note.content,
        "title": note.title,
        "path": location.path,
        "root": location.root,
        "tags": unique_tags([*note.tags, *added_tags])[:MEMORY_TAGS],
        "entities": before.entities if before else [],
        "links": unique_links([*note.links, *added_links])[:MEMORY_LINKS],
        "metadata": (before.added_metadata if before else {}) | note.metadata,
        "problems": note.problems,
    }
    return Change("Created", _payload(id, state)) if memory is None else _update(memory, state)


def move(memory: Memory, path: str) -> Change | None:
    """A note's memory at another path, from an event without content."""
    new = {"path": path}
    if memory.path is not None and memory.title == PurePosixPath(memory.path).stem:
        new["title"] = PurePosixPath(path).stem
    return _update(memory, new)


def _update(memory: Memory, new: Mapping[str, Any]) -> Change | None:
    """The whole new state, so that a reader of this event alone knows the memory; `changes` names the new fields, and
    the hashes are of the content."""
    changed = [name for name, value in new.items() if value != getattr(memory, name)]
    if not changed:
        return None
    state = {name: getattr(memory, name) for name in _FIELDS} | dict(new)
    hashes = {"previous_hash": content_hash(memory.content), "new_hash": content_hash(state["content"])}
    solved: dict[str, Any] = {"problems": []} if memory.problems and not state["problems"] else {}
    return Change("Updated", _payload(memory.id, state) | solved | hashes | {"changes": changed})


def content_hash(content: str) -> str:
    """SHA-256 (hex) of the text in UTF-8."""
    return hashlib.sha256(content.encode()).hexdigest()


def _payload(id: str, state: Mapping[str, Any]) -> dict[str, Any]:
    links = [_link(link) for link in state["links"]]
    fields = {name: value for name, value in state.items() if value is not None and name not in ("root", "problems")}
    root = {"root": state["root"]} if state.get("root") else {}
    problems = {"problems": state["problems"]} if state.get("problems") else {}
    return {"id": id} | fields | root | problems | {"links": links}


def _link(link: Link) -> dict[str, Any]:
    strength = {} if link.weight is None else {"strength": link.weight}
    return {"to": link.target, "type": link.type, **strength}


def _link_change(memory: Memory, link: Link) -> Change:
    strength = {} if link.weight is None else {"strength": link.weight}
    return Change("Linked", {"from": memory.id, "to": link.target, "link_type": link.type, **strength})


def _target(link: Link, ids: Mapping[str, str]) -> str:
    """The target of a link: a memory's id, or the key of a name that no memory has."""
    return ids.get(link.target) or (link.target if is_id("mem", link.target) else name_key(link.target))
