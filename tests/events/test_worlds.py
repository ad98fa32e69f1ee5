import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette

from crucible_core.access import OPERATOR
from crucible_core.errors import ConflictError, DeniedError, InvalidError, NotFoundError, UnavailableError
from crucible_core.protocol.events import AppendReply, AppendRequest
from crucible_core.protocol.hooks import HookRecord, InterceptReply, InterceptRequest
from crucible_core.protocol.memory import Cause
from crucible_core.protocol.parts import GetRequest, ListRequest
from crucible_core.protocol.worlds import (
    ChangeRoom,
    ChangeWorld,
    PlaceRequest,
    RoomMade,
    WorldList,
    WorldMade,
    WorldRecord,
    WorldView,
)
from crucible_core.subjects import token
from crucible_events.app import create_app
from crucible_events.settings import Settings
from crucible_events.worlds.api import Worlds
from crucible_events.worlds.registry import Places, ensure_default
from crucible_kit.buckets import Bucket, open_bucket
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import Context, Endpoint, call, serve
from crucible_kit.telemetry.spans import Telemetry

from .conftest import Asker, Running, delete_index, eventually, new, until


class Atlas:
    """Asks events about worlds, as the gateway does."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

    async def add(self, id: str, description: str = "", **fields: Any) -> WorldMade:
        request = ChangeWorld(id=id, description=description, **fields)
        return await call(self.bus, OPERATOR, "events", "create_world", request, WorldMade)

    async def remove(self, id: str, purge: bool = False) -> None:
        await call(self.bus, OPERATOR, "events", "delete_world", ChangeWorld(id=id, purge=purge), bytes, timeout=30)

    async def get(self, id: str) -> WorldView:
        return await call(self.bus, OPERATOR, "events", "get_world", GetRequest(id=id), WorldView)

    async def list(self, **asked: Any) -> WorldList:
        return await call(self.bus, OPERATOR, "events", "list_worlds", ListRequest(**asked), WorldList)

    async def add_room(self, world: str, id: str) -> RoomMade:
        return await call(self.bus, OPERATOR, "events", "create_room", ChangeRoom(world_id=world, id=id), RoomMade)

    async def remove_room(self, world: str, id: str) -> None:
        await call(self.bus, OPERATOR, "events", "delete_room", ChangeRoom(world_id=world, id=id), bytes)

    async def place(self, world: str | None = None, room: str | None = None) -> None:
        await call(self.bus, OPERATOR, "events", "place", PlaceRequest(world_id=world, room_id=room), bytes)


@pytest.fixture
def atlas(bus: Bus) -> Atlas:
    return Atlas(bus)


async def told(ask: Asker) -> list[tuple[str, Any]]:
    found = await ask.found(type=["System.*"], min_sequence=await ask.last())
    return [(event.data.event, event.data.payload) for event in found]


# ---- worlds and rooms


async def test_a_world_is_made_once(service: Starlette, atlas: Atlas, ask: Asker) -> None:
    made = await atlas.add("acme", "Our own", cause=Cause(actor="user:alice", correlation_id="cor_w"))
    again = await atlas.add("acme", "Our own")
    assert (made.created, again.created, again.world) == (True, False, made.world)
    assert [room.id for room in made.world.rooms] == ["main"]
    with pytest.raises(ConflictError):
        await atlas.add("acme", "Theirs")
    assert await told(ask) == [("WorldCreated", {"world_id": "acme", "name": "acme", "description": "Our own"})]
    [event] = await ask.found(type=["System.*"])
    assert (event.metadata.actor, event.metadata.correlation_id, event.metadata.world_id) == (
        "user:alice",
        "cor_w",
        "default",
    )


async def test_rooms_come_and_go(service: Starlette, atlas: Atlas, ask: Asker) -> None:
    await atlas.add("acme")
    made = await atlas.add_room("acme", "lab")
    assert (made.created, (await atlas.add_room("acme", "lab")).created) == (True, False)
    assert not (await atlas.add_room("acme", "main")).created
    assert (await ask.one(new(world_id="acme", room_id="lab"))).error is None
    await atlas.remove_room("acme", "lab")
    await atlas.remove_room("acme", "lab")
    refused = await ask.one(new(world_id="acme", room_id="lab"))
    assert refused.error is not None
    assert "any more" in refused.error.detail
    assert len(await ask.found(world_id="acme", room_id="lab")) == 1
    assert [kind for kind, _ in await told(ask)] == ["WorldCreated", "RoomCreated", "RoomDeleted"]
    assert (await atlas.add_room("acme", "lab")).created
    assert (await ask.one(new(world_id="acme", room_id="lab"))).error is None
    assert [kind for kind, _ in await told(ask)][-1] == "RoomCreated"


async def test_what_always_exists_cannot_be_removed(service: Starlette, atlas: Atlas, ask: Asker) -> None:
    assert not (await atlas.add("default")).created
    assert await told(ask) == []
    assert (await atlas.add_room("default", "lab")).created
    for removing in (
        atlas.remove("default"),
        atlas.remove("default", purge=True),
        atlas.remove_room("default", "main"),
    ):
        with pytest.raises(ConflictError):
            await removing
    with pytest.raises(NotFoundError):
        await atlas.remove("nope")
    with pytest.raises(NotFoundError) as error:
        await atlas.remove_room("default", "lap")
    assert "lab" in error.value.detail


@pytest.mark.parametrize("id", ["", ".", "..", "-x", "a b", "a/b", "ä", "x" * 65, "a\n", "a\x00", "*", ">", "a.*"])
async def test_ids_are_safe(service: Starlette, atlas: Atlas, id: str) -> None:
    with pytest.raises(InvalidError) as error:
        await atlas.add(id)
    assert error.value.errors[0].path == "id"
    with pytest.raises(InvalidError):
        await atlas.add_room("default", id)


@pytest.mark.parametrize("id", ["a", "A.b-c_d", "x" * 64, "2026.11", "a.b.c"])
async def test_each_world_has_its_own_subjects(service: Starlette, atlas: Atlas, ask: Asker, id: str) -> None:
    await atlas.add(id)
    done = await ask.one(new(world_id=id))
    stored = await ask.bus.get(ask.bus.names.events, done.sequence or 0)
    assert stored is not None
    assert stored.subject.split(".")[2] == token(id)


async def test_worlds_are_listed_in_pages(service: Starlette, atlas: Atlas) -> None:
    for id in ("b", "d", "a", "c"):
        await atlas.add(id)
    await atlas.remove("c")
    found, cursor = [], None
    while True:
        page = await atlas.list(limit=2, cursor=cursor)
        found += [world.id for world in page.worlds]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == ["a", "b", "d", "default"]
    with pytest.raises(InvalidError):
        await atlas.list(limit=0)


async def test_rooms_that_are_made_at_once_are_all_there(
    service: Starlette, settings: Settings, atlas: Atlas, tmp_path: Path
) -> None:
    await atlas.add("acme")
    async with _another(msgspec.structs.replace(settings, data_dir=str(tmp_path / "other"))):
        await asyncio.gather(*(atlas.add_room("acme", f"room{n}") for n in range(40)))
    assert {room.id for room in (await atlas.get("acme")).rooms} == {"main", *(f"room{n}" for n in range(40))}


# ---- what is unknown is refused


async def test_events_of_unknown_places_are_refused(service: Starlette, atlas: Atlas, ask: Asker) -> None:
    await atlas.add("acme")
    await atlas.add_room("acme", "lab")
    good, world, room, also = await ask.append(
        new(world_id="acme", room_id="lab"),
        new(world_id="acmee"),
        new(world_id="acme", room_id="lub"),
        new(),
    )
    assert (good.error, also.error) == (None, None)
    for refused, path, suggestion in ((world, "world_id", "acme"), (room, "room_id", "lab")):
        assert refused.error is not None
        [field] = refused.error.errors
        assert (refused.error.code, field.path, field.suggestion) == ("invalid", path, suggestion)
        assert "crucible" in refused.error.detail
    with pytest.raises(InvalidError) as error:
        await ask.append(new(), new(world_id="acmee"), atomic=True)
    assert error.value.errors[0].path == "events.1.world_id"


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        ({"world_id": "nope"}, "world_id"),
        ({"room_id": "nope"}, "room_id"),
        ({"world_id": "acme", "room_id": "attic"}, "room_id"),
        ({"world_id": "acme\x00\n", "room_id": "x" * 5000}, "world_id"),
    ],
)
async def test_queries_of_unknown_places_are_refused(
    service: Starlette, atlas: Atlas, ask: Asker, asked: dict[str, str], path: str
) -> None:
    await atlas.add("acme")
    await atlas.add_room("default", "attic")
    with pytest.raises(InvalidError) as error:
        await ask.query(**asked)
    assert error.value.errors[0].path == path
    with pytest.raises(InvalidError):
        await atlas.place(asked.get("world_id"), asked.get("room_id"))
    await ask.query(room_id="attic")
    await atlas.place("acme", "main")
    await atlas.place()


async def test_a_world_of_another_replica_is_known_at_once(
    service: Starlette, settings: Settings, atlas: Atlas, ask: Asker, tmp_path: Path
) -> None:
    async with _another(msgspec.structs.replace(settings, data_dir=str(tmp_path / "other"))):
        for n in range(8):
            await atlas.add(f"w{n}")
            results = await asyncio.gather(*(ask.one(new(world_id=f"w{n}")) for _ in range(6)))
            assert not [result.error for result in results if result.error]


async def test_a_world_in_the_bucket_is_known_although_nobody_told(service: Starlette, bus: Bus, ask: Asker) -> None:
    """As for a replica that missed the word of it."""
    bucket = await open_bucket(bus, "worlds")
    for n in range(20):
        await bucket.put(f"w{n}", msgspec.json.encode(WorldRecord(id=f"w{n}", created_at="2026-11-21T10:00:00Z")))
        assert (await ask.one(new(world_id=f"w{n}"))).error is None


async def test_many_unknown_names_are_cheap(service: Starlette, ask: Asker) -> None:
    async with asyncio.timeout(20):
        for n in range(20):
            results = await ask.append(*(new(world_id=f"nowhere-{n}-{m}") for m in range(200)))
            assert all(result.error for result in results)


async def test_a_repeated_append_is_answered_although_its_world_is_gone(
    service: Starlette, atlas: Atlas, ask: Asker
) -> None:
    await atlas.add("acme")
    first = await ask.one(new(world_id="acme", id="evt_a"))
    await atlas.remove("acme")
    again = await ask.one(new(world_id="acme", id="evt_a"))
    assert (again.duplicate, again.sequence) == (True, first.sequence)


# ---- deleting and purging


async def test_a_deleted_world_can_be_read_and_made_again(service: Starlette, atlas: Atlas, ask: Asker) -> None:
    await atlas.add("acme")
    await atlas.add_room("acme", "lab")
    await ask.one(new(world_id="acme", room_id="lab"))
    await atlas.remove("acme")
    await atlas.remove("acme")
    refused = await ask.one(new(world_id="acme"))
    assert refused.error is not None
    assert "any more" in refused.error.detail
    with pytest.raises(NotFoundError):
        await atlas.get("acme")
    with pytest.raises(NotFoundError):
        await atlas.add_room("acme", "x")
    assert len(await ask.found(world_id="acme", room_id="lab")) == 1
    assert (await atlas.add("acme", "another")).created
    assert [room.id for room in (await atlas.get("acme")).rooms] == ["main"]
    assert (await ask.one(new(world_id="acme"))).error is None
    assert len(await ask.found(world_id="acme", min_sequence=await ask.last())) == 2
    kinds = [kind for kind, _ in await told(ask)]
    assert kinds == ["WorldCreated", "RoomCreated", "WorldDeleted", "WorldCreated"]


async def test_a_purge_removes_from_the_stream_and_every_index(
    service: Starlette, settings: Settings, atlas: Atlas, ask: Asker, tmp_path: Path
) -> None:
    async with _another(msgspec.structs.replace(settings, data_dir=str(tmp_path / "other"))):
        await atlas.add("acme")
        kept = (await ask.one(new())).sequence
        await ask.append(*(new(world_id="acme", id=f"evt_{n}", retention="forever") for n in range(300)))
        await ask.query(min_sequence=await ask.last())
        await atlas.remove("acme", purge=True)
        names = ask.bus.names
        assert await ask.bus.next(names.events, 1, names.events_in("acme")) is None
        for _ in range(10):  # some of them ask the other replica
            assert await ask.found(world_id="acme") == []
        assert await ask.found(type=["Custom.*"]) == await ask.found(world_id="default", type=["Custom.*"])
        assert kept in [event.sequence for event in await ask.found()]
        assert ("WorldDeleted", {"world_id": "acme", "name": "acme", "purged": True}) in await told(ask)
        await atlas.add("acme")
        assert (await ask.one(new(world_id="acme"))).error is None
        assert len(await ask.found(world_id="acme", min_sequence=await ask.last())) == 1


async def test_an_index_that_was_away_forgets_a_purged_world(
    running: Running, settings: Settings, atlas: Atlas, ask: Asker, tmp_path: Path
) -> None:
    elsewhere = msgspec.structs.replace(settings, data_dir=str(tmp_path / "other"))
    async with running():
        await atlas.add("acme")
        await ask.append(*(new(world_id="acme") for _ in range(50)))
        await ask.query(min_sequence=await ask.last())
    async with _another(elsewhere):
        await atlas.remove("acme", purge=True)
    async with running():

        async def forgotten() -> bool:
            return not await ask.found(world_id="acme")

        await eventually(forgotten)
    delete_index(settings)
    async with running():
        assert await ask.found(world_id="acme") == []


async def test_a_purge_that_broke_off_is_completed_at_the_next_start(
    running: Running, atlas: Atlas, ask: Asker, bus: Bus
) -> None:
    async with running():
        await atlas.add("acme")
        await ask.append(*(new(world_id="acme") for _ in range(20)))
        await atlas.remove("acme")
        last = await ask.last()
    bucket = await open_bucket(bus, "worlds")
    entry = await bucket.get("acme")
    assert entry is not None
    record = msgspec.json.decode(entry.value, type=WorldRecord)
    begun = msgspec.structs.replace(record, purge_through=last, purged=False)
    await bucket.put("acme", msgspec.json.encode(begun))
    async with running():

        async def gone() -> bool:
            return (await bus.next(bus.names.events, 1, bus.names.events_in("acme"))) is None and not (
                await ask.found(world_id="acme")
            )

        await eventually(gone)


async def test_appends_under_way_leave_nothing_in_a_purged_world(service: Starlette, atlas: Atlas, ask: Asker) -> None:
    await atlas.add("acme")
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            await ask.append(*(new(world_id="acme") for _ in range(20)))

    writers = [asyncio.create_task(write()) for _ in range(4)]
    await asyncio.sleep(0.2)
    await atlas.remove("acme", purge=True)
    stop.set()
    await asyncio.gather(*writers)
    names = ask.bus.names
    assert await ask.bus.next(names.events, 1, names.events_in("acme")) is None
    assert await ask.found(world_id="acme", min_sequence=await ask.last()) == []


async def test_the_oldest_of_very_many_deleted_worlds_are_forgotten(bus: Bus, service: Starlette) -> None:
    bucket = await open_bucket(bus, "worlds")
    places = Places(bucket, lambda world, through: None)

    async def append(request: AppendRequest, context: Context) -> AppendReply:
        return await call(bus, OPERATOR, "events", "append", request, AppendReply)

    worlds = Worlds(bus, bucket, places, append, append, 1_000_000, most_deleted=2)
    following = asyncio.create_task(places.view.follow())
    context = Context("", OPERATOR)
    for n in range(5):
        await worlds.create(ChangeWorld(id=f"w{n}"), context)
        await worlds.delete(ChangeWorld(id=f"w{n}", purge=n > 2), context)
    await places.view.refresh()
    assert set(places.records) == {"default", "w2", "w4"} or set(places.records) == {"default", "w1", "w2"}
    following.cancel()


# ---- hooks and crashes


async def test_a_hook_may_forbid_worlds_and_rooms(running: Running, atlas: Atlas, ask: Asker, bus: Bus) -> None:
    await (await open_bucket(bus, "hooks")).put("gate", msgspec.json.encode(_gate()))
    async with running(), _denying(bus, {"nope"}):
        for change in (atlas.add("nope"), atlas.add_room("default", "nope")):
            with pytest.raises(DeniedError):
                await change
        with pytest.raises(NotFoundError):
            await atlas.get("nope")
        assert [room.id for room in (await atlas.get("default")).rooms] == ["main"]
        assert (await ask.one(new(world_id="nope"))).error is not None
        assert await told(ask) == []


async def test_a_hook_may_keep_a_world(running: Running, atlas: Atlas, ask: Asker, bus: Bus) -> None:
    async with running():
        await atlas.add("keep")
    await (await open_bucket(bus, "hooks")).put("gate", msgspec.json.encode(_gate("System.WorldDeleted")))
    async with running(), _denying(bus, {"keep"}):
        with pytest.raises(DeniedError):
            await atlas.remove("keep", purge=True)
        assert (await ask.one(new(world_id="keep"))).error is None


async def test_what_a_crash_left_untold_is_told_by_the_retry(
    running: Running, atlas: Atlas, ask: Asker, bus: Bus
) -> None:
    """The record was written, the event was not."""
    async with running():
        bucket = await open_bucket(bus, "worlds")
        record = WorldRecord(id="acme", created_at="2026-11-21T10:00:00.000000Z")
        await bucket.put("acme", msgspec.json.encode(record))
        for _ in range(3):
            assert not (await atlas.add("acme")).created
        assert [kind for kind, _ in await told(ask)] == ["WorldCreated"]


async def test_a_record_that_cannot_be_read_changes_nothing(
    service: Starlette, atlas: Atlas, ask: Asker, bus: Bus
) -> None:
    await atlas.add("acme")
    await (await open_bucket(bus, "worlds")).put("acme", b"{nonsense")
    assert (await ask.one(new(world_id="acme"))).error is None
    with pytest.raises(UnavailableError):
        await atlas.add("acme")
    assert (await ask.one(new())).error is None


async def test_the_default_world_is_made_once(bus: Bus) -> None:
    bucket: Bucket = await open_bucket(bus, "worlds")
    await ensure_default(bucket)
    first = await bucket.get("default")
    await ensure_default(bucket)
    assert await bucket.get("default") == first


def _gate(type: str = "System.*") -> HookRecord:
    definition = {
        "trigger": {"events": [{"type": type}], "timing": "Pre"},
        "action": {"type": "Script", "script": "None"},
        "options": {"timeout_ms": 300},
    }
    return HookRecord(name="gate", definition=definition)


@contextlib.asynccontextmanager
async def _denying(bus: Bus, names: set[str]) -> AsyncIterator[None]:
    async def intercept(request: InterceptRequest, context: Context) -> InterceptReply:
        payload = msgspec.json.decode(request.event)["data"]["payload"]
        if payload["name"] in names:
            raise DeniedError("no", hook="gate", reason="no")
        return InterceptReply()

    async with serve(bus, "hooks", {"intercept": Endpoint(InterceptRequest, intercept)}, Telemetry()):
        yield


@contextlib.asynccontextmanager
async def _another(settings: Settings) -> AsyncIterator[None]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        await until(lambda: not app.state.ready())
        yield
