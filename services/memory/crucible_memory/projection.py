"""Projection of Memory events: the fold of each event into the state of its memory. Pure."""

from typing import Any

import msgspec

from crucible_core.envelope import Metadata
from crucible_core.limits import MEMORY_FORMER_PATHS
from crucible_core.protocol.memory import Link
from crucible_memory.search.words import tag_key
from crucible_memory.state import SOURCE, Memory, clean_tag, clean_tags, link_key, unique_links


class _Reference(msgspec.Struct, frozen=True):
    """A link of a payload; in earlier versions it had `target` and `weight`."""

    to: str | None = None
    target: str | None = None
    type: str = "related"
    strength: float | None = None
    weight: float | None = None

    @property
    def link(self) -> Link:
        strength = self.weight if self.strength is None else self.strength
        return Link(target=self.to or self.target or "", type=self.type, weight=strength)


_References = list[str | _Reference]


class _State(msgspec.Struct, frozen=True):
    content: str | None = None
    title: str | None = None
    kb: str | None = None
    path: str | None = None
    tags: list[str] | None = None
    entities: list[str] | None = None
    links: _References | None = None
    metadata: dict[str, Any] | None = None
    root: str | None = None
    problems: list[str] | None = None


class Payload(_State, frozen=True, rename={"from_": "from"}):
    """The fields of a Memory event's payload that this service reads; None where the event does not have one. Links had
    `source`, `target`, `type` and `weight` in earlier versions."""

    id: str | None = None
    from_: str | None = None
    summary_id: str | None = None
    source: str | None = None
    tag: str | None = None
    to: str | None = None
    target: str | None = None
    link_type: str | None = None
    type: str | None = None
    strength: float | None = None
    weight: float | None = None
    changes: Any = None

    @property
    def memory_id(self) -> str | None:
        return self.id or self.from_ or self.summary_id or self.source

    @property
    def link(self) -> Link | None:
        """Of Linked and Unlinked."""
        target = self.to or self.target
        if not target:
            return None
        strength = self.weight if self.strength is None else self.strength
        return Link(target=target, type=self.link_type or self.type or "related", weight=strength)

    @property
    def new_state(self) -> _State:
        """The new state in an Updated: its own fields, else those in `changes`, where that has new values."""
        if not isinstance(self.changes, dict):
            return self
        try:
            changes = msgspec.convert(self.changes, _State)
        except msgspec.ValidationError:  # it describes the changes in another form
            return self
        fields = {name: getattr(self, name) for name in _State.__struct_fields__}
        return _State(**{name: getattr(changes, name) if value is None else value for name, value in fields.items()})


class _Data(msgspec.Struct, frozen=True):
    event: str
    payload: Payload


class Recorded(msgspec.Struct, frozen=True):
    """A Memory event as it was read from the log."""

    data: _Data
    metadata: Metadata
    sequence: int = 0

    @property
    def world_id(self) -> str:
        return self.metadata.world_id

    @property
    def is_of_note(self) -> bool:
        """True where this service appended it for a note."""
        return self.metadata.source == SOURCE and self.data.payload.path is not None

    @property
    def memory_id(self) -> str:
        return self.data.payload.memory_id or self.metadata.entity or ""


_decoder = msgspec.json.Decoder(Recorded)


def read_recorded(raw: bytes, sequence: int) -> Recorded:
    """Raises `msgspec.DecodeError`, also for an event that is filed under another entity than the memory it names:
    JetStream has not checked its version."""
    found = msgspec.structs.replace(_decoder.decode(raw), sequence=sequence)
    if found.metadata.entity not in (None, found.memory_id) or not found.memory_id:
        raise msgspec.ValidationError("the event's entity is not the memory that its payload names")
    return found


def fold(memory: Memory | None, event: Recorded) -> Memory | None:
    """The memory after an event; None where there is none."""
    kind = event.data.event
    if kind in ("Deleted", "Pruned"):
        return None
    if kind == "Created" or memory is None:
        return _create(event)
    changed = _apply(memory, event)
    when = memory.updated_at if changed is memory else event.metadata.timestamp
    return msgspec.structs.replace(changed, updated_at=when, sequence=event.sequence)


