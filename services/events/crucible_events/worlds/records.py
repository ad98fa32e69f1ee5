"""Records of worlds: the checks and changes of a record in KV, and its views. Pure."""

import re
from collections.abc import Iterable

import msgspec

from crucible_core.access import EVERYTHING, Scope
from crucible_core.envelope import DEFAULT_ROOM
from crucible_core.errors import ConflictError, InvalidError, NotFoundError
from crucible_core.limits import ROOMS, WORLD_DESCRIPTION_CHARS, WORLDS
from crucible_core.protocol.worlds import ChangeRoom, ChangeWorld, RoomRecord, RoomView, WorldRecord, WorldView

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


# ---- checks ----------------------------------------------------------------------------------------------------------


def check_id(text: str) -> None:
    """Raises InvalidError."""
    if not _ID.fullmatch(text):
        raise InvalidError.field("id", "must be 1 to 64 letters, digits, _, - or ., the first a letter or a digit")


def check_description(text: str) -> None:
    if len(text) > WORLD_DESCRIPTION_CHARS:
        raise InvalidError.field("description", f"may have {WORLD_DESCRIPTION_CHARS} characters")


# ---- changes: from the stored record to the new one; the same one where nothing changes ------------------------------


def with_world(old: WorldRecord | None, request: ChangeWorld, at: str, count: int, owner: str = "") -> WorldRecord:
    """`count` is how many worlds there are. Raises ConflictError where there is another one with that id."""
    if old is not None and old.deleted_at is None:
        if old.description != request.description:
            raise ConflictError(f"there is a world {old.id} already, with another description")
        return old
    if count >= WORLDS:
        raise InvalidError.field("id", f"there may be {WORLDS} worlds; delete one first")
    if old is None:
        return WorldRecord(id=request.id, created_at=at, description=request.description, owner=owner)
    return msgspec.structs.replace(old, created_at=at, description=request.description, deleted_at=None, owner=owner)


def without_world(old: WorldRecord | None, created_at: str, at: str) -> WorldRecord | None:
    """`created_at` distinguishes the world from a later one of its name."""
    if old is None or old.deleted_at is not None or old.created_at != created_at:
        return old
    rooms = [msgspec.structs.replace(room, deleted_at=room.deleted_at or at) for room in old.rooms]
    return msgspec.structs.replace(old, deleted_at=at, rooms=rooms)


def with_purge(old: WorldRecord | None, created_at: str, through: int) -> WorldRecord | None:
    if old is None or old.deleted_at is None or old.created_at != created_at:
        return old
    return msgspec.structs.replace(old, purge_through=through, purged=False)


def with_purge_done(old: WorldRecord | None, through: int) -> WorldRecord | None:
    if old is None or old.purge_through != through:
        return old
    return msgspec.structs.replace(old, purged=True)


def with_room(old: WorldRecord | None, request: ChangeRoom, at: str) -> WorldRecord:
    world = _present(old, request.world_id)
    if request.id == DEFAULT_ROOM or any(room.id == request.id and room.deleted_at is None for room in world.rooms):
        return world
    if sum(room.deleted_at is None for room in world.rooms) >= ROOMS:
        raise InvalidError.field("id", f"a world may have {ROOMS} rooms; delete one first")
    others = [room for room in world.rooms if room.id != request.id]
    return msgspec.structs.replace(world, rooms=[*others, RoomRecord(id=request.id, created_at=at)])


def without_room(old: WorldRecord | None, room_id: str, created_at: str, at: str) -> WorldRecord:
    """The record keeps the latest 1,000 deleted rooms."""
    world = _present(old, "")
    rooms = [
        msgspec.structs.replace(room, deleted_at=at)
        if room.id == room_id and room.created_at == created_at and room.deleted_at is None
        else room
        for room in world.rooms
    ]
    deleted = sorted(room.deleted_at for room in rooms if room.deleted_at is not None)
    if len(deleted) > ROOMS:
        rooms = [room for room in rooms if room.deleted_at is None or room.deleted_at >= deleted[-ROOMS]]
    return msgspec.structs.replace(world, rooms=rooms)


def forgettable(records: Iterable[WorldRecord], most: int) -> list[WorldRecord]:
    """The deleted worlds past `most`: those without events first, then the oldest."""
    deleted = [record for record in records if record.deleted_at is not None]
    ranked = sorted(deleted, key=lambda record: (not (record.purge_through and record.purged), record.deleted_at))
    return ranked[: max(0, len(ranked) - most)]


# ---- views -----------------------------------------------------------------------------------------------------------


def view_of(record: WorldRecord, scope: Scope = EVERYTHING) -> WorldView:
    """With the rooms that the scope shows."""
    rooms = [RoomView(id=room.id, created_at=room.created_at) for room in record.rooms if room.deleted_at is None]
    rooms.sort(key=lambda room: room.id)
    all_rooms = [RoomView(id=DEFAULT_ROOM, created_at=record.created_at), *rooms]
    visible = [room for room in all_rooms if scope.has_place(record.id, room.id)]
    return WorldView(id=record.id, description=record.description, created_at=record.created_at, rooms=visible)


def room_of(record: WorldRecord, room_id: str) -> RoomView:
    return next(room for room in view_of(record).rooms if room.id == room_id)


def _present(old: WorldRecord | None, world_id: str) -> WorldRecord:
    if old is None or old.deleted_at is not None:
        raise NotFoundError(f"there is no world {(old.id if old else world_id)[:64]} any more")
    return old
