"""Records of hooks: ids of runs, run records for ATTEMPTS, the Hook events of the log, and the background writer of
both: a bounded queue, drained at shutdown."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from crucible_core.envelope import Event, Source, moment_ms
from crucible_core.errors import CrucibleError, InvalidError, LimitedError, UnavailableError
from crucible_core.ids import derive_id
from crucible_core.limits import HOOK_ERROR_CHARS, HOOK_OUTPUT_BYTES, HOPS
from crucible_core.protocol.events import NewEvent
from crucible_core.protocol.hooks import HookRecord, RunRecord
from crucible_core.subjects import RUN, Names
from crucible_core.times import parse_time
from crucible_hooks.hook import Hook, handler_key
from crucible_hooks.registry import HOOKS
from crucible_kit.events import append as append_events
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.frames import Outgoing

log = logging.getLogger(__name__)


FINAL = frozenset({"ok", "denied", "failed", "parked", "stopped"})
"""Outcomes of which an event is appended. A run that is retried has one event, once it is over; one that was skipped
never began, and a dry one changed nothing."""
MAX_WAITING = 10_000
_BATCH = 200
_GATHER_S = 0.01
"""Items that come within this time share one write, unless somebody waits for one: nobody does for a Pre hook's."""
_PAUSE_S = 0.5
_DRAIN_S = 5.0


def run_id(key: str, event: Event, *extra: str) -> str:
    """The id of a run: the same for the same hook's key and event."""
    return derive_id("run", moment_ms(event), key, event.metadata.id, *extra)


def run_record(hook: Hook, event: Event, run: str, attempt: int, outcome: str, started_at: str) -> RunRecord:
    return RunRecord(
        run_id=run,
        hook=hook.name,
        timing=hook.definition.trigger.timing,
        event_id=event.metadata.id,
        event_type=event.dotted,
        correlation_id=event.metadata.correlation_id,
        attempt=attempt,
        outcome=outcome,
        started_at=started_at,
        duration_ms=0.0,
        hook_id=hook.id,
        world_id=event.metadata.world_id,
        room_id=event.metadata.room_id,
    )


def bounded_output(output: Any) -> Any:
    """The output, or the beginning of one that is too large."""
    encoded = msgspec.json.encode(output)
    if len(encoded) <= HOOK_OUTPUT_BYTES:
        return output
    return {"truncated": encoded[:1000].decode(errors="ignore"), "bytes": len(encoded)}


def bounded_error(error: str | None) -> str | None:
    return error[:HOOK_ERROR_CHARS] if error else None


def attempt_message(names: Names, record: RunRecord) -> Outgoing:
    subject = names.attempt(RUN, handler_key(record.hook, record.hook_id), record.run_id)
    return Outgoing(subject, msgspec.json.encode(record), msg_id=f"{record.run_id}:{record.attempt}:{record.outcome}")


def run_event(record: RunRecord, event: Event, action: str, traceparent: str) -> NewEvent | None:
    """Hook.Executed or Hook.Failed, caused by the event that triggered the run; None while it is not over.

    The end of a chain has none where the event itself is about a hook: events would follow without end.
    """
    if record.outcome not in FINAL or (record.outcome == "stopped" and event.type == "Hook"):
        return None
    metadata = event.metadata
    fields = (
        "hook",
        "run_id",
        "timing",
        "event_id",
        "event_type",
        "correlation_id",
        "attempt",
        "outcome",
        "started_at",
    )
    payload = {name: getattr(record, name) for name in (*fields, "duration_ms", "effects", "log", "output")}
    payload |= {"action": action, "event_sequence": event.sequence, "hop": metadata.hop}
    payload["replay"] = True if record.replay else None
    payload["hook_id"] = record.hook_id or None
    payload["reason" if record.outcome == "denied" else "error"] = record.error
    return NewEvent(
        type="Hook.Executed" if record.outcome in ("ok", "denied") else "Hook.Failed",
        payload=msgspec.Raw(msgspec.json.encode({name: value for name, value in payload.items() if value is not None})),
        id=derive_id("evt", moment_ms(event), "run", record.run_id, str(record.attempt), record.outcome),
        source=Source("system", "hooks"),
        actor=f"hook:{record.hook}",
        correlation_id=metadata.correlation_id,
        # A denied event is never in the log: the cause of the denial is the cause of that event.
        causation_id=metadata.causation_id if record.outcome == "denied" else metadata.id,
        # The event of a chain's last run is as deep as a chain may be.
        hop=min(metadata.hop + 1, HOPS),
        world_id=metadata.world_id,
        room_id=metadata.room_id,
        entity=record.hook,
        traceparent=traceparent,
    )


