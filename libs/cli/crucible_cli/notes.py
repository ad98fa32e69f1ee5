"""A folder of Markdown notes: its files, each change since before as a File event, and the state that keeps them."""

import errno
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import msgspec

from crucible_cli.files import open_file
from crucible_cli.up.state import write_private
from crucible_client import BatchItem, Crucible
from crucible_core.errors import MalformedError, NotFoundError
from crucible_core.ids import derive_id, moment_of
from crucible_core.limits import NOTE_CONTENT_BYTES, NOTE_HASHED_BYTES
from crucible_core.text import decode_text
from crucible_core.yaml import read_front_matter

SUFFIXES = (".md", ".markdown")
MIME = "text/markdown"
_LOOKED_AT = 1024
"""Bytes in which a NUL says that a file is no text."""
HIDDEN = "hidden files and folders, and editors' drafts (~… and #…)"


class Note(msgspec.Struct, frozen=True):
    """One file, or one folder, whose path ends in `/`. `hash` is SHA-256 (hex), and empty for a folder and for a file
    that is too long to be read; `sequence` that of its last event, None while the log knows none."""

    hash: str
    size: int
    mtime_ns: int
    sequence: int | None = None
    inode: int = 0


class Change(msgspec.Struct, frozen=True):
    """`note` is the file as it is now, or as it was when it was deleted."""

    event: Literal["Created", "Modified", "Deleted", "Renamed", "DirectoryCreated", "DirectoryDeleted"]
    path: str
    note: Note
    old_path: str | None = None


class Scan(NamedTuple):
    """`notes` are by relative posix path; `passed` has the reason for what looks like a note and is none, by its path,
    or by HIDDEN for all that is hidden."""

    notes: dict[str, Note]
    passed: dict[str, str]


def is_note(path: str) -> bool:
    """True if a relative posix path is a note: Markdown by its name, and neither hidden nor an editor's own file."""
    return path.lower().endswith(SUFFIXES) and not _is_hidden(path)


def _is_hidden(path: str) -> bool:
    parts = path.split("/")
    return parts[-1][:1] in ("~", "#") or any(part.startswith(".") for part in parts)


def scan(root: Path, before: Mapping[str, Note], touched: Collection[str] = ()) -> Scan:
    """Every note and every folder under `root`.

    A file is read when its size, time or inode differs from `before`, or when it is in `touched`. Raises OSError when
    `root` cannot be read: a folder that is away is not a folder whose notes were deleted.
    """
    found = Scan({}, {})
    for path in _paths(os.fspath(root), before, found):
        known = before.get(path)
        try:
            if path.endswith("/"):
                found.notes[path] = known or _folder(os.stat(f"{root}/{path}"))
            else:
                found.notes[path] = _refresh(f"{root}/{path}", None if path in touched else known, known)
        except FileNotFoundError:
            continue
        except OSError as error:
            found.passed[path] = f"cannot be read: {error.strerror}"
            if known and error.errno != errno.EINVAL:  # which is said of a pipe
                found.notes[path] = known
    if not root.is_dir():  # asked last: it may have gone meanwhile
        raise NotADirectoryError(errno.ENOTDIR, "the folder is gone", str(root))
    return found


def changes(before: Mapping[str, Note], after: Mapping[str, Note]) -> list[Change]:
    """The differences: renames and deletions first, then what is new or changed."""
    renamed = list(_renames(before, after))
    taken, left = {change.path for change in renamed}, {change.old_path for change in renamed}
    deleted = [
        Change("DirectoryDeleted" if path.endswith("/") else "Deleted", path, note)
        for path, note in sorted(before.items(), reverse=True)  # what is inside goes before its folder
        if path not in after and path not in left and (note.sequence or path.endswith("/"))
    ]
    written = [
        Change(_event_of(path, note), path, note)
        for path, note in sorted(after.items())
        if path not in taken and (path not in before or _differ(before[path], note))
    ]
    folders = [change for change in written if change.event == "DirectoryCreated"]
    return [*folders, *renamed, *deleted, *(change for change in written if change.event != "DirectoryCreated")]


