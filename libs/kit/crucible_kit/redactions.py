"""Redacted events: what a tombstone leaves of one, and which of late are redacted."""

import asyncio
import contextlib

from crucible_core.envelope import encode
from crucible_core.errors import UnavailableError
from crucible_core.redaction import left_of, place_of
from crucible_core.subjects import MSG_ID, REDACTS

from .bus import Bus
from .clock import now_ms
from .eventlog import event_at, read_log
from .message import Message

_NOT_ITS_OWN = frozenset({REDACTS, MSG_ID})


def original_of(tombstone: Message) -> Message | None:
    """The redacted event as the message that it would be in its old place; None where the message is no tombstone.

    Raises `msgspec.DecodeError` for a tombstone that cannot be read.
    """
    place = place_of(tombstone.headers)
    if place is None:
        return None
    # A tombstone is kept as its event was: those headers are the same.
    headers = {name: value for name, value in tombstone.headers.items() if name not in _NOT_ITS_OWN}
    if place.message_id:
        headers[MSG_ID] = place.message_id
    left = encode(left_of(tombstone.data))
    return Message(tombstone.subject, left, headers, sequence=place.sequence, time_ms=place.stored_ms)


class Redacted:
    """The sequences of the events that were redacted within some time, for handlers that may be given them that long.
    It grows with the redactions of that time only."""

    def __init__(self, bus: Bus, within_s: float) -> None:
        self._bus = bus
        self._within_ms = int(within_s * 1000)
        self._known: dict[int, tuple[int, int]] = {}
        self._complete = asyncio.Event()

    def __contains__(self, sequence: object) -> bool:
        return sequence in self._known

    async def left_of(self, sequence: int) -> Message | None:
        """What is left of a redacted event, as the message that it would be in its old place; None of any other."""
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

    async def complete(self, timeout: float = 30.0) -> None:
        """Returns once everything is known that was redacted before this process began to follow. Raises
        UnavailableError when that takes too long."""
        try:
            async with asyncio.timeout(timeout):
                await self._complete.wait()
        except TimeoutError as error:
            raise UnavailableError("it is not known which events are redacted", retry_after=1) from error

    def _note(self, message: Message) -> None:
        place = place_of(message.headers)
        if place is None:
            return
        self._known[place.sequence] = message.time_ms, message.sequence
        while self._known[oldest := next(iter(self._known))][0] < message.time_ms - self._within_ms:
            del self._known[oldest]
