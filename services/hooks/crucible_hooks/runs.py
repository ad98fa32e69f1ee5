"""Runs of Post hooks for the work engine: the attempt, the delay before the next one, its record and events; tests of
hooks that go through the queue; and the upgrade of work that older versions have left."""

import logging
from collections.abc import Mapping, Sequence, Set
from functools import partial

import msgspec

from crucible_core import subjects
from crucible_core.definition import Retry
from crucible_core.envelope import Event
from crucible_core.errors import UnavailableError
from crucible_core.limits import HOOK_DELAY_MS, HOPS
from crucible_core.position import Position
from crucible_core.protocol.hooks import RunRecord
from crucible_core.subjects import DRY_RUN, EVENT_SEQUENCE, REGISTRATION, RUN, token
from crucible_core.times import parse_time
from crucible_hooks.hook import Hook
from crucible_hooks.intercept import action_of
from crucible_hooks.records import (
    Recorder,
    RunEvent,
    attempt_message,
    bounded_error,
    bounded_output,
    run_event,
    run_id,
    run_record,
    trigger_event,
)
from crucible_hooks.registry import HOOKS, Registry
from crucible_hooks.runner import Result, Runner
from crucible_kit.buckets import Bucket, open_bucket
from crucible_kit.clock import now_ms, timestamp
from crucible_kit.handlers.lanes import Job
from crucible_kit.handlers.service import Outcome, Plan
from crucible_kit.handlers.upgrade import migrate
from crucible_kit.index.erasure import RedactedEvents
from crucible_kit.nats.bus import Bus, Message
from crucible_kit.nats.frames import Outgoing
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.telemetry.spans import Telemetry

log = logging.getLogger(__name__)


_GIVE_UP_AFTER = 8
"""The tries after which the absence of another service is the run's failure."""


def next_delay_ms(retry: Retry, attempt: int) -> int | None:
    """The wait after failed attempt number `attempt` (from 1) in milliseconds; None where there is no other."""
    if attempt >= retry.max_attempts:
        return None
    factor = 2 ** (attempt - 1) if retry.backoff == "exponential" else 1
    return min(retry.delay_ms * factor, HOOK_DELAY_MS)


class TestReply(msgspec.Struct):
    """The answer to the test of a hook: the value of its condition, and the run's record."""

    condition: str
    record: RunRecord


