"""Spans of dispatch and delivery, as a real collector receives them."""

from starlette.responses import Response

from crucible_core.subjects import Names
from crucible_kit.nats.bus import Bus
from tests.collector import CLIENT, CONSUMER, ERROR, Collector, attributes_of

from .conftest import Receiver, Service, Settings, until

TRACE = "0af7651916cd43dd8448eb211c80319c"
MANY = 20


async def test_a_dispatched_batch_has_one_span(
    collector: Collector, bus: Bus, settings: Settings, told: list[str], receiver: Receiver, names: Names
) -> None:
    service = Service(bus, settings)
    async with service.running():
        await service.create(receiver.url)
    for _ in range(MANY):
        await service.append()
    async with service.running():
        await until(lambda: len(receiver.requests) == MANY)
    dispatched = collector.named(f"process {names.events}")
    assert {span.kind for span in dispatched} == {CONSUMER}
    assert sum(attributes_of(span)["messaging.batch.message_count"] for span in dispatched) == MANY
    # All events are of one trace here.
    assert {link.trace_id.hex() for span in dispatched for link in span.links} == {TRACE}
    groups = {attributes_of(span)["messaging.consumer.group.name"] for span in dispatched}
    assert groups == {names.durable("webhooks")}
    delivered = collector.named(f"process {names.deliveries}")
    calls = collector.named("POST")
    assert {span.trace_id.hex() for span in [*delivered, *calls]} == {TRACE}
    assert {span.kind for span in calls} == {CLIENT}
    assert {span.parent_span_id for span in calls} == {span.span_id for span in delivered}


async def test_a_failed_delivery_is_an_error_with_its_kind(
    collector: Collector, bus: Bus, settings: Settings, told: list[str], receiver: Receiver, names: Names
) -> None:
    async def refuse(*_: object) -> Response:
        return Response(status_code=500)

    receiver.answer = refuse
    service = Service(bus, settings)
    async with service.running():
        options = {"retry_delays_s": []}
        refusing = await service.create(receiver.url, options=options)
        away = await service.create("http://127.0.0.1:1/", options=options)
        await service.append()
        for webhook in (refusing, away):
            await until(lambda webhook=webhook: attempted(service, webhook))  # type: ignore[misc]
    failed = {
        attributes_of(span)["crucible.webhook.id"]: span for span in collector.named(f"process {names.deliveries}")
    }
    for webhook, error_type in ((refusing, "500"), (away, "no_answer")):
        span = failed[webhook.id]
        assert (span.status.code, attributes_of(span)["error.type"]) == (ERROR, error_type)
        assert attributes_of(span)["crucible.outcome"] == "exhausted"
        assert span.status.message
    calls = {attributes_of(span)["server.port"]: span for span in collector.named("POST")}
    assert attributes_of(calls[1])["error.type"] == "ClientConnectorError"
    assert {span.status.code for span in calls.values()} == {ERROR}
    assert collector.metrics()["crucible.webhook_attempts"].sum.is_monotonic


async def attempted(service: Service, webhook: object) -> bool:
    return bool(await service.attempts(webhook))  # type: ignore[arg-type]
