"""Redacted events: what waits for its delivery is not sent, and does not stay in the queue."""

from starlette.requests import Request
from starlette.responses import Response

from crucible_core.protocol.parts import GetRequest
from crucible_core.protocol.webhooks import EnableWebhook, WebhookView
from crucible_core.subjects import ATTEMPT, DLV, EVENT_SEQUENCE, JOB
from crucible_kit.handlers.pointers import pointer
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

    async def all_parked() -> bool:
        return await outcomes(service, parked) == ["retrying"] * 2

    await until(all_parked)
    assert await queued(service.bus, names.deliveries, SECRET) == 0  # it points at its event
    await tell(service.bus, 1)
    await service.bus.schedule(
        names.schedule(DLV, parked.id, "now"), names.work(DLV, parked.id), 0, b"", await _retry(service, parked, 1)
    )

    async def recorded() -> bool:
        return await outcomes(service, parked) == ["skipped", "retrying", "retrying"]

    await until(recorded)
    receiver.requests.clear()
    await service.ask("enable", EnableWebhook(id=waiting.id, enabled=True), WebhookView)
    await until(lambda: receiver.requests)
    assert all(SECRET.encode() not in body for _, body in receiver.requests)
    last = (await service.attempts(parked))[0]
    assert (last.attempt, last.event_sequence, last.error) == (2, 1, "the event was redacted before it was sent")


async def _retry(service: Service, webhook: WebhookView, sequence: int) -> dict[str, str]:
    """The headers of the second attempt at an event's delivery, as it waits for its time."""
    made = next(attempt for attempt in await service.attempts(webhook) if attempt.event_sequence == sequence)
    return {JOB: made.delivery_id, ATTEMPT: "2", EVENT_SEQUENCE: str(sequence)}


async def test_what_comes_into_the_queue_late_is_not_sent(service: Service, receiver: Receiver) -> None:
    webhook = await service.create(receiver.url, event_filters=[{"event_type": "Custom.Ping"}])
    await service.append("Custom.Other", text=SECRET)
    await tell(service.bus, 1)
    await service.bus.store(pointer(service.bus.names, DLV, webhook.id, "dlv_late", 1))

    async def dropped() -> bool:
        return await outcomes(service, webhook) == ["skipped"]

    await until(dropped)
    assert not receiver.requests
    counters = (await service.ask("get", GetRequest(id=webhook.id), WebhookView)).counters
    assert (counters.invoked, counters.failed) == (0, 0)
