"""An SQLite index of a stream: opened or built anew, filled in order, and never further than what it says of itself.

The file holds nothing that the stream does not: whoever deletes it while the service is stopped loses only time.
"""

import asyncio
import contextlib
import logging
import math
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import aiosqlite

from crucible_core.errors import CrucibleError, UnavailableError
from crucible_core.protocol.shared import Trouble

from . import trial
from .bus import Bus
from .connections import Reader, Writer
from .holding import park
from .message import Message
from .metrics import Metrics
from .reading import read
from .telemetry import Telemetry
from .trial import Trial

log = logging.getLogger(__name__)

Apply = Callable[[sqlite3.Connection, list[Message]], None]

_META = "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
_EVERYTHING = (">",)
_PAUSE_S = 1.0
_SOON_S = 0.05
_AT_ONCE = (1000, 100, 10, 1)
"""Rows of one statement: few sizes, whose statements stay prepared. SQLite takes 32,766 values."""
_LOG_PAGES = 4096
"""4 KiB each; what the write-ahead log grows to, and what memory holds of the file."""
_CACHE_KIB = 16 * 1024
_FILES = ("", "-wal", "-shm", "-journal")
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
    """Why an index cannot be written now, in words for users."""
    why = _UNWRITABLE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "its file is not in order")
    return UnavailableError(f"the index cannot be written: {why}", retry_after=1)


