"""Requests to `memory`, with their answers: memories and queries over them."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from crucible_core.envelope import DEFAULT_ROOM, DEFAULT_WORLD, Source
from crucible_core.limits import MEMORY_QUERY_DEFAULT
from crucible_core.protocol.parts import Message


class Link(Message, omit_defaults=False):
    """`target` is a memory id, or a note's title or path until something has that name."""

    target: str
    type: str = "related"
    weight: float | None = None


class CreateMemory(Message):
    """With `extract`, the `#tags` and `[[links]]` in the text count, too."""

    content: str
    tags: list[str] = []
    entities: list[str] = []
    links: list[Link] = []
    metadata: dict[str, Any] = {}
    extract: bool = True


class UpdateMemory(Message):
    """A merge patch (RFC 7396): a field that is left out stays as it is, and null empties it. `metadata` is merged key
    by key, of which null removes one. With `extract`, the `#tags` and `[[links]]` in the text come and go with it."""

    content: str | UnsetType = UNSET
    tags: list[str] | UnsetType | None = UNSET
    entities: list[str] | UnsetType | None = UNSET
    links: list[Link] | UnsetType | None = UNSET
    metadata: dict[str, Any] | UnsetType | None = UNSET
    extract: bool = True


class Cause(Message):
    """Who asks for an effect and why; it becomes the effect event's metadata. `key` makes the effect idempotent."""

    source: Source | None = None
    actor: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    hop: int = 0
    world_id: str = DEFAULT_WORLD
    room_id: str = DEFAULT_ROOM
    traceparent: str | None = None
    key: str | None = None


class WriteMemory(Message):
    """`memory.create` (`create`), `memory.update` (`id` and `update`), `memory.delete` (`id`), `memory.link` (`id` and
    `link`), `memory.tag` (`id` and `tag`). `expected_sequence` is the memory's last sequence, as in If-Match.
    `anywhere`: the world is the memory's own, whatever `cause` says."""

    id: str | None = None
    create: CreateMemory | None = None
    update: UpdateMemory | None = None
    link: Link | None = None
    tag: str | None = None
    expected_sequence: int | None = None
    anywhere: bool = False
    cause: Cause = msgspec.field(default_factory=Cause)


class WrittenMemory(Message, omit_defaults=False):
    """`changed` is false where the memory was so already (the link or tag existed)."""

    id: str
    sequence: int
    changed: bool = True
    duplicate: bool = False


class MemoryView(Message, omit_defaults=False):
    """`sequence` is the memory's last event, which its ETag carries. `title` and `path` are those of a note's file, and
    `problems` is what its writer should mend.

    A link's target is a memory's id where its title, path or alias leads to one.
    """

    id: str
    content: str
    tags: list[str]
    entities: list[str]
    links: list[Link]
    metadata: dict[str, Any]
    world_id: str
    room_id: str
    created_at: str
    updated_at: str
    sequence: int
    title: str | None = None
    path: str | None = None
    problems: list[str] = []


class MemoryQuery(Message):
    """`mode` is text (FTS5, BM25) until vectors arrive; `filter` is the filter language over the memory's fields."""

    text: str | None = None
    mode: Literal["auto", "text"] = "auto"
    tags: list[str] = []
    filter: dict[str, Any] | None = None
    limit: int = MEMORY_QUERY_DEFAULT
    min_sequence: int | None = None
    world_id: str = DEFAULT_WORLD
    room_id: str | None = None


class ScoredMemory(MemoryView, omit_defaults=False):
    """`score` is in (0, 1], 1 the best match of the answer; 1 everywhere where no text was asked."""

    score: float = 1.0


class MemoryList(Message):
    memories: list[ScoredMemory]


class SkippedEvent(Message, omit_defaults=False):
    sequence: int
    reason: str


class MemoryStatus(Message, omit_defaults=False):
    """`sequence` is how far the index is. `skipped` counts the Memory events that cannot be read, and `latest` has the
    last of those: each is in the log, and no memory shows what it says."""

    sequence: int
    memories: int
    skipped: int
    latest: list[SkippedEvent]
