"""Requests about memories: create, read, change, remove and query."""

from typing import Any, TypeVar

import msgspec
from litestar import Response, delete, get, patch, post
from msgspec import UNSET, UnsetType

from crucible_core.envelope import DEFAULT_ROOM, DEFAULT_WORLD
from crucible_core.protocol.memory import (
    CreateMemory,
    Link,
    MemoryList,
    MemoryQuery,
    MemoryStatus,
    MemoryView,
    UpdateMemory,
    WriteMemory,
    WrittenMemory,
)
from crucible_core.protocol.parts import GetRequest
from crucible_core.types.payloads import Reference
from crucible_core.types.synonyms import renamed
from crucible_gateway import examples
from crucible_gateway.auth import principal_of
from crucible_gateway.body.events import idempotency_key
from crucible_gateway.body.json import JSON, MERGE_PATCH, Http, decode_strictly, expect_type, read_body, read_json
from crucible_gateway.context import Nothing, ask, check_place, gateway_of
from crucible_gateway.openapi import Body, Operation
from crucible_gateway.routes.headers import IF_MATCH, IF_NONE_MATCH, cause_of, etag, if_match, matches_version
from crucible_gateway.routes.replies import forward, reply_bytes, reply_json

TAG = "Memory"
T = TypeVar("T", bound=msgspec.Struct)


class SentMemory(msgspec.Struct, kw_only=True):
    """A link is what it leads to, a memory's id or a note's title or path, or an object that says more. The `#tags` and
    `[[links]]` in the text count, too, unless `extract` is false. A memory stays in its world and room."""

    content: str
    tags: list[str] = []
    entities: list[str] = []
    links: list[str | Reference] = []
    metadata: dict[str, Any] = {}
    extract: bool = True
    world_id: str = DEFAULT_WORLD
    room_id: str = DEFAULT_ROOM


class SentChanges(msgspec.Struct, kw_only=True):
    """Fields that are left out stay as they are; null empties one. The `#tags` and `[[links]]` in the text come and go
    with it, unless `extract` is false."""

    content: str | UnsetType = UNSET
    tags: list[str] | UnsetType | None = UNSET
    entities: list[str] | UnsetType | None = UNSET
    links: list[str | Reference] | UnsetType | None = UNSET
    metadata: dict[str, Any] | UnsetType | None = UNSET
    extract: bool = True


class Written(msgspec.Struct, omit_defaults=True):
    id: str
    sequence: int
    duplicate: bool = False


class _Versioned(msgspec.Struct):
    sequence: int


@post(
    "/api/v1/memory",
    operation=Operation(
        summary="Keep a memory",
        tag=TAG,
        status=201,
        instead="The same Idempotency-Key has made it before",
        headers={"Idempotency-Key": "The same key again is answered with the first memory"},
        bodies={JSON: Body(SentMemory, examples.MEMORY)},
        reply=Written,
        versioned=True,
        example=examples.WRITTEN,
    ),
)
async def create_memory(request: Http) -> Response[bytes]:
    key = idempotency_key(request.headers.get("idempotency-key"))
    sent = await _read_memory(request, SentMemory)
    fields = msgspec.structs.asdict(sent) | {"links": _links(sent.links)}
    world_and_room = {name: fields.pop(name) for name in ("world_id", "room_id")}
    cause = msgspec.structs.replace(cause_of(request, key), **world_and_room)
    write = WriteMemory(create=CreateMemory(**fields), cause=cause)
    written = await ask(request, "memory", "create", write, WrittenMemory)
    return _reply_written(written, 200 if written.duplicate else 201)


