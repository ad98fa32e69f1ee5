"""Edits of notes, as File events ask for them, and the effect of each on the memories. Pure."""

import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal

import msgspec

from crucible_core.envelope import Event
from crucible_core.protocol.events import NewEvent
from crucible_core.protocol.memory import Cause
from crucible_memory import changes
from crucible_memory.changes import Change, Location
from crucible_memory.notes.note import Note, is_note
from crucible_memory.search.words import compose
from crucible_memory.state import SOURCE, Memory, note_id
from crucible_memory.writer import Use, make_event, new_event

MOST_REMOVED = 100
SOON_S = 60.0
_UNREAD = "the event has no content of the note"

Status = Literal["created", "updated", "moved", "removed", "unchanged", "ignored", "denied", "refused"]


class FilePayload(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """The fields of a File event's payload that this service reads; renames had `old_path` and `new_path` in earlier
    versions. `reason` explains missing or faulty content."""

    path: str = ""
    root: str = ""
    content: str | None = None
    reason: str | None = None
    from_: str | None = None
    to: str | None = None
    old_path: str | None = None
    new_path: str | None = None

    @property
    def now_at(self) -> str:
        return note_path(self.to or self.new_path or self.path)

    @property
    def was_at(self) -> str:
        """The old path of a renamed file or folder."""
        return note_path(self.from_ or self.old_path or (self.path if self.new_path else "")) or self.now_at


class Edit(msgspec.Struct, frozen=True):
    """One change of a note. `old_path` is that of a renamed note; one with neither content nor a reason is only
    moved."""

    action: Literal["save", "rename", "remove"]
    location: Location
    cause: Cause
    content: str | None = None
    reason: str | None = None
    old_path: str | None = None
    note: Note | None = None
    """The parsed content; without a text, it has only the reason."""
    began: float = msgspec.field(default_factory=time.monotonic)

    @property
    def locations(self) -> list[Location]:
        """The locations whose memories it reads and changes."""
        old = [] if self.old_path is None else [Location(self.location.root, self.old_path)]
        return [*old, self.location]

    @property
    def usual_id(self) -> str:
        """The id of the memory of the first note at its path."""
        return note_id(self.cause.world_id, self.location.path, self.location.root)

    def use(self, operation: str) -> Use:
        return Use(operation, ":".join(self.location))


def folder_of(event: Event, payload: FilePayload) -> Location | None:
    """The folder of an event about all notes below it; None for an event about one note."""
    match event.data.event:
        case "DirectoryDeleted":
            return Location(payload.root, payload.now_at)
        case "Renamed" if not is_note(payload.now_at) and not is_note(payload.was_at):
            return Location(payload.root, payload.was_at) if payload.was_at != payload.now_at else None
    return None


def edits_of(event: Event, payload: FilePayload, cause: Cause, below: list[str]) -> list[Edit]:
    """`below` are the paths of the notes in the event's folder that have memories."""
    root, new, old = payload.root, payload.now_at, payload.was_at
    match event.data.event:
        case "Created" | "Modified" if is_note(new):
            unread = _UNREAD if payload.content is None else None
            return [Edit("save", Location(root, new), cause, payload.content, payload.reason or unread)]
        case "Deleted" if is_note(new):
            return [Edit("remove", Location(root, new), cause)]
        case "DirectoryDeleted":
            return [Edit("remove", Location(root, path), cause) for path in below]
        case "Renamed" if is_note(new):
            renames = old != new and is_note(old)
            action: Literal["rename", "save"] = "rename" if renames else "save"
            return [Edit(action, Location(root, new), cause, payload.content, payload.reason, old if renames else None)]
        case "Renamed" if is_note(old):
            return [Edit("remove", Location(root, old), cause)]
        case "Renamed":
            return [Edit("rename", Location(root, f"{new}{path[len(old) :]}"), cause, old_path=path) for path in below]
    return []


def note_path(path: str) -> str:
    """One spelling of a path, so that one file is one memory on every system."""
    return compose(path).replace("\\", "/").removeprefix("./")


def cause_of(event: Event) -> Cause:
    metadata = event.metadata
    return Cause(
        source=SOURCE,
        actor=metadata.actor,
        correlation_id=metadata.correlation_id,
        causation_id=metadata.id,
        hop=metadata.hop + 1,
        world_id=metadata.world_id,
        room_id=metadata.room_id,
        traceparent=metadata.traceparent or None,
        key=metadata.id,
    )


# ---- effects ---------------------------------------------------------------------------------------------------------


class Known(msgspec.Struct, frozen=True):
    """The memories that a window of edits may be about: by world and location; by the ids that new ones would have;
    and, where the log was asked, the last sequence of ids without a memory."""

    at: Mapping[tuple[str, Location], list[Memory]]
    by_id: Mapping[tuple[str, str], Memory]
    last: Mapping[tuple[str, str], int] = {}


class Effect(msgspec.Struct, frozen=True):
    """The effect of an edit: the Memory events of its `changes`, and its record. `ids` are the memories that it reads,
    `removed` one that it deletes, `earlier` one that it restores."""

    edit: Edit
    status: Status
    memory_id: str | None = None
    problems: list[str] = []
    changes: list[NewEvent] = []
    ids: frozenset[str] = frozenset()
    removed: Memory | None = None
    earlier: Memory | None = None

    @property
    def all_events(self) -> list[NewEvent]:
        return [] if self.status == "ignored" else [*self.changes, self.processed]

    @property
    def processed(self) -> NewEvent:
        """File.Processed, the lasting record that the edit was taken."""
        root, path = self.edit.location
        payload = {
            "path": path,
            "root": root or None,
            "memory_id": self.memory_id,
            "status": self.status,
            "error": "; ".join(f"{path}: {problem}" for problem in self.problems) or None,
            "duration_ms": round((time.monotonic() - self.edit.began) * 1000, 3),
        }
        present = {name: value for name, value in payload.items() if value is not None}
        return make_event("File.Processed", msgspec.json.encode(present), self.edit.cause, self.edit.use("processed"))


class RemovedNotes:
    """Notes that were removed a moment ago: some programs report a rename as a removed file and a new one of the same
    text. Best effort: it does not outlive the process."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str, str, str], tuple[float, Memory]] = OrderedDict()

    def put(self, edit: Edit, memory: Memory) -> None:
        if memory.content.strip():
            self._found[(edit.cause.world_id, edit.location.root, memory.content)] = (time.monotonic(), memory)
        while len(self._found) > MOST_REMOVED:
            self._found.popitem(last=False)

    def find(self, edit: Edit, content: str) -> Memory | None:
        at, memory = self._found.get((edit.cause.world_id, edit.location.root, content), (0.0, None))
        return memory if time.monotonic() - at < SOON_S else None

    def forget(self, edit: Edit, memory: Memory) -> None:
        self._found.pop((edit.cause.world_id, edit.location.root, memory.content), None)


def decide(edit: Edit, known: Known, removed: RemovedNotes) -> Effect:
    """Raises TooLargeError."""
    found = known.at.get((edit.cause.world_id, edit.location), [])
    match edit.action:
        case "remove":
            return _remove(edit, found, known)
        case "rename":
            old = known.at.get((edit.cause.world_id, edit.locations[0]), [])
            if old:
                return _rename(edit, old[0], [*old[1:], *found], known)
    return _save(edit, found, known, removed)


def _save(edit: Edit, found: list[Memory], known: Known, removed: RemovedNotes) -> Effect:
    memory, note = found[0] if found else None, edit.note
    if note is None:
        status: Status = "unchanged" if memory else "ignored"
        return Effect(edit, status, memory.id if memory else None, changes=_delete_all(edit, found[1:], "drop", known))
    if memory is None and edit.content is None:
        return Effect(edit, "refused", problems=note.problems)
    earlier = None if memory else removed.find(edit, note.content)
    id = memory.id if memory else _fresh_id(edit, earlier, known)
    change = changes.note(memory, id, edit.location, note, earlier)
    events = [_event(edit, id, change, memory, edit.action, known)] if change else []
    events += _delete_all(edit, found[1:], "drop", known)
    status = ("updated" if memory else "created") if change else "unchanged"
    ids = {id, edit.usual_id, *(one.id for one in found), *([earlier.id] if earlier else [])}
    return Effect(edit, status, id, note.problems, events, frozenset(ids), earlier=earlier)


def _rename(edit: Edit, memory: Memory, others: list[Memory], known: Known) -> Effect:
    note = edit.note
    change = changes.note(memory, memory.id, edit.location, note) if note else changes.move(memory, edit.location.path)
    events = [_event(edit, memory.id, change, memory, edit.action, known)] if change else []
    events += _delete_all(edit, others, "drop", known)
    problems = note.problems if note else memory.problems
    ids = frozenset({memory.id, *(one.id for one in others)})
    return Effect(edit, "moved" if change else "unchanged", memory.id, problems, events, ids)


def _remove(edit: Edit, found: list[Memory], known: Known) -> Effect:
    if not found:
        return Effect(edit, "unchanged")
    ids = frozenset(one.id for one in found)
    events = _delete_all(edit, found, "remove", known)
    return Effect(edit, "removed", found[0].id, changes=events, ids=ids, removed=found[0])


def _delete_all(edit: Edit, memories: list[Memory], operation: str, known: Known) -> list[NewEvent]:
    """Deletes the memories of notes without a file, such as one that another was renamed over."""
    return [
        _event(edit, memory.id, changes.delete(memory), memory, f"{operation}:{number}", known)
        for number, memory in enumerate(memories)
    ]


def _event(edit: Edit, id: str, change: Change, memory: Memory | None, operation: str, known: Known) -> NewEvent:
    expected = known.last.get((id, edit.cause.world_id), memory.sequence if memory else 0)
    return new_event(id, change, memory, edit.cause, expected, edit.use(operation))


def _fresh_id(edit: Edit, earlier: Memory | None, known: Known) -> str:
    """An id for a note without a memory; another one where the first memory of the path has moved away."""
    world, (root, path) = edit.cause.world_id, edit.location
    id = earlier.id if earlier else edit.usual_id
    taken = (id, world) in known.by_id
    return note_id(world, path, root, edit.cause.causation_id or "") if taken else id
