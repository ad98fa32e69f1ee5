"""Redacted events: what waits for its delivery is not sent, and does not stay in the queue."""

from collections.abc import Awaitable

from starlette.requests import Request
from starlette.responses import Response

from crucible_core.protocol.shared import GetRequest
from crucible_core.protocol.webhooks import EnableWebhook, WebhookView
from crucible_core.subjects import ATTEMPT, DELIVERY, EVENT_SEQUENCE
from crucible_kit.frames import Outgoing
from tests.tombstones import queued, tell

from .conftest import Receiver, Service, until

SECRET = "vermilion"


async def fail(request: Request, body: bytes) -> Response:
    return Response(status_code=500)


async def outcomes(service: Service, webhook: WebhookView) -> list[str]:
    return [attempt.outcome for attempt in await service.attempts(webhook)]


async def test_what_waits_or_is_parked_is_dropped_and_recorded(service: Service, receiver: Receiver) -> None:
    receiver.answer = fail
    only = [{"event_type": "Custom.Ping"}]
    waiting = await service.create(receiver.url, name="waiting", event_filters=only)
    await service.ask("enable", EnableWebhook(id=waiting.id, enabled=False), WebhookView)
    parked = await service.create(receiver.url, event_filters=only, options={"retry_delays_s": [60, 60]})
    for text in (SECRET, "plain"):
        await service.append("Custom.Ping", text=text)
    await until(lambda: len(receiver.requests) == 2)
    names = service.bus.names

    async def in_queue() -> int:
        return await queued(service.bus, names.deliveries, SECRET)

    async def all_parked() -> bool:
        return await outcomes(service, parked) == ["retrying"] * 2

    await until(all_parked)
    await until(lambda: holds(in_queue(), 2))
    await tell(service.bus, 1)
    await until(lambda: holds(in_queue(), 0))
    assert await queued(service.bus, names.deliveries, "plain") == 2

    async def recorded() -> bool:
        return [await outcomes(service, webhook) for webhook in (waiting, parked)] == [
            ["skipped"],
            ["skipped", "retrying", "retrying"],
        ]

    await until(recorded)
    last = (await service.attempts(parked))[0]
    assert (last.attempt, last.event_sequence, last.error) == (2, 1, "the event was redacted before it was sent")


async def holds(count: Awaitable[int], wanted: int) -> bool:
    return await count == wanted


def _delivery(service: Service, webhook: WebhookView, sequence: int) -> Outgoing:
    raw = b'{"type":"Custom","data":{"event":"Ping","payload":{"text":"%b"}},"metadata":{"id":"evt_1","timestamp":"",'
    raw += b'"source":{"kind":"user","id":"a"},"actor":"user:a","correlation_id":"c"}}'
    headers = {DELIVERY: "dlv_late", ATTEMPT: "1", EVENT_SEQUENCE: str(sequence)}
    return Outgoing(service.bus.names.delivery(webhook.id), raw % SECRET.encode(), headers)


async def test_what_comes_into_the_queue_late_is_not_sent(service: Service, receiver: Receiver) -> None:
    webhook = await service.create(receiver.url, event_filters=[{"event_type": "Custom.Ping"}])
    await service.append("Custom.Other", text=SECRET)
    await tell(service.bus, 1)
    await service.bus.store(_delivery(service, webhook, 1))

    async def dropped() -> bool:
        return await outcomes(service, webhook) == ["skipped"]

    await until(dropped)
    assert not receiver.requests
    counters = (await service.ask("get", GetRequest(id=webhook.id), WebhookView)).counters
    assert (counters.invoked, counters.failed) == (0, 0)
