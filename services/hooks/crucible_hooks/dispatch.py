"""From the log to the queue: each committed event becomes one run of each Post hook that it triggers."""

import asyncio
import logging

from crucible_core import subjects
from crucible_core.envelope import MAX_HOPS, Event, decode
from crucible_core.errors import UnavailableError
from crucible_core.protocol.events import NewEvent
from crucible_kit.bus import Bus, Message
from crucible_kit.clock import timestamp
from crucible_kit.frames import Outgoing
from crucible_kit.metrics import Metrics
from crucible_kit.tasks import Turn
from crucible_kit.telemetry import Telemetry, current_traceparent
from crucible_kit.work import ensure_durable, work_batches

from .debounce import Debounce
from .hook import Hook
from .intercept import action_of
from .recorder import Recorder, append
from .records import registration, run_event, run_id, run_record, stored, trigger_event
from .registry import Registry

log = logging.getLogger(__name__)

DURABLE = "hooks-dispatch"
_BATCH = 200
_TELL_S = 2.0
_AWAY_S = 5.0
"""How long nothing is asked of `events` after it was away."""


async def open_dispatch(bus: Bus) -> None:
    """Makes the consumer, from this moment on. Without any hook there is none: it would read the whole log in vain."""
    filters = [bus.names.all_events]
    await ensure_durable(
        bus, bus.names.events, bus.names.durable(DURABLE), filters, concurrency=4 * _BATCH, deliver="new"
    )


class Dispatcher:
    def __init__(
        self,
        bus: Bus,
        registry: Registry,
        debounce: Debounce,
        recorder: Recorder,
        telemetry: Telemetry,
        metrics: Metrics,
    ) -> None:
        self._bus = bus
        self._telemetry = telemetry
        self._registry = registry
        self._debounce = debounce
        self._recorder = recorder
        self._away_until = 0.0
        self._triggered = metrics.counter("hook_runs_triggered", "Runs put into the queue")
        self._debounced = metrics.counter("hook_runs_debounced", "Triggers within the time that debounce_ms sets")
        self._stopped = metrics.counter("hook_chains_stopped", "Triggers at the end of a chain that is too deep")

    async def run(self) -> None:
        """Runs until cancelled."""
        await self._registry.populated.wait()
        names = self._bus.names
        durable, filters = names.durable(DURABLE), [names.all_events]
        await work_batches(
            self._bus,
            names.events,
            durable,
            self.handle,
            filters=filters,
            batch=_BATCH,
            deliver="new",
            telemetry=self._telemetry,
        )

    async def handle(self, messages: list[Message]) -> None:
        """Returns once every run that follows from the batch is stored. May be repeated: ids and debounce marks tell
        what was done. Raises `msgspec.DecodeError` for a message that is no event."""
        reacted_to = [message for message in messages if subjects.NO_REACTION not in message.headers]
        events, turn = [], Turn()
        for message in reacted_to:
            events.append((message, decode(message.data, message.sequence)))
            if turn.over:
                await turn.pass_on()
        await self._registry.catch_up(event for _, event in events)
        batch = _Batch()
        for message, event in events:
            if turn.over:
                await turn.pass_on()
            for hook in self._registry.match(event):
                await self._trigger(batch, hook, event, message)
        if batch.messages:
            await self._enqueue(batch.messages)
        if batch.events:
            await append(self._bus, batch.events)
        if batch.triggered:
            await self._tell(batch.triggered)
        if batch.skipped:
            await self._bus.store_all([self._skipped(*one) for one in batch.skipped.values()])

    async def _enqueue(self, messages: list[Outgoing]) -> None:
        queue, parent = self._bus.names.hook_runs, current_traceparent()
        with self._telemetry.batch("send", queue, messages, count=len(messages), parent=parent):
            await self._bus.store_all(messages)

    async def _trigger(self, batch: "_Batch", hook: Hook, event: Event, message: Message) -> None:
        if event.metadata.hop >= MAX_HOPS:
            self._stop(batch, hook, event)
        elif await self._debounce.passes(hook, event.metadata.id, message.time_ms):
            run = run_message(self._bus, hook, event, message)
            if (told := trigger_event(hook, event, run.headers[subjects.RUN])) is not None:
                batch.triggered.append(told)
            self._triggered.inc()
            if hook.definition.options.debounce_ms:
                # Before the mark can move on to a later event of the batch: a repetition would hold this one back.
                await self._bus.store(run)
            else:
                batch.messages.append(run)
        else:
            first = batch.skipped.get(hook.name, (hook, event, 0))
            batch.skipped[hook.name] = (hook, first[1], first[2] + 1)
            self._debounced.inc()

    async def _tell(self, events: list[NewEvent]) -> None:
        """Appends Hook.Triggered. Where `events` is away they wait in the recorder: hooks react all the same."""
        loop = asyncio.get_running_loop()
        for start in range(0, len(events), _BATCH):
            part = events[start : start + _BATCH]
            try:
                if loop.time() < self._away_until:
                    raise UnavailableError("events was away a moment ago")
                await append(self._bus, part, _TELL_S)
            except UnavailableError:
                self._away_until = self._away_until if loop.time() < self._away_until else loop.time() + _AWAY_S
                await self._recorder.tell(*part)

    def _stop(self, batch: "_Batch", hook: Hook, event: Event) -> None:
        record = run_record(hook, event, run_id(hook, event), 0, "stopped", timestamp())
        record.error = (
            f"not run: the event is effect number {event.metadata.hop} of a chain, and the limit is {MAX_HOPS}"
        )
        batch.messages.append(stored(self._bus.names, record))
        told = run_event(record, event, action_of(hook), event.metadata.traceparent or "")
        if told is not None:
            batch.events.append(told)
        self._stopped.inc()
        log.warning("hook %s: %s", hook.name, record.error, extra={"event": event.metadata.id})

    def _skipped(self, hook: Hook, first: Event, count: int) -> Outgoing:
        """One record for all triggers of a batch that debounce holds back; its output tells how many."""
        record = run_record(hook, first, run_id(hook, first, "debounced"), 0, "skipped", timestamp())
        record.error = f"debounced: the last trigger was less than {hook.definition.options.debounce_ms} ms before"
        record.output = {"events": count}
        return stored(self._bus.names, record)


class _Batch:
    """What follows from some messages: to store, to append, and by hook what was held back."""

    def __init__(self) -> None:
        self.messages: list[Outgoing] = []
        self.events: list[NewEvent] = []
        self.triggered: list[NewEvent] = []
        self.skipped: dict[str, tuple[Hook, Event, int]] = {}


def run_message(bus: Bus, hook: Hook, event: Event, message: Message) -> Outgoing:
    """The queue's message for the first attempt at a run."""
    headers = {
        subjects.RUN: run_id(hook, event),
        **registration(hook),
        subjects.ATTEMPT: "1",
        subjects.EVENT_SEQUENCE: str(message.sequence),
    }
    if event.metadata.traceparent:
        headers[subjects.TRACEPARENT] = event.metadata.traceparent
    return Outgoing(bus.names.run(hook.name), message.data, headers, f"{hook.id or hook.name}:{event.metadata.id}")
