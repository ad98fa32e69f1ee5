"""Requests about worlds and their rooms."""

from litestar import Response, delete, get, post

from crucible_core.protocol.parts import GetRequest, ListRequest
from crucible_core.protocol.worlds import (
    ChangeRoom,
    ChangeWorld,
    CreateRoom,
    CreateWorld,
    RoomList,
    RoomMade,
    RoomView,
    WorldList,
    WorldMade,
    WorldView,
)
from crucible_gateway import examples
from crucible_gateway.body.json import JSON, Http, read_json
from crucible_gateway.context import ask
from crucible_gateway.openapi import Body, Operation
from crucible_gateway.params import DeleteWorldParams, WorldsParams, read_params
from crucible_gateway.routes.headers import cause_of
from crucible_gateway.routes.replies import forward, reply_json

TAG = "Worlds"


@post(
    "/api/v1/worlds",
    operation=Operation(
        summary="Make a world",
        description="Events can be written to it from this answer on. The log hears of it: `System.WorldCreated`.",
        tag=TAG,
        status=201,
        instead="It is there already",
        bodies={JSON: Body(CreateWorld, examples.WORLD)},
        reply=WorldView,
        example=examples.WORLD_VIEW,
        errors=("conflict",),
    ),
)
async def create_world(request: Http) -> Response[bytes]:
    body = await read_json(request, CreateWorld)
    change = ChangeWorld(id=body.id, description=body.description, cause=cause_of(request, alone=True))
    created = await ask(request, "events", "create_world", change, WorldMade)
    return reply_json(created.world, 201 if created.created else 200)


@get(
    "/api/v1/worlds",
    operation=Operation(
        summary="The worlds and their rooms, in the order of their ids",
        tag=TAG,
        params=WorldsParams,
        reply=WorldList,
        example=examples.WORLD_LIST,
    ),
)
async def list_worlds(request: Http) -> Response[bytes]:
    params = read_params(request, WorldsParams)
    question = ListRequest(limit=params.limit, cursor=params.cursor)
    return await forward(request, "events", "list_worlds", question)


@get(
    "/api/v1/worlds/{world:str}",
    operation=Operation(
        summary="One world", tag=TAG, reply=WorldView, example=examples.WORLD_VIEW, errors=("not_found",)
    ),
)
async def get_world(request: Http) -> Response[bytes]:
    return await forward(request, "events", "get_world", GetRequest(request.path_params["world"]))


@delete(
    "/api/v1/worlds/{world:str}",
    operation=Operation(
        summary="Remove a world",
        description=(
            "Nothing can be written to it any more. What was can be read, until it expires; with `purge` it is "
            "removed at once from the log. The world `default` stays."
        ),
        tag=TAG,
        status=204,
        params=DeleteWorldParams,
        errors=("not_found", "conflict"),
    ),
)
async def delete_world(request: Http) -> None:
    params = read_params(request, DeleteWorldParams)
    change = ChangeWorld(id=request.path_params["world"], purge=params.purge, cause=cause_of(request, alone=True))
    await ask(request, "events", "delete_world", change, bytes)


@post(
    "/api/v1/worlds/{world:str}/rooms",
    operation=Operation(
        summary="Make a room in a world",
        tag=TAG,
        status=201,
        instead="It is there already",
        bodies={JSON: Body(CreateRoom, examples.ROOM)},
        reply=RoomView,
        example=examples.ROOM_VIEW,
        errors=("not_found",),
    ),
)
async def create_room(request: Http) -> Response[bytes]:
    body = await read_json(request, CreateRoom)
    change = ChangeRoom(world_id=request.path_params["world"], id=body.id, cause=cause_of(request, alone=True))
    created = await ask(request, "events", "create_room", change, RoomMade)
    return reply_json(created.room, 201 if created.created else 200)


@get(
    "/api/v1/worlds/{world:str}/rooms",
    operation=Operation(
        summary="The rooms of a world", tag=TAG, reply=RoomList, example=examples.ROOM_LIST, errors=("not_found",)
    ),
)
async def list_rooms(request: Http) -> Response[bytes]:
    world = await ask(request, "events", "get_world", GetRequest(request.path_params["world"]), WorldView)
    return reply_json(RoomList(rooms=world.rooms))


@delete(
    "/api/v1/worlds/{world:str}/rooms/{room:str}",
    operation=Operation(
        summary="Remove a room",
        description="Nothing can be written to it any more. What was can be read. The room `main` stays.",
        tag=TAG,
        status=204,
        errors=("not_found", "conflict"),
    ),
)
async def delete_room(request: Http) -> None:
    change = ChangeRoom(
        world_id=request.path_params["world"], id=request.path_params["room"], cause=cause_of(request, alone=True)
    )
    await ask(request, "events", "delete_room", change, bytes)


HANDLERS = (create_world, list_worlds, get_world, delete_world, create_room, list_rooms, delete_room)