class Runs:
    """The `crucible_kit.handlers.service.Service` of hooks: the hook's key is the handler."""

    name, kind = "hooks", RUN

    def __init__(
        self,
        bus: Bus,
        registry: Registry,
        redacted: RedactedEvents,
        runner: Runner,
        recorder: Recorder,
        telemetry: Telemetry,
        metrics: Metrics,
    ) -> None:
        self.queue = bus.names.hook_runs
        self._bus = bus
        self._registry = registry
        self._redacted = redacted
        self._runner = runner
        self._recorder = recorder
        self._telemetry = telemetry
        self._triggered = metrics.counter("hook_runs_triggered", "Runs that events of the log have triggered")
        self._debounced = metrics.counter("hook_runs_debounced", "Triggers within the time that debounce_ms sets")
        self._stopped = metrics.counter("hook_chains_stopped", "Triggers at the end of a chain that is too deep")

    # ---- the registry

    def since(self, shard: int) -> Position | None:
        return self._registry.since(shard)

    def types(self) -> Set[str] | None:
        return self._registry.wanted_types

    def may_want(self, category: str, event: str) -> bool:
        return self._registry.may_want(category, event)

    def plan(self, handler: str) -> Plan | None:
        return self._registry.plan(handler)

    def unreadable(self) -> list[str]:
        return self._registry.unmatched()

    async def reach(self, revision: int) -> None:
        await self._registry.view.reach(revision)

    async def catch_up(self, events: Sequence[Event]) -> None:
        await self._registry.catch_up(events)

    def match(self, event: Event) -> list[str]:
        return [hook.key for hook in self._registry.match(event)]

    def wants(self, handler: str, event: Event) -> bool:
        return self._registry.triggers(handler, event)

    def job_id(self, handler: str, event: Event, stored_ms: int) -> str:
        return run_id(handler, event)

    def identify(self, record: bytes) -> tuple[str, int]:
        found = msgspec.json.decode(record, type=RunRecord)
        return found.run_id, found.attempt

    async def left_of(self, sequence: int) -> Message | None:
        return await self._redacted.left_of(sequence)

    # ---- attempts

    def held_back(self, first: Job, count: int) -> Outgoing:
        """The output of the record has their number."""
        hook = self._find_hook(first.handler)
        self._debounced.inc(count)
        record = run_record(hook, first.event, run_id(hook.key, first.event, "debounced"), 0, "skipped", timestamp())
        record.error = f"debounced: the last trigger was less than {hook.definition.options.debounce_ms} ms before"
        record.output = {"events": count}
        return attempt_message(self._bus.names, record)

    async def attempt(self, job: Job) -> Outcome:
        if self._registry.by_key(job.handler) is None:
            return Outcome()
        hook = self._find_hook(job.handler)
        if subjects.DRY_RUN in job.headers:
            await self._answer(job, await self._test(hook, job))
            return Outcome()
        if job.sequence in self._redacted or job.event.redacted is not msgspec.UNSET:
            record = run_record(hook, job.event, job.id, job.attempt, "skipped", timestamp())
            record.error = "not run: the event was redacted before"
        elif subjects.REPLY_TO not in job.headers and not self._registry.owner_sees(hook, job.event):
            record = run_record(hook, job.event, job.id, job.attempt, "skipped", timestamp())
            record.error = "not run: the hook's owner may not see the event any more"
        elif _is_from_log(job) and job.event.metadata.hop >= HOPS:
            record = self._stop(hook, job)
        else:
            record = await self._run(hook, job)
        return self._outcome(hook, job, record)

    async def again(self, job: Job, record: bytes) -> Outcome:
        hook = self._registry.by_key(job.handler)
        if hook is None:
            return Outcome()
        return Outcome(follows=partial(self._append_events, hook, job, msgspec.json.decode(record, type=RunRecord)))

    async def parked(self, job: Job, reason: str) -> Outcome:
        hook = self._registry.by_key(job.handler)
        if hook is None:
            return Outcome()
        record = run_record(hook, job.event, job.id, job.attempt, "parked", timestamp())
        record.error = f"put aside: {reason}"
        return self._outcome(hook, job, record)

    def _find_hook(self, handler: str) -> Hook:
        """Raises UnavailableError."""
        hook = self._registry.by_key(handler)
        if hook is None:
            raise UnavailableError(f"hook {handler} cannot be run by this replica")
        return hook

    def _outcome(self, hook: Hook, job: Job, record: RunRecord) -> Outcome:
        record.replay = job.headers.get(subjects.REPLAY)
        retry_at_ms = None
        if record.outcome == "retrying":
            retry_at_ms = parse_time(record.next_attempt_at or "", "next_attempt_at") // 1000
        return Outcome(
            attempt_message(self._bus.names, record), retry_at_ms, partial(self._append_events, hook, job, record)
        )

    async def _run(self, hook: Hook, job: Job) -> RunRecord:
        replay = subjects.REPLAY in job.headers
        dry = replay and hook.definition.options.replay == "dry"
        if _is_from_log(job) and job.tries == 1:
            self._triggered.inc()
            if triggered := trigger_event(hook, job.event, job.id):
                await self._recorder.add(RunEvent(triggered))
        try:
            result = await self._runner.attempt(hook, job.event, job.id, job.attempt, dry_run=dry, replay=replay)
        except UnavailableError as error:
            if job.tries < _GIVE_UP_AFTER:
                raise  # not the hook's failure: the engine tries again, and effects are not repeated
            result = self._runner.failed_result(job.event, f"something that it needs stays away: {error.detail}")
        if dry and result.outcome != "skipped":
            result.outcome = "dry"
        record = _result_record(hook, job.event, job.id, job.attempt, result)
        failed = result.outcome == "failed"
        delay_ms = next_delay_ms(hook.definition.options.retry, job.attempt) if failed else None
        if delay_ms is not None:
            delay_ms = max(delay_ms, int(result.retry_after_s * 1000))
            record.outcome, record.next_attempt_at = "retrying", timestamp(now_ms() + delay_ms)
        return record

    def _stop(self, hook: Hook, job: Job) -> RunRecord:
        """Records the end of a chain that is too deep."""
        event = job.event
        record = run_record(hook, event, job.id, 0, "stopped", timestamp())
        record.error = f"not run: the event is effect number {event.metadata.hop} of a chain, and the limit is {HOPS}"
        self._stopped.inc()
        with self._telemetry.span("hook.run", job.traceparent, "internal", {"crucible.run": job.id}):
            log.warning("hook %s: %s", hook.name, record.error, extra={"event": event.metadata.id})
        return record

    async def _append_events(self, hook: Hook, job: Job, record: RunRecord) -> None:
        """Appends the events of a run, and answers the test that waits for it. Safe to do twice."""
        events = [run_event(record, job.event, action_of(hook), job.traceparent)]
        if not job.tries and _is_from_log(job) and record.outcome != "stopped":  # another process began with it
            events.insert(0, trigger_event(hook, job.event, job.id))
        # This also stores the events of the run that this process has recorded before.
        await self._recorder.store(*(event for event in events if event is not None))
        if subjects.REPLY_TO in job.headers:
            await self._answer(job, TestReply("none", record))

    # ---- tests

    async def _test(self, hook: Hook, job: Job) -> TestReply:
        """Makes a dry run, and records nothing."""
        try:
            result = await self._runner.attempt(hook, job.event, job.id, 1, dry_run=True)
        except UnavailableError as error:
            result = self._runner.failed_result(job.event, error.detail)
        return TestReply(result.condition, _result_record(hook, job.event, job.id, 1, result))

    async def _answer(self, job: Job, reply: TestReply) -> None:
        await self._bus.publish(job.headers[subjects.REPLY_TO], msgspec.json.encode(reply))


