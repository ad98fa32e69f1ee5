"""The worlds and rooms that imported events belong to: made where they are missing."""

import contextlib

import msgspec

from crucible_client import Crucible
from crucible_core.envelope import DEFAULT_ROOM, DEFAULT_WORLD
from crucible_core.errors import InvalidError


class _Named(msgspec.Struct):
    world_id: str | None = None
    room_id: str | None = None


class _Line(_Named):
    """An event in the short form, which names its place itself, or in the long one."""

    metadata: _Named | None = None


_decoder = msgspec.json.Decoder(_Line)


class Atlas:
    """The worlds and rooms that there are by now, asked for once."""

    def __init__(self, crucible: Crucible) -> None:
        self._crucible = crucible
        self._rooms: dict[str, set[str]] = {}

    def prepare(self, line: bytes) -> None:
        """Makes an event's world and room. What is no event, or names what cannot be made, is left to its refusal."""
        try:
            found = _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeError):
            return
        named = found.metadata or found
        with contextlib.suppress(InvalidError):
            self._make(named.world_id or DEFAULT_WORLD, named.room_id or DEFAULT_ROOM)

    def _make(self, world: str, room: str) -> None:
        if (world, room) == (DEFAULT_WORLD, DEFAULT_ROOM):
            return
        if not self._rooms:
            self._rooms = {there.id: {one.id for one in there.rooms} for there in self._crucible.worlds.list()}
        if world not in self._rooms:
            made = self._crucible.worlds.create(world)
            self._rooms[world] = {one.id for one in made.rooms}
        if room not in self._rooms[world]:
            self._crucible.rooms.create(world, room)
            self._rooms[world].add(room)