class _Payload(RunRecord, kw_only=True):
    reason: str | None = None
    replay: Any = None
    """True, of a replay."""


class _Data(msgspec.Struct):
    payload: _Payload


class _Metadata(msgspec.Struct):
    world_id: str
    room_id: str


class _StoredEvent(msgspec.Struct):
    data: _Data
    metadata: _Metadata


_decode_event = msgspec.json.Decoder(_StoredEvent).decode


def read_answer(stored: bytes) -> RunRecord | None:
    """The record that a Pre hook's `run_event` is in the log; None for another hook's. Raises `msgspec.DecodeError`."""
    event = _decode_event(stored)
    found = event.data.payload
    if found.timing != "Pre":
        return None
    fields = {name: getattr(found, name) for name in RunRecord.__struct_fields__}
    fields |= {"error": found.reason or found.error, "replay": None}
    return RunRecord(**fields | {"world_id": event.metadata.world_id, "room_id": event.metadata.room_id})


def trigger_event(hook: Hook, event: Event, run: str) -> NewEvent | None:
    """Hook.Triggered, caused by the event that matched. None for an event about hooks: each would cause the next."""
    if event.type == "Hook":
        return None
    metadata = event.metadata
    payload = {
        "hook": hook.name,
        "hook_id": hook.id or None,
        "timing": hook.definition.trigger.timing,
        "run_id": run,
        "event_id": metadata.id,
        "event_type": event.dotted,
        "event_sequence": event.sequence,
        "correlation_id": metadata.correlation_id,
        "hop": metadata.hop,
    }
    return NewEvent(
        type="Hook.Triggered",
        payload=msgspec.Raw(msgspec.json.encode({name: value for name, value in payload.items() if value is not None})),
        id=derive_id("evt", moment_ms(event), "triggered", run),
        source=Source("system", "hooks"),
        actor=f"hook:{hook.name}",
        correlation_id=metadata.correlation_id,
        causation_id=metadata.id,
        hop=min(metadata.hop + 1, HOPS),
        world_id=metadata.world_id,
        room_id=metadata.room_id,
        entity=hook.name,
        traceparent=metadata.traceparent or "",
    )


def registry_event(event: str, record: HookRecord, revision: int, at_ms: int, world_id: str) -> NewEvent:
    """Hook.Registered or Hook.Unregistered, in a world; the same change of the bucket makes the same id on every
    replica."""
    definition = record.definition or {}
    trigger = definition.get("trigger") or {}
    payload = {
        "hook": record.name,
        "hook_id": record.id or None,
        "origin": record.origin,
        "enabled": record.enabled,
        "error": bounded_error(record.error),
        "timing": trigger.get("timing"),
        "priority": trigger.get("priority"),
        "version": definition.get("version"),
    }
    return NewEvent(
        type=f"Hook.{event}",
        payload=msgspec.Raw(msgspec.json.encode({name: value for name, value in payload.items() if value is not None})),
        id=derive_id("evt", at_ms, event, record.name, str(revision)),
        source=Source("system", "hooks"),
        actor="system:hooks",
        world_id=world_id,
        entity=record.name,
    )


class RunEvent(NamedTuple):
    """An event of a run, and the run's `record` where nothing else holds that: it goes into the history while the
    event cannot be in the log."""

    event: NewEvent
    record: RunRecord | None = None


Item = Outgoing | RunEvent | asyncio.Future[None]
"""A future ends once everything before it is stored."""


