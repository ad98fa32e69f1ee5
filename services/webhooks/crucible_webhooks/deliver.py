"""The workers: each webhook's deliveries, attempt by attempt, with what follows from each outcome."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping

import msgspec

from crucible_core import subjects
from crucible_core.envelope import MAX_HOPS, Event, Source, decode
from crucible_core.errors import CrucibleError, LimitedError, NotFoundError, UnavailableError, from_problem
from crucible_core.protocol.events import AppendReply, AppendRequest, NewEvent
from crucible_core.protocol.webhooks import AttemptRecord, WebhookRecord
from crucible_kit.bus import Bus, Message
from crucible_kit.clock import now_ms, timestamp
from crucible_kit.exchange import Exchanger, chain_headers
from crucible_kit.frames import Outgoing
from crucible_kit.metrics import Metrics
from crucible_kit.redactions import Redacted, event_sequence
from crucible_kit.rpc import call
from crucible_kit.streams import DUPLICATE_WINDOW_S
from crucible_kit.telemetry import Attribute, Telemetry, message_attributes
from crucible_kit.work import Poison, work

from .records import keys, told_url
from .registry import Registry
from .sending import post
from .signing import USER_AGENT, authorization, body_of, sign
from .verdict import GONE, SKIPPED, Response, Verdict, judge

log = logging.getLogger(__name__)

REPLAYED = "X-Crucible-Replay"
"""The header of a replayed event's request."""
_PAUSE_S = 1.0
_SURELY_NEW_MS = DUPLICATE_WINDOW_S * 500
_SPARE_S = 15.0
"""How much longer than an attempt may take a message stays a worker's own."""


