"""An SQLite index of one or several streams: opened or rebuilt, filled in order, with its position in the same file.

The file holds nothing that the streams do not: its deletion while the service is stopped costs only time.
"""

import asyncio
import contextlib
import logging
import math
import sqlite3
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import aiosqlite
import msgspec

from crucible_core.errors import CrucibleError, UnavailableError
from crucible_core.position import Position, joined, numbered, stream_number
from crucible_core.protocol.parts import Trouble
from crucible_kit.index import file
from crucible_kit.index.connections import Reader, Writer
from crucible_kit.index.file import Trial
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.inflight import park
from crucible_kit.nats.message import Message
from crucible_kit.nats.reader import read
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.telemetry.spans import Telemetry

log = logging.getLogger(__name__)

Apply = Callable[[sqlite3.Connection, list[Message]], None]

Wants = Callable[[Message], bool] | None

Restore = Callable[[Path, str], Awaitable[bool]]
"""Puts an index of an identity to a path. Returns False where it has none."""

_EVERYTHING = (">",)
_PAUSE_S = 1.0
_SOON_S = 0.05
_GATHER_S = 0.05
_MANY, _WHILE_S = 10, 0.1
"""Messages are gathered while so many come within that time."""
_UNWRITABLE = {
    sqlite3.SQLITE_BUSY: "another process holds its file",
    sqlite3.SQLITE_LOCKED: "another process holds its file",
    sqlite3.SQLITE_READONLY: "its file may not be written",
    sqlite3.SQLITE_IOERR: "the disk fails",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_CANTOPEN: "its file cannot be opened",
}
"""By SQLite's primary result code."""


def unwritable(error: sqlite3.Error) -> UnavailableError:
    """The error of a failed write, in words for users."""
    reason = _UNWRITABLE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "its file is not in order")
    return UnavailableError(f"the index cannot be written: {reason}", retry_after=1)


