"""An SQLite index of a stream: opened or built anew, filled in order, and never further than what it says of itself.

The file holds nothing that the stream does not: whoever deletes it while the service is stopped loses only time.
"""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import aiosqlite

from crucible_core.errors import UnavailableError

from .bus import Bus, Message
from .reading import read

log = logging.getLogger(__name__)

Apply = Callable[[aiosqlite.Connection, list[Message]], Awaitable[None]]

_META = "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
_PAUSE_S = 1.0


class Index:
    """One writing and one reading connection to the file, and the last sequence that it holds."""

    def __init__(
        self, writer: aiosqlite.Connection, reader: aiosqlite.Connection, stream: str, sequence: int, end: int
    ) -> None:
        """`end` is the stream's last sequence at the opening, whose message may be gone or be filtered out."""
        self._end = end
        self.writer = writer
        self.reader = reader
        self.stream = stream
        self.sequence = sequence
        self.caught_up = False
        self._moved = asyncio.Condition()

    async def follow(self, bus: Bus, apply: Apply, filters: Sequence[str] = ()) -> None:
        """Fills the index until cancelled. `apply` writes a batch; the position is committed with it."""
        async for messages in read(bus, self.stream, after=self.sequence, filters=filters, batch=1000):
            if messages:
                await self._take(messages, apply)
            async with self._moved:
                if not messages:
                    self.caught_up = True
                    self.sequence = max(self.sequence, self._end)
                self._moved.notify_all()

    async def reach(self, sequence: int, timeout: float = 5.0) -> None:
        """Returns once the index holds a sequence. Raises UnavailableError when that takes too long."""
        if self.sequence >= sequence:
            return
        try:
            async with asyncio.timeout(timeout), self._moved:
                await self._moved.wait_for(lambda: self.sequence >= sequence)
        except TimeoutError as error:
            message = f"the index is at sequence {self.sequence}, not yet at {sequence}"
            raise UnavailableError(message, retry_after=1) from error

    async def _take(self, messages: list[Message], apply: Apply) -> None:
        while True:
            try:
                await apply(self.writer, messages)
                await self.writer.execute(
                    "INSERT OR REPLACE INTO meta VALUES ('sequence', ?)", (str(messages[-1].sequence),)
                )
                await self.writer.commit()
            except sqlite3.OperationalError as error:  # a full disk, a locked file: wait, nothing is lost
                log.warning("the index cannot be written: %s", error)
                await self.writer.rollback()
                await asyncio.sleep(_PAUSE_S)
            else:
                self.sequence = messages[-1].sequence
                return


@contextlib.asynccontextmanager
async def open_index(path: Path, bus: Bus, stream: str, version: int, schema: str) -> AsyncIterator[Index]:
    """The index in a file. It is made anew when it is missing, damaged, of another schema `version`, or not of this
    stream (whose identity is the moment of its creation). `schema` is a script of CREATE statements."""
    path.parent.mkdir(parents=True, exist_ok=True)
    identity = f"{version} {await bus.stream_identity(stream)}"
    end = await bus.last_sequence(stream)
    if not await asyncio.to_thread(_usable, path, identity, end):
        for leftover in path.parent.glob(f"{path.name}*"):
            leftover.unlink()
    async with contextlib.AsyncExitStack() as stack:
        writer = await stack.enter_async_context(aiosqlite.connect(path))
        # The stream is the truth: after a crash the index may be a little behind, never wrong.
        await writer.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {_META}; {schema}")
        await writer.execute("INSERT OR IGNORE INTO meta VALUES ('identity', ?), ('sequence', '0')", (identity,))
        await writer.commit()
        reader = await stack.enter_async_context(aiosqlite.connect(path))
        await reader.execute("PRAGMA query_only=ON")
        async with writer.execute("SELECT value FROM meta WHERE name = 'sequence'") as rows:
            row = await rows.fetchone()
        yield Index(writer, reader, stream, int(row[0]) if row else 0, end)


def _usable(path: Path, identity: str, last_sequence: int) -> bool:
    if not path.exists():
        return True
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            healthy = connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
            meta = dict(connection.execute("SELECT name, value FROM meta"))
    except sqlite3.Error as error:
        log.warning("%s is damaged (%s): building it anew", path.name, error)
        return False
    usable = healthy and meta.get("identity") == identity and int(meta.get("sequence", 0)) <= last_sequence
    if not usable:
        log.warning("%s is not of this stream and version: building it anew", path.name)
    return usable
