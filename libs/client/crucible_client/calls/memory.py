"""Requests about memories."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from crucible_client.request import JSON, Call, Json, delete, get, if_match, keyed, post, present, reads, segment
from crucible_client.response import read_as
from crucible_client.results import Written
from crucible_core.protocol.memory import MemoryList, MemoryStatus, MemoryView, ScoredMemory


def create_memory(
    content: str,
    *,
    tags: Sequence[str] | None = None,
    entities: Sequence[str] | None = None,
    links: Sequence[Json] | None = None,
    metadata: Json | None = None,
    extract: bool | None = None,
    world_id: str | None = None,
    room_id: str | None = None,
    idempotency_key: str | None = None,
) -> Call[Written]:
    """Keeps a memory; a link is `{"target": …, "type": …, "weight": …}`. The `#tags` and `[[links]]` in the text count,
    too, unless `extract` is false."""
    body = present(
        content=content,
        tags=tags,
        entities=entities,
        links=links,
        metadata=metadata,
        extract=extract,
        world_id=world_id,
        room_id=room_id,
    )
    return post("/api/v1/memory", body, reads(Written), headers=keyed(idempotency_key))


def get_memory(id: str) -> Call[MemoryView]:
    """One memory; its `sequence` guards an update. Raises NotFoundError."""
    return get(_memory(id), reads(MemoryView))


def update_memory(
    id: str,
    *,
    content: str | None = None,
    tags: Sequence[str] | None = None,
    entities: Sequence[str] | None = None,
    links: Sequence[Json] | None = None,
    metadata: Json | None = None,
    extract: bool | None = None,
    expected_sequence: int | None = None,
) -> Call[Written]:
    """Changes the given fields; an empty list empties one. `metadata` is merged key by key, of which None removes one.
    The `#tags` and `[[links]]` in the text come and go with it, unless `extract` is false.

    Raises ConflictError when the memory's sequence is no longer `expected_sequence`.
    """
    body = present(content=content, tags=tags, entities=entities, links=links, metadata=metadata, extract=extract)
    headers = {**JSON, **if_match(expected_sequence)}
    content_bytes = msgspec.json.encode(body)
    return Call("PATCH", _memory(id), reads(Written), headers=headers, content=content_bytes, repeatable=False)


def delete_memory(id: str, *, expected_sequence: int | None = None) -> Call[None]:
    """Removes a memory. Raises ConflictError when its sequence is no longer `expected_sequence`."""
    return delete(_memory(id), headers=if_match(expected_sequence))


def query_memory(
    text: str | None = None,
    *,
    mode: Literal["auto", "text"] | None = None,
    tags: Sequence[str] | None = None,
    filter: Json | None = None,
    limit: int | None = None,
    min_sequence: int | None = None,
    world_id: str | None = None,
    room_id: str | None = None,
) -> Call[list[ScoredMemory]]:
    """The best matches, the best first; without `text`, those with the tags and the filter."""
    body = present(
        text=text,
        mode=mode,
        tags=tags,
        filter=filter,
        limit=limit,
        min_sequence=min_sequence,
        world_id=world_id,
        room_id=room_id,
    )
    return post("/api/v1/memory/query", body, lambda raw: read_as(raw, MemoryList).memories)


def list_memories(
    *,
    tags: Sequence[str] | None = None,
    filter: Json | None = None,
    limit: int | None = None,
    world_id: str | None = None,
    room_id: str | None = None,
) -> Call[list[ScoredMemory]]:
    """The latest memories with the tags and the filter, the newest first."""
    return query_memory(tags=tags, filter=filter, limit=limit, world_id=world_id, room_id=room_id)


def memory_status() -> Call[MemoryStatus]:
    """The state of the index of memories, and the events that cannot be read."""
    return get("/api/v1/memory/status", reads(MemoryStatus))


def _memory(id: str) -> str:
    return f"/api/v1/memory/{segment(id)}"