@get(
    "/api/v1/memory/{id:str}",
    operation=Operation(
        summary="One memory",
        description="Its ETag is the sequence of its last event.",
        tag=TAG,
        headers=IF_NONE_MATCH,
        reply=MemoryView,
        versioned=True,
        example=examples.MEMORY_VIEW,
        errors=("not_found",),
    ),
)
async def get_memory(request: Http) -> Response[bytes]:
    raw = await ask(request, "memory", "get", GetRequest(request.path_params["id"]), bytes)
    version = msgspec.json.decode(raw, type=_Versioned).sequence
    if matches_version(request, version):
        return Response(b"", status_code=304, headers=etag(version))
    return reply_bytes(raw, headers=etag(version))


@patch(
    "/api/v1/memory/{id:str}",
    operation=Operation(
        summary="Change a memory",
        description=(
            "A merge patch (RFC 7396): fields that are left out stay as they are, `null` empties one, and "
            "`metadata` is merged key by key, of which `null` removes one."
        ),
        tag=TAG,
        headers=IF_MATCH,
        bodies={kind: Body(SentChanges, examples.MEMORY_PATCH) for kind in (JSON, MERGE_PATCH)},
        reply=Written,
        versioned=True,
        example=examples.WRITTEN,
        errors=("not_found", "conflict"),
    ),
)
async def update_memory(request: Http) -> Response[bytes]:
    sent = await _read_memory(request, SentChanges, JSON, MERGE_PATCH)
    links = _links(sent.links) if isinstance(sent.links, list) else sent.links
    update = UpdateMemory(**msgspec.structs.asdict(sent) | {"links": links})
    cause = cause_of(request, idempotency_key(request.headers.get("idempotency-key")))
    id = request.path_params["id"]
    write = WriteMemory(id=id, expected_sequence=if_match(request), update=update, anywhere=True, cause=cause)
    return _reply_written(await ask(request, "memory", "update", write, WrittenMemory), 200)


@delete(
    "/api/v1/memory/{id:str}",
    operation=Operation(
        summary="Remove a memory", tag=TAG, status=204, headers=IF_MATCH, errors=("not_found", "conflict")
    ),
)
async def delete_memory(request: Http) -> None:
    id = request.path_params["id"]
    write = WriteMemory(id=id, expected_sequence=if_match(request), anywhere=True, cause=cause_of(request))
    await ask(request, "memory", "delete", write, bytes)


@get(
    "/api/v1/memory/status",
    operation=Operation(
        summary="The progress of the index of memories",
        description="`skipped` counts the Memory events that cannot be read; `latest` has the last of them.",
        tag=TAG,
        reply=MemoryStatus,
        example=examples.MEMORY_STATUS,
    ),
)
async def memory_status(request: Http) -> Response[bytes]:
    return await forward(request, "memory", "status", Nothing())


@post(
    "/api/v1/memory/query",
    operation=Operation(
        summary="The memories that fit best",
        tag=TAG,
        bodies={JSON: Body(MemoryQuery, examples.MEMORY_QUERY)},
        reply=MemoryList,
        example=examples.MEMORY_LIST,
    ),
)
async def query_memory(request: Http) -> Response[bytes]:
    query = await read_json(request, MemoryQuery)
    await check_place(gateway_of(request).bus, principal_of(request), query.world_id, query.room_id)
    return await forward(request, "memory", "query", query)


def _reply_written(written: WrittenMemory, status: int) -> Response[bytes]:
    return reply_json(Written(written.id, written.sequence, written.duplicate), status, headers=etag(written.sequence))


async def _read_memory(request: Http, kind: type[T], *media_types: str) -> T:
    """A JSON body as `kind`, its links under any of their fields' names."""
    expect_type(request, *(media_types or (JSON,)))
    raw = await read_body(request)
    sent = renamed(kind, raw, at="")
    return decode_strictly(raw if sent is None else sent.payload, kind)


def _links(sent: list[str | Reference]) -> list[Link]:
    return [
        Link(target=link) if isinstance(link, str) else Link(target=link.to, type=link.type, weight=link.strength)
        for link in sent
    ]


HANDLERS = (create_memory, get_memory, update_memory, delete_memory, query_memory, memory_status)
