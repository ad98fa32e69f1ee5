"""What a File event asks for: steps, each about one note, and what each step makes of the memories there are. Pure."""

import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal

import msgspec

from crucible_core.envelope import Event
from crucible_core.protocol.events import NewEvent
from crucible_core.protocol.memory import Cause
from crucible_memory import changes
from crucible_memory.changes import Change, Place
from crucible_memory.notes.note import Note, is_note
from crucible_memory.search.words import composed
from crucible_memory.state import SOURCE, Memory, note_id
from crucible_memory.writer import Use, caused, new_event

MOST_REMOVED = 100
SOON_S = 60.0
_UNREAD = "the event has no content of the note"

Status = Literal["created", "updated", "moved", "removed", "unchanged", "ignored", "denied", "refused"]


class FilePayload(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """What this service reads of a File event's payload; `old_path` and `new_path` are how renames were stored
    before. `reason` says why there is no content, or what is wrong with it."""

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
        """Where a renamed file or folder was."""
        return note_path(self.from_ or self.old_path or (self.path if self.new_path else "")) or self.now_at


class Step(msgspec.Struct, frozen=True):
    """One thing that a File event asks for. `old_path` is where a renamed note was; what has neither content nor a
    reason for that is only moved."""

    action: Literal["save", "rename", "remove"]
    place: Place
    cause: Cause
    content: str | None = None
    reason: str | None = None
    old_path: str | None = None
    note: Note | None = None
    """The content as it was read; of one whose text is not known, nothing but the reason."""
    began: float = msgspec.field(default_factory=time.monotonic)

    @property
    def places(self) -> list[Place]:
        """Where it looks for memories, and changes them."""
        old = [] if self.old_path is None else [Place(self.place.root, self.old_path)]
        return [*old, self.place]

    @property
    def usual_id(self) -> str:
        """Of the memory that the first note at its path has."""
        return note_id(self.cause.world_id, self.place.path, self.place.root)

    def use(self, operation: str) -> Use:
        return Use(operation, ":".join(self.place))


def folder_of(event: Event, payload: FilePayload) -> Place | None:
    """The folder whose notes an event is about, where it is about more than one."""
    match event.data.event:
        case "DirectoryDeleted":
            return Place(payload.root, payload.now_at)
        case "Renamed" if not is_note(payload.now_at) and not is_note(payload.was_at):
            return Place(payload.root, payload.was_at) if payload.was_at != payload.now_at else None
    return None


def steps_of(event: Event, payload: FilePayload, cause: Cause, below: list[str]) -> list[Step]:
    """`below` are the paths of the notes in the event's folder that have memories."""
    root, new, old = payload.root, payload.now_at, payload.was_at
    match event.data.event:
        case "Created" | "Modified" if is_note(new):
            unread = _UNREAD if payload.content is None else None
            return [Step("save", Place(root, new), cause, payload.content, payload.reason or unread)]
        case "Deleted" if is_note(new):
            return [Step("remove", Place(root, new), cause)]
        case "DirectoryDeleted":
            return [Step("remove", Place(root, path), cause) for path in below]
        case "Renamed" if is_note(new):
            renames = old != new and is_note(old)
            action: Literal["rename", "save"] = "rename" if renames else "save"
            return [Step(action, Place(root, new), cause, payload.content, payload.reason, old if renames else None)]
        case "Renamed" if is_note(old):
            return [Step("remove", Place(root, old), cause)]
        case "Renamed":
            return [Step("rename", Place(root, f"{new}{path[len(old) :]}"), cause, old_path=path) for path in below]
    return []


def note_path(path: str) -> str:
    """One spelling of a path, so that one file is one memory on every system."""
    return composed(path).replace("\\", "/").removeprefix("./")


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


# ---- what a step makes of the memories


class Known(msgspec.Struct, frozen=True):
    """The memories that steps of one moment may be about: those at their places, by world and place; those with the
    ids that they would make; and, where the log was asked, the last sequence of ids that no memory has."""

    at: Mapping[tuple[str, Place], list[Memory]]
    by_id: Mapping[tuple[str, str], Memory]
    last: Mapping[tuple[str, str], int] = {}


class Effect(msgspec.Struct, frozen=True):
    """What comes of a step: the Memory events of its `changes`, and what is told of it. `ids` are the memories that it
    looks at, `removed` one that it forgets, `earlier` one that it brings back."""

    step: Step
    status: Status
    memory_id: str | None = None
    problems: list[str] = []
    changes: list[NewEvent] = []
    ids: frozenset[str] = frozenset()
    removed: Memory | None = None
    earlier: Memory | None = None

    @property
    def all_events(self) -> list[NewEvent]:
        return [] if self.status == "ignored" else [*self.changes, self.told]

    @property
    def told(self) -> NewEvent:
        """File.Processed, by which it is known for ever that the step was taken."""
        root, path = self.step.place
        payload = {
            "path": path,
            "root": root or None,
            "memory_id": self.memory_id,
            "status": self.status,
            "error": "; ".join(f"{path}: {problem}" for problem in self.problems) or None,
            "duration_ms": round((time.monotonic() - self.step.began) * 1000, 3),
        }
        present = {name: value for name, value in payload.items() if value is not None}
        return caused("File.Processed", msgspec.json.encode(present), self.step.cause, self.step.use("processed"))


class Removed:
    """Notes that were removed a moment ago: some programs say of a renamed one that it is gone, and that another of the
    same text is there. Only a courtesy: it does not outlive the process."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str, str, str], tuple[float, Memory]] = OrderedDict()

    def put(self, step: Step, memory: Memory) -> None:
        if memory.content.strip():
            self._found[(step.cause.world_id, step.place.root, memory.content)] = (time.monotonic(), memory)
        while len(self._found) > MOST_REMOVED:
            self._found.popitem(last=False)

    def find(self, step: Step, content: str) -> Memory | None:
        at, memory = self._found.get((step.cause.world_id, step.place.root, content), (0.0, None))
        return memory if time.monotonic() - at < SOON_S else None

    def forget(self, step: Step, memory: Memory) -> None:
        self._found.pop((step.cause.world_id, step.place.root, memory.content), None)


def decide(step: Step, known: Known, removed: Removed) -> Effect:
    """Raises TooLargeError."""
    found = known.at.get((step.cause.world_id, step.place), [])
    match step.action:
        case "remove":
            return _removing(step, found, known)
        case "rename":
            old = known.at.get((step.cause.world_id, step.places[0]), [])
            if old:
                return _renaming(step, old[0], [*old[1:], *found], known)
    return _saving(step, found, known, removed)


def _saving(step: Step, found: list[Memory], known: Known, removed: Removed) -> Effect:
    memory, note = found[0] if found else None, step.note
    if note is None:
        status: Status = "unchanged" if memory else "ignored"
        return Effect(step, status, memory.id if memory else None, changes=_drops(step, found[1:], "drop", known))
    if memory is None and step.content is None:
        return Effect(step, "refused", problems=note.problems)
    earlier = None if memory else removed.find(step, note.content)
    id = memory.id if memory else _fresh_id(step, earlier, known)
    change = changes.note(memory, id, step.place, note, earlier)
    events = [_event(step, id, change, memory, step.action, known)] if change else []
    events += _drops(step, found[1:], "drop", known)
    status = ("updated" if memory else "created") if change else "unchanged"
    ids = {id, step.usual_id, *(one.id for one in found), *([earlier.id] if earlier else [])}
    return Effect(step, status, id, note.problems, events, frozenset(ids), earlier=earlier)


def _renaming(step: Step, memory: Memory, others: list[Memory], known: Known) -> Effect:
    note = step.note
    change = changes.note(memory, memory.id, step.place, note) if note else changes.moved(memory, step.place.path)
    events = [_event(step, memory.id, change, memory, step.action, known)] if change else []
    events += _drops(step, others, "drop", known)
    problems = note.problems if note else memory.problems
    ids = frozenset({memory.id, *(one.id for one in others)})
    return Effect(step, "moved" if change else "unchanged", memory.id, problems, events, ids)


def _removing(step: Step, found: list[Memory], known: Known) -> Effect:
    if not found:
        return Effect(step, "unchanged")
    ids = frozenset(one.id for one in found)
    events = _drops(step, found, "remove", known)
    return Effect(step, "removed", found[0].id, changes=events, ids=ids, removed=found[0])


def _drops(step: Step, memories: list[Memory], operation: str, known: Known) -> list[NewEvent]:
    """Forgets notes whose files are gone, such as one that another was renamed over."""
    return [
        _event(step, memory.id, changes.delete(memory), memory, f"{operation}:{number}", known)
        for number, memory in enumerate(memories)
    ]


def _event(step: Step, id: str, change: Change, memory: Memory | None, operation: str, known: Known) -> NewEvent:
    expected = known.last.get((id, step.cause.world_id), memory.sequence if memory else 0)
    return new_event(id, change, memory, step.cause, expected, step.use(operation))


def _fresh_id(step: Step, earlier: Memory | None, known: Known) -> str:
    """Of a note that has no memory. Where the one that was made of the path first has moved away, another."""
    world, (root, path) = step.cause.world_id, step.place
    id = earlier.id if earlier else step.usual_id
    taken = (id, world) in known.by_id
    return note_id(world, path, root, step.cause.causation_id or "") if taken else id
