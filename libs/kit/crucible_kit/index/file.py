"""The SQLite file of an index: opening, writing, copying, identification, and removal with the files beside it."""

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from crucible_core.limits import CRASHES
from crucible_core.position import Position, base_of, in_stream, joined
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.jetstream import StreamState
from crucible_kit.nats.message import Message

log = logging.getLogger(__name__)

_META = "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
_LOG_PAGES = 4096
"""Limit of the write-ahead log, in pages of 4 KiB."""
_COPIED_PAGES = 1024
_CACHE_KIB = 16 * 1024
_AT_ONCE = (1000, 100, 10, 1)
"""Rows of one statement: few sizes, whose statements stay prepared. SQLite takes 32,766 values."""
_FILES = ("", "-wal", "-shm", "-journal")

_OF_CONTENT = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, AssertionError,
    msgspec.MsgspecError, sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError,
)  # fmt: skip


class Trial(NamedTuple):
    """A message that is written alone, and the number of processes that ended over it."""

    sequence: int = 0
    ended: int = 0

    def for_message(self, sequence: int) -> "Trial":
        """The trial of a message, after this one of a process that has ended."""
        return Trial(sequence, self.ended if sequence == self.sequence else 0)

    @property
    def reason(self) -> str:
        """The reason why the message is skipped; empty where it is tried once more."""
        return f"{self.ended} processes ended while they worked on it" if self.ended >= CRASHES else ""

    def note(self, connection: sqlite3.Connection) -> None:
        """Stores the trial before the message is tried, for the case that the process ends over it."""
        value = f"{self.sequence} {self.ended + 1}"
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('trial', ?)", (value,))


def read_trial(meta: Mapping[str, str]) -> Trial | None:
    """The trial of a process that ended halfway; None where it closed the file."""
    if "open" not in meta:
        return None
    sequence, _, ended = meta.get("trial", "0 0").partition(" ")
    return Trial(int(sequence), int(ended))


def mark_open(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('open', '1')")


def mark_closed(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM meta WHERE name IN ('open', 'trial')")


def is_content_error(error: Exception) -> bool:
    """Returns True if a message may be the cause of a failed write; else it is the file, or the disk."""
    return isinstance(error, _OF_CONTENT) or (isinstance(error, sqlite3.ProgrammingError) and "bind" in str(error))


def open_file(path: Path, schema: str, identity: str) -> sqlite3.Connection:
    # Its owner's alone, whatever the umask says. SQLite makes the files beside it with the same mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    path.chmod(0o600)
    connection = sqlite3.connect(path)
    # The stream is the truth: after a crash the index may be a little behind, never wrong.
    # Deletion overwrites: a redacted payload must not stay in a free page.
    pragmas = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA secure_delete=ON"
    # A checkpoint writes each page once, however often it changed, and waits for the disk.
    sizes = f"PRAGMA wal_autocheckpoint={_LOG_PAGES}; PRAGMA cache_size=-{_CACHE_KIB}"
    connection.executescript(f"{pragmas}; {sizes}; {_META}; {schema}")
    with connection:
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('identity', ?)", (identity,))
    return connection


def remove(path: Path) -> None:
    for suffix in _FILES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def read_meta(path: Path) -> dict[str, str] | None:
    """The metadata in a file; None where there is no file or it is damaged."""
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


def copy_to(source: Path, path: Path, stopped: threading.Event) -> dict[str, str]:
    def go_on(*progress: int) -> None:
        if stopped.is_set():
            raise InterruptedError("nobody waits for the copy")

    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    with (
        contextlib.closing(sqlite3.connect(source)) as reading,
        contextlib.closing(sqlite3.connect(path)) as copy,
    ):
        # All of it as it is at this moment: without a transaction of its own, each write would make it begin anew.
        reading.execute("BEGIN")
        reading.execute("SELECT 1 FROM meta").fetchall()
        reading.backup(copy, pages=_COPIED_PAGES, progress=go_on)
        copy.execute("PRAGMA journal_mode=DELETE")  # so that all of it is in the one file
        with copy:
            mark_closed(copy)
        return dict(copy.execute("SELECT name, value FROM meta"))


def insert(connection: sqlite3.Connection, head: str, rows: Sequence[Sequence[Any]]) -> None:
    """Inserts rows, all of one length, by few statements; `head` is the statement up to the values.

    `executemany` takes the interpreter's lock for each row, and waits for it as long as another thread computes.
    """
    start = 0
    for most in _AT_ONCE:
        while len(rows) - start >= most:
            marks = ", ".join([f"({', '.join('?' * len(rows[0]))})"] * most)
            values = [value for row in rows[start : start + most] for value in row]
            connection.execute(f"{head} {marks}", values)
            start += most


def discard(path: Path) -> None:
    if path.exists():
        log.warning("%s is damaged, or not of this stream and version: building it anew", path.name)
    remove(path)


def entry(name: str, number: int) -> str:
    """The name of a stream's entry in the metadata."""
    return f"{name}.{number}" if number else name


def note_ends(connection: sqlite3.Connection, ends: Mapping[int, Message]) -> None:
    """Stores the last message that was read of each stream."""
    for number, last in ends.items():
        values = (entry("sequence", number), str(last.sequence), entry("time_ms", number), str(last.time_ms))
        connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?), (?, ?)", values)


def position_in(meta: Mapping[str, str], streams: int) -> Position | None:
    """The position in the metadata; None where it cannot be read."""
    ends = [meta.get(entry("sequence", number), str(base_of(number))) for number in range(streams)]
    return joined(map(int, ends)) if all(end.isdigit() for end in ends) else None


async def belongs_to(
    bus: Bus, streams: Sequence[str], meta: Mapping[str, str], identity: str, states: Sequence[StreamState]
) -> bool:
    """Returns True if an index was filled from these streams, as they are now."""
    position = position_in(meta, len(streams))
    if meta.get("identity") != identity or position is None:
        return False
    for number, (stream, state) in enumerate(zip(streams, states, strict=True)):
        sequence, time_ms = position.ends[number], meta.get(entry("time_ms", number))
        # A server that crashed without syncing may have lost messages, and used their sequences again.
        kept = await bus.get(stream, sequence) if time_ms is not None else None
        if in_stream(sequence) > in_stream(state.last_sequence) or (kept is not None and str(kept.time_ms) != time_ms):
            return False
    return True
