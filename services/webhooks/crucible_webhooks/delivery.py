"""Deliveries of events to webhooks: the attempt, its record in the history, and the events and changes that follow."""

import contextlib
import logging
import time
from collections.abc import Sequence, Set
from functools import partial

import msgspec

from crucible_core import subjects
from crucible_core.envelope import Event, Source
from crucible_core.errors import CrucibleError, LimitedError, NotFoundError, UnavailableError
from crucible_core.ids import derive_id
from crucible_core.limits import HOPS
from crucible_core.position import Position
from crucible_core.protocol.events import NewEvent
from crucible_core.protocol.webhooks import AttemptRecord, WebhookRecord
from crucible_core.subjects import DLV
from crucible_kit.clock import now_ms, timestamp
from crucible_kit.events import append_one
from crucible_kit.handlers.lanes import Job
from crucible_kit.handlers.service import Outcome, Plan
from crucible_kit.http.exchange import Exchanger, chain_headers
from crucible_kit.index.erasure import RedactedEvents
from crucible_kit.nats.bus import Bus, Message
from crucible_kit.nats.frames import Outgoing
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.telemetry.spans import Attribute, Telemetry, message_attributes
from crucible_webhooks.outcome import GONE, HIDDEN, SKIPPED, Response, Result, classify, post
from crucible_webhooks.records import signing_keys, url_origin
from crucible_webhooks.registry import WEBHOOKS, Registry, WebhookEntry
from crucible_webhooks.signing import USER_AGENT, authorization, encode_body, sign

log = logging.getLogger(__name__)

REPLAY_HEADER = "X-Crucible-Replay"
"""The header of a replayed event's request."""
_UNREADABLE = Plan(concurrency=1, held=True)
_REPORTED = frozenset({"failed", "exhausted"})
"""Outcomes of which an event is appended."""


