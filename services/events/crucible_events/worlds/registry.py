"""Which worlds and rooms there are: this process's copy of the `worlds` bucket, and the check of what events name."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import msgspec

from crucible_core.access import EVERYTHING, Scope
from crucible_core.envelope import DEFAULT_ROOM, DEFAULT_WORLD
from crucible_core.errors import FieldError, InvalidError
from crucible_core.protocol.worlds import WorldRecord
from crucible_core.suggest import nearest
from crucible_events.append.entries import Entry, State, entries_in
from crucible_kit.buckets import Bucket, Change, View

log = logging.getLogger(__name__)

_PATIENCE_S = 5.0
_SHOWN = 64
_COMPARED = 200
"""Names that an unknown one is compared with: what anybody may ask as often as they like must be cheap."""
_REMEMBERED = 1_000
_NOWHERE: frozenset[str] = frozenset()
_record = msgspec.json.Decoder(WorldRecord)
Rooms = Mapping[str, frozenset[str]]
"""By world."""


class Turn:
    """The appends that began between two changes of the worlds; `done` once all of them have their outcome."""

    def __init__(self) -> None:
        self.count = 0
        self.done = asyncio.Event()


class Places:
    """The worlds and rooms that can be written to, and those that can be read: the deleted ones as well."""

    def __init__(self, bucket: Bucket, purged: Callable[[str, int], None]) -> None:
        """`purged` is told of each world without events up to a sequence."""
        self._purged = purged
        self._open: dict[str, frozenset[str]] = {DEFAULT_WORLD: frozenset({DEFAULT_ROOM})}
        self._ever = dict(self._open)
        self._rooms_ever: frozenset[str] | None = None
        self._refusals: dict[tuple[str | None, str | None], InvalidError] = {}
        self._turn = Turn()
        self._turns: list[Turn] = []
        self.records: dict[str, WorldRecord] = {}
        self.view = View(bucket, self._changed)

    async def ready(self) -> None:
        """Raises UnavailableError while it is not known which worlds there are."""
        await self.view.reach(0, _PATIENCE_S)

    # ---- writing

    async def admit(self, states: list[State]) -> None:
        """Puts the refusal in the place of each event that names no open world and room."""
        strangers = [one for one in entries_in(states) if not self.has(one)]
        if strangers:
            await self.view.refresh()  # it may be so new that this copy does not have it
        for stranger in strangers:
            if not self.has(stranger):
                about = stranger.stamped.event.metadata
                states[stranger.index] = self._refusal(about.world_id, about.room_id, stranger.scope)

    def has(self, entry: Entry) -> bool:
        """Whether this copy has the open world and room that an event names."""
        about = entry.stamped.event.metadata
        return about.room_id in self._open.get(about.world_id, _NOWHERE)

    @contextlib.contextmanager
    def appending(self) -> Iterator[None]:
        """Around an append, from its look at the worlds to its outcome."""
        turn = self._turn
        turn.count += 1
        try:
            yield
        finally:
            turn.count -= 1
            if not turn.count:
                turn.done.set()

    async def quiet(self, patience_s: float) -> None:
        """Returns once no append is under way that looked at an earlier state than the present one, or after a while:
        one may wait for hooks."""
        self._turn.done.clear()
        self._turns = [turn for turn in (*self._turns, self._turn) if turn.count]
        self._turn = Turn()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                for turn in list(self._turns):
                    await turn.done.wait()

    # ---- reading

    async def check_readable(self, world_id: str | None, room_id: str | None, scope: Scope = EVERYTHING) -> None:
        """Raises InvalidError where there never was such a world or room to be seen; None is any."""
        if not self._readable(world_id, room_id, scope):
            await self.view.refresh()
            if not self._readable(world_id, room_id, scope):
                raise self._refusal(world_id, room_id, scope)

    def unreadable(self, world_id: str | None, room_id: str | None) -> InvalidError | None:
        """The same by what this copy holds now."""
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
            return self._refused(world_id, room_id, _seen(self._open, scope), _seen(self._ever, scope))
        found = self._refusals.get((world_id, room_id))
        if found is None:
            if len(self._refusals) >= _REMEMBERED:
                self._refusals.clear()
            found = self._refusals[world_id, room_id] = self._refused(world_id, room_id, self._open, self._ever)
        return InvalidError(found.detail, errors=found.errors)

    def _refused(self, world_id: str | None, room_id: str | None, there: Rooms, ever: Rooms) -> InvalidError:
        if world_id is not None and world_id not in there:
            gone = " any more" if world_id in ever else ""
            message = f"there is no world {_shown(world_id)}{gone}"
            hint = "create it with POST /api/v1/worlds or `crucible worlds add`"
            return _error("world_id", message, hint, _like(world_id, there))
        where = "" if world_id is None else f" in the world {_shown(world_id)}"
        rooms = frozenset[str]().union(*ever.values()) if world_id is None else there[world_id]
        gone = " any more" if world_id is not None and room_id in ever[world_id] else ""
        message = f"there is no room {_shown(room_id or '')}{where}{gone}"
        hint = f"create it with POST /api/v1/worlds/{world_id or '{world}'}/rooms or `crucible rooms add`"
        return _error("room_id", message, hint, _like(room_id or "", rooms))

    # ---- the copy

    def _changed(self, change: Change) -> None:
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


def _seen(rooms: Rooms, scope: Scope) -> Rooms:
    """The worlds and rooms in which there is something to see."""
    return {
        world: frozenset(room for room in inside if scope.has_place(world, room))
        for world, inside in rooms.items()
        if scope.has_place(world)
    }


def _like(name: str, known: Collection[str]) -> str | None:
    close: Sequence[str] = [other for other in known if abs(len(other) - len(name)) <= 2]
    if len(close) > _COMPARED:
        close = [other for other in close if other[:1].casefold() == name[:1].casefold()][:_COMPARED]
    return nearest(name, close)


def _error(path: str, message: str, hint: str, suggestion: str | None) -> InvalidError:
    asked = f' (did you mean "{suggestion}"?)' if suggestion else ""
    whole = f"{message}; {hint}"
    return InvalidError(f"{path}: {message}{asked}; {hint}", errors=[FieldError(path, whole, suggestion)])


def _shown(name: str) -> str:
    return f'"{name[:_SHOWN]}"'