class Workers:
    """One worker for each webhook that is enabled and not paused: a slow endpoint has its own places and holds up
    nobody else."""

    def __init__(
        self,
        bus: Bus,
        registry: Registry,
        redacted: Redacted,
        exchanger: Exchanger,
        telemetry: Telemetry,
        metrics: Metrics,
    ) -> None:
        self._bus = bus
        self._registry = registry
        self._redacted = redacted
        self._exchanger = exchanger
        self._telemetry = telemetry
        self._attempts = metrics.counter("webhook_attempts", "Attempts by outcome", ("outcome",))
        self._seconds = metrics.histogram("webhook_attempt_seconds", "How long an exchange with an endpoint took")
        self._running: dict[str, tuple[tuple[int, int], asyncio.Task[None]]] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._changed: asyncio.Queue[str] = asyncio.Queue()

    def note(self, webhook_id: str) -> None:
        """A webhook has changed."""
        self._changed.put_nowait(webhook_id)

    async def run(self) -> None:
        """Keeps the workers in step with the registry until cancelled."""
        try:
            while True:
                await self._adjust(await self._changed.get())
        finally:
            for webhook_id in list(self._running):
                self._stop(webhook_id)
            await asyncio.gather(*self._stopping, return_exceptions=True)

    async def _adjust(self, webhook_id: str) -> None:
        record = self._registry.records.get(webhook_id)
        sends = record is not None and record.enabled and not record.paused
        wanted = (record.options.concurrency, record.options.timeout_ms) if record and sends else None
        running = self._running.get(webhook_id)
        if running and (running[0] != wanted or running[1].done()):
            self._stop(webhook_id)
            running = None
        if wanted and not running:
            self._running[webhook_id] = (wanted, asyncio.create_task(self._work(webhook_id, *wanted)))
        if self._registry.is_deleted(webhook_id):
            with contextlib.suppress(CrucibleError):
                await forget(self._bus, webhook_id)

    def _stop(self, webhook_id: str) -> None:
        # Not awaited: a worker ends when the attempts that it has begun do, and that may take a slow endpoint's time.
        _, task = self._running.pop(webhook_id)
        task.cancel()
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def _work(self, webhook_id: str, concurrency: int, timeout_ms: int) -> None:
        names = self._bus.names
        while True:
            try:
                await work(
                    self._bus,
                    names.deliveries,
                    names.durable(webhook_id),
                    self._attempt,
                    filters=[names.delivery(webhook_id)],
                    concurrency=concurrency,
                    ack_wait=timeout_ms / 1000 + _SPARE_S,
                    parked=self._parked,
                )
            except Exception:
                log.exception("the worker of %s broke off; it begins again", webhook_id)
                await asyncio.sleep(_PAUSE_S)

    async def _parked(self, message: Message, reason: str) -> None:
        """Records a delivery whose message is put aside: it is over, and the webhook's attempts show it."""
        record = self._registry.records.get(webhook_of(message))
        try:
            event, (delivery, attempt) = decode(message.data, event_sequence(message)), _place(message)
        except (msgspec.DecodeError, Poison):
            return
        if record is not None:
            verdict = Verdict("failed", reason=f"put aside: {reason}")
            outcome = _attempt_record(record.id, event, delivery, attempt, timestamp(), Response(), verdict)
            outcome.webhook, outcome.replay = record.name, message.headers.get(subjects.REPLAY)
            await self._settle(record, event, message, outcome, verdict)

    async def _attempt(self, message: Message) -> None:
        webhook_id = webhook_of(message)
        if self._registry.is_deleted(webhook_id):
            return  # while this waited
        record = self._registry.records.get(webhook_id)
        if record is None:
            raise UnavailableError(f"webhook {webhook_id} cannot be read by this replica")
        event = decode(message.data, int(message.headers.get(subjects.EVENT_SEQUENCE, 0)))
        delivery, attempt = _place(message)
        earlier = await self._recorded(record, message, delivery, attempt)
        if earlier is not None:
            await self._tell_of(record, event, earlier)
            return
        if event.sequence in self._redacted:
            self._attempts.labels(SKIPPED.outcome).inc()
            await drop(self._bus, message)
            return
        outcome, verdict = await self._made(record, event, message, delivery, attempt)
        outcome.webhook, outcome.replay = record.name, message.headers.get(subjects.REPLAY)
        self._attempts.labels(verdict.outcome).inc()
        await self._settle(record, event, message, outcome, verdict)

    async def _made(
        self, record: WebhookRecord, event: Event, message: Message, delivery: str, attempt: int
    ) -> tuple[AttemptRecord, Verdict]:
        """One attempt, and what its outcome means; a dry one is none."""
        began, started_at = time.perf_counter(), timestamp()
        if subjects.REPLAY in message.headers and record.options.replay == "dry":
            dry = Verdict("dry")
            return _attempt_record(record.id, event, delivery, attempt, started_at, Response(), dry), dry
        parent = message.headers.get(subjects.TRACEPARENT)
        queue, group = self._bus.names.deliveries, self._bus.names.durable(record.id)
        about: dict[str, Attribute | None] = {
            **message_attributes("process", queue, message_id=delivery, group=group, size=len(message.data)),
            "crucible.webhook.id": record.id,
            "crucible.event.id": event.metadata.id,
            "crucible.attempt": attempt,
        }
        with self._telemetry.span(f"process {queue}", parent, "consumer", about, [parent]) as span:
            response = await self._exchange(record, event, message, delivery, span.traceparent)
            took = time.perf_counter() - began
            verdict = judge(response, attempt, record.options.retry_delays_s)
            span.set("crucible.outcome", verdict.outcome)
            if verdict.outcome != "delivered":
                span.fail(str(response.status or "no_answer"), verdict.reason or "")
        self._seconds.observe(took)
        outcome = _attempt_record(record.id, event, delivery, attempt, started_at, response, verdict)
        outcome.duration_ms = round(took * 1000, 3)
        return outcome, verdict

    async def _exchange(
        self, record: WebhookRecord, event: Event, message: Message, delivery: str, traceparent: str
    ) -> Response:
        replay = subjects.REPLAY in message.headers
        body = body_of(message.data, replay)
        headers = request_headers(record, event, delivery, body, now_ms() // 1000) | {subjects.TRACEPARENT: traceparent}
        if replay:
            headers[REPLAYED] = "true"
        return await post(self._exchanger, record.url, headers, body, record.options.timeout_ms / 1000)

    async def _settle(
        self, record: WebhookRecord, event: Event, message: Message, outcome: AttemptRecord, verdict: Verdict
    ) -> None:
        """Everything that follows is durable before the message is acknowledged, and safe to do twice."""
        names = self._bus.names
        if verdict.outcome == "retrying":
            at_ms = now_ms() + int(verdict.delay_s * 1000)
            outcome.next_attempt_at = timestamp(at_ms)
            headers = _kept(message.headers) | {subjects.ATTEMPT: str(outcome.attempt + 1)}
            await self._bus.schedule(
                names.delivery_schedule(record.id, outcome.delivery_id),
                names.delivery(record.id),
                at_ms,
                message.data,
                headers,
                f"{outcome.delivery_id}:{outcome.attempt + 1}",
            )
            if event.sequence in self._redacted:
                self._redacted.look_again()
        await self._bus.store(
            Outgoing(
                names.attempt(record.id, outcome.delivery_id),
                msgspec.json.encode(outcome),
                msg_id=f"{outcome.delivery_id}:{outcome.attempt}",
            )
        )
        await self._tell_of(record, event, outcome)

    async def _recorded(
        self, record: WebhookRecord, message: Message, delivery: str, attempt: int
    ) -> AttemptRecord | None:
        """The attempt as it was made already: by a process that died before it said so, or for an event that was
        dispatched twice, or handed on twice by a replay that was interrupted. Asked only where that can be, since most
        deliveries are new."""
        new = message.delivered == 1 and now_ms() - message.time_ms < _SURELY_NEW_MS
        if new and subjects.REPLAY not in message.headers:
            return None
        names = self._bus.names
        found = await self._bus.last(names.attempts, names.attempt(record.id, delivery))
        made = msgspec.json.decode(found.data, type=AttemptRecord) if found else None
        return made if made is not None and made.attempt >= attempt else None

    async def _tell_of(self, record: WebhookRecord, event: Event, outcome: AttemptRecord) -> None:
        """What a final failure means for the webhook and the log. Safe to do twice."""
        if outcome.status == GONE:
            with contextlib.suppress(NotFoundError):  # deleted meanwhile
                if self._registry.get(record.id).enabled:
                    await self._registry.set_enabled(record.id, False, outcome.error)
            await self._tell("Webhook.Disabled", record, event, outcome)
        elif outcome.outcome in ("failed", "exhausted") and event.type != "Webhook":
            # Of the delivery of such an event nothing is told: webhooks that fail would tell each other without end.
            await self._tell("Webhook.Exhausted", record, event, outcome)

    async def _tell(self, event_type: str, record: WebhookRecord, cause: Event, outcome: AttemptRecord) -> None:
        """Raises LimitedError or UnavailableError: then the message comes again, and this with it."""
        request = AppendRequest(events=[effect(event_type, record, cause, outcome)])
        try:
            reply = await call(self._bus, "events", "append", request, AppendReply)
            if reply.results[0].error:
                raise from_problem(reply.results[0].error)
        except (LimitedError, UnavailableError):
            raise
        except CrucibleError as error:
            log.warning("%s of %s was refused: %s", event_type, record.id, error)


async def drop(bus: Bus, message: Message) -> None:
    """Records that a delivery, waiting or parked, is not made because its event was redacted. Safe to do twice."""
    try:
        event, (delivery, attempt) = decode(message.data, event_sequence(message)), _place(message)
    except (msgspec.DecodeError, Poison):
        return
    webhook_id = bus.names.handler_of(message.subject)
    record = _attempt_record(webhook_id, event, delivery, attempt, timestamp(), Response(), SKIPPED)
    record.replay = message.headers.get(subjects.REPLAY)
    subject = bus.names.attempt(webhook_id, delivery)
    await bus.store(Outgoing(subject, msgspec.json.encode(record), msg_id=f"{delivery}:{attempt}"))


def _attempt_record(
    webhook_id: str,
    event: Event,
    delivery: str,
    attempt: int,
    started_at: str,
    response: Response,
    verdict: Verdict,
) -> AttemptRecord:
    return AttemptRecord(
        delivery_id=delivery,
        webhook_id=webhook_id,
        event_id=event.metadata.id,
        event_type=event.dotted,
        event_sequence=event.sequence or 0,
        correlation_id=event.metadata.correlation_id,
        attempt=attempt,
        outcome=verdict.outcome,
        started_at=started_at,
        duration_ms=0.0,
        status=response.status,
        error=verdict.reason,
        response=response.body or None,
    )


def request_headers(record: WebhookRecord, event: Event, delivery: str, body: bytes, at_s: int) -> dict[str, str]:
    """The contract's headers."""
    return {
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        "X-Crucible-Event-Id": event.metadata.id,
        "X-Crucible-Event-Type": event.dotted,
        "X-Crucible-Delivery": delivery,
        **sign(keys(record, at_s * 1_000_000), body, event.metadata.id, at_s),
        **authorization(record.auth),
        **chain_headers(event.metadata),
    }


def effect(event_type: str, record: WebhookRecord, cause: Event, outcome: AttemptRecord) -> NewEvent:
    """What the log hears of a webhook, caused by the event whose delivery it was."""
    payload = {
        "id": record.id,
        "name": record.name,
        "url": told_url(record.url),
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
        hop=min(cause.metadata.hop + 1, MAX_HOPS),
        world_id=cause.metadata.world_id,
        room_id=cause.metadata.room_id,
        entity=record.id,
        traceparent=cause.metadata.traceparent,
        idempotency_key=f"{event_type}:{outcome.delivery_id}:{outcome.attempt}",
    )


async def forget(bus: Bus, webhook_id: str) -> None:
    """Removes a deleted webhook's consumer and everything that waited for it."""
    await bus.delete_consumer(bus.names.deliveries, bus.names.durable(webhook_id))
    await skip(bus, webhook_id)


async def skip(bus: Bus, webhook_id: str) -> None:
    """Removes the deliveries that wait for a webhook, now or for their time. Safe to do twice."""
    names = bus.names
    await bus.purge(names.deliveries, names.delivery(webhook_id))
    await bus.purge(names.deliveries, names.delivery_schedules_of(webhook_id))


def webhook_of(message: Message) -> str:
    return message.subject.rpartition(".")[2]


def _place(message: Message) -> tuple[str, int]:
    delivery, attempt = message.headers.get(subjects.DELIVERY), message.headers.get(subjects.ATTEMPT, "")
    if not delivery or not attempt.isdigit():
        raise Poison("a delivery without its headers")
    return delivery, int(attempt)


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    wanted = (subjects.DELIVERY, subjects.EVENT_SEQUENCE, subjects.TRACEPARENT, subjects.REPLAY)
    return {name: headers[name] for name in wanted if name in headers}