def payload(root: Path, change: Change) -> tuple[Change, dict[str, Any]] | None:
    """The event's payload, and the change as the file is at this moment; None where it is gone again."""
    if change.event.startswith("Directory"):
        return change, {"path": change.path.rstrip("/"), "root": str(root)}
    if change.event == "Deleted":
        known = {"hash": change.note.hash} if change.note.hash else {}
        return change, {"path": change.path, "root": str(root), **known}
    try:
        note, data = _read(f"{root}/{change.path}", change.note)
    except OSError:
        return None
    paths = {"from": change.old_path, "to": change.path} if change.old_path else {"path": change.path}
    fields: dict[str, Any] = {**paths, "root": str(root), "size": note.size, "mime": MIME}
    if note.hash:
        fields["hash"] = note.hash
    fields["mtime"] = datetime.fromtimestamp(note.mtime_ns / 1e9, UTC).isoformat(timespec="microseconds")[:26] + "Z"
    return msgspec.structs.replace(change, note=note), fields | _content(data)


def problem(fields: Mapping[str, Any]) -> str | None:
    """A remark on a note that is sent: its content is left out, or its front matter does not parse."""
    if (wrong := read_front_matter(fields.get("content", "")).problem) is not None:
        return f"front matter, {wrong}"
    reason: str | None = fields.get("reason")
    return reason


def _content(data: bytes | None) -> dict[str, str]:
    """The text and what is wrong with it, or why it is left out."""
    left_out = f"the content is left out: it is over {NOTE_CONTENT_BYTES // 1024} KiB"
    if data is None:
        return {"reason": left_out}
    fields = {}
    try:
        text = decode_text(data)
    except MalformedError as error:
        if b"\0" in data[:_LOOKED_AT]:
            return {"reason": f"the content is left out: {error.detail}"}
        text = data.decode("utf-8-sig", "replace")
        fields = {"reason": f"what is not UTF-8 shows as \ufffd: {error.detail}"}
    if len(msgspec.json.encode(text)) > NOTE_CONTENT_BYTES + 64 * 1024:
        return {"reason": left_out}
    return {"content": text, **fields}


def _paths(root: str, before: Mapping[str, Note], found: Scan) -> Iterator[str]:
    """The files that may be notes, and every folder. Links to folders are not followed: they may lead back here."""

    def failed(error: OSError) -> None:
        if error.filename == root:
            raise error
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return
        inside = f"{os.path.relpath(error.filename, root)}/"
        found.passed[inside] = f"cannot be read: {error.strerror}"
        found.notes.update((path, note) for path, note in before.items() if path.startswith(inside))

    for folder, folders, files in os.walk(root, onerror=failed):
        inside = "" if folder == root else f"{os.path.relpath(folder, root)}/"
        folders[:] = sorted(name for name in folders if _is_covered(f"{inside}{name}/", found))
        yield from (f"{inside}{name}/" for name in folders if not os.path.islink(f"{folder}/{name}"))
        yield from (
            f"{inside}{name}" for name in files if name.lower().endswith(SUFFIXES) and _is_covered(inside + name, found)
        )


def _is_covered(path: str, found: Scan) -> bool:
    """True if events cover a path; if not, `passed` has the reason."""
    if _is_hidden(path.rstrip("/")):
        found.passed[HIDDEN] = "are passed over"
        return False
    try:
        path.encode()
    except UnicodeEncodeError:
        found.passed[path] = "is passed over: its name is not UTF-8, rename it"
        return False
    return True


def _folder(status: os.stat_result) -> Note:
    return Note("", 0, status.st_mtime_ns, inode=status.st_ino)


def _refresh(file: str, trusted: Note | None, known: Note | None) -> Note:
    """The note as it is, read anew where it differs from the `trusted` one."""
    status = os.stat(file)
    same = trusted and (trusted.size, trusted.mtime_ns) == (status.st_size, status.st_mtime_ns)
    if trusted and same and trusted.inode in (0, status.st_ino) and stat.S_ISREG(status.st_mode):
        return msgspec.structs.replace(trusted, inode=status.st_ino)
    return _read(file, known)[0]


def _read(file: str, known: Note | None) -> tuple[Note, bytes | None]:
    """The note and its bytes, None where they are too many."""
    with open_file(file) as source:
        status = os.fstat(source.fileno())
        data: bytes | None = source.read(NOTE_CONTENT_BYTES + 1) if status.st_size <= NOTE_CONTENT_BYTES else None
        if data is not None and len(data) <= NOTE_CONTENT_BYTES:
            digest = hashlib.sha256(data).hexdigest()
        else:
            data, digest = None, _digest(source, status.st_size)
    note = Note(digest, status.st_size, status.st_mtime_ns, known.sequence if known else None, status.st_ino)
    return note, data


