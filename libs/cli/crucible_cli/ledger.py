"""The log's knowledge of a watched folder, in a file that lets `crucible watch` find what changed while it was away."""

import hashlib
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from crucible_client import BatchItem, Crucible
from crucible_core.errors import NotFoundError
from crucible_core.ids import derive_id, moment_of

from .notes import Change, Note
from .state import write_private


class Ledger(msgspec.Struct):
    """`notes` by path; `last_event` and `last_sequence` are those of the last event that was accepted. `folders` says
    that subfolders are among the notes: those that were there at first have no events."""

    root: str
    salt: str
    notes: dict[str, Note] = {}
    folders: bool = False
    last_event: str | None = None
    last_sequence: int = 0

    def id_of(self, change: Change) -> str:
        """The event's id: the same when a change is sent again because its answer was lost."""
        parts = (self.salt, str(self.last_sequence), change.event, change.path, change.note.hash)
        written_ms = change.note.mtime_ns // 1_000_000
        if not 0 <= written_ms <= time.time_ns() // 1_000_000:  # by a clock that was wrong: no id is of the future
            written_ms = moment_of(self.last_event or "") or 0
        return derive_id("evt", written_ms, *parts)

    def settle(self, change: Change, item: BatchItem) -> None:
        """Takes over what the gateway answered. A refused note is not sent again before it changes again."""
        former = self.notes.pop(change.old_path or change.path, None)
        if item.sequence is not None:
            self.last_event, self.last_sequence = item.id, max(item.sequence, self.last_sequence)
        if change.event not in ("Deleted", "DirectoryDeleted"):
            sequence = item.sequence or (former.sequence if former else None)
            self.notes[change.path] = msgspec.structs.replace(change.note, sequence=sequence)


def open_ledger(file: Path, root: Path) -> Ledger:
    """The ledger in `file`, or an empty one."""
    try:
        found = msgspec.json.decode(file.read_bytes(), type=Ledger)
        if found.root == str(root):
            return found
    except (OSError, msgspec.DecodeError):
        pass
    return Ledger(str(root), secrets.token_hex(8))


def save_ledger(file: Path, ledger: Ledger) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(file, msgspec.json.encode(ledger).decode())


def ledger_file(data: Path, places: Sequence[Any]) -> Path:
    """One file for each folder, gateway, world and room."""
    return data / "watch" / f"{hashlib.sha256(msgspec.json.encode(places)).hexdigest()[:24]}.json"


def is_of_this_log(crucible: Crucible, ledger: Ledger) -> bool:
    """Whether the gateway's log is the one that the ledger was kept with, and not a new one."""
    if ledger.last_event is None:
        return True
    try:
        return crucible.events.get(ledger.last_event).sequence == ledger.last_sequence
    except NotFoundError:
        oldest = crucible.events.page(page_size=1, order="asc").items
        # Where even the oldest event is younger, the last one has only expired.
        return bool(oldest) and (oldest[0].sequence or 0) > ledger.last_sequence
