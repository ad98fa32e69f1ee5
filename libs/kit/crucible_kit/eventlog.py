"""The log of one or several streams: reads, looks up and measures them as one."""

import asyncio
import contextlib
import heapq
from collections.abc import AsyncGenerator, Iterator, Sequence
from itertools import accumulate

import msgspec

from crucible_core.errors import CrucibleError, InvalidError
from crucible_core.position import Position, base_of, in_stream, joined, stream_number
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.message import Message
from crucible_kit.nats.reader import read

Batches = AsyncGenerator[list[Message], None]

_PAUSE_S = 0.02
_AHEAD = 1000
"""A reader who knows a sequence got it from the log: none that is farther ahead than this comes from there."""
_MOST_WAITING = 2000
"""Messages of a stream that wait until the readers of the others have come as far."""


class LogState(msgspec.Struct, frozen=True):
    """The log at one moment: its end, and the creation time of each stream, which tells it from another one of the same
    name."""

    end: Position
    created: tuple[str, ...]

    def translate(self, position: Position, created: Sequence[str]) -> Position:
        """Translates a position in a log whose streams were `created` then (empty: unknown) into this log: in a
        replaced stream it is the start, in one that has lost its end the end."""
        ends = [
            base_of(number)
            if created and list(created[number : number + 1]) != [now]
            else min(position.end_of(number), end)
            for number, (now, end) in enumerate(zip(self.created, self.end.ends, strict=True))
        ]
        return joined(ends)


async def log_state(bus: Bus) -> LogState:
    states = [await bus.stream_state(stream) for stream in bus.names.log_streams]
    return LogState(joined(state.last_sequence for state in states), tuple(state.created for state in states))


async def log_end(bus: Bus) -> Position:
    """The position after the last event."""
    return joined([await bus.last_sequence(stream) for stream in bus.names.log_streams])


async def event_at(bus: Bus, sequence: int) -> Message | None:
    if stream_number(sequence) >= bus.names.streams:
        return None
    return await bus.get(bus.names.stream_at(sequence), sequence)


async def last_events(bus: Bus, subject: str) -> list[Message]:
    """The last event of a subject, from each stream of the log that has one."""
    names = bus.names
    found = [
        await bus.last(stream, there) for stream in names.log_streams for there in names.subjects_in(stream, [subject])
    ]
    return [message for message in found if message is not None]


async def position_at(bus: Bus, since_ms: int) -> Position:
    """The position before the first event that was stored at a time (Unix ms) or later."""
    return joined([await _last_before(bus, stream, since_ms) for stream in bus.names.log_streams])


async def position_of(bus: Bus, sequence: int, early_ms: int = 0) -> Position:
    """The position just after a sequence, which may be beyond the log's end. In the other streams it is their position
    at that event's time, or `early_ms` before: of two events of one time, that of the later stream is the later one."""
    streams, number = bus.names.log_streams, stream_number(sequence)
    if len(streams) == 1:
        return Position((sequence,))
    if number >= len(streams) or not in_stream(sequence):
        return bus.names.start.at(sequence)
    message = await event_at(bus, sequence) or await bus.next(streams[number], sequence, ">")
    if message is None:
        return (await log_end(bus)).at(sequence)
    at_ms = message.time_ms - early_ms
    ends = [await _last_before(bus, stream, at_ms + (index < number)) for index, stream in enumerate(streams)]
    return joined(ends).at(sequence)


async def _last_before(bus: Bus, stream: str, since_ms: int) -> int:
    end = await bus.last_sequence(stream)
    async with contextlib.aclosing(read(bus, stream, since_ms=max(0, since_ms), batch=1)) as batches:
        async for messages in batches:
            return min(messages[0].sequence - 1, end) if messages else end
    return end


def position_after(position: Position, messages: Sequence[Message]) -> Position:
    """The position after a batch that was read from `position` on."""
    return position.past([message.sequence for message in messages])


