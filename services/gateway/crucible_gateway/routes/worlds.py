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
from crucible_gateway.body.body import JSON, Http, read
from crucible_gateway.context import ask
from crucible_gateway.openapi import Body, Operation, described
from crucible_gateway.params import DeleteWorldParams, NoParams, WorldsParams, read_params
from crucible_gateway.routes.headers import cause_of
from crucible_gateway.routes.replies import encoded, passed

TAG = "Worlds"


@post(
    "/api/v1/worlds",
    opt=described(
        Operation(
            summary="Make a world",
            description="Events can be written to it from this answer on. The log hears of it: `System.WorldCreated`.",
            tag=TAG,
            status=201,
            instead="It is there already",
            bodies={JSON: Body(CreateWorld, examples.WORLD)},
            reply=WorldView,
            example=examples.WORLD_VIEW,
            refusals=("malformed", "conflict", "too_large", "unsupported", "invalid"),
        )
    ),
)
async def create_world(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    wanted = await read(request, CreateWorld)
    change = ChangeWorld(id=wanted.id, description=wanted.description, cause=cause_of(request, alone=True))
    made = await ask(request, "events", "create_world", change, WorldMade)
    return encoded(made.world, 201 if made.created else 200)


@get(
    "/api/v1/worlds",
    opt=described(
        Operation(
            summary="The worlds and their rooms, in the order of their ids",
            tag=TAG,
            params=WorldsParams,
            reply=WorldList,
            example=examples.WORLD_LIST,
            refusals=("invalid",),
        )
    ),
)
async def list_worlds(request: Http) -> Response[bytes]:
    params = read_params(request.scope["query_string"], WorldsParams)
    asked = ListRequest(limit=params.limit, cursor=params.cursor)
    return passed(await ask(request, "events", "list_worlds", asked, bytes))


@get(
    "/api/v1/worlds/{world:str}",
    opt=described(
        Operation(
            summary="One world",
            tag=TAG,
            reply=WorldView,
            example=examples.WORLD_VIEW,
            refusals=("not_found", "invalid"),
        )
    ),
)
async def get_world(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    return passed(await ask(request, "events", "get_world", GetRequest(request.path_params["world"]), bytes))


@delete(
    "/api/v1/worlds/{world:str}",
    opt=described(
        Operation(
            summary="Remove a world",
            description=(
                "Nothing can be written to it any more. What was can be read, until it expires; with `purge` it is "
                "removed at once from the log. The world `default` stays."
            ),
            tag=TAG,
            status=204,
            params=DeleteWorldParams,
            refusals=("not_found", "conflict", "invalid"),
        )
    ),
)
async def delete_world(request: Http) -> None:
    params = read_params(request.scope["query_string"], DeleteWorldParams)
    change = ChangeWorld(id=request.path_params["world"], purge=params.purge, cause=cause_of(request, alone=True))
    await ask(request, "events", "delete_world", change, bytes)


@post(
    "/api/v1/worlds/{world:str}/rooms",
    opt=described(
        Operation(
            summary="Make a room in a world",
            tag=TAG,
            status=201,
            instead="It is there already",
            bodies={JSON: Body(CreateRoom, examples.ROOM)},
            reply=RoomView,
            example=examples.ROOM_VIEW,
            refusals=("malformed", "not_found", "too_large", "unsupported", "invalid"),
        )
    ),
)
async def create_room(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    wanted = await read(request, CreateRoom)
    change = ChangeRoom(world_id=request.path_params["world"], id=wanted.id, cause=cause_of(request, alone=True))
    made = await ask(request, "events", "create_room", change, RoomMade)
    return encoded(made.room, 201 if made.created else 200)


@get(
    "/api/v1/worlds/{world:str}/rooms",
    opt=described(
        Operation(
            summary="The rooms of a world",
            tag=TAG,
            reply=RoomList,
            example=examples.ROOM_LIST,
            refusals=("not_found", "invalid"),
        )
    ),
)
async def list_rooms(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    world = await ask(request, "events", "get_world", GetRequest(request.path_params["world"]), WorldView)
    return encoded(RoomList(rooms=world.rooms))


@delete(
    "/api/v1/worlds/{world:str}/rooms/{room:str}",
    opt=described(
        Operation(
            summary="Remove a room",
            description="Nothing can be written to it any more. What was can be read. The room `main` stays.",
            tag=TAG,
            status=204,
            refusals=("not_found", "conflict", "invalid"),
        )
    ),
)
async def delete_room(request: Http) -> None:
    read_params(request.scope["query_string"], NoParams)
    place = request.path_params
    change = ChangeRoom(world_id=place["world"], id=place["room"], cause=cause_of(request, alone=True))
    await ask(request, "events", "delete_room", change, bytes)