def _is_from_log(job: Job) -> bool:
    return job.pointer is None


def _result_record(hook: Hook, event: Event, run: str, attempt: int, result: Result) -> RunRecord:
    record = run_record(hook, event, run, attempt, result.outcome, result.started_at)
    record.duration_ms, record.effects, record.log = result.duration_ms, result.effects, result.log
    record.output, record.error = bounded_output(result.output), bounded_error(result.error)
    if result.outcome == "skipped":
        record.error = f"condition: {result.condition}"
    return record


class Mark(msgspec.Struct, frozen=True):
    """The commit (Unix ms) of the last event that a debounce let pass, and the hook's id."""

    at_ms: int
    hook_id: str = ""


async def upgrade(bus: Bus, shards: Bucket, runs: Runs, registry: Registry) -> None:
    """Brings over the work and the debounce marks of versions before the work engine. Safe to interrupt and repeat."""
    names = {token(entry.name): entry for entry in registry.visible_to(HOOKS)}

    def find(found: Message) -> str | None:
        entry = names.get(bus.names.old_handler_of(found.subject))
        is_test = DRY_RUN in found.headers or EVENT_SEQUENCE not in found.headers
        if entry is None or is_test or entry.id != found.headers.get(REGISTRATION, ""):
            return None
        return entry.key

    async def read_marks() -> Mapping[str, int]:
        marks: dict[str, int] = {}
        for key, stored in (await (await open_bucket(bus, "marks")).entries()).items():
            if (entry := names.get(key)) is not None:
                mark = msgspec.json.decode(stored.value, type=Mark)
                if mark.hook_id == entry.id:
                    marks[entry.key] = mark.at_ms
        return marks

    await migrate(bus, shards, runs, find, read_marks)
