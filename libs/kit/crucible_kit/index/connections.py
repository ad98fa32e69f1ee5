"""Connections to an index's SQLite file: one for writing, in a thread of its own, and several for reading."""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from crucible_core.errors import UnavailableError

log = logging.getLogger(__name__)

OnDamage = Callable[[Exception], None]
T = TypeVar("T")


class Writer:
    """The writing connection, and the one thread that uses it: a batch costs one change of threads."""

    def __init__(self, open_file: Callable[[], sqlite3.Connection], on_damage: OnDamage) -> None:
        self._open_file = open_file
        self._on_damage = on_damage
        self._thread = ThreadPoolExecutor(1, "index")
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        await self._in_thread(self._open)

    async def close(self) -> None:
        await self._in_thread(self._close)

    async def end(self) -> None:
        await self.close()
        self._thread.shutdown(wait=False)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `work` in a transaction of its own. Raises its error, after a rollback, and UnavailableError where the
        file is damaged."""
        return await self._in_thread(self._transact, work)

    async def empty_log(self) -> bool:
        """Writes the write-ahead log into the file and empties it, so that the former contents of rows are gone.
        Returns False where a reader blocks it."""
        return await self._in_thread(self._transact, _checkpoint)

    async def _in_thread(self, work: Callable[..., T], *values: Any) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *values)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            self._on_damage(error)
            raise UnavailableError("the index is damaged, and is being built anew", retry_after=1) from error

    def _open(self) -> None:
        self._connection = self._open_file()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        assert self._connection is not None
        with self._connection:
            return work(self._connection)


class Reader:
    """A reading connection; `prepare` is called with each connection that is opened."""

    def __init__(
        self, path: Path, on_damage: OnDamage, prepare: Callable[[aiosqlite.Connection], Awaitable[None]] | None
    ) -> None:
        self._path = path
        self._on_damage = on_damage
        self._prepare = prepare
        self._connection: aiosqlite.Connection | None = None

    async def open(self) -> None:
        self._connection = await aiosqlite.connect(self._path)
        await self._connection.execute("PRAGMA query_only=ON")
        if self._prepare is not None:
            await self._prepare(self._connection)

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def execute_fetchall(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows of a statement. Raises UnavailableError where the file cannot be read; a damaged one is rebuilt."""
        with self._reading() as connection:
            return list(await connection.execute_fetchall(statement, values))

    async def parts(self, statement: str, values: Sequence[Any], size: int) -> AsyncGenerator[list[Any], None]:
        """Yields all rows of a statement, some at a time."""
        with self._reading() as connection:
            async with connection.execute(statement, values) as rows:
                while part := list(await rows.fetchmany(size)):
                    yield part

    @contextlib.contextmanager
    def _reading(self) -> Iterator[aiosqlite.Connection]:
        if self._connection is None:
            raise UnavailableError("the index is being built anew", retry_after=1)
        try:
            yield self._connection
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                self._on_damage(error)
            else:
                log.error("the index cannot be read: %s", error)
            raise UnavailableError("the index cannot be read at the moment", retry_after=1) from error
        except ValueError as error:  # aiosqlite: it was closed meanwhile
            raise UnavailableError("the index is being built anew", retry_after=1) from error


def is_damage(error: Exception) -> bool:
    """Returns True if SQLite reports a broken file; an OperationalError may pass."""
    return type(error) is sqlite3.DatabaseError


def _checkpoint(connection: sqlite3.Connection) -> bool:
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not busy
