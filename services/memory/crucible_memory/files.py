"""From File events to memories: each Markdown note is one, which keeps its id when the note is renamed."""

import asyncio
import logging
import time
from collections import OrderedDict
from typing import Literal

import msgspec

from crucible_core.envelope import Event, decode
from crucible_core.errors import (
    ConflictError,
    DeniedError,
    ForbiddenError,
    InvalidError,
    MalformedError,
    TooLargeError,
)
from crucible_core.protocol.memory import Cause
from crucible_core.subjects import NO_REACTION
from crucible_kit.bus import Bus, Message
from crucible_kit.metrics import Metrics
from crucible_kit.telemetry import Telemetry, message_attributes
from crucible_kit.work import work

from . import changes
from .changes import Change, Place
from .naming import note_id
from .notes import IN_PLACE, Note, is_note, parse
from .state import SOURCE, Memory
from .words import composed
from .writer import Decide, Outcome, Use, Writer

log = logging.getLogger(__name__)

_ACK_WAIT_S = 60.0
_FINAL = (DeniedError, ForbiddenError, InvalidError, MalformedError, TooLargeError)
"""What another try would meet again. A denial is recorded by the hook that spoke it."""
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


class Step(msgspec.Struct, frozen=True):
    """One thing that a File event asks for. `old_path` is where a renamed note was; what has neither content nor a
    reason for that is only moved."""

    action: Literal["save", "rename", "remove"]
    place: Place
    cause: Cause
    content: str | None = None
    reason: str | None = None
    old_path: str | None = None


class Done(msgspec.Struct, frozen=True):
    """What came of a step; `problems` is what the note's writer should know."""

    status: Status
    memory_id: str | None = None
    problems: list[str] = []


class Files:
    """The durable consumer of File events. One event at a time over all replicas: a note's events must not overtake
    each other, also where one is delivered again."""

    def __init__(self, bus: Bus, writer: Writer, telemetry: Telemetry, metrics: Metrics) -> None:
        self._bus = bus
        self._writer = writer
        self._telemetry = telemetry
        self._removed = _Removed()
        self._results = metrics.counter("memory_files", "File events by what came of them", ("result",))

    async def run(self) -> None:
        names = self._bus.names
        filters = [names.events_of("File")]
        durable = names.durable("memory-files")
        await work(self._bus, names.events, durable, self._handle, filters=filters, concurrency=1, ack_wait=_ACK_WAIT_S)

    async def _handle(self, message: Message) -> None:
        if NO_REACTION in message.headers:
            self._results.labels("ignored").inc()
            return
        event = decode(message.data, message.sequence)
        if event.data.event == "Processed":
            return
        payload = msgspec.convert(event.data.payload, FilePayload)
        parent, stream = event.metadata.traceparent, self._bus.names.events
        about = message_attributes("process", stream, message_id=event.metadata.id, size=len(message.data))
        with self._telemetry.span(f"process {stream}", parent, "consumer", about, [parent]) as span:
            cause = _cause(event, span.traceparent)
            steps = await self._steps(event, payload, cause)
            for step in steps:
                await self._take(step)
            if not steps:
                self._results.labels("ignored").inc()

    # ---- what is to be done

    async def _steps(self, event: Event, payload: FilePayload, cause: Cause) -> list[Step]:
        place = Place(payload.root, note_path(payload.to or payload.path))
        match event.data.event:
            case "Renamed":
                return await self._renames(payload, cause)
            case "Created" | "Modified" if is_note(place.path):
                unread = _UNREAD if payload.content is None else None
                return [Step("save", place, cause, payload.content, payload.reason or unread)]
            case "Deleted" if is_note(place.path):
                return [Step("remove", place, cause)]
            case "DirectoryDeleted":
                return [Step("remove", found, cause) for found in await self._below(place, cause)]
        return []

    async def _renames(self, payload: FilePayload, cause: Cause) -> list[Step]:
        """Of a note, or of a folder with notes in it."""
        root = payload.root
        new = note_path(payload.to or payload.new_path or payload.path)
        old = note_path(payload.from_ or payload.old_path or (payload.path if payload.new_path else new))
        if is_note(new):
            step = Step("rename", Place(root, new), cause, payload.content, payload.reason, old)
            return [step if old != new and is_note(old) else msgspec.structs.replace(step, action="save")]
        if is_note(old):
            return [Step("remove", Place(root, old), cause)]
        below = await self._below(Place(root, old), cause) if old != new else []
        moved = [(place.path, f"{new}{place.path[len(old) :]}") for place in below]
        return [Step("rename", Place(root, path), cause, old_path=before) for before, path in moved]

    async def _below(self, folder: Place, cause: Cause) -> list[Place]:
        found = await self._writer.notes_below(cause.world_id, folder.root, folder.path)
        return [Place(folder.root, memory.path) for memory in found if memory.path]

    # ---- doing it

    async def _take(self, step: Step) -> None:
        began = time.monotonic()
        try:
            done = await self._do(step)
        except _FINAL as error:
            log.warning("%s: no memory of it: %s", step.place.path, error)
            done = Done("denied" if isinstance(error, DeniedError) else "refused", problems=[error.detail])
        self._results.labels(done.status).inc()
        if done.status != "ignored":
            await self._tell(step, done, time.monotonic() - began)

    async def _do(self, step: Step) -> Done:
        match step.action:
            case "remove":
                return await self._remove(step, step.place.path)
            case "rename":
                return await self._rename(step)
        return await self._save(step)

    async def _save(self, step: Step) -> Done:
        found = await self._writer.notes_at(step.cause.world_id, *step.place)
        memory = found[0] if found else None
        if step.content is None and step.reason is None:
            await self._drop(step, found[1:])
            return Done("unchanged", memory.id) if memory else Done("ignored")
        note = await _noted(step)
        if memory is None and step.content is None:
            return Done("refused", problems=note.problems)
        earlier = None if memory else self._removed.take(step, note.content)
        id = memory.id if memory else await self._fresh_id(step, earlier)

        async def decide(now: Memory | None) -> Change | None:
            return changes.note(now, id, step.place, note, earlier)

        outcome = await self._change(step, id, decide)
        await self._drop(step, found[1:], outcome)
        return Done(_status(outcome, "updated" if memory else "created"), id, note.problems)

    async def _rename(self, step: Step) -> Done:
        world, root = step.cause.world_id, step.place.root
        found = await self._writer.notes_at(world, root, step.old_path or "")
        if not found:
            return await self._save(step)
        memory, others = found[0], await self._writer.notes_at(world, *step.place)
        note = await _noted(step) if step.content is not None or step.reason else None

        async def decide(now: Memory | None) -> Change | None:
            if now is None:
                return None  # somebody removed it meanwhile
            return changes.note(now, now.id, step.place, note) if note else changes.moved(now, step.place.path)

        outcome = await self._change(step, memory.id, decide)
        await self._drop(step, [*found[1:], *others], outcome)
        return Done(_status(outcome, "moved"), memory.id, note.problems if note else memory.problems)

    async def _remove(self, step: Step, path: str) -> Done:
        found = await self._writer.notes_at(step.cause.world_id, step.place.root, path)
        if not found:
            return Done("unchanged")
        await self._drop(step, found)
        self._removed.put(step, found[0])
        return Done("removed", found[0].id)

    async def _drop(self, step: Step, memories: list[Memory], after: Outcome | None = None) -> None:
        """Forgets notes whose files are gone, such as one that another was renamed over. Nothing to do where the event
        was handled before: what is there now came later."""
        if after and after.appended and after.appended.duplicate:
            return

        async def decide(memory: Memory | None) -> Change | None:
            return changes.delete(memory) if memory else None

        for number, memory in enumerate(memories):
            await self._change(step, memory.id, decide, f"{'drop' if after else 'remove'}:{number}")

    async def _change(self, step: Step, id: str, decide: Decide, operation: str = "") -> Outcome:
        return await self._writer.change(
            id, step.cause, decide, use=Use(operation or step.action, ":".join(step.place))
        )

    async def _fresh_id(self, step: Step, earlier: Memory | None) -> str:
        """Of a note that has no memory. Where the one that was made of the path first has moved away, another."""
        world, (root, path) = step.cause.world_id, step.place
        id = earlier.id if earlier else note_id(world, path, root)
        _, taken = await self._writer.present(id, world)
        return id if taken is None else note_id(world, path, root, step.cause.causation_id or "")

    async def _tell(self, step: Step, done: Done, took_s: float) -> None:
        """File.Processed. Where it cannot be said, as at the end of a chain of effects, the log has it."""
        root, path = step.place
        payload = {
            "path": path,
            "root": root or None,
            "memory_id": done.memory_id,
            "status": done.status,
            "error": "; ".join(f"{path}: {problem}" for problem in done.problems) or None,
            "duration_ms": round(took_s * 1000, 3),
        }
        try:
            await self._writer.tell("File.Processed", payload, step.cause, Use("processed", ":".join(step.place)))
        except (*_FINAL, ConflictError) as error:
            log.warning("%s: File.Processed is not recorded: %s", path, error)


