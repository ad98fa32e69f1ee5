"""From the log to the queue: each committed event becomes one delivery for each webhook that wants it."""

import logging
from collections.abc import Callable

import msgspec

from crucible_core import subjects
from crucible_core.envelope import Event, decode
from crucible_core.ids import derive_id
from crucible_core.protocol.webhooks import WebhookRecord
from crucible_core.times import parse_time
from crucible_kit.bus import Bus, Message
from crucible_kit.frames import Outgoing
from crucible_kit.metrics import Metrics
from crucible_kit.tasks import Turn
from crucible_kit.telemetry import Telemetry, current_traceparent
from crucible_kit.work import Poison, ensure_durable, work_batches

from .registry import Registry

log = logging.getLogger(__name__)

DURABLE = "webhooks-dispatch"
_BATCH = 200
_CLOCKS_DIFFER_MS = 5000


async def open_dispatch(bus: Bus) -> None:
    """Makes the consumer, from this moment on. Without any webhook there is none: it would read the whole log in
    vain."""
    filters = [bus.names.all_events]
    await ensure_durable(
        bus, bus.names.events, bus.names.durable(DURABLE), filters, concurrency=4 * _BATCH, deliver="new"
    )


async def dispatch(bus: Bus, registry: Registry, telemetry: Telemetry, metrics: Metrics) -> None:
    """Runs until cancelled. A batch is acknowledged once every delivery that follows from it is stored."""
    matched = metrics.counter("webhook_deliveries_enqueued", "Deliveries put into the queue")

    async def handle(messages: list[Message]) -> None:
        reacted_to = [message for message in messages if subjects.NO_REACTION not in message.headers]
        events, turn = [], Turn()
        for message in reacted_to:
            events.append(_event(message))
            if turn.over:
                await turn.pass_on()
        await registry.catch_up(events)
        deliveries: list[Outgoing] = []
        for message, event in zip(reacted_to, events, strict=True):
            deliveries += _deliveries(bus, registry.match, message, event)
            if turn.over:
                await turn.pass_on()
        if deliveries:
            queue, parent = bus.names.deliveries, current_traceparent()
            with telemetry.batch("send", queue, deliveries, count=len(deliveries), parent=parent):
                await bus.store_all(deliveries)
            matched.inc(len(deliveries))

    await registry.populated.wait()
    durable, filters = bus.names.durable(DURABLE), [bus.names.all_events]
    await work_batches(
        bus, bus.names.events, durable, handle, filters=filters, batch=_BATCH, deliver="new", telemetry=telemetry
    )


def _event(message: Message) -> Event:
    try:
        return decode(message.data, message.sequence)
    except msgspec.DecodeError as error:
        raise Poison(f"not an event: {error}") from error


def _deliveries(
    bus: Bus, match: Callable[[Event], list[WebhookRecord]], message: Message, event: Event
) -> list[Outgoing]:
    return [enqueued(bus, record.id, event, message) for record in match(event) if _is_after(message, record)]


def _is_after(message: Message, record: WebhookRecord) -> bool:
    """A new webhook does not get what waited for the dispatcher from before it was made. The two times are of two
    clocks, so a little of the past is let through rather than anything of the present be lost."""
    made_ms = parse_time(record.created_at, "created_at") // 1000
    return message.time_ms >= made_ms - _CLOCKS_DIFFER_MS


def enqueued(bus: Bus, webhook_id: str, event: Event, message: Message, delivery: str | None = None) -> Outgoing:
    """The queue's message for one delivery; if none is given, the same event and webhook make the same delivery id."""
    delivery = delivery or derive_id("dlv", message.time_ms, webhook_id, event.metadata.id)
    headers = {
        subjects.DELIVERY: delivery,
        subjects.ATTEMPT: "1",
        subjects.EVENT_SEQUENCE: str(message.sequence),
    }
    if event.metadata.traceparent:
        headers[subjects.TRACEPARENT] = event.metadata.traceparent
    return Outgoing(bus.names.delivery(webhook_id), message.data, headers, delivery)