class Deliveries:
    """The `crucible_kit.handlers.service.Service` of webhooks: the id is the handler."""

    name, kind = "webhooks", DLV

    def __init__(
        self,
        bus: Bus,
        registry: Registry,
        redacted: RedactedEvents,
        exchanger: Exchanger,
        telemetry: Telemetry,
        metrics: Metrics,
    ) -> None:
        self.queue = bus.names.deliveries
        self._bus = bus
        self._registry = registry
        self._redacted = redacted
        self._exchanger = exchanger
        self._plans: dict[str, tuple[WebhookEntry, Plan]] = {}
        self._telemetry = telemetry
        self._attempts = metrics.counter("webhook_attempts", "Attempts by outcome", ("outcome",))
        self._seconds = metrics.histogram("webhook_attempt_seconds", "How long an exchange with an endpoint took")

    # ---- the registry

    def since(self, shard: int) -> Position | None:
        found = [self._bus.names.position(since) for since in self._registry.since(shard)]
        return found[0].least(*found) if found else None

    def types(self) -> Set[str] | None:
        return self._registry.wanted_types

    def may_want(self, category: str, event: str) -> bool:
        return self._registry.may_want(category, event)

    def plan(self, handler: str) -> Plan | None:
        entry = self._registry.entries.get(handler)
        if entry is None:
            self._plans.pop(handler, None)
            return None if self._registry.is_deleted(handler) else _UNREADABLE
        types, cached = None if entry.filters is None else entry.filters.types, self._plans.get(handler)
        if cached is not None and cached[0] is entry and cached[1].types is types:
            return cached[1]
        plan = Plan(entry.concurrency, self._bus.names.position(entry.since or 0), entry.is_held, types=types)
        self._plans[handler] = entry, plan
        return plan

    def unreadable(self) -> list[str]:
        return [id for id in self._registry.inert if id not in self._registry.entries]

    async def reach(self, revision: int) -> None:
        await self._registry.view.reach(revision)

    async def catch_up(self, events: Sequence[Event]) -> None:
        await self._registry.catch_up(events)

    def match(self, event: Event) -> list[str]:
        return self._registry.match(event)

    def wants(self, handler: str, event: Event) -> bool:
        return self._registry.wants(handler, event)

    def job_id(self, handler: str, event: Event, stored_ms: int) -> str:
        return derive_id("dlv", stored_ms, handler, event.metadata.id)

    def identify(self, record: bytes) -> tuple[str, int]:
        found = msgspec.json.decode(record, type=AttemptRecord)
        return found.delivery_id, found.attempt

    async def left_of(self, sequence: int) -> Message | None:
        return await self._redacted.left_of(sequence)

    # ---- attempts

    def held_back(self, first: Job, count: int) -> Outgoing:
        raise AssertionError("no webhook asks that its events be some time apart")

    async def attempt(self, job: Job) -> Outcome:
        record = self._registry.record(job.handler)
        if record is None:
            if self._registry.is_deleted(job.handler):
                return Outcome()
            raise UnavailableError(f"webhook {job.handler} cannot be read by this replica")
        gone = job.sequence in self._redacted or job.event.redacted is not msgspec.UNSET
        if gone or not self._registry.may_receive(record, job.event):
            result = SKIPPED if gone else HIDDEN
            attempt = _attempt_record(record, job, timestamp(), Response(), result)
        else:
            attempt, result = await self._deliver(record, job)
        self._attempts.labels(result.outcome).inc()
        return self._outcome(record, job, attempt, result)

    async def again(self, job: Job, record: bytes) -> Outcome:
        webhook = self._registry.record(job.handler)
        if webhook is None:
            return Outcome()
        attempt = msgspec.json.decode(record, type=AttemptRecord)
        return Outcome(follows=partial(self._report_failure, webhook, job.event, attempt))

    async def parked(self, job: Job, reason: str) -> Outcome:
        record = self._registry.record(job.handler)
        if record is None:
            return Outcome()
        result = Result("failed", reason=f"put aside: {reason}")
        return self._outcome(record, job, _attempt_record(record, job, timestamp(), Response(), result), result)

    def _outcome(self, record: WebhookRecord, job: Job, attempt: AttemptRecord, result: Result) -> Outcome:
        retry_at_ms = None
        if result.outcome == "retrying":
            retry_at_ms = now_ms() + int(result.delay_s * 1000)
            attempt.next_attempt_at = timestamp(retry_at_ms)
        subject = self._bus.names.attempt(DLV, record.id, job.id)
        stored = Outgoing(subject, msgspec.json.encode(attempt), msg_id=f"{job.id}:{job.attempt}")
        follows = partial(self._report_failure, record, job.event, attempt) if attempt.outcome in _REPORTED else None
        return Outcome(stored, retry_at_ms, follows)

    async def _deliver(self, record: WebhookRecord, job: Job) -> tuple[AttemptRecord, Result]:
        """Makes one attempt; a dry one sends nothing."""
        began, started_at = time.perf_counter(), timestamp()
        if subjects.REPLAY in job.headers and record.options.replay == "dry":
            dry = Result("dry")
            return _attempt_record(record, job, started_at, Response(), dry), dry
        parent, queue = job.traceparent, self.queue
        about = self._span_attributes(record, job) if self._telemetry.recording else None
        with self._telemetry.span(f"process {queue}", parent, "consumer", about, [parent]) as span:
            response = await self._exchange(record, job, span.traceparent)
            took = time.perf_counter() - began
            result = classify(response, job.attempt, record.options.retry_delays_s)
            span.set("crucible.outcome", result.outcome)
            if result.outcome != "delivered":
                span.fail(str(response.status or "no_answer"), result.reason or "")
        self._seconds.observe(took)
        attempt = _attempt_record(record, job, started_at, response, result)
        attempt.duration_ms = round(took * 1000, 3)
        return attempt, result

    def _span_attributes(self, record: WebhookRecord, job: Job) -> dict[str, Attribute | None]:
        return {
            **message_attributes("process", self.queue, message_id=job.id, group=record.id, size=len(job.raw)),
            "crucible.webhook.id": record.id,
            "crucible.event.id": job.event.metadata.id,
            "crucible.attempt": job.attempt,
        }

    async def _exchange(self, record: WebhookRecord, job: Job, traceparent: str) -> Response:
        replay = subjects.REPLAY in job.headers
        body = encode_body(job.raw, replay)
        headers = request_headers(record, job.event, job.id, body, now_ms() // 1000)
        headers |= {subjects.TRACEPARENT: traceparent} | ({REPLAY_HEADER: "true"} if replay else {})
        return await post(self._exchanger, record.url, headers, body, record.options.timeout_ms / 1000)

    async def _report_failure(self, record: WebhookRecord, event: Event, outcome: AttemptRecord) -> None:
        """Disables a webhook that is gone, and appends the event of a final failure. Safe to do twice."""
        if outcome.status == GONE:
            with contextlib.suppress(NotFoundError):  # deleted meanwhile
                if self._registry.get(record.id).enabled:
                    await self._registry.set_enabled(record.id, False, outcome.error)
            await self._append("Webhook.Disabled", record, event, outcome)
        elif outcome.outcome in _REPORTED and event.type != "Webhook":
            # Never for an event about webhooks: two that fail would report each other's failures without end.
            await self._append("Webhook.Exhausted", record, event, outcome)

    async def _append(self, event_type: str, record: WebhookRecord, cause: Event, outcome: AttemptRecord) -> None:
        """Raises LimitedError or UnavailableError: then the engine calls again."""
        try:
            await append_one(self._bus, WEBHOOKS, failure_event(event_type, record, cause, outcome))
        except (LimitedError, UnavailableError):
            raise
        except CrucibleError as error:
            log.warning("%s of %s was refused: %s", event_type, record.id, error)


def _attempt_record(
    record: WebhookRecord, job: Job, started_at: str, response: Response, result: Result
) -> AttemptRecord:
    return AttemptRecord(
        delivery_id=job.id,
        webhook_id=record.id,
        event_id=job.event.metadata.id,
        event_type=job.event.dotted,
        event_sequence=job.sequence,
        correlation_id=job.event.metadata.correlation_id,
        attempt=job.attempt,
        outcome=result.outcome,
        started_at=started_at,
        duration_ms=0.0,
        status=response.status,
        error=result.reason,
        response=response.body or None,
        replay=job.headers.get(subjects.REPLAY),
        webhook=record.name,
        world_id=job.event.metadata.world_id,
        room_id=job.event.metadata.room_id,
    )


def request_headers(record: WebhookRecord, event: Event, delivery: str, body: bytes, at_s: int) -> dict[str, str]:
    """The contract's headers."""
    return {
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        "X-Crucible-Event-Id": event.metadata.id,
        "X-Crucible-Event-Type": event.dotted,
        "X-Crucible-Delivery": delivery,
        **sign(signing_keys(record, at_s * 1_000_000), body, event.metadata.id, at_s),
        **authorization(record.auth),
        **chain_headers(event.metadata),
    }


def failure_event(event_type: str, record: WebhookRecord, cause: Event, outcome: AttemptRecord) -> NewEvent:
    """The event of a failed delivery, caused by the event that was to be delivered."""
    payload = {
        "id": record.id,
        "name": record.name,
        "url": url_origin(record.url),
        "reason": outcome.error or "",
        "delivery_id": outcome.delivery_id,
        "event_id": cause.metadata.id,
        "event_type": cause.dotted,
        "attempts": outcome.attempt,
        **({"replay": True} if outcome.replay else {}),
    }
    return NewEvent(
        type=event_type,
        payload=msgspec.Raw(msgspec.json.encode(payload)),
        source=Source("system", "webhooks"),
        actor="system:webhooks",
        correlation_id=cause.metadata.correlation_id,
        causation_id=cause.metadata.id,
        hop=min(cause.metadata.hop + 1, HOPS),
        world_id=cause.metadata.world_id,
        room_id=cause.metadata.room_id,
        entity=record.id,
        traceparent=cause.metadata.traceparent,
        idempotency_key=f"{event_type}:{outcome.delivery_id}:{outcome.attempt}",
    )
