"""Requests about memories: create, read, change, remove and query."""

import re

import msgspec
from litestar import Response, delete, get, patch, post

from crucible_core.errors import FieldError, InvalidError
from crucible_core.protocol.memory import (
    Cause,
    CreateMemory,
    MemoryList,
    MemoryQuery,
    MemoryView,
    UpdateMemory,
    WriteMemory,
    WrittenMemory,
)
from crucible_core.protocol.shared import GetRequest
from crucible_gateway import examples
from crucible_gateway.auth import principal_of
from crucible_gateway.bodies import JSON, Http, read
from crucible_gateway.context import ask
from crucible_gateway.correlation import sent_correlation
from crucible_gateway.intake import idempotency_key
from crucible_gateway.observing import traceparent_of
from crucible_gateway.openapi import Body, Operation, described
from crucible_gateway.params import NoParams, read_params

from .replies import encoded, passed

TAG = "Memory"
_ETAG = re.compile(r'(?:W/)?"?(\d{1,19})"?', re.ASCII)
_IF_MATCH = {"If-Match": "The ETag of the version to change; another one there is a 409"}


class Written(msgspec.Struct, omit_defaults=True):
    id: str
    sequence: int
    duplicate: bool = False


class _Versioned(msgspec.Struct):
    sequence: int


@post(
    "/api/v1/memory",
    opt=described(
        Operation(
            summary="Keep a memory",
            tag=TAG,
            status=201,
            instead="The same Idempotency-Key has made it before",
            headers={"Idempotency-Key": "The same key again is answered with the first memory"},
            bodies={JSON: Body(CreateMemory, examples.MEMORY)},
            reply=Written,
            example=examples.WRITTEN,
            refusals=("malformed", "too_large", "unsupported", "invalid"),
        )
    ),
)
async def create_memory(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    key = idempotency_key(request.headers.get("idempotency-key"))
    wanted = WriteMemory(create=await read(request, CreateMemory), cause=_cause(request, key))
    written = await ask(request, "memory", "create", wanted, WrittenMemory)
    return _written(written, 200 if written.duplicate else 201)


@get(
    "/api/v1/memory/{id:str}",
    opt=described(
        Operation(
            summary="One memory",
            description="Its ETag is the sequence of its last event.",
            tag=TAG,
            reply=MemoryView,
            example=examples.MEMORY_VIEW,
            refusals=("not_found",),
        )
    ),
)
async def get_memory(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    raw = await ask(request, "memory", "get", GetRequest(request.path_params["id"]), bytes)
    return passed(raw, headers=_etag(msgspec.json.decode(raw, type=_Versioned).sequence))


@patch(
    "/api/v1/memory/{id:str}",
    opt=described(
        Operation(
            summary="Change a memory",
            description="Fields that are left out stay as they are.",
            tag=TAG,
            headers=_IF_MATCH,
            bodies={JSON: Body(UpdateMemory, {"tags": ["#research", "#nats"]})},
            reply=Written,
            example=examples.WRITTEN,
            refusals=("malformed", "not_found", "conflict", "too_large", "unsupported", "invalid"),
        )
    ),
)
async def update_memory(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    wanted = WriteMemory(
        id=request.path_params["id"],
        expected_sequence=_expected(request),
        update=await read(request, UpdateMemory),
        cause=_cause(request, idempotency_key(request.headers.get("idempotency-key"))),
    )
    return _written(await ask(request, "memory", "update", wanted, WrittenMemory), 200)


@delete(
    "/api/v1/memory/{id:str}",
    opt=described(
        Operation(
            summary="Remove a memory",
            tag=TAG,
            status=204,
            headers=_IF_MATCH,
            refusals=("not_found", "conflict", "invalid"),
        )
    ),
)
async def delete_memory(request: Http) -> None:
    read_params(request.scope["query_string"], NoParams)
    wanted = WriteMemory(
        id=request.path_params["id"], expected_sequence=_expected(request), cause=_cause(request, None)
    )
    await ask(request, "memory", "delete", wanted, bytes)


@post(
    "/api/v1/memory/query",
    opt=described(
        Operation(
            summary="The memories that fit best",
            tag=TAG,
            bodies={JSON: Body(MemoryQuery, examples.MEMORY_QUERY)},
            reply=MemoryList,
            example=examples.MEMORY_LIST,
            refusals=("malformed", "unsupported", "invalid"),
        )
    ),
)
async def query_memory(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    return passed(await ask(request, "memory", "query", await read(request, MemoryQuery), bytes))


def _cause(request: Http, key: str | None) -> Cause:
    principal = principal_of(request)
    return Cause(
        source=principal.source,
        actor=principal.actor,
        correlation_id=sent_correlation(request.headers),
        traceparent=traceparent_of(request.scope),
        key=key,
    )


def _written(written: WrittenMemory, status: int) -> Response[bytes]:
    return encoded(Written(written.id, written.sequence, written.duplicate), status, headers=_etag(written.sequence))


def _etag(sequence: int) -> dict[str, str]:
    return {"ETag": f'"{sequence}"'}


def _expected(request: Http) -> int | None:
    """The sequence in If-Match; `*` and none mean any."""
    sent = request.headers.get("if-match", "*").strip()
    if sent == "*":
        return None
    found = _ETAG.fullmatch(sent)
    if found is None:
        message = 'must be an ETag that a memory had, such as "42"'
        raise InvalidError(f"If-Match: {message}", errors=[FieldError("If-Match", message)])
    return int(found[1])
