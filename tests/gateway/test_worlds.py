"""Worlds, rooms and retention at the door; and readers that name a world."""

from typing import Any

import httpx
import msgspec
from websockets.asyncio.client import connect

from crucible_core.errors import ConflictError, FieldError, InvalidError, NotFoundError
from crucible_core.protocol.memory import MemoryList, MemoryQuery
from crucible_core.protocol.parts import GetRequest, ListRequest
from crucible_core.protocol.retention import PutRetention, RetentionRule, RetentionView
from crucible_core.protocol.worlds import (
    ChangeRoom,
    ChangeWorld,
    PlaceRequest,
    RoomMade,
    RoomView,
    WorldList,
    WorldMade,
    WorldView,
)
from crucible_gateway.context import Nothing
from crucible_kit.nats.bus import Bus
from tests.cases import each_of

from .conftest import HEADERS, Answers, Served, answering

AT = "2026-11-21T10:00:00.000000Z"
ROOM = RoomView(id="main", created_at=AT)
WORLD = WorldView(id="acme", description="", created_at=AT, rooms=[ROOM])


def places(events: Answers) -> None:
    def place(request: PlaceRequest) -> PlaceRequest:
        if request.world_id == "acme":
            return request
        field = FieldError("world_id", f"there is no world {request.world_id}", "acme")
        raise InvalidError("world_id: there is no such world", errors=[field])

    events.replies["place"] = place


async def test_worlds(http: httpx.AsyncClient, bus: Bus) -> None:
    async with answering(
        bus, "events", create_world=ChangeWorld, delete_world=ChangeWorld, get_world=GetRequest, list_worlds=ListRequest
    ) as events:
        events.replies = {
            "create_world": WorldMade(world=WORLD, created=True),
            "delete_world": ChangeWorld(id="acme"),
            "get_world": WORLD,
            "list_worlds": WorldList(worlds=[WORLD]),
        }
        made = await http.post("/api/v1/worlds", json={"id": "acme", "description": "x"})
        assert (made.status_code, made.json()["rooms"]) == (201, [{"id": "main", "created_at": AT}])
        assert (events.last.id, events.last.description, events.last.cause.actor) == ("acme", "x", "user:admin")
        assert events.last.cause.correlation_id == made.headers["X-Correlation-Id"]
        events.replies["create_world"] = WorldMade(world=WORLD, created=False)
        assert (await http.post("/api/v1/worlds", json={"id": "acme"})).status_code == 200
        events.replies["create_world"] = ConflictError("another")
        assert (await http.post("/api/v1/worlds", json={"id": "acme"})).status_code == 409
        listed = await http.get("/api/v1/worlds", params={"limit": 7, "cursor": "a"})
        assert (listed.json()["worlds"][0]["id"], events.last.limit, events.last.cursor) == ("acme", 7, "a")
        assert (await http.get("/api/v1/worlds/acme")).json()["id"] == "acme"
        assert (await http.get("/api/v1/worlds/acme/rooms")).json() == {"rooms": [{"id": "main", "created_at": AT}]}
        assert (await http.delete("/api/v1/worlds/acme")).status_code == 204
        assert not events.last.purge
        assert (await http.delete("/api/v1/worlds/a%20b", params={"purge": "true"})).status_code == 204
        assert (events.last.id, events.last.purge) == ("a b", True)
        events.replies["delete_world"] = NotFoundError("no")
        assert (await http.delete("/api/v1/worlds/acme")).status_code == 404


@each_of(
    ("body", "path"),
    [
        ({}, "id"),
        ({"id": ""}, "id"),
        ({"id": "../x"}, "id"),
        ({"id": "x" * 65}, "id"),
        ({"id": 7}, "id"),
        ({"id": "a", "description": "x" * 1001}, "description"),
        ({"id": "a", "descripton": ""}, "descripton"),
    ],
)
async def test_a_wrong_world_is_refused_at_the_door(http: httpx.AsyncClient, body: Any, path: str) -> None:
    refused = await http.post("/api/v1/worlds", json=body)
    assert (refused.status_code, refused.json()["errors"][0]["path"]) == (422, path)
    assert (await http.delete("/api/v1/worlds/acme", params={"purge": "maybe"})).status_code == 422


