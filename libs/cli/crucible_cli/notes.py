"""A folder of Markdown notes: what is in it, how that differs from before, and each difference as a File event."""

import errno
import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

import msgspec

SUFFIX = ".md"
MIME = "text/markdown"
CONTENT_LIMIT = 900 * 1024
"""Bytes of text that an event carries, as UTF-8 and as JSON; a longer note's event has its hash only."""


class Note(msgspec.Struct, frozen=True):
    """One file. `hash` is SHA-256 (hex); `sequence` that of its last event, None while the log does not know it."""

    hash: str
    size: int
    mtime_ns: int
    sequence: int | None = None


class Change(msgspec.Struct, frozen=True):
    """`note` is the file as it is now, or as it was when it was deleted."""

    event: Literal["Created", "Modified", "Deleted", "Renamed"]
    path: str
    note: Note
    old_path: str | None = None


def is_note(path: str) -> bool:
    """Whether a relative posix path is a note: `.md`, and neither hidden nor an editor's own file."""
    parts = path.split("/")
    name = parts[-1]
    return not any(part.startswith(".") for part in parts) and name.endswith(SUFFIX) and name[0] not in "~#"


def scan(root: Path, before: Mapping[str, Note], touched: Collection[str] = ()) -> dict[str, Note]:
    """Every note under `root` by its relative posix path.

    A file is read when its size or time differs from `before`, or when it is in `touched`. Raises OSError when a folder
    cannot be read: a folder that is away is not a folder whose notes were deleted.
    """
    found = {}
    for path in _paths(root):
        known = before.get(path)
        try:
            status = os.stat(f"{root}/{path}")
            if known and path not in touched and (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
                found[path] = known
            else:
                found[path] = _read(root / path, known)[0]
        except FileNotFoundError:
            continue
        except OSError:
            if known:
                found[path] = known
    if not root.is_dir():  # asked last: it may have gone meanwhile
        raise NotADirectoryError(errno.ENOTDIR, "the folder is gone", str(root))
    return found


def changes(before: Mapping[str, Note], after: Mapping[str, Note]) -> list[Change]:
    """The differences: renames (the same content under a new path) and deletions first, then what is new or changed."""
    gone = {path: note for path, note in before.items() if path not in after}
    fresh = {path: note for path, note in after.items() if path not in before}
    renamed = list(_renames(gone, fresh))
    moved = {change.old_path for change in renamed} | {change.path for change in renamed}
    deleted = [Change("Deleted", path, note) for path, note in gone.items() if path not in moved and note.sequence]
    written = [
        Change("Modified" if note.sequence else "Created", path, note)
        for path, note in sorted(after.items())
        if path not in moved and (path not in before or before[path].hash != note.hash)
    ]
    return [*renamed, *deleted, *written]


def payload(root: Path, change: Change) -> tuple[Change, dict[str, Any]] | None:
    """The event's payload, and the change as the file is at this moment; None where it is gone again."""
    if change.event == "Deleted":
        return change, {"path": change.path, "root": str(root), "hash": change.note.hash}
    try:
        note, text = _read(root / change.path, change.note)
    except OSError:
        return None
    fields: dict[str, Any] = {
        "path": change.path,
        "root": str(root),
        "hash": note.hash,
        "size": note.size,
        "mime": MIME,
    }
    fields["mtime"] = datetime.fromtimestamp(note.mtime_ns / 1e9, UTC).isoformat(timespec="microseconds")[:26] + "Z"
    if change.old_path:
        fields["old_path"] = change.old_path
    return msgspec.structs.replace(change, note=note), fields | _content(text)


def _content(text: str | None) -> dict[str, str]:
    if text is None or len(msgspec.json.encode(text)) > CONTENT_LIMIT + 64 * 1024:
        return {"reason": f"the content is left out: it is over {CONTENT_LIMIT // 1024} KiB"}
    return {"content": text}


def _paths(root: Path) -> Iterator[str]:
    """Links to folders are not followed: they may lead back here."""
    for folder, folders, files in os.walk(root, onerror=_failed):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(folder).relative_to(root).as_posix()
        for name in files:
            path = name if inside == "." else f"{inside}/{name}"
            if is_note(path) and path.isprintable():
                yield path


def _failed(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _read(file: Path, known: Note | None) -> tuple[Note, str | None]:
    """The note and its text, None where it is too long. Bytes that are not UTF-8 are replaced."""
    with file.open("rb") as source:
        status = os.fstat(source.fileno())
        data, digest = _digest(source, status.st_size)
    note = Note(digest, status.st_size, status.st_mtime_ns, known.sequence if known else None)
    return note, None if data is None else data.decode("utf-8-sig", "replace")


def _digest(source: BufferedReader, size: int) -> tuple[bytes | None, str]:
    if size > CONTENT_LIMIT:
        return None, hashlib.file_digest(source, "sha256").hexdigest()
    data = source.read(CONTENT_LIMIT + 1)
    return (data if len(data) <= CONTENT_LIMIT else None), hashlib.sha256(data).hexdigest()


def _renames(gone: Mapping[str, Note], fresh: Mapping[str, Note]) -> Iterator[Change]:
    by_hash: dict[str, list[str]] = {}
    for path, note in gone.items():
        if note.size and note.sequence:
            by_hash.setdefault(note.hash, []).append(path)
    for path, note in sorted(fresh.items()):
        olds = by_hash.get(note.hash)
        if olds:
            yield Change("Renamed", path, note, old_path=olds.pop(0))
