"""Requests about worlds and rooms: changes of the `worlds` bucket, each recorded in the log."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from crucible_core.access import EVERYTHING, Scope, forbidden
from crucible_core.envelope import DEFAULT_ROOM, DEFAULT_WORLD
from crucible_core.errors import (
    ConflictError,
    CrucibleError,
    DeniedError,
    NotFoundError,
    UnavailableError,
    from_problem,
)
from crucible_core.ids import derive_id
from crucible_core.limits import WORLDS
from crucible_core.protocol.events import AppendReply, AppendRequest, NewEvent
from crucible_core.protocol.memory import Cause
from crucible_core.protocol.parts import GetRequest, ListRequest
from crucible_core.protocol.retention import ReachedRequest
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
from crucible_core.suggest import did_you_mean
from crucible_core.times import parse_time
from crucible_events.append.stamp import EVENTS
from crucible_events.worlds import records
from crucible_events.worlds.registry import BUCKET, SETTLE_S, Places
from crucible_kit.buckets import Bucket, Entry
from crucible_kit.clock import timestamp
from crucible_kit.nats.bus import Bus
from crucible_kit.pages import list_page
from crucible_kit.rpc import Context, Endpoint, call_all

log = logging.getLogger(__name__)

WRITE = "worlds:write"
_TRIES = 30
_PAUSE_S = 0.02
_RESUME_S = 5.0
_DELETIONS = frozenset({"WorldDeleted", "RoomDeleted"})

Append = Callable[[AppendRequest, Context], Awaitable[AppendReply]]
Decide = Callable[[WorldRecord | None], WorldRecord | None]


class Worlds:
    """Changes worlds. Whatever dies in between, the same request again completes it and appends no event twice: each
    event's id follows from the record."""

    def __init__(
        self,
        bus: Bus,
        bucket: Bucket,
        places: Places,
        append: Append,
        append_deletion: Append,
        most_bytes: int,
        most_deleted: int = WORLDS,
    ) -> None:
        self._bus = bus
        self._bucket = bucket
        self._places = places
        self._append = append
        self._append_deletion = append_deletion
        self._most_bytes = most_bytes
        self._most_deleted = most_deleted
        self._turn = asyncio.Lock()

    def endpoints(self) -> Mapping[str, Endpoint]:
        return {
            "create_world": Endpoint(ChangeWorld, self.create, stores=True),
            "delete_world": Endpoint(ChangeWorld, self.delete),
            "get_world": Endpoint(GetRequest, self.get),
            "list_worlds": Endpoint(ListRequest, self.list),
            "create_room": Endpoint(ChangeRoom, self.create_room, stores=True),
            "delete_room": Endpoint(ChangeRoom, self.delete_room),
            "place": Endpoint(PlaceRequest, self.place),
        }

    # ---- reading

    async def get(self, request: GetRequest, context: Context) -> WorldView:
        await self._places.view.refresh()
        return records.view_of(self._world(request.id, context.scope), context.scope)

    async def list(self, request: ListRequest, context: Context) -> WorldList:
        await self._places.view.refresh()
        scope, all_records = context.scope, self._places.records.values()
        present = (record for record in all_records if record.deleted_at is None and scope.has_place(record.id))
        view = partial(records.view_of, scope=scope)
        shown, cursor = list_page(present, lambda record: record.id, view, request, self._most_bytes)
        return WorldList(worlds=shown, next_cursor=cursor)

    async def place(self, request: PlaceRequest, context: Context) -> PlaceRequest:
        await self._places.check_readable(request.world_id, request.room_id, context.scope)
        return request

    # ---- worlds

    async def create(self, request: ChangeWorld, context: Context) -> WorldMade:
        """Raises ConflictError where there is another world of that id, DeniedError where a Pre hook says no."""
        records.check_id(request.id)
        records.check_description(request.description)
        if not context.scope.has_whole(request.id):
            raise forbidden(WRITE, f"the world {request.id}")
        at, owner = timestamp(), context.principal.id
        worlds = sum(record.deleted_at is None for record in self._places.records.values())
        record = await self._change(request.id, lambda old: records.with_world(old, request, at, worlds, owner))
        # The world first: a reader of the event finds it.
        payload = {"world_id": record.id, "name": record.id, "description": record.description}
        try:
            if record.id != DEFAULT_WORLD:
                await self._append_event("WorldCreated", payload, record.created_at, request.cause, context)
        except DeniedError:
            await self._change(request.id, lambda old: records.without_world(old, record.created_at, at))
            raise
        return WorldMade(world=records.view_of(record), created=record.created_at == at)

    async def delete(self, request: ChangeWorld, context: Context) -> ChangeWorld:
        """A world that is deleted already may be purged. Raises NotFoundError, DeniedError, and ConflictError for the
        default world."""
        await self._places.view.refresh()
        record = self._places.records.get(token(request.id))
        if record is None or not context.scope.has_place(record.id):
            raise self._unknown(request.id, context.scope)
        if record.id == DEFAULT_WORLD:
            raise ConflictError(f"the world {DEFAULT_WORLD} always exists")
        context.principal.check_owns(record, f"the world {record.id}")
        # The event first: a hook may say no, and then nothing has happened.
        payload = {"world_id": record.id, "name": record.id, **({"purged": True} if request.purge else {})}
        if record.deleted_at is None or request.purge:
            await self._append_event("WorldDeleted", payload, record.created_at, request.cause, context)
        at = timestamp()
        await self._change(request.id, lambda old: records.without_world(old, record.created_at, at), settle=True)
        if request.purge:
            through = await self._bus.last_sequence(self._bus.names.stream_of(request.id))
            await self._change(request.id, lambda old: records.with_purge(old, record.created_at, through))
            await self._purge(request.id)
        await self._prune()
        return request

    async def resume(self) -> None:
        """Completes the purges that another process began. Runs until cancelled."""
        while True:
            try:
                for record in list(self._places.records.values()):
                    if not record.purged:
                        await self._purge(record.id)
            except CrucibleError as error:
                log.warning("purges wait: %s", error)
            await asyncio.sleep(_RESUME_S)

    async def _purge(self, world_id: str) -> None:
        record = self._places.records[token(world_id)]
        names = self._bus.names
        await self._bus.purge(names.stream_of(world_id), names.events_in(world_id), record.purge_through)
        await self._change(world_id, lambda old: records.with_purge_done(old, record.purge_through), settle=True)

    async def _prune(self) -> None:
        """Removes the records of the oldest of very many deleted worlds."""
        for record in records.forgettable(self._places.records.values(), self._most_deleted):
            entry = await self._bucket.get(token(record.id))
            if entry is not None and _read(entry) == record:
                with contextlib.suppress(ConflictError):
                    await self._bucket.delete(token(record.id), revision=entry.revision)

    # ---- rooms

    async def create_room(self, request: ChangeRoom, context: Context) -> RoomMade:
        records.check_id(request.id)
        at = timestamp()
        await self._places.view.refresh()
        self._world(request.world_id, context.scope)
        if not context.scope.has_place(request.world_id, request.id):
            raise forbidden(WRITE, f"the room {request.id}")
        record = await self._change(request.world_id, lambda old: records.with_room(old, request, at))
        room = records.room_of(record, request.id)
        if room.id != DEFAULT_ROOM:
            try:
                await self._append_event("RoomCreated", _payload_of(request), room.created_at, request.cause, context)
            except DeniedError:
                await self._change(
                    request.world_id, lambda old: records.without_room(old, request.id, room.created_at, at)
                )
                raise
        return RoomMade(room=room, created=room.created_at == at)

    async def delete_room(self, request: ChangeRoom, context: Context) -> ChangeRoom:
        await self._places.view.refresh()
        world = self._world(request.world_id, context.scope)
        if request.id == DEFAULT_ROOM:
            raise ConflictError(f"the room {DEFAULT_ROOM} of a world always exists")
        rooms = [room for room in world.rooms if context.scope.has_place(world.id, room.id)]
        room = next((room for room in rooms if room.id == request.id), None)
        if room is None:
            hint = did_you_mean(request.id, [room.id for room in rooms][:200])
            raise NotFoundError(f"there is no room {request.id[:64]} in the world {world.id}{hint}")
        if not context.scope.has_whole(world.id):
            raise forbidden(WRITE, f"the room {room.id}")
        if room.deleted_at is None:
            await self._append_event("RoomDeleted", _payload_of(request), room.created_at, request.cause, context)
        at = timestamp()
        await self._change(world.id, lambda record: records.without_room(record, request.id, room.created_at, at))
        return request

    # ---- the bucket

    async def _change(self, world_id: str, decide: Decide, settle: bool = False) -> WorldRecord:
        """The new record, once every replica has it; with `settle` also once every append that began before has ended,
        and the indexes have no purged event. `decide` may be called again."""
        record, revision = await self._store(world_id, decide)
        await self._places.view.reach(revision)
        request = ReachedRequest(bucket=BUCKET, revision=revision, settle=settle)
        await call_all(self._bus, EVENTS, "events", "reached", request, patience=2 * SETTLE_S + 1)
        return record

    async def _store(self, world_id: str, decide: Decide) -> tuple[WorldRecord, int]:
        key = token(world_id)
        async with self._turn:
            for _ in range(_TRIES):
                entry = await self._bucket.get(key)
                old = _read(entry) if entry else None
                record = decide(old)
                if record is None or record == old:
                    if old is None or entry is None:
                        raise self._unknown(world_id)
                    return old, entry.revision
                value = msgspec.json.encode(record)
                try:
                    if entry is None:
                        return record, await self._bucket.create(key, value)
                    return record, await self._bucket.update(key, value, entry.revision)
                except ConflictError:
                    await asyncio.sleep(random.uniform(0, _PAUSE_S))
        raise UnavailableError(f"the world {world_id} is being changed by others all the time", retry_after=1)

    # ---- events

    async def _append_event(self, event: str, payload: dict[str, Any], at: str, cause: Cause, context: Context) -> None:
        """`at` is the time when the world or room was created: it distinguishes two of one name."""
        parts = (f"System.{event}", *map(str, payload.values()), at)
        new = NewEvent(
            type=f"System.{event}",
            payload=msgspec.Raw(msgspec.json.encode(payload)),
            id=derive_id("evt", parse_time(at, "created_at") // 1000, *parts),
            source=cause.source,
            actor=cause.actor,
            correlation_id=cause.correlation_id,
            hop=cause.hop,
            entity=payload["world_id"],
            traceparent=cause.traceparent,
            retention="forever",  # or the same request, a month later, would append it again
        )
        append = self._append_deletion if event in _DELETIONS else self._append
        # As the service itself: the principal that changes a world need not be one that may write to the default world.
        reply = await append(AppendRequest(events=[new]), msgspec.structs.replace(context, principal=EVENTS))
        if reply.results[0].error is not None:
            raise from_problem(reply.results[0].error)

    def _world(self, world_id: str, scope: Scope) -> WorldRecord:
        record = self._places.records.get(token(world_id))
        if record is None or record.deleted_at is not None or not scope.has_place(world_id):
            raise self._unknown(world_id, scope)
        return record

    def _unknown(self, world_id: str, scope: Scope = EVERYTHING) -> NotFoundError:
        present = (record.id for record in self._places.records.values() if record.deleted_at is None)
        known = [id for id in present if scope.has_place(id)][:200]
        return NotFoundError(f"there is no world {world_id[:64]}{did_you_mean(world_id, known)}")


def _read(entry: Entry) -> WorldRecord:
    try:
        return msgspec.json.decode(entry.value, type=WorldRecord)
    except msgspec.DecodeError as error:
        raise UnavailableError(f"the record of world {entry.key} cannot be read: is it of a later version?") from error


def _payload_of(request: ChangeRoom) -> dict[str, Any]:
    return {"world_id": request.world_id, "room_id": request.id, "name": request.id}