def read_log(
    bus: Bus,
    *,
    after: Position,
    filters: Sequence[str] = (),
    batch: int = 500,
    since_ms: int | None = None,
) -> Batches:
    """Reads the whole log as `read` does one stream. `filters` are wildcards over events; a stream in which none of
    them can match is not read. The events of the past come in the order of their storage times, later ones as they
    arrive. A world's events always keep their order."""
    readings = []
    for number, stream in enumerate(bus.names.log_streams):
        subjects = bus.names.subjects_in(stream, filters)
        if subjects or not filters:
            sequence = after.end_of(number)
            readings.append(read(bus, stream, after=sequence, filters=subjects, batch=batch, since_ms=since_ms))
    return readings[0] if len(readings) == 1 else _merge(readings)


class _Branch:
    """One stream of a merge: its messages that wait, each with the time by which it is ordered."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, Message]] = []
        self.behind = True
        self.has_capacity = asyncio.Event()
        """Not set while the limit of waiting messages is reached."""
        self.has_capacity.set()
        self._time_ms = 0

    def add(self, messages: list[Message]) -> None:
        # A clock that was set back must not put a stream's events out of their order.
        times = list(accumulate((message.time_ms for message in messages), max, initial=self._time_ms))[1:]
        self.waiting += zip(times, messages, strict=True)
        self._time_ms = times[-1]
        if len(self.waiting) > _MOST_WAITING:
            self.has_capacity.clear()

    def take_until(self, time_ms: int) -> list[tuple[int, Message]]:
        count = sum(time <= time_ms for time, _ in self.waiting)
        part = self.waiting[:count]
        del self.waiting[:count]
        self.has_capacity.set()
        return part


async def _merge(readings: Sequence[Batches]) -> Batches:
    branches = [_Branch() for _ in readings]
    arrived: asyncio.Queue[tuple[_Branch, list[Message] | Exception]] = asyncio.Queue(len(readings))
    pumps = [
        asyncio.create_task(_pump(reading, branch, arrived)) for reading, branch in zip(readings, branches, strict=True)
    ]
    try:
        caught_up = False
        while True:
            branch, messages = await arrived.get()
            if isinstance(messages, Exception):
                raise messages
            if messages:
                branch.add(messages)
            else:
                branch.behind = False
            if merged := list(_in_order(branches)):
                yield merged
            if not caught_up and not any(one.behind for one in branches):
                caught_up = True
                yield []
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.wait(pumps)


async def _pump(
    reading: Batches, branch: _Branch, arrived: "asyncio.Queue[tuple[_Branch, list[Message] | Exception]]"
) -> None:
    try:
        async with contextlib.aclosing(reading) as batches:
            async for messages in batches:
                await branch.has_capacity.wait()
                await arrived.put((branch, messages))
    except CrucibleError as error:
        await arrived.put((branch, error))


def _in_order(branches: Sequence[_Branch]) -> Iterator[Message]:
    """Takes the messages that no stream can precede any more."""
    behind = [branch for branch in branches if branch.behind]
    if not all(branch.waiting for branch in behind):
        return
    horizon = min((branch.waiting[-1][0] for branch in behind), default=2**63)
    parts = [branch.take_until(horizon) for branch in branches]
    for _, message in heapq.merge(*parts, key=lambda entry: entry[0]):
        yield message


async def wait_for_sequence(bus: Bus, sequence: int, timeout: float = 5.0) -> None:
    """Waits until the log has come to a sequence. Raises InvalidError where it does not, at once where the sequence is
    too far ahead to be worth waiting for."""
    end = await log_end(bus)
    try:
        async with asyncio.timeout(timeout):
            while not end.covers(sequence):
                if stream_number(sequence) >= bus.names.streams or not end.covers(max(0, sequence - _AHEAD)):
                    raise _past_end(end)
                await asyncio.sleep(_PAUSE_S)
                end = await log_end(bus)
    except TimeoutError:
        raise _past_end(end) from None


def _past_end(end: Position) -> InvalidError:
    message = f"is past the end of the log, which is at {end.text}"
    return InvalidError.field("min_sequence", message, detail=f"min_sequence {message}")
