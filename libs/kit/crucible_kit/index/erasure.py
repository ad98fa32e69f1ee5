"""Erasure: recently redacted events, their tombstones, and the purge of worlds from an index."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

import msgspec

from crucible_core.envelope import encode
from crucible_core.errors import UnavailableError
from crucible_core.protocol.worlds import WorldRecord
from crucible_core.redaction import left_of, redacted_event
from crucible_core.subjects import MSG_ID, REDACTS
from crucible_kit.buckets import Change
from crucible_kit.clock import now_ms
from crucible_kit.eventlog import event_at, read_log
from crucible_kit.index.index import Index
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.message import Message

log = logging.getLogger(__name__)

Forget = Callable[[str, int], Awaitable[object]]
"""Removes a world's rows up to a sequence; it may be called again."""

_PAUSE_S = 1.0
_NOT_ITS_OWN = frozenset({REDACTS, MSG_ID})


def original_of(tombstone: Message) -> Message | None:
    """The redacted event as the message that it would be at its old sequence; None where the message is no tombstone.

    Raises `msgspec.DecodeError` for a tombstone that cannot be read.
    """
    former = redacted_event(tombstone.headers)
    if former is None:
        return None
    # A tombstone is kept as its event was: those headers are the same.
    headers = {name: value for name, value in tombstone.headers.items() if name not in _NOT_ITS_OWN}
    if former.message_id:
        headers[MSG_ID] = former.message_id
    left = encode(left_of(tombstone.data))
    return Message(tombstone.subject, left, headers, sequence=former.sequence, time_ms=former.stored_ms)


class RedactedEvents:
    """The sequences of the events that were redacted within some time, for handlers that may receive them so late. Its
    size depends on the redactions of that time alone."""

    def __init__(self, bus: Bus, within_s: float) -> None:
        self._bus = bus
        self._within_ms = int(within_s * 1000)
        self._known: dict[int, tuple[int, int]] = {}
        self._complete = asyncio.Event()

    def __contains__(self, sequence: object) -> bool:
        return sequence in self._known

    async def left_of(self, sequence: int) -> Message | None:
        """The rest of a redacted event, as the message that it would be at its old sequence; None for any other
        event."""
        known = self._known.get(sequence)
        tombstone = await event_at(self._bus, known[1]) if known else None
        return None if tombstone is None else original_of(tombstone)

    async def follow(self) -> None:
        """Runs until cancelled."""
        names = self._bus.names
        since_ms = max(0, now_ms() - self._within_ms)
        reading = read_log(self._bus, after=names.start, filters=names.tombstones, since_ms=since_ms)
        async with contextlib.aclosing(reading) as batches:
            async for messages in batches:
                for message in messages:
                    self._note(message)
                if not messages:
                    self._complete.set()

    async def wait_complete(self, timeout: float = 30.0) -> None:
        """Waits until every redaction before the start of `follow` is known. Raises UnavailableError when that takes
        too long."""
        try:
            async with asyncio.timeout(timeout):
                await self._complete.wait()
        except TimeoutError as error:
            raise UnavailableError("it is not known which events are redacted", retry_after=1) from error

    def _note(self, message: Message) -> None:
        former = redacted_event(message.headers)
        if former is None:
            return
        self._known[former.sequence] = message.time_ms, message.sequence
        while self._known[oldest := next(iter(self._known))][0] < message.time_ms - self._within_ms:
            del self._known[oldest]


def record_purge(purging: "Purger", change: Change) -> None:
    """Takes a change of the `worlds` bucket. `events` reports records that cannot be read."""
    with contextlib.suppress(msgspec.DecodeError):
        if change.value is not None:
            world = msgspec.json.decode(change.value, type=WorldRecord)
            purging.note(world.id, world.purge_through)


class Purger:
    """Removes purged worlds from an index, one after another. The `worlds` bucket names them at every start anew, so
    that a replica that was away does it then."""

    def __init__(self, index: Index, forget: Forget) -> None:
        self._index = index
        self._forget = forget
        self._pending: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._changed = asyncio.Condition()
        self._wake = asyncio.Event()

    def note(self, world: str, through: int) -> None:
        """The world has no events up to this sequence."""
        if through > self._done.get(world, 0):
            self._pending[world] = through
            self._wake.set()

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            for world, through in list(self._pending.items()):
                await self._purge(world, through)

    async def wait_done(self) -> None:
        """Waits until every noted world is removed."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._pending)

    async def _purge(self, world: str, through: int) -> None:
        try:
            # Events that were read before the purge may be on their way into the index: they must be there first.
            await self._index.reach(through)
            if not self._index.position.covers(through):  # the last ones are gone, and may have been read
                await asyncio.sleep(_PAUSE_S)
            await self._forget(world, through)
        except UnavailableError as error:
            log.info("world %s is not forgotten yet: %s", world, error)
            await asyncio.sleep(_PAUSE_S)
            self._wake.set()
            return
        self._done[world] = through
        async with self._changed:
            if self._pending.get(world) == through:
                del self._pending[world]
            self._changed.notify_all()