class Recorder:
    """Stores messages and events in order, in the background, and retries while something is away. Ends drained."""

    def __init__(self, bus: Bus, home_of: Callable[[HookRecord], str]) -> None:
        """`home_of` names the world into which changes of a hook are recorded."""
        self._bus = bus
        self._home_of = home_of
        self._waiting: asyncio.Queue[Item] = asyncio.Queue(MAX_WAITING)
        self._wanted = asyncio.Event()
        """Set once somebody waits for a gathered item."""

    async def add(self, item: Outgoing | RunEvent) -> None:
        """Waits only while the queue is full."""
        await self._waiting.put(item)

    async def store(self, *events: NewEvent) -> None:
        """Returns once the events are in the log, or refused for good."""
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for event in events:
            await self.add(RunEvent(event))
        await self._waiting.put(stored)
        self._wanted.set()
        await stored

    def record_change(self, name: str, before: HookRecord | None, after: HookRecord | None, revision: int) -> None:
        """Records that a hook was added, replaced or removed."""
        record = after or before
        if record is None:
            return
        name, at_ms, world = "Registered" if after else "Unregistered", _ms(record.updated_at), self._home_of(record)
        event = registry_event(name, record, revision, at_ms, world)
        try:
            self._waiting.put_nowait(RunEvent(event))
        except asyncio.QueueFull:
            log.warning("the change of hook %s is not recorded: too much waits", name)

    async def run(self) -> None:
        """Runs until cancelled; then it stores the rest, for some seconds at most."""
        held: list[Item] = []
        try:
            while True:
                held.append(await self._waiting.get())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_GATHER_S):
                        await self._wanted.wait()
                self._wanted.clear()
                self._take_more(held)
                await self._store(held)
                held.clear()
        finally:
            self._take_more(held, MAX_WAITING)
            if held:
                await self._drain(held)

    def _take_more(self, held: list[Item], most: int = _BATCH) -> None:
        while len(held) < most and not self._waiting.empty():
            held.append(self._waiting.get_nowait())

    async def _store(self, held: Sequence[Item]) -> None:
        records = [item for item in held if isinstance(item, Outgoing)]
        events = [item for item in held if isinstance(item, RunEvent)]
        while records or events:
            try:
                if records:
                    await self._bus.store_all(records)
                    records = []
                if events:
                    records, events = self._records_of(await append(self._bus, events)), []
            except (LimitedError, UnavailableError) as error:
                log.info("records wait: %s", error)
                if not records and (records := self._records_of(events)):  # the log will have them a second time
                    events = [RunEvent(one.event) for one in events]
                else:
                    await asyncio.sleep(_PAUSE_S)
            except CrucibleError as error:
                log.warning("%d records are refused: %s", len(held), error)
                records, events = ([], events) if records else (self._records_of(events), [])
        for item in held:
            if isinstance(item, asyncio.Future) and not item.done():
                item.set_result(None)

    def _records_of(self, events: Sequence[RunEvent]) -> list[Outgoing]:
        return [attempt_message(self._bus.names, one.record) for one in events if one.record is not None]

    async def _drain(self, held: Sequence[Item]) -> None:
        try:
            async with asyncio.timeout(_DRAIN_S):
                await self._store(held)
        except TimeoutError:
            log.warning("%d records were not stored before the end", len(held))


async def append(bus: Bus, pending: Sequence[RunEvent], timeout_s: float = 10.0) -> list[RunEvent]:
    """Appends events with ids of their own, so that it may be repeated. Returns those that are refused for good. Raises
    UnavailableError."""
    events = [one.event for one in pending]
    results = await append_events(bus, HOOKS, events, timeout=timeout_s, traceparent=events[0].traceparent)
    refused = []
    for one, result in zip(pending, results, strict=False):
        if result.error is None:
            continue
        if result.error.code == UnavailableError.code:
            raise UnavailableError(result.error.detail)
        log.warning("%s of %s is not in the log: %s", one.event.type, one.event.entity, result.error.detail)
        refused.append(one)
    return refused


def _ms(timestamp: str) -> int:
    try:
        return parse_time(timestamp, "updated_at") // 1000
    except InvalidError:
        return 0