class _Removed:
    """Notes that were removed a moment ago: some programs say of a renamed one that it is gone, and that another of the
    same text is there. Only a courtesy: it does not outlive the process."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str, str, str], tuple[float, Memory]] = OrderedDict()

    def put(self, step: Step, memory: Memory) -> None:
        if memory.content.strip():
            self._found[(step.cause.world_id, step.place.root, memory.content)] = (time.monotonic(), memory)
        while len(self._found) > MOST_REMOVED:
            self._found.popitem(last=False)

    def take(self, step: Step, content: str) -> Memory | None:
        at, memory = self._found.pop((step.cause.world_id, step.place.root, content), (0.0, None))
        return memory if time.monotonic() - at < SOON_S else None


def _status(outcome: Outcome, changed: Status) -> Status:
    return changed if outcome.appended and not outcome.appended.duplicate else "unchanged"


def _cause(event: Event, traceparent: str) -> Cause:
    metadata = event.metadata
    return Cause(
        source=SOURCE,
        actor=metadata.actor,
        correlation_id=metadata.correlation_id,
        causation_id=metadata.id,
        hop=metadata.hop + 1,
        world_id=metadata.world_id,
        room_id=metadata.room_id,
        traceparent=traceparent,
        key=metadata.id,
    )


def note_path(path: str) -> str:
    """One spelling of a path, so that one file is one memory on every system."""
    return composed(path).replace("\\", "/").removeprefix("./")


async def _noted(step: Step) -> Note:
    """The note as it is; of one whose text is not known, nothing but that. A reason is a problem of it."""
    path, content = step.place.path, step.content or ""
    note = parse(content, path) if len(content) <= IN_PLACE else await asyncio.to_thread(parse, content, path)
    return msgspec.structs.replace(note, problems=[step.reason, *note.problems]) if step.reason else note