class Index:
    """One writing connection to the file and one for reading, and the last sequence that it holds. Of a file that turns
    out to be damaged, it makes another."""

    def __init__(self, path: Path, open_file: Callable[[], sqlite3.Connection], stream: str, end: int) -> None:
        """`end` is the stream's last sequence at the opening, whose message may be gone or be filtered out."""
        self._path = path
        self._end = end
        self._bus: Bus | None = None
        self._filters: Sequence[str] = ()
        self._spoilt = asyncio.Event()
        self._readers: list[Reader] = []
        self._trial: Trial | None = None
        self.writer = Writer(open_file, self.spoil)
        self.stream = stream
        self.telemetry = Telemetry()
        """Makes a span of each batch of messages, once the index is up to date: not while it is built."""
        self.sequence = 0
        self.lag = 0
        """Messages of the stream that it has still to read."""
        self.caught_up = False
        self._complaint = ""
        self._current_at = -math.inf
        self._moved = asyncio.Condition()

    async def open(self) -> None:
        await self.writer.open()
        self.reader = await self.open_reader()
        meta: dict[str, str] = dict(await self.reader.execute_fetchall("SELECT name, value FROM meta"))
        self.sequence, self._trial = int(meta.get("sequence", "0")), trial.left_by(meta)
        await self._note(trial.begin)

    async def open_reader(self, prepare: Callable[[aiosqlite.Connection], Awaitable[None]] | None = None) -> Reader:
        """One more connection for reading, which ends with the index."""
        reader = Reader(self._path, self.spoil, prepare)
        await reader.open()
        self._readers.append(reader)
        return reader

    async def close(self) -> None:
        for reader in self._readers:
            await reader.close()
        await self._note(trial.end)
        await self.writer.end()

    async def follow(self, bus: Bus, apply: Apply, filters: Sequence[str] = ()) -> None:
        """Fills the index until cancelled. `apply` writes a batch, in a thread; the position is committed with it. A
        message that it fails over, or that ends the process again and again, is parked and passed over.

        Raises NotFoundError when the stream is no longer the one that was read: opened again, the index is made anew.
        """
        while True:
            filling = asyncio.create_task(self._fill(bus, apply, filters))
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
        """Has the file made anew: it does not hold what it says."""
        if not self._spoilt.is_set():
            log.error("%s is damaged, and is built anew: %s", self._path.name, error)
        self._spoilt.set()
        self.caught_up = False

    async def _renew(self) -> None:
        """Takes an empty file in the place of a damaged one."""
        for reader in self._readers:
            await reader.close()
        await self.writer.close()
        await asyncio.to_thread(_remove, self._path)
        self.sequence, self.caught_up = 0, False
        self._current_at = -math.inf
        self._spoilt.clear()
        await self.writer.open()
        for reader in self._readers:
            await reader.open()
        await asyncio.sleep(_PAUSE_S)  # a disk that spoils one file after another is not written to without end

    async def _fill(self, bus: Bus, apply: Apply, filters: Sequence[str]) -> None:
        self._bus, self._filters = bus, filters
        reading = read(bus, self.stream, after=self.sequence, filters=filters, batch=1000)
        async with contextlib.aclosing(reading) as batches:
            async for messages in batches:
                if messages:
                    arrived = _now()
                    telemetry = self.telemetry if self.caught_up else Telemetry()
                    with telemetry.batch("process", self.stream, messages, count=len(messages), group=self._path.stem):
                        await self._take(messages, apply)
                    self.lag = messages[-1].pending
                    if messages[-1].pending == 0:
                        self._current_at = arrived
                async with self._moved:
                    if not messages:
                        self.caught_up = True
                        self.sequence = max(self.sequence, self._end)
                    self._moved.notify_all()

    async def reach(self, sequence: int, timeout: float = 5.0) -> None:
        """Returns once the index holds everything up to a sequence. Raises UnavailableError when it takes too long."""
        if self.sequence >= sequence:
            return
        try:
            async with asyncio.timeout(timeout):
                while self.sequence < sequence and not await self._soon(sequence):
                    awaited = await self._next_wanted(sequence)
                    if awaited is None:
                        return
                    await self._moved_to(awaited)
        except TimeoutError as error:
            message = f"the index is at sequence {self.sequence}, not yet at {sequence}"
            raise UnavailableError(message, retry_after=1) from error

    async def current(self, bus: Bus, within_s: float) -> None:
        """Returns once the index holds everything that the stream held `within_s` seconds ago, for which it seldom has
        to ask. Raises UnavailableError when it takes too long: it is being built, or cannot be written."""
        if not self.caught_up or _now() - self._current_at > within_s:
            asked = _now()
            await self.reach(await bus.last_sequence(self.stream))
            self._current_at = asked

    def measure(self, metrics: Metrics) -> None:
        """Shows by the same names in each service how far it has come."""
        metrics.gauge("index_lag", "Messages of its stream that the index has still to read").set_function(
            lambda: self.lag
        )
        metrics.gauge("index_sequence", "The last sequence that the index holds").set_function(lambda: self.sequence)

    @property
    def place(self) -> str:
        """How far it is while it is built, for those who wait for it."""
        return f"index at {self.sequence:,} of {self._end:,}"

    def troubles(self) -> list[Trouble]:
        """What /readyz says of it."""
        if not self._complaint:
            return []
        return [Trouble("index", f"the index of {self.stream} cannot be written, and falls behind: {self._complaint}")]

    async def _soon(self, sequence: int) -> bool:
        try:
            async with asyncio.timeout(_SOON_S):
                await self._moved_to(sequence)
        except TimeoutError:
            return False
        return True

    async def _moved_to(self, sequence: int) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: self.sequence >= sequence)

    async def _next_wanted(self, sequence: int) -> int | None:
        """What the index has to reach next on the way to a sequence: what the filters leave out never comes, nor does
        what was purged or has expired meanwhile."""
        bus, held = self._bus, self.sequence
        if bus is None or await bus.last_sequence(self.stream) < sequence:
            return sequence
        found = [await bus.next(self.stream, held + 1, subject) for subject in self._filters or _EVERYTHING]
        return min((message.sequence for message in found if message and message.sequence <= sequence), default=None)

    async def _take(self, messages: list[Message], apply: Apply) -> None:
        if self._trial is None:
            try:
                await self._write(messages, apply)
            except Exception as error:
                if not trial.is_of_content(error):
                    raise
                log.warning("the index takes %d messages one by one: %s", len(messages), error)
            else:
                return
        for message in messages:
            await self._take_one(message, apply)
        self._trial = None  # what comes later, that process had not begun

    async def _take_one(self, message: Message, apply: Apply) -> None:
        reason = ""
        if self._trial is not None:
            tried = self._trial.of(message.sequence)
            reason = tried.verdict
            await self._note(tried.note)
        if not reason:
            try:
                await self._write([message], apply)
            except Exception as error:
                if not trial.is_of_content(error):
                    raise
                reason = f"{type(error).__name__}: {error}"
        if reason:
            await self._pass_over(message, reason)

    async def _note(self, note: Callable[[sqlite3.Connection], None]) -> None:
        """Where it cannot be written, nothing is known of how this process ends."""
        with contextlib.suppress(sqlite3.Error, UnavailableError):
            await self.writer.run(note)

    async def _pass_over(self, message: Message, reason: str) -> None:
        assert self._bus is not None
        parked = False
        while not parked:
            try:
                await park(self._bus, f"index-{self.stream}", message, reason)
                parked = True
            except CrucibleError as error:
                log.warning("message %d cannot be parked yet: %s", message.sequence, error)
                await asyncio.sleep(_PAUSE_S)
        await self._write([message], _nothing)

    async def _write(self, messages: list[Message], apply: Apply) -> None:
        last = messages[-1]
        position = (str(last.sequence), str(last.time_ms))

        def write(connection: sqlite3.Connection) -> None:
            apply(connection, messages)
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('sequence', ?), ('time_ms', ?)", position)

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
                self.sequence = last.sequence
                return


