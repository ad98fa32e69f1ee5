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
from crucible_gateway.body.json import JSON, Http, read_json
from crucible_gateway.context import ask
from crucible_gateway.openapi import Body, Operation
from crucible_gateway.routes.replies import forward, reply_json

TAG = "Event types"


@get(
    "/api/v1/event-types",
    operation=Operation(
        summary="The catalogue of event types",
        description="What is built in and what users registered, each with how many events of it the log has.",
        tag=TAG,
        reply=TypesReply,
        example=examples.EVENT_TYPES,
    ),
)
async def list_event_types(request: Http) -> Response[bytes]:
    found: list[EventType] = []
    after: str | None = None
    while True:
        part = await ask(request, "events", "types", TypesRequest(after=after), TypesReply)
        found += part.types
        if part.next is None or part.next == after:
            return reply_json(TypesReply(types=found))
        after = part.next


@post(
    "/api/v1/event-types",
    operation=Operation(
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
        errors=("conflict",),
    ),
)
async def register_event_type(request: Http) -> Response[bytes]:
    registered = await ask(request, "events", "register_type", await read_json(request, RegisterType), RegisteredType)
    return reply_json(registered.type, 201 if registered.created else 200)


@get(
    "/api/v1/event-types/{type:str}",
    operation=Operation(
        summary="One event type, by its name or an alias, with the schema of each version",
        tag=TAG,
        reply=DescribedType,
        example=examples.DESCRIBED_TYPE,
        errors=("not_found",),
    ),
)
async def get_event_type(request: Http) -> Response[bytes]:
    return await forward(request, "events", "type", GetRequest(id=request.path_params["type"]))


@delete(
    "/api/v1/event-types/{type:str}",
    operation=Operation(
        summary="Remove a registered event type of which the log has no events",
        tag=TAG,
        status=204,
        errors=("not_found", "conflict"),
    ),
)
async def delete_event_type(request: Http) -> None:
    await ask(request, "events", "delete_type", GetRequest(id=request.path_params["type"]), bytes)


HANDLERS = (list_event_types, register_event_type, get_event_type, delete_event_type)
