"""Webhooks on event types that users register while they run."""

from typing import Any

import msgspec

from crucible_core.protocol import parts
from crucible_core.protocol.events import TypeRecord, TypeVersion
from crucible_core.protocol.parts import Check, GetRequest
from crucible_core.protocol.webhooks import UpdateWebhook, WebhookList, WebhookView
from crucible_core.subjects import token
from crucible_kit.buckets import Bucket, open_bucket
from crucible_kit.nats.bus import Bus
from crucible_kit.types import BUCKET

from .conftest import Receiver, Service, until


async def register(bus: Bus, name: str = "Order.Placed") -> Bucket:
    """Into the bucket, without telling anybody."""
    bucket = await open_bucket(bus, BUCKET)
    version = TypeVersion(version="1.0.0", schema={"properties": {"id": {}}, "additionalProperties": False})
    record = TypeRecord(type=name, versions=[version], aliases=["new_order"] if name == "Order.Placed" else [])
    await bucket.put(token(name), msgspec.json.encode(record))
    return bucket


def filters(*types: str) -> dict[str, Any]:
    return {"event_filters": [{"event_type": name} for name in types]}


async def test_webhook_on_a_registered_type_is_delivered(service: Service, bus: Bus, receiver: Receiver) -> None:
    await register(bus)
    for name in ("Order.Placed", "new_order", "Order.*"):
        assert (await service.create(receiver.url, **filters(name))).state == "active"
    await service.append("Order.Placed", id="o_1")
    await until(lambda: len(receiver.requests) == 3)
    await register(bus, "Order.Sent")
    await service.append("Order.Sent", id="o_1")
    await until(lambda: len(receiver.requests) == 4)


async def test_webhook_is_inert_without_its_type_and_wakes_with_it(
    service: Service, bus: Bus, receiver: Receiver
) -> None:
    bucket = await register(bus)
    webhook = await service.create(receiver.url, **filters("Order.Placed"))

    async def state() -> str:
        found: WebhookView = await service.ask("get", GetRequest(id=webhook.id), WebhookView)
        return found.state

    async def inert() -> bool:
        return (await state()).startswith("inert: event_filters.0.event_type: there is no event type")

    await bucket.delete(token("Order.Placed"))
    await until(inert)
    await register(bus)
    await service.append("Order.Placed", id="o_1")
    await until(lambda: len(receiver.requests) == 1)
    assert await state() == "active"


async def test_webhook_on_what_nobody_emits_is_active_and_says_so(service: Service) -> None:
    url, told = "http://127.0.0.1:9/", ["nobody emits Webhook.Failing yet: reserved"]
    webhook = await service.create(url, **filters("Webhook.Failing", "Memory.*"))
    assert (webhook.state, webhook.warnings) == ("active", told)
    [listed] = (await service.ask("list", parts.Message(), WebhookList)).webhooks
    assert listed.warnings == told
    patch = {"event_filters": [{"event_type": "Memory.*"}]}
    updated = await service.ask("update", UpdateWebhook(id=webhook.id, patch=patch), WebhookView)
    assert updated.warnings == []


async def test_webhook_on_registered_types_is_tried_out(service: Service, bus: Bus, receiver: Receiver) -> None:
    await register(bus)
    webhook = await service.create(receiver.url, **filters("Order.*"))
    check: Check = await service.ask("test", parts.TestRequest(id=webhook.id, dry_run=False), Check)
    assert check.verdict == "live"
    assert b'"event":"Placed"' in receiver.requests[0][1]
