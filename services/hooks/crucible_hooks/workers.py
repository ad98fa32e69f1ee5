"""The workers: each Post hook's runs, attempt by attempt, with what follows from each outcome."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from functools import partial

import msgspec

from crucible_core import subjects
from crucible_core.envelope import Event, decode
from crucible_core.errors import CrucibleError, UnavailableError
from crucible_core.protocol.hooks import HookRecord, RunRecord
from crucible_core.times import parse_time
from crucible_kit.bus import Bus, Message
from crucible_kit.clock import now_ms, timestamp
from crucible_kit.redactions import Redacted, event_sequence
from crucible_kit.work import Poison, work

from .debounce import Debounce
from .hook import Hook
from .intercept import action_of
from .recorder import append
from .records import bounded_error, bounded_output, run_event, run_record, stored
from .registry import Registry
from .retries import next_delay_ms
from .runner import Result, Runner

log = logging.getLogger(__name__)

_SPARE_S = 15.0
"""How much longer than an attempt may take a message stays a worker's own."""
_PAUSE_S = 1.0
_GIVE_UP_AFTER = 8
"""Deliveries after which something that stays away is the run's failure."""

Wanted = tuple[int, int]


class Trial(msgspec.Struct):
    """What is answered to whoever tries a hook out: what its condition came to, and the run's record."""

    condition: str
    record: RunRecord


