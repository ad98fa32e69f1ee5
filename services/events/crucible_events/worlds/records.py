"""A world's record in KV, as each request changes it, and as users see it. Pure."""

import re
from collections.abc import Iterable

import msgspec

from crucible_core.access import EVERYTHING, Scope
from crucible_core.envelope import DEFAULT_ROOM
from crucible_core.errors import ConflictError, FieldError, InvalidError, NotFoundError
from crucible_core.protocol.worlds import (
    MAX_ROOMS,
    MAX_WORLDS,
    ChangeRoom,
    ChangeWorld,
    RoomRecord,
    RoomView,
    WorldRecord,
    WorldView,
)

_MAX_DESCRIPTION = 1000
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


# ---- checks ----------------------------------------------------------------------------------------------------------


def check_id(text: str) -> None:
    """Raises InvalidError."""
    if not _ID.fullmatch(text):
        raise _refused("id", "must be 1 to 64 letters, digits, _, - or ., the first a letter or a digit")


def check_description(text: str) -> None:
    if len(text) > _MAX_DESCRIPTION:
        raise _refused("description", f"may have {_MAX_DESCRIPTION} characters")


# ---- changes: from the record that was found to the one that is to be; the same one where nothing changes ------------


def with_world(found: WorldRecord | None, asked: ChangeWorld, at: str, count: int, owner: str = "") -> WorldRecord:
    """`count` is how many worlds there are. Raises ConflictError where there is another one with that id."""
    if found is not None and found.deleted_at is None:
        if found.description != asked.description:
            raise ConflictError(f"there is a world {found.id} already, with another description")
        return found
    if count >= MAX_WORLDS:
        raise _refused("id", f"there may be {MAX_WORLDS} worlds; delete one first")
    if found is None:
        return WorldRecord(id=asked.id, created_at=at, description=asked.description, owner=owner)
    return msgspec.structs.replace(found, created_at=at, description=asked.description, deleted_at=None, owner=owner)


def without_world(found: WorldRecord | None, created_at: str, at: str) -> WorldRecord | None:
    """`created_at` tells the world that is meant from a later one of its name."""
    if found is None or found.deleted_at is not None or found.created_at != created_at:
        return found
    rooms = [msgspec.structs.replace(room, deleted_at=room.deleted_at or at) for room in found.rooms]
    return msgspec.structs.replace(found, deleted_at=at, rooms=rooms)


def to_purge(found: WorldRecord | None, created_at: str, through: int) -> WorldRecord | None:
    if found is None or found.deleted_at is None or found.created_at != created_at:
        return found
    return msgspec.structs.replace(found, purge_through=through, purged=False)


def purged(found: WorldRecord | None, through: int) -> WorldRecord | None:
    if found is None or found.purge_through != through:
        return found
    return msgspec.structs.replace(found, purged=True)


def with_room(found: WorldRecord | None, asked: ChangeRoom, at: str) -> WorldRecord:
    world = _present(found, asked.world_id)
    if asked.id == DEFAULT_ROOM or any(room.id == asked.id and room.deleted_at is None for room in world.rooms):
        return world
    if sum(room.deleted_at is None for room in world.rooms) >= MAX_ROOMS:
        raise _refused("id", f"a world may have {MAX_ROOMS} rooms; delete one first")
    others = [room for room in world.rooms if room.id != asked.id]
    return msgspec.structs.replace(world, rooms=[*others, RoomRecord(id=asked.id, created_at=at)])


def without_room(found: WorldRecord | None, room_id: str, created_at: str, at: str) -> WorldRecord:
    """Of the rooms that were deleted the latest 1,000 are remembered."""
    world = _present(found, "")
    rooms = [
        msgspec.structs.replace(room, deleted_at=at)
        if room.id == room_id and room.created_at == created_at and room.deleted_at is None
        else room
        for room in world.rooms
    ]
    deleted = sorted(room.deleted_at for room in rooms if room.deleted_at is not None)
    if len(deleted) > MAX_ROOMS:
        rooms = [room for room in rooms if room.deleted_at is None or room.deleted_at >= deleted[-MAX_ROOMS]]
    return msgspec.structs.replace(world, rooms=rooms)


def forgettable(records: Iterable[WorldRecord], most: int) -> list[WorldRecord]:
    """The deleted worlds past the number that is remembered: those without events first, then the oldest."""
    deleted = [record for record in records if record.deleted_at is not None]
    ranked = sorted(deleted, key=lambda record: (not (record.purge_through and record.purged), record.deleted_at))
    return ranked[: max(0, len(ranked) - most)]


# ---- views -----------------------------------------------------------------------------------------------------------


def view_of(record: WorldRecord, scope: Scope = EVERYTHING) -> WorldView:
    """With the rooms in which there is something to see."""
    rooms = [RoomView(id=room.id, created_at=room.created_at) for room in record.rooms if room.deleted_at is None]
    rooms.sort(key=lambda room: room.id)
    all_rooms = [RoomView(id=DEFAULT_ROOM, created_at=record.created_at), *rooms]
    seen = [room for room in all_rooms if scope.has_place(record.id, room.id)]
    return WorldView(id=record.id, description=record.description, created_at=record.created_at, rooms=seen)


def room_of(record: WorldRecord, room_id: str) -> RoomView:
    return next(room for room in view_of(record).rooms if room.id == room_id)


def _present(found: WorldRecord | None, world_id: str) -> WorldRecord:
    if found is None or found.deleted_at is not None:
        raise NotFoundError(f"there is no world {(found.id if found else world_id)[:64]} any more")
    return found


def _refused(path: str, message: str) -> InvalidError:
    return InvalidError(f"{path}: {message}", errors=[FieldError(path, message)])
