"""A subscription: its selection and its start, and the records that wait for it."""

import asyncio
from collections import deque
from typing import Any, NamedTuple

import msgspec

from crucible_core.access import EVERYTHING, Sight
from crucible_core.envelope import Event, decode, with_sequence
from crucible_core.errors import InvalidError
from crucible_core.filters.matcher import CompiledFilters
from crucible_core.position import Position, parsed
from crucible_core.subjects import Names
from crucible_core.times import parse_time
from crucible_kit.eventlog import position_of
from crucible_kit.nats.bus import Bus

_EARLY_MS = 2000
"""Of a log in several streams, how much earlier than a sequence's event the other streams are begun: what was on its
way from them when that came must not be missed."""
_RECORD_BYTES = 512
"""Bytes that a record takes beside its event."""


class Record:
    """A committed event as it travels to clients: put in its public form at most once, for all of them."""

    __slots__ = ("_public", "raw", "sequence", "waiting")

    def __init__(self, sequence: int, raw: bytes) -> None:
        self.sequence = sequence
        self.raw = raw
        self.waiting = 0
        """The queues that it is in."""
        self._public: bytes | None = None

    def event(self) -> Event:
        """Decoded anew each time: an event takes many times its bytes. Raises `msgspec.DecodeError`."""
        return decode(self.raw, self.sequence)

    @property
    def public(self) -> bytes:
        if self._public is None:
            self._public = with_sequence(self.raw, self.sequence)
        return self._public

    @property
    def weight(self) -> int:
        """The bytes of memory that it takes, about, with its public form."""
        return 2 * len(self.raw) + _RECORD_BYTES


class CaughtUp(NamedTuple):
    """Everything up to here was sent; what follows is live."""

    position: Position

    @property
    def sequence(self) -> int:
        return self.position.greatest


class Gap(NamedTuple):
    """The client was too slow: so many events left its queue, and are read from the log again."""

    dropped: int


Item = Record | CaughtUp | Gap


class Start(msgspec.Struct, frozen=True):
    """The start of a subscription: after a position in the log, or at a time (Unix ms). `past` says that there may be a
    past to read, whose end is worth telling; it ends no earlier than `head`, the log's end when this was asked."""

    after: Position
    head: Position
    since_ms: int | None = None
    past: bool = True


async def read_start(text: str | int, bus: Bus, now: Position, path: str = "from") -> Start:
    """`now` (the log's end), `start`, a sequence, a position of several streams, or an RFC 3339 time. Raises
    InvalidError at `path`, also for a position that the log has not reached: who goes on after it knows another log,
    and would miss events."""
    start = bus.names.start
    if text == "now":
        return Start(now, start, past=False)
    if text == "start":
        return Start(start, now)
    if isinstance(text, str) and not (text.isascii() and text.isdecimal()):
        position = parsed(text, bus.names.streams)
        if position is None and not text[:1].isdecimal():
            raise InvalidError.field(path, f'"{text[:64]}" is neither now, start, a sequence nor a time')
        if position is None:
            return Start(start, now, since_ms=parse_time(text, path) // 1000)
    else:
        sequence = int(text) if len(str(text)) < 20 else -1
        if not 0 <= sequence < 2**63:
            raise InvalidError.field(path, "is no sequence")
        position = await position_of(bus, sequence, early_ms=_EARLY_MS)
    if not now.reaches(position):
        end = f"the log ends at {now.text}, before {text}"
        raise InvalidError.field(path, f"{end}: was it made anew? Begin at start or a time")
    return Start(position, now)


def position_fields(position: Position) -> dict[str, Any]:
    """A position in the log as frames have it."""
    return {"sequence": position.greatest, **({"position": position.text} if position.several else {})}


class Selection(msgspec.Struct, frozen=True):
    """The filters of one subscription, the world and room that it is confined to, and what its client may see."""

    filters: CompiledFilters
    world_id: str | None = None
    room_id: str | None = None
    sight: Sight = lambda: EVERYTHING

    def contains(self, event: Event) -> bool:
        """True if the event is in the world and room, and the client may see it; the filters are not asked."""
        metadata = event.metadata
        return (
            (self.world_id is None or metadata.world_id == self.world_id)
            and (self.room_id is None or metadata.room_id == self.room_id)
            and self.sight().sees(event)
        )

    def matches(self, event: Event) -> bool:
        return self.contains(event) and self.filters.matches(event)

    def subjects(self, names: Names) -> list[str]:
        """The subjects of everything that can match: what to read of the past."""
        types = self.filters.types
        categories = ["*"] if types is None else sorted({name.partition(".")[0] for name in types})
        return [
            names.events_of(category, world=world, room=room)
            for world, room in self.sight().tokens(self.world_id, self.room_id)
            for category in categories
        ]


class Reader:
    """A live subscription's queue. One that overflows is emptied: its owner reads the log instead."""

    def __init__(self, selection: Selection, limit: int) -> None:
        self.selection = selection
        self.after = Position()
        self.dropped = 0
        self.limit = limit
        self._records: deque[Record] = deque()
        self._arrived = asyncio.Event()

    @property
    def first(self) -> Record | None:
        """The record that has waited for longest."""
        return self._records[0] if self._records else None

    def holds_until(self, position: Position) -> bool:
        """True if a record before a position waits."""
        return any(position.covers(record.sequence) for record in self._records)

    def restart(self, after: Position) -> None:
        """Ready for what comes after a position."""
        self.after, self.dropped = after, 0

    def offer(self, record: Record) -> bool:
        """False: it was full, and has overflowed."""
        if self.after.covers(record.sequence):
            return True
        if len(self._records) >= self.limit:
            self.overflow()
            self.dropped += 1
            return False
        record.waiting += 1
        self._records.append(record)
        self._arrived.set()
        return True

    def overflow(self) -> None:
        self.dropped = len(self._records)
        self.clear()
        self.wake()

    def take(self) -> Record:
        record = self._records.popleft()
        record.waiting -= 1
        self.after = self.after.after(record.sequence)
        return record

    def clear(self) -> None:
        for record in self._records:
            record.waiting -= 1
        self._records.clear()

    async def wait_for_event(self) -> None:
        """Returns when there is something in it, when it has overflowed, and when it is woken."""
        if not self._records and not self.dropped:
            self._arrived.clear()
            await self._arrived.wait()

    def wake(self) -> None:
        self._arrived.set()