class Workers:
    """One worker for each Post hook that is enabled: a slow hook has its own places and holds up nobody else."""

    def __init__(self, bus: Bus, registry: Registry, redacted: Redacted, runner: Runner, debounce: Debounce) -> None:
        self._bus = bus
        self._registry = registry
        self._redacted = redacted
        self._runner = runner
        self._debounce = debounce
        self._running: dict[str, tuple[Wanted, asyncio.Task[None]]] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._changed: asyncio.Queue[str] = asyncio.Queue()

    def registry_changed(self, name: str, before: HookRecord | None, after: HookRecord | None, revision: int) -> None:
        self._changed.put_nowait(name)

    def reloaded(self, name: str) -> None:
        self._changed.put_nowait(name)

    async def run(self) -> None:
        """Keeps the workers in step with the registry until cancelled."""
        try:
            while True:
                await self._adjust(await self._changed.get())
        finally:
            for name in list(self._running):
                self._stop(name)
            await asyncio.gather(*self._stopping, return_exceptions=True)

    async def _adjust(self, name: str) -> None:
        wanted = self._wanted(name)
        running = self._running.get(name)
        if running and (running[0] != wanted or running[1].done()):
            self._stop(name)
            running = None
        if wanted and not running:
            task = asyncio.create_task(self._work(name, *wanted))
            task.add_done_callback(partial(self._ended, name))
            self._running[name] = (wanted, task)
        if name not in self._registry.records:
            with contextlib.suppress(CrucibleError):
                await self._forget(name)

    def _wanted(self, name: str) -> Wanted | None:
        """Concurrency and time-out of the worker that a hook needs; None for one that needs none."""
        hook = self._registry.hooks.get(name)
        if hook is None or hook.pre or not self._registry.records[name].enabled:
            return None
        return hook.definition.options.concurrency, hook.timeout_ms

    def _stop(self, name: str) -> None:
        # Not awaited: a worker ends when the runs that it has begun do, and that may take a slow hook's time.
        _, task = self._running.pop(name)
        task.cancel()
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        """A worker that ends unasked is replaced after a pause."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the worker of %s broke off: %s", name, error, exc_info=error)
            asyncio.get_running_loop().call_later(_PAUSE_S, self._changed.put_nowait, name)

    async def _forget(self, name: str) -> None:
        """Removes a deleted hook's consumer and everything that waited for it; of a hook that takes its name meanwhile,
        nothing."""
        names = self._bus.names
        last = await self._bus.last_sequence(names.hook_runs)
        await self._registry.view.refresh()
        if name in self._registry.records:
            return  # what waits for the old one is known by its id, and dropped
        await self._bus.delete_consumer(names.hook_runs, durable(self._bus, name))
        await self._bus.purge(names.hook_runs, names.run(name), last)
        await self._bus.purge(names.hook_runs, names.run_schedules_of(name), last)
        await self._debounce.forget(name)

    async def _work(self, name: str, concurrency: int, timeout_ms: int) -> None:
        async def handle(message: Message) -> None:
            await self.handle(name, message)

        await work(
            self._bus,
            self._bus.names.hook_runs,
            durable(self._bus, name),
            handle,
            filters=[self._bus.names.run(name)],
            concurrency=concurrency,
            ack_wait=timeout_ms / 1000 + _SPARE_S,
            parked=partial(self._parked, name),
        )

    async def _parked(self, name: str, message: Message, reason: str) -> None:
        """Records a run whose message is put aside: it is over, and its hook's runs show it."""
        hook = self._registry.hooks.get(name)
        if hook is None or hook.id != message.headers.get(subjects.REGISTRATION, ""):
            return
        try:
            event, (run, attempt) = decode(message.data, event_sequence(message)), _place(message)
        except (msgspec.DecodeError, Poison):
            return
        record = run_record(hook, event, run, attempt, "parked", timestamp())
        record.error, record.replay = f"put aside: {reason}", message.headers.get(subjects.REPLAY)
        await self._bus.store(stored(self._bus.names, record))
        await self._settle(hook, event, record, message)

    # ---- one message

    async def handle(self, name: str, message: Message) -> None:
        """One attempt, or what is left to do of one that was interrupted. Returns once all that follows is durable."""
        hook = self._registry.hooks.get(name)
        if hook is None:
            return  # deleted while this waited
        event = decode(message.data, int(message.headers.get(subjects.EVENT_SEQUENCE) or 0) or None)
        run, attempt = _place(message)
        if hook.id != message.headers.get(subjects.REGISTRATION, ""):
            return  # for one that had the name before
        if subjects.DRY_RUN in message.headers:
            await self._answer(message, await self._tried_out(hook, event, run))
            return
        if event.sequence in self._redacted:
            await self.drop(message)
            return
        # A replay that was interrupted may hand on an event again, long after the queue has forgotten the first one.
        again = message.delivered > 1 or subjects.REPLAY in message.headers
        record = await self._recorded(name, run, attempt) if again else None
        if record is None:
            record = await self._attempt(hook, event, run, attempt, message)
        await self._settle(hook, event, record, message)
        if subjects.REPLY_TO in message.headers:
            await self._answer(message, Trial("none", record))

    async def _recorded(self, name: str, run: str, attempt: int) -> RunRecord | None:
        """The record of this very attempt, where an earlier delivery, or an earlier message, got as far as that."""
        last = await self._bus.last(self._bus.names.attempts, self._bus.names.run_attempt(name, run))
        if last is None:
            return None
        record = msgspec.json.decode(last.data, type=RunRecord)
        return record if record.attempt >= attempt else None

    async def _attempt(self, hook: Hook, event: Event, run: str, attempt: int, message: Message) -> RunRecord:
        replay = message.headers.get(subjects.REPLAY)
        dry = replay is not None and hook.definition.options.replay == "dry"
        try:
            result = await self._runner.attempt(hook, event, run, attempt, dry_run=dry, replay=replay is not None)
        except UnavailableError as error:
            if message.delivered < _GIVE_UP_AFTER:
                raise  # not the hook's failure: the message is delivered again, and effects are not made twice
            result = self._runner.failed(event, f"something that it needs stays away: {error.detail}")
        if dry and result.outcome != "skipped":
            result.outcome = "dry"
        record = _finished(hook, event, run, attempt, result)
        record.replay = replay
        delay_ms = next_delay_ms(hook.definition.options.retry, attempt) if result.outcome == "failed" else None
        if delay_ms is not None:
            delay_ms = max(delay_ms, int(result.retry_after_s * 1000))
            record.outcome, record.next_attempt_at = "retrying", timestamp(now_ms() + delay_ms)
        await self._bus.store(stored(self._bus.names, record))
        return record

    async def _settle(self, hook: Hook, event: Event, record: RunRecord, message: Message) -> None:
        """What follows from a record, safe to do twice."""
        if record.outcome == "retrying":
            await self._schedule(hook, record, message)
            return
        told = run_event(record, event, action_of(hook), message.headers.get(subjects.TRACEPARENT, ""))
        if told is not None:
            await append(self._bus, [told])

    async def _schedule(self, hook: Hook, record: RunRecord, message: Message) -> None:
        names, following = self._bus.names, record.attempt + 1
        due_ms = parse_time(record.next_attempt_at, "next_attempt_at") // 1000 if record.next_attempt_at else 0
        await self._bus.schedule(
            names.run_schedule(hook.name, record.run_id),
            names.run(hook.name),
            max(due_ms, now_ms()),
            message.data,
            _kept(message.headers) | {subjects.ATTEMPT: str(following)},
            f"{record.run_id}:{following}",
        )
        if event_sequence(message) in self._redacted:
            self._redacted.look_again()

    async def drop(self, message: Message) -> None:
        """Records that a run, waiting or parked, is not made because its event was redacted. Safe to do twice."""
        name = self._bus.names.hook_of(message.subject)
        hook = next((hook for hook in self._registry.hooks.values() if subjects.token(hook.name) == name), None)
        try:
            event, (run, attempt) = decode(message.data, event_sequence(message)), _place(message)
        except (msgspec.DecodeError, Poison):
            return
        if hook is not None and hook.id == message.headers.get(subjects.REGISTRATION, ""):
            record = run_record(hook, event, run, attempt, "skipped", timestamp())
            record.error = "not run: the event was redacted before"
            record.replay = message.headers.get(subjects.REPLAY)
            await self._bus.store(stored(self._bus.names, record))

    async def _tried_out(self, hook: Hook, event: Event, run: str) -> Trial:
        """A dry run, of which nothing is recorded."""
        try:
            result = await self._runner.attempt(hook, event, run, 1, dry_run=True)
        except UnavailableError as error:
            result = self._runner.failed(event, error.detail)
        return Trial(result.condition, _finished(hook, event, run, 1, result))

    async def _answer(self, message: Message, trial: Trial) -> None:
        """Tells whoever asked for this run, if they still listen."""
        await self._bus.publish(message.headers.get(subjects.REPLY_TO, ""), msgspec.json.encode(trial))


def durable(bus: Bus, hook: str) -> str:
    return bus.names.durable(f"hook-{hook}")


def _finished(hook: Hook, event: Event, run: str, attempt: int, result: Result) -> RunRecord:
    record = run_record(hook, event, run, attempt, result.outcome, result.started_at)
    record.duration_ms, record.effects, record.log = result.duration_ms, result.effects, result.log
    record.output, record.error = bounded_output(result.output), bounded_error(result.error)
    if result.outcome == "skipped":
        record.error = f"condition: {result.condition}"
    return record


def _place(message: Message) -> tuple[str, int]:
    run, attempt = message.headers.get(subjects.RUN), message.headers.get(subjects.ATTEMPT, "")
    if not run or not attempt.isdigit():
        raise Poison("a run without its headers")
    return run, int(attempt)


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    wanted = (subjects.RUN, subjects.REGISTRATION, subjects.EVENT_SEQUENCE, subjects.TRACEPARENT, subjects.REPLAY)
    return {name: headers[name] for name in wanted if name in headers}