def _digest(source: BinaryIO, size: int) -> str:
    if size > NOTE_HASHED_BYTES:
        return ""
    source.seek(0)
    digest, left = hashlib.sha256(), NOTE_HASHED_BYTES
    while left > 0 and (piece := source.read(min(left, 1024 * 1024))):
        digest.update(piece)
        left -= len(piece)
    return digest.hexdigest()


def _event_of(path: str, note: Note) -> Literal["DirectoryCreated", "Modified", "Created"]:
    if path.endswith("/"):
        return "DirectoryCreated"
    return "Modified" if note.sequence else "Created"


def _differ(before: Note, after: Note) -> bool:
    if before.hash or after.hash:
        return before.hash != after.hash
    return (before.size, before.mtime_ns) != (after.size, after.mtime_ns)


def _renames(before: Mapping[str, Note], after: Mapping[str, Note]) -> Iterator[Change]:
    """Files that are at another path: first what is the very same file, also where it took the place of another, then
    what has the same content. An inode alone says nothing, since file systems use that of a deleted file again."""
    gone = {path: note for path, note in before.items() if path not in after and _has_event(path, note)}
    moved = [change for chain in _moves(gone, before, after) for change in chain]
    yield from moved
    left, taken = {change.old_path for change in moved}, {change.path for change in moved}
    olds: dict[str | None, list[str]] = {}
    for path, note in gone.items():
        if path not in left:
            olds.setdefault(_content_of(note), []).append(path)
    for path in sorted(after):
        same = _content_of(after[path])
        if path in before or path in taken or path.endswith("/") or same is None or not olds.get(same):
            continue
        name = path.rpartition("/")[2]
        old = next((old for old in olds[same] if old.rpartition("/")[2] == name), olds[same][0])
        olds[same].remove(old)
        yield Change("Renamed", path, after[path], old_path=old)


def _moves(gone: Mapping[str, Note], before: Mapping[str, Note], after: Mapping[str, Note]) -> Iterator[list[Change]]:
    """The way of each file that is gone, and of the one that was there, and so on; the last of them first, so that
    none is moved over one that is still to be moved."""
    paths_by_identity = {
        _identity(note): path
        for path, note in after.items()
        if not path.endswith("/") and (path not in before or _identity(before[path]) != _identity(note))
    }
    for old, note in gone.items():
        chain: list[Change] = []
        path = old
        while (identity := _identity(note)) is not None and (new := paths_by_identity.pop(identity, None)) is not None:
            chain.insert(0, Change("Renamed", new, after[new], old_path=path))
            if new not in before or not _has_event(new, before[new]):
                break
            path, note = new, before[new]
        yield chain


def _has_event(path: str, note: Note) -> bool:
    return note.sequence is not None and not path.endswith("/")


def _identity(note: Note) -> Any:
    return (note.inode, note.size, note.mtime_ns, note.hash) if note.inode else None


def _content_of(note: Note) -> str | None:
    return note.hash or None if note.size else None


class FolderState(msgspec.Struct):
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


def load_state(file: Path, root: Path) -> FolderState:
    """The state in `file`, or an empty one."""
    try:
        found = msgspec.json.decode(file.read_bytes(), type=FolderState)
        if found.root == str(root):
            return found
    except (OSError, msgspec.DecodeError):
        pass
    return FolderState(str(root), secrets.token_hex(8))


def save_state(file: Path, state: FolderState) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(file, msgspec.json.encode(state).decode())


def state_file(data: Path, key: Sequence[Any]) -> Path:
    """One file for each folder, gateway, world and room."""
    return data / "watch" / f"{hashlib.sha256(msgspec.json.encode(key)).hexdigest()[:24]}.json"


def is_same_log(crucible: Crucible, state: FolderState) -> bool:
    """True if the gateway's log is the one of the state, and not a new one."""
    if state.last_event is None:
        return True
    try:
        return crucible.events.get(state.last_event).sequence == state.last_sequence
    except NotFoundError:
        oldest = crucible.events.page(page_size=1, order="asc").items
        # Where even the oldest event is younger, the last one has only expired.
        return bool(oldest) and (oldest[0].sequence or 0) > state.last_sequence
