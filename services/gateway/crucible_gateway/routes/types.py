"""Requests about event types: the catalogue, and what users add to it."""

from litestar import Response, delete, get, post

from crucible_core.protocol.events import (
    DescribedType,
    EventType,
    RegisteredType,
    RegisterType,
    TypesReply,
    TypesRequest,
)
from crucible_core.protocol.parts import GetRequest
from crucible_gateway import examples
from crucible_gateway.body.body import JSON, Http, read
from crucible_gateway.context import ask
from crucible_gateway.openapi import Body, Operation, described
from crucible_gateway.params import NoParams, read_params
from crucible_gateway.routes.replies import encoded, passed

TAG = "Event types"


@get(
    "/api/v1/event-types",
    opt=described(
        Operation(
            summary="The catalogue of event types",
            description="What is built in and what users registered, each with how many events of it the log has.",
            tag=TAG,
            reply=TypesReply,
            example=examples.EVENT_TYPES,
        )
    ),
)
async def list_event_types(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    found: list[EventType] = []
    after: str | None = None
    while True:
        part = await ask(request, "events", "types", TypesRequest(after=after), TypesReply)
        found += part.types
        if part.next is None or part.next == after:
            return encoded(TypesReply(types=found))
        after = part.next


@post(
    "/api/v1/event-types",
    opt=described(
        Operation(
            summary="Register an event type, or a later version of one",
            description=(
                "`schema` is JSON Schema 2020-12 of the payload; references stay inside it. A later version must be "
                "compatible: what was valid stays valid, and what was declared stays declared. The answer comes when "
                "every part of Crucible knows the type."
            ),
            tag=TAG,
            status=201,
            instead="All of it was registered before",
            bodies={JSON: Body(RegisterType, examples.REGISTER_TYPE)},
            reply=DescribedType,
            example=examples.DESCRIBED_TYPE,
            refusals=("malformed", "conflict", "too_large", "unsupported", "invalid"),
        )
    ),
)
async def register_event_type(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    registered = await ask(request, "events", "register_type", await read(request, RegisterType), RegisteredType)
    return encoded(registered.type, 201 if registered.created else 200)


@get(
    "/api/v1/event-types/{type:str}",
    opt=described(
        Operation(
            summary="One event type, by its name or an alias, with the schema of each version",
            tag=TAG,
            reply=DescribedType,
            example=examples.DESCRIBED_TYPE,
            refusals=("not_found", "invalid"),
        )
    ),
)
async def get_event_type(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    return passed(await ask(request, "events", "type", GetRequest(id=request.path_params["type"]), bytes))


@delete(
    "/api/v1/event-types/{type:str}",
    opt=described(
        Operation(
            summary="Remove a registered event type of which the log has no events",
            tag=TAG,
            status=204,
            refusals=("not_found", "conflict", "invalid"),
        )
    ),
)
async def delete_event_type(request: Http) -> None:
    read_params(request.scope["query_string"], NoParams)
    await ask(request, "events", "delete_type", GetRequest(id=request.path_params["type"]), bytes)