async def test_rooms(http: httpx.AsyncClient, bus: Bus) -> None:
    async with answering(bus, "events", create_room=ChangeRoom, delete_room=ChangeRoom) as events:
        events.replies["create_room"] = RoomMade(room=ROOM, created=True)
        events.replies["delete_room"] = ChangeRoom(world_id="acme", id="lab")
        assert (await http.post("/api/v1/worlds/acme/rooms", json={"id": "lab"})).status_code == 201
        assert (events.last.world_id, events.last.id) == ("acme", "lab")
        assert (await http.delete("/api/v1/worlds/acme/rooms/lab")).status_code == 204
        events.replies["delete_room"] = ConflictError("the room main of a world always exists")
        assert (await http.delete("/api/v1/worlds/acme/rooms/main")).status_code == 409


async def test_retention(http: httpx.AsyncClient, bus: Bus) -> None:
    rule = RetentionRule(type="Task.*", keep="12h")
    view = RetentionView(rules=[rule], default="30d", revision=3)
    async with answering(bus, "events", get_retention=Nothing, put_retention=PutRetention) as events:
        events.replies = {"get_retention": view, "put_retention": view}
        shown = await http.get("/api/v1/retention")
        assert (shown.headers["ETag"], shown.json()) == ('"3"', msgspec.to_builtins(view))
        body = {"rules": [{"type": "Task.*", "keep": "12h"}]}
        put = await http.put("/api/v1/retention", json=body, headers={"If-Match": shown.headers["ETag"]})
        assert (put.status_code, events.last.revision, events.last.rules) == (200, 3, [rule])
        assert (await http.put("/api/v1/retention", json=body)).status_code == 200
        assert events.last.revision is None
        for headers, sent in (
            ({"If-Match": "x"}, body),
            ({}, {"rules": [{"type": "*"}]}),
            ({}, {"rule": []}),
            ({}, []),
        ):
            assert (await http.put("/api/v1/retention", json=sent, headers=headers)).status_code == 422
        events.replies["put_retention"] = ConflictError("another", current_revision=4)
        refused = await http.put("/api/v1/retention", json=body, headers={"If-Match": '"3"'})
        assert (refused.status_code, refused.json()["current_revision"]) == (409, 4)


async def test_readers_of_unknown_worlds_are_refused(gateway: Served, http: httpx.AsyncClient, bus: Bus) -> None:
    headers = {"Accept": "text/event-stream"}
    async with answering(bus, "events", place=PlaceRequest) as events:
        places(events)
        refused = await http.get("/api/v1/events/stream", params={"world_id": "acmee"}, headers=headers)
        assert (refused.status_code, refused.json()["errors"][0]["suggestion"]) == (422, "acme")
        params = {"world_id": "acme", "room_id": "lab"}
        async with http.stream("GET", "/api/v1/events/stream", params=params, headers=headers) as stream:
            assert stream.status_code == 200
        assert events.last == PlaceRequest(world_id="acme", room_id="lab")
        async with connect(gateway.ws, additional_headers=HEADERS) as socket:
            for world, kind in (("acmee", "error"), ("acme", "subscribed")):
                await socket.send(msgspec.json.encode({"action": "subscribe", "world_id": world}).decode())
                said = msgspec.json.decode(await socket.recv())
                assert said["type"] == kind
        query = await http.post("/api/v1/memory/query", json={"world_id": "acmee"})
        assert query.status_code == 422


async def test_the_default_place_needs_nobody(http: httpx.AsyncClient, bus: Bus) -> None:
    async with answering(bus, "memory", query=MemoryQuery) as memory:
        memory.replies["query"] = MemoryList(memories=[])
        assert (await http.post("/api/v1/memory/query", json={"room_id": "main"})).status_code == 200
    assert (await http.post("/api/v1/memory/query", json={"world_id": "acme"})).status_code == 503
