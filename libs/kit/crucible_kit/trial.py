"""Messages that a projection cannot take: which errors are a message's own, and which message a process ended over."""

import sqlite3
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from .holding import DEADLY

_OF_CONTENT = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, AssertionError,
    msgspec.MsgspecError, sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError,
)  # fmt: skip


class Trial(NamedTuple):
    """A message that is written alone, and how many processes have ended while they did."""

    sequence: int = 0
    ended: int = 0

    def of(self, sequence: int) -> "Trial":
        """The trial of a message, this being the last one of a process that has ended."""
        return Trial(sequence, self.ended if sequence == self.sequence else 0)

    @property
    def verdict(self) -> str:
        """Why the message is passed over; empty where it is tried once more."""
        return f"{self.ended} processes ended while they worked on it" if self.ended >= DEADLY else ""

    def note(self, connection: sqlite3.Connection) -> None:
        """Before the message is tried: should the process end over it, this is left."""
        value = f"{self.sequence} {self.ended + 1}"
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('trial', ?)", (value,))


def left_by(meta: Mapping[str, str]) -> Trial | None:
    """What a process has left that ended in the middle; None where it closed the file."""
    if "open" not in meta:
        return None
    sequence, _, ended = meta.get("trial", "0 0").partition(" ")
    return Trial(int(sequence), int(ended))


def begin(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('open', '1')")


def end(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM meta WHERE name IN ('open', 'trial')")


def is_of_content(error: Exception) -> bool:
    """Whether a message may be why a batch was not written; else it is the file, or the disk."""
    return isinstance(error, _OF_CONTENT) or (isinstance(error, sqlite3.ProgrammingError) and "bind" in str(error))