class Index:
    """The connections to the file, and the position that it has reached. It replaces a file that turns out to be
    damaged."""

    def __init__(
        self,
        path: Path,
        open_file: Callable[[], sqlite3.Connection],
        streams: tuple[str, ...],
        end: Position,
        identity: str = "",
    ) -> None:
        """The number of a stream in `streams` is in its sequences, as in those of the log. `end` is the end of the
        streams at the opening; their last messages may be gone or be filtered out. `identity` tells its schema and its
        streams from others."""
        self._path = path
        self.identity = identity
        self._end = end
        self._bus: Bus | None = None
        self._filters: Sequence[str] = ()
        self._wants: Wants = None
        self._passed: dict[int, Message] = {}
        """By stream, the last message after the stored position that is not for the index."""
        self._spoilt = asyncio.Event()
        self._readers: list[Reader] = []
        self._trial: Trial | None = None
        self._on_trial: set[str] = set()
        """Streams without a write since a process ended."""
        self.writer = Writer(open_file, self.spoil)
        self.streams = streams
        self.telemetry = Telemetry()
        """Makes a span of each batch of messages, once the index is up to date: not while it is built."""
        self.position = Position.start(len(streams))
        self._behind = set(streams)
        """Streams whose messages at the opening are not all in the index yet."""
        self._lags = dict.fromkeys(streams, 0)
        """Unread messages by stream."""
        self._complaint = ""
        self._current_at = dict.fromkeys(streams, -math.inf)
        self._moved = asyncio.Condition()
        self._waiting = 0
        """Number of callers that wait for messages that it does not hold yet."""
        self._flush = asyncio.Event()
        """Not set while messages are gathered."""
        self._flush.set()
        self._busy: deque[float] = deque(maxlen=_MANY)

    @property
    def caught_up(self) -> bool:
        return not self._behind

    async def open(self) -> None:
        await self.writer.open()
        self.reader = await self.open_reader()
        meta: dict[str, str] = dict(await self.reader.execute_fetchall("SELECT name, value FROM meta"))
        self.position, self._trial = (
            file.position_in(meta, len(self.streams)) or self.position,
            file.read_trial(meta),
        )
        self._on_trial = set(self.streams) if self._trial else set()
        await self._note(file.mark_open)

    async def open_reader(self, prepare: Callable[[aiosqlite.Connection], Awaitable[None]] | None = None) -> Reader:
        """Opens one more connection for reading, which ends with the index."""
        reader = Reader(self._path, self.spoil, prepare)
        await reader.open()
        self._readers.append(reader)
        return reader

    async def copy(self, path: Path) -> Position:
        """Copies the file to a path, as it is at one moment, while the index is filled further. Returns the position of
        the copy. Raises UnavailableError."""
        stopped = threading.Event()
        try:
            meta = await asyncio.to_thread(file.copy_to, self._path, path, stopped)
            return file.position_in(meta, len(self.streams)) or Position.start(len(self.streams))
        except sqlite3.Error as error:
            raise UnavailableError(f"the index cannot be copied: {error}", retry_after=1) from error
        finally:
            stopped.set()

    async def size(self) -> int:
        """The bytes of the file."""
        return (await asyncio.to_thread(self._path.stat)).st_size

    async def close(self) -> None:
        for reader in self._readers:
            await reader.close()
        await self._note(file.mark_closed)
        await self.writer.end()

    async def follow(self, bus: Bus, apply: Apply, filters: Sequence[str] = (), wants: Wants = None) -> None:
        """Fills the index until cancelled. `apply` writes a batch, in a thread; the position is committed with it. A
        message that makes it fail, or ends the process again and again, is parked and skipped. A batch without a
        message that `wants` accepts costs no transaction.

        Raises NotFoundError when the stream was replaced: opened again, the index is rebuilt.
        """
        self._bus, self._filters, self._wants = bus, filters, wants
        while True:
            filling = asyncio.create_task(self._fill_all(bus, apply))
            damaged = asyncio.create_task(self._spoilt.wait())
            try:
                await asyncio.wait((filling, damaged), return_when=asyncio.FIRST_COMPLETED)
            finally:
                filling.cancel()
                damaged.cancel()
                await asyncio.wait((filling, damaged))
            if not self._spoilt.is_set():
                return await filling
            await self._renew()

    def spoil(self, error: Exception | str) -> None:
        """Has the file rebuilt, since its contents are wrong."""
        if not self._spoilt.is_set():
            log.error("%s is damaged, and is built anew: %s", self._path.name, error)
        self._spoilt.set()
        self._behind.update(self.streams)

    async def _renew(self) -> None:
        """Replaces a damaged file by an empty one."""
        for reader in self._readers:
            await reader.close()
        await self.writer.close()
        await asyncio.to_thread(file.remove, self._path)
        self.position, self._passed = Position.start(len(self.streams)), {}
        self._behind.update(self.streams)
        self._current_at = dict.fromkeys(self.streams, -math.inf)
        self._spoilt.clear()
        await self.writer.open()
        for reader in self._readers:
            await reader.open()
        await asyncio.sleep(_PAUSE_S)  # a disk that spoils one file after another is not written to without end

    async def _fill_all(self, bus: Bus, apply: Apply) -> None:
        fills = [asyncio.create_task(self._fill(bus, number, apply)) for number in range(len(self.streams))]
        try:
            await asyncio.gather(*fills)
        finally:
            for fill in fills:
                fill.cancel()
            await asyncio.wait(fills)

    def _filters_of(self, bus: Bus, number: int) -> Sequence[str]:
        several = len(self.streams) > 1
        return bus.names.subjects_in(self.streams[number], self._filters) if several else self._filters

    async def _fill(self, bus: Bus, number: int, apply: Apply) -> None:
        stream, filters = self.streams[number], self._filters_of(bus, number)
        reading = read(bus, stream, after=self.position.ends[number], filters=filters, batch=1000)
        async with contextlib.aclosing(reading) as batches:
            async for messages in batches:
                if messages:
                    arrived, messages = _now(), _add_number(number, messages)
                    telemetry = self.telemetry if self.caught_up else Telemetry()
                    with telemetry.batch("process", stream, messages, count=len(messages), group=self._path.stem):
                        await self._take(stream, messages, apply)
                    self._lags[stream] = messages[-1].pending
                    if messages[-1].pending == 0:
                        self._current_at[stream] = arrived
                async with self._moved:
                    if not messages:
                        self._behind.discard(stream)
                        self.position = self.position.after(self._end.ends[number])
                    self._moved.notify_all()
                if messages and self.caught_up and not (self._waiting or messages[-1].pending):
                    await self._gather(messages)

    async def _gather(self, messages: Sequence[Message]) -> None:
        """Gathers messages that come in a steady flow, unless a caller waits for one, or more are there: a transaction
        costs ten times as much as a row."""
        self._busy.extend([_now()] * min(len(messages), _MANY))
        if len(self._busy) == _MANY and self._busy[-1] - self._busy[0] < _WHILE_S:
            self._flush.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GATHER_S):
                    await self._flush.wait()
            self._flush.set()

    async def flush_gathered(self) -> None:
        """Waits briefly until the gathered messages are in the index, so that a reader finds what was just
        acknowledged."""
        if not self._flush.is_set():
            seen = self.position
            self._flush.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GATHER_S):
                    await self.wait_for_change(seen)

    async def reach(self, target: Position | int, timeout: float = 5.0) -> None:
        """Waits until the index holds everything up to a position, or to a sequence in its stream. Raises
        UnavailableError when that takes too long."""
        position = self.position.after(target) if isinstance(target, int) else target
        if self.position.reaches(position):
            return
        self._waiting += 1
        self._flush.set()
        try:
            async with asyncio.timeout(timeout):
                for number, sequence in enumerate(position.ends):
                    await self._reach(number, sequence)
        except TimeoutError as error:
            message = f"the index is at sequence {self.position.text}, not yet at {position.text}"
            raise UnavailableError(message, retry_after=1) from error
        finally:
            self._waiting -= 1

    async def _reach(self, number: int, sequence: int) -> None:
        while not self.position.covers(sequence) and not await self._arrives_soon(sequence):
            following = await self._next_sequence(number, sequence)
            if following is None:
                return
            await self._wait_for_sequence(following)

    async def end(self, bus: Bus) -> Position:
        """The end of its streams."""
        return joined([numbered(number, await bus.last_sequence(stream)) for number, stream in enumerate(self.streams)])

    async def reach_recent(self, bus: Bus, within_s: float) -> None:
        """Waits until the index holds everything that the streams held `within_s` seconds ago; it seldom has to ask
        them. Raises UnavailableError when that takes too long: it is being built, or cannot be written."""
        if not self.caught_up or _now() - min(self._current_at.values()) > within_s:
            now = _now()
            await self.reach(await self.end(bus))
            self._current_at = dict.fromkeys(self.streams, now)

    @property
    def lag(self) -> int:
        return sum(self._lags.values())

    def export_metrics(self, metrics: Metrics) -> None:
        """Exports lag and position, by the same names in each service."""
        metrics.gauge("index_lag", "Messages of its stream that the index has still to read").set_function(
            lambda: self.lag
        )
        metrics.gauge(
            "index_sequence", "The last sequence that the index holds; of several streams, their sum"
        ).set_function(lambda: self.position.count)

    @property
    def progress(self) -> str:
        """The progress of the build, as /readyz shows it."""
        return f"index at {self.position.count:,} of {self._end.count:,}"

    def troubles(self) -> list[Trouble]:
        """The troubles that /readyz reports."""
        if not self._complaint:
            return []
        behind = f"the index of {self.streams[0]} cannot be written, and falls behind: {self._complaint}"
        return [Trouble("index", behind)]

    async def _arrives_soon(self, sequence: int) -> bool:
        try:
            async with asyncio.timeout(_SOON_S):
                await self._wait_for_sequence(sequence)
        except TimeoutError:
            return False
        return True

    async def wait_for_change(self, seen: Position) -> None:
        """Waits until the index is at another position."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.position != seen)

    async def _wait_for_sequence(self, sequence: int) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: self.position.covers(sequence))

    async def _next_sequence(self, number: int, sequence: int) -> int | None:
        """The next sequence that the index reaches on the way to `sequence`, None where there is none: messages outside
        its filters never come, nor do purged and expired ones."""
        bus, stream, held = self._bus, self.streams[number], self.position.end_of(number)
        if bus is None or numbered(number, await bus.last_sequence(stream)) < sequence:
            return sequence
        subjects = self._filters_of(bus, number) or _EVERYTHING
        found = [await bus.next(stream, held + 1, subject) for subject in subjects]
        sequences = [numbered(number, message.sequence) for message in found if message]
        return min((number for number in sequences if number <= sequence), default=None)

    async def _take(self, stream: str, messages: list[Message], apply: Apply) -> None:
        if self._wants is not None and not any(map(self._wants, messages)):
            self._passed[stream_number(messages[-1].sequence)] = messages[-1]
            self.position = self.position.after(messages[-1].sequence)
            return
        if stream not in self._on_trial:
            try:
                await self._write(messages, apply)
            except Exception as error:
                if not file.is_content_error(error):
                    raise
                log.warning("the index takes %d messages one by one: %s", len(messages), error)
            else:
                return
        for message in messages:
            await self._take_one(message, apply, stream in self._on_trial)
        self._on_trial.discard(stream)  # that process had not begun any later message

    async def _take_one(self, message: Message, apply: Apply, on_trial: bool) -> None:
        reason = ""
        if on_trial and self._trial is not None:
            tried = self._trial.for_message(message.sequence)
            reason = tried.reason
            await self._note(tried.note)
        if not reason:
            try:
                await self._write([message], apply)
            except Exception as error:
                if not file.is_content_error(error):
                    raise
                reason = f"{type(error).__name__}: {error}"
        if reason:
            await self._pass_over(message, reason)

    async def _note(self, note: Callable[[sqlite3.Connection], None]) -> None:
        """Writes a mark; without it, the end of this process leaves no trace."""
        with contextlib.suppress(sqlite3.Error, UnavailableError):
            await self.writer.run(note)

    async def _pass_over(self, message: Message, reason: str) -> None:
        assert self._bus is not None
        parked = False
        while not parked:
            try:
                await park(self._bus, f"index-{self.streams[0]}", message, reason)
                parked = True
            except CrucibleError as error:
                log.warning("message %d cannot be parked yet: %s", message.sequence, error)
                await asyncio.sleep(_PAUSE_S)
        await self._write([message], _write_nothing)

    async def _write(self, messages: list[Message], apply: Apply) -> None:
        last = messages[-1]
        ends, self._passed = self._passed | {stream_number(last.sequence): last}, {}

        def write(connection: sqlite3.Connection) -> None:
            apply(connection, messages)
            file.note_ends(connection, ends)

        while True:
            try:
                await self.writer.run(write)
            except sqlite3.OperationalError as error:  # a full disk, a locked file: wait, nothing is lost
                if self._complaint != str(error):
                    log.error("the index cannot be written, and waits: %s", error)
                self._complaint = str(error)
                await asyncio.sleep(_PAUSE_S)
            else:
                if self._complaint:
                    log.info("the index can be written again")
                self._complaint = ""
                self.position = self.position.after(last.sequence)
                return


def _write_nothing(connection: sqlite3.Connection, messages: list[Message]) -> None:
    """Writes nothing, so that only the position moves."""


def _add_number(number: int, messages: list[Message]) -> list[Message]:
    if stream_number(messages[0].sequence) == number:
        return messages
    return [msgspec.structs.replace(one, sequence=numbered(number, one.sequence)) for one in messages]


def _now() -> float:
    return asyncio.get_running_loop().time()


@contextlib.asynccontextmanager
async def open_index(
    path: Path, bus: Bus, streams: tuple[str, ...], version: int | str, schema: str, restore: Restore | None = None
) -> AsyncIterator[Index]:
    """Opens the index in a file. It is rebuilt when it is missing, damaged, of another schema `version`, or of other
    streams (identified by their creation time); `restore` may put a file there that holds a part of it. `schema` is a
    script of CREATE statements."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    states = [await bus.stream_state(stream) for stream in streams]
    identity = f"{version} {' '.join(state.created for state in states)}"
    for attempt in (restore, None):
        meta = await asyncio.to_thread(file.read_meta, path)
        if meta is not None and await file.belongs_to(bus, streams, meta, identity, states):
            break
        await asyncio.to_thread(file.discard, path)
        if attempt is None or not await attempt(path, identity):
            break
    end = joined(numbered(number, state.last_sequence) for number, state in enumerate(states))
    index = Index(path, partial(file.open_file, path, schema, identity), streams, end, identity)
    try:
        await index.open()
        yield index
    finally:
        await index.close()
