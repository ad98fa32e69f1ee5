"""From File events to memories: each Markdown note is one, whose id follows from its world and path."""

import asyncio
import logging
import unicodedata
from typing import Literal

import msgspec

from crucible_core.envelope import Event, Source, decode
from crucible_core.errors import DeniedError, ForbiddenError, InvalidError, MalformedError, TooLargeError
from crucible_core.protocol.memory import Cause
from crucible_core.subjects import NO_REACTION
from crucible_kit.bus import Bus, Message
from crucible_kit.metrics import Metrics
from crucible_kit.telemetry import Telemetry
from crucible_kit.work import work

from . import changes
from .changes import Change
from .naming import note_id
from .notes import Note, is_note, parse
from .state import Memory
from .writer import Use, Writer

log = logging.getLogger(__name__)

SOURCE = Source("system", "memory")
_ACK_WAIT_S = 60.0
_FINAL = (DeniedError, ForbiddenError, InvalidError, MalformedError, TooLargeError)
"""What another try would meet again. A denial is recorded by the hook that spoke it."""
_IN_PLACE = 16_384
"""Characters that are parsed without a thread: less than a moment of everybody else's time."""

Result = Literal["changed", "unchanged", "ignored", "denied", "refused"]


class FilePayload(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """What this service reads of a File event's payload; `old_path` and `new_path` are how renames were stored
    before."""

    path: str = ""
    root: str = ""
    content: str | None = None
    from_: str | None = None
    to: str | None = None
    old_path: str | None = None
    new_path: str | None = None


class Files:
    """The durable consumer of File events. One event at a time over all replicas: a note's events must not overtake
    each other, also where one is delivered again."""

    def __init__(self, bus: Bus, writer: Writer, telemetry: Telemetry, metrics: Metrics) -> None:
        self._bus = bus
        self._writer = writer
        self._telemetry = telemetry
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
        payload = msgspec.convert(event.data.payload, FilePayload)
        with self._telemetry.span(f"memory.{event.dotted}", event.metadata.traceparent, kind="consumer") as span:
            for step in _steps(event, payload, span.traceparent):
                self._results.labels(await self._take(step)).inc()

    async def _take(self, step: "Step") -> Result:
        try:
            return await self._change(step)
        except _FINAL as error:
            log.warning("%s: no memory of it: %s", step.path, error)
            return "denied" if isinstance(error, DeniedError) else "refused"

    async def _change(self, step: "Step") -> Result:
        if step.action == "ignore":
            return "ignored"
        note = await _parsed(step.content, step.path) if step.content is not None else None
        earlier = None
        if step.old_path is not None:
            _, earlier = await self._writer.present(step.id_of(step.old_path), step.cause.world_id)
        if step.action == "save" and note is None and earlier is None:
            return "ignored"
        id = step.id_of(step.path)

        async def decide(memory: Memory | None) -> Change | None:
            if step.action == "remove":
                return changes.delete(memory) if memory else None
            if note is not None:
                return changes.note(memory, id, step.path, note, earlier)
            return changes.moved(memory, id, step.path, earlier) if earlier else None

        outcome = await self._writer.change(id, step.cause, decide, use=Use(step.action, id))
        return "changed" if outcome.appended else "unchanged"


class Step(msgspec.Struct, frozen=True):
    """One thing that a File event asks for. `old_path` is where a renamed note was."""

    action: Literal["save", "remove", "ignore"]
    path: str
    root: str
    cause: Cause
    content: str | None = None
    old_path: str | None = None

    def id_of(self, path: str) -> str:
        return note_id(self.cause.world_id, path, self.root)


def _steps(event: Event, payload: FilePayload, traceparent: str) -> list[Step]:
    cause = _cause(event, traceparent)
    path = note_path(payload.to or payload.path)
    match event.data.event:
        case "Created" | "Modified" if is_note(path) and payload.content is not None:
            return [Step("save", path, payload.root, cause, payload.content)]
        case "Deleted" if is_note(path):
            return [Step("remove", path, payload.root, cause)]
        case "Renamed":
            return _renamed(payload, cause) or [Step("ignore", path, payload.root, cause)]
    return [Step("ignore", path, payload.root, cause)]


def _renamed(payload: FilePayload, cause: Cause) -> list[Step]:
    """The new one first: a crash in between leaves a note twice, never not at all."""
    new = note_path(payload.to or payload.new_path or payload.path)
    old = note_path(payload.from_ or payload.old_path or (payload.path if payload.new_path else new))
    was_note = old != new and is_note(old)
    saves = [Step("save", new, payload.root, cause, payload.content, old if was_note else None)] if is_note(new) else []
    return [*saves, *([Step("remove", old, payload.root, cause)] if was_note else [])]


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
    return unicodedata.normalize("NFC", path).replace("\\", "/").removeprefix("./")


async def _parsed(content: str, path: str) -> Note:
    if len(content) <= _IN_PLACE:
        return parse(content, path)
    return await asyncio.to_thread(parse, content, path)
