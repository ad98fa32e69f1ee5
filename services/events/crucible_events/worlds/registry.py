"""Registry of worlds and rooms: this process's copy of the `worlds` bucket, and the check of the names in events."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import msgspec

from crucible_core.access import EVERYTHING, Scope
from crucible_core.envelope import DEFAULT_ROOM, DEFAULT_WORLD
from crucible_core.errors import ConflictError, InvalidError
from crucible_core.protocol.worlds import WorldRecord
from crucible_core.subjects import token
from crucible_core.suggest import nearest
from crucible_events.append.entries import Entry, State, entries_in
from crucible_kit.buckets import Bucket, Change, View
from crucible_kit.clock import timestamp

log = logging.getLogger(__name__)

BUCKET = "worlds"
SETTLE_S = 4.0
"""The time that a deletion waits for the appends that are under way, and for the indexes to forget."""
_READY_S = 5.0
_SHOWN = 64
_COMPARED = 200
"""Names that an unknown one is compared with: anybody may ask as often as they like."""
_REMEMBERED = 1_000
_NOWHERE: frozenset[str] = frozenset()
_record = msgspec.json.Decoder(WorldRecord)
Rooms = Mapping[str, frozenset[str]]
"""By world."""


async def ensure_default(bucket: Bucket) -> None:
    """Stores the record of the default world, where there is none."""
    record = WorldRecord(id=DEFAULT_WORLD, created_at=timestamp())
    with contextlib.suppress(ConflictError):
        await bucket.create(token(DEFAULT_WORLD), msgspec.json.encode(record))


class _Generation:
    """The appends that began between two changes of the worlds; `done` once all of them have their outcome."""

    def __init__(self) -> None:
        self.count = 0
        self.done = asyncio.Event()


class Places:
    """The worlds and rooms that can be written to, and those that can be read: the deleted ones as well."""

    def __init__(self, bucket: Bucket, purged: Callable[[str, int], None]) -> None:
        """`purged` is called with each purged world and the sequence up to which it has no events."""
        self._purged = purged
        self._open: dict[str, frozenset[str]] = {DEFAULT_WORLD: frozenset({DEFAULT_ROOM})}
        self._ever = dict(self._open)
        self._rooms_ever: frozenset[str] | None = None
        self._refusals: dict[tuple[str | None, str | None], InvalidError] = {}
        self._generation = _Generation()
        self._earlier: list[_Generation] = []
        self.records: dict[str, WorldRecord] = {}
        self.view = View(bucket, self._apply)

    async def ready(self) -> None:
        """Raises UnavailableError until this copy holds every world."""
        await self.view.reach(0, _READY_S)

    # ---- writing

    async def admit(self, states: list[State]) -> None:
        """Refuses each event that names no open world and room."""
        strangers = [one for one in entries_in(states) if not self.has(one)]
        if strangers:
            await self.view.refresh()  # it may be so new that this copy does not have it
        for stranger in strangers:
            if not self.has(stranger):
                about = stranger.stamped.event.metadata
                states[stranger.index] = self._refusal(about.world_id, about.room_id, stranger.scope)

    def has(self, entry: Entry) -> bool:
        """True where this copy has the open world and room that an event names."""
        about = entry.stamped.event.metadata
        return about.room_id in self._open.get(about.world_id, _NOWHERE)

    @contextlib.contextmanager
    def appending(self) -> Iterator[None]:
        """Around an append, from its look at the worlds to its outcome."""
        generation = self._generation
        generation.count += 1
        try:
            yield
        finally:
            generation.count -= 1
            if not generation.count:
                generation.done.set()

    async def drain(self, timeout_s: float) -> None:
        """Returns once every append that looked at an earlier state has ended, or after the timeout: one may wait for
        hooks."""
        self._generation.done.clear()
        self._earlier = [each for each in (*self._earlier, self._generation) if each.count]
        self._generation = _Generation()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for generation in list(self._earlier):
                    await generation.done.wait()

    # ---- reading

    async def check_readable(self, world_id: str | None, room_id: str | None, scope: Scope = EVERYTHING) -> None:
        """Raises InvalidError where there never was such a world or room to be seen; None is any."""
        if not self._readable(world_id, room_id, scope):
            await self.view.refresh()
            if not self._readable(world_id, room_id, scope):
                raise self._refusal(world_id, room_id, scope)

    def unreadable(self, world_id: str | None, room_id: str | None) -> InvalidError | None:
        """The same error by the present copy, or None."""
        return None if self._readable(world_id, room_id) else self._refusal(world_id, room_id)

    def _readable(self, world_id: str | None, room_id: str | None, scope: Scope = EVERYTHING) -> bool:
        if world_id is None and room_id is None:
            return True
        if not scope.has_place(world_id, room_id):
            return False
        if world_id is not None:
            return world_id in self._ever and (room_id is None or room_id in self._ever[world_id])
        if scope.everything:
            return room_id in self._all_rooms()
        return any(room_id in rooms for world, rooms in self._ever.items() if scope.has_place(world, room_id))

    def _all_rooms(self) -> frozenset[str]:
        if self._rooms_ever is None:
            self._rooms_ever = frozenset().union(*self._ever.values())
        return self._rooms_ever

    # ---- refusals

    def _refusal(self, world_id: str | None, room_id: str | None, scope: Scope = EVERYTHING) -> InvalidError:
        if not scope.everything:
            return _refuse(world_id, room_id, _visible(self._open, scope), _visible(self._ever, scope))
        found = self._refusals.get((world_id, room_id))
        if found is None:
            if len(self._refusals) >= _REMEMBERED:
                self._refusals.clear()
            found = self._refusals[world_id, room_id] = _refuse(world_id, room_id, self._open, self._ever)
        return InvalidError(found.detail, errors=found.errors)

    # ---- the copy

    def _apply(self, change: Change) -> None:
        self._rooms_ever = None
        self._refusals.clear()
        record = self._read(change)
        if record is None:
            return
        rooms = {room.id for room in record.rooms if room.deleted_at is None}
        self.records[change.key] = record
        self._ever[record.id] = frozenset({DEFAULT_ROOM, *(room.id for room in record.rooms)})
        if record.deleted_at is None:
            self._open[record.id] = frozenset({DEFAULT_ROOM, *rooms})
        else:
            self._open.pop(record.id, None)
        if record.purge_through:
            self._purged(record.id, record.purge_through)

    def _read(self, change: Change) -> WorldRecord | None:
        if change.value is not None:
            try:
                return _record.decode(change.value)
            except msgspec.DecodeError as error:
                log.error("the record of world %s cannot be read; what was known of it stays: %s", change.key, error)
        elif (record := self.records.pop(change.key, None)) is not None and record.id != DEFAULT_WORLD:
            self._open.pop(record.id, None)
            self._ever.pop(record.id, None)
        return None


def _visible(rooms: Rooms, scope: Scope) -> Rooms:
    """The worlds and rooms that a scope shows."""
    return {
        world: frozenset(room for room in inside if scope.has_place(world, room))
        for world, inside in rooms.items()
        if scope.has_place(world)
    }


def _refuse(world_id: str | None, room_id: str | None, present: Rooms, ever: Rooms) -> InvalidError:
    if world_id is not None and world_id not in present:
        gone = " any more" if world_id in ever else ""
        message = f"there is no world {_shown(world_id)}{gone}"
        hint = "create it with POST /api/v1/worlds or `crucible worlds add`"
        return _error("world_id", message, hint, _like(world_id, present))
    where = "" if world_id is None else f" in the world {_shown(world_id)}"
    rooms = frozenset[str]().union(*ever.values()) if world_id is None else present[world_id]
    gone = " any more" if world_id is not None and room_id in ever[world_id] else ""
    message = f"there is no room {_shown(room_id or '')}{where}{gone}"
    hint = f"create it with POST /api/v1/worlds/{world_id or '{world}'}/rooms or `crucible rooms add`"
    return _error("room_id", message, hint, _like(room_id or "", rooms))


def _like(name: str, known: Collection[str]) -> str | None:
    close: Sequence[str] = [other for other in known if abs(len(other) - len(name)) <= 2]
    if len(close) > _COMPARED:
        close = [other for other in close if other[:1].casefold() == name[:1].casefold()][:_COMPARED]
    return nearest(name, close)


def _error(path: str, message: str, hint: str, suggestion: str | None) -> InvalidError:
    asked = f' (did you mean "{suggestion}"?)' if suggestion else ""
    whole = f"{message}; {hint}"
    return InvalidError.field(path, whole, suggestion, detail=f"{path}: {message}{asked}; {hint}")


def _shown(name: str) -> str:
    return f'"{name[:_SHOWN]}"'