def _create(event: Recorded) -> Memory | None:
    """The memory of a Created; or of a change with the whole state, when the earlier events have expired."""
    payload, metadata = event.data.payload, event.metadata
    content = payload.content
    if content is None and event.data.event == "Created":
        content = payload.title or ("" if payload.kb is not None else None)
    if content is None:
        return None
    return Memory(
        id=event.memory_id,
        world_id=metadata.world_id,
        room_id=metadata.room_id,
        content=content,
        title=payload.title,
        path=payload.path,
        tags=clean_tags(payload.tags or []),
        entities=payload.entities or [],
        links=_links(payload.links or []),
        metadata=payload.metadata or {},
        problems=payload.problems or [],
        root=payload.root or ("" if event.is_of_note else None),
        created_at=metadata.timestamp,
        updated_at=metadata.timestamp,
        key=event.sequence,
        sequence=event.sequence,
    )


def _apply(memory: Memory, event: Recorded) -> Memory:
    kind, payload = event.data.event, event.data.payload
    match kind:
        case "Updated" | "Consolidated":
            changed = _update(memory, payload.new_state)
            return changed if event.is_of_note or memory.root is None else _with_added(memory, changed)
        case "Tagged" | "Untagged":
            tag = clean_tag(payload.tag or "")
            return memory if tag is None else _tag(memory, tag, kind == "Tagged")
        case "Linked" | "Unlinked" if link := payload.link:
            return _link(memory, link, kind == "Linked")
    return memory


def _update(memory: Memory, payload: _State) -> Memory:
    tags = memory.tags if payload.tags is None else clean_tags(payload.tags)
    links = memory.links if payload.links is None else _links(payload.links)
    metadata = memory.metadata if payload.metadata is None else payload.metadata
    path = memory.path if payload.path is None else payload.path
    former = memory.former_paths if path == memory.path or memory.path is None else [memory.path, *memory.former_paths]
    return msgspec.structs.replace(
        memory,
        content=memory.content if payload.content is None else payload.content,
        title=memory.title if payload.title is None else payload.title,
        path=path,
        tags=tags,
        entities=memory.entities if payload.entities is None else payload.entities,
        links=links,
        metadata=metadata,
        problems=memory.problems if payload.problems is None else payload.problems,
        root=memory.root if payload.root is None else payload.root,
        former_paths=[each for each in former if each != path][:MEMORY_FORMER_PATHS],
        added_tags=[tag for tag in memory.added_tags if tag in tags],
        added_links=[link for link in memory.added_links if link in links],
        added_metadata={name: metadata[name] for name in memory.added_metadata if name in metadata},
    )


def _with_added(before: Memory, after: Memory) -> Memory:
    """`after` with the additions of others than the note."""
    tags = [tag for tag in after.tags if tag not in before.tags]
    links = [link for link in after.links if link not in before.links]
    metadata = {name: value for name, value in after.metadata.items() if before.metadata.get(name) != value}
    return msgspec.structs.replace(
        after,
        added_tags=[*after.added_tags, *tags],
        added_links=unique_links([*links, *after.added_links]),
        added_metadata=after.added_metadata | metadata,
    )


def _tag(memory: Memory, tag: str, present: bool) -> Memory:
    key = tag_key(tag)
    if present == (key in map(tag_key, memory.tags)):
        return memory
    tags, added = ([name for name in names if tag_key(name) != key] for names in (memory.tags, memory.added_tags))
    if present:
        tags, added = [*tags, tag], [*added, tag]
    return msgspec.structs.replace(memory, tags=tags, added_tags=added)


def _link(memory: Memory, link: Link, present: bool) -> Memory:
    """An existing link takes the new weight, and stays where it is in the list."""
    change = _put_link if present else _remove_link
    links, added = change(memory.links, link), change(memory.added_links, link)
    return msgspec.structs.replace(memory, links=links, added_links=added)


def _put_link(links: list[Link], link: Link) -> list[Link]:
    keys = [link_key(other) for other in links]
    if (key := link_key(link)) not in keys:
        return [*links, link]
    return [link if other_key == key else other for other, other_key in zip(links, keys, strict=True)]


def _remove_link(links: list[Link], link: Link) -> list[Link]:
    key = link_key(link)
    return [other for other in links if link_key(other) != key]


def _links(references: _References) -> list[Link]:
    return [Link(target=each) if isinstance(each, str) else each.link for each in references]