def _nothing(connection: sqlite3.Connection, messages: list[Message]) -> None:
    """Writes nothing: only the position moves."""


def _now() -> float:
    return asyncio.get_running_loop().time()


def insert(connection: sqlite3.Connection, head: str, rows: Sequence[Sequence[Any]]) -> None:
    """Inserts rows, all of one length, by few statements; `head` is what comes before the values.

    `executemany` takes the interpreter's lock for each row, and waits for it as long as another thread computes.
    """
    start = 0
    for most in _AT_ONCE:
        while len(rows) - start >= most:
            marks = ", ".join([f"({', '.join('?' * len(rows[0]))})"] * most)
            values = [value for row in rows[start : start + most] for value in row]
            connection.execute(f"{head} {marks}", values)
            start += most


@contextlib.asynccontextmanager
async def open_index(path: Path, bus: Bus, stream: str, version: int | str, schema: str) -> AsyncIterator[Index]:
    """The index in a file. It is made anew when it is missing, damaged, of another schema `version`, or not of this
    stream (whose identity is the moment of its creation). `schema` is a script of CREATE statements."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    state = await bus.stream_state(stream)
    identity = f"{version} {state.created}"
    meta = await asyncio.to_thread(_meta_of, path)
    if meta is None or not await _same(bus, stream, meta, identity, state.last_sequence):
        await asyncio.to_thread(_clear, path)
    index = Index(path, partial(_opened, path, schema, identity), stream, state.last_sequence)
    try:
        await index.open()
        yield index
    finally:
        await index.close()


def _opened(path: Path, schema: str, identity: str) -> sqlite3.Connection:
    # Its owner's alone, whatever the umask says. SQLite makes the files beside it with the same mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    path.chmod(0o600)
    connection = sqlite3.connect(path)
    # The stream is the truth: after a crash the index may be a little behind, never wrong.
    # What is deleted is overwritten: a payload that was redacted must not stay behind in a free page.
    pragmas = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA secure_delete=ON"
    # A checkpoint writes each page once, however often it changed, and waits for the disk.
    sizes = f"PRAGMA wal_autocheckpoint={_LOG_PAGES}; PRAGMA cache_size=-{_CACHE_KIB}"
    connection.executescript(f"{pragmas}; {sizes}; {_META}; {schema}")
    with connection:
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('identity', ?), ('sequence', '0')", (identity,))
    return connection


async def _same(bus: Bus, stream: str, meta: Mapping[str, str], identity: str, last_sequence: int) -> bool:
    """Whether an index was filled from this stream, as it is now."""
    sequence = meta.get("sequence", "")
    if meta.get("identity") != identity or not sequence.isdigit() or int(sequence) > last_sequence:
        return False
    # A server that crashed without syncing may have lost messages, and used their sequences again.
    kept = await bus.get(stream, int(sequence)) if "time_ms" in meta else None
    return kept is None or str(kept.time_ms) == meta["time_ms"]


def _clear(path: Path) -> None:
    if path.exists():
        log.warning("%s is damaged, or not of this stream and version: building it anew", path.name)
    _remove(path)


def _remove(path: Path) -> None:
    for suffix in _FILES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _meta_of(path: Path) -> dict[str, str] | None:
    """What a file says of itself; None where there is none or it is damaged."""
    if not path.exists():
        return None
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            healthy = connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
            meta = dict(connection.execute("SELECT name, value FROM meta"))
    except sqlite3.Error as error:
        log.warning("%s cannot be read: %s", path.name, error)
        return None
    return meta if healthy else None
