"""Requests to `events` about worlds and their rooms, with their answers, and the record of a world in KV."""

from typing import Annotated

import msgspec
from msgspec import Meta

from crucible_core.limits import WORLD_DESCRIPTION_CHARS
from crucible_core.protocol.memory import Cause
from crucible_core.protocol.parts import Message, Owned

PlaceId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z",
        extra={"form": "must begin with a letter or digit, and hold only letters, digits, _, - and ."},
    ),
]


class RoomRecord(Message):
    """A room as its world's record has it. One that was deleted is kept, since its events can still be read."""

    id: str
    created_at: str
    deleted_at: str | None = None


class WorldRecord(Owned, kw_only=True):
    """The value of the `worlds` bucket under a world's id; of a deleted world too, since its events can still be read.

    `purge_through` says that none of its events up to that sequence is left, or is to be left: `purged` tells which.
    """

    id: str
    created_at: str
    description: str = ""
    deleted_at: str | None = None
    rooms: list[RoomRecord] = []
    purge_through: int = 0
    purged: bool = True


class CreateWorld(Message):
    id: PlaceId
    description: Annotated[str, Meta(max_length=WORLD_DESCRIPTION_CHARS)] = ""


class CreateRoom(Message):
    id: PlaceId


class ChangeWorld(Message):
    """`events.create_world` and `events.delete_world`; `cause` says who asks."""

    id: str
    description: str = ""
    purge: bool = False
    cause: Cause = msgspec.field(default_factory=Cause)


class ChangeRoom(Message):
    """`events.create_room` and `events.delete_room`."""

    world_id: str
    id: str
    cause: Cause = msgspec.field(default_factory=Cause)


class RoomView(Message, omit_defaults=False):
    id: str
    created_at: str


class WorldView(Message, omit_defaults=False):
    """A world as users see it; `rooms` begin with `main`."""

    id: str
    description: str
    created_at: str
    rooms: list[RoomView]


class WorldMade(Message, omit_defaults=False):
    """`created` is false where it was there already."""

    world: WorldView
    created: bool


class RoomMade(Message, omit_defaults=False):
    room: RoomView
    created: bool


class WorldList(Message, omit_defaults=False):
    worlds: list[WorldView]
    next_cursor: str | None = None


class RoomList(Message, omit_defaults=False):
    rooms: list[RoomView]


class PlaceRequest(Message):
    """`events.place`: answered, with the same, where such a world and room exist or have existed: they can be read."""

    world_id: str | None = None
    room_id: str | None = None
