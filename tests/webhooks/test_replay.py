"""Replays into webhooks: deliveries of their own, marked as replayed, of events that went out before."""

import base64
import hashlib
import hmac

import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import Response

from crucible_core import subjects
from crucible_core.errors import InvalidError, NotFoundError
from crucible_core.protocol.parts import GetRequest
from crucible_core.protocol.replays import Replayable, ReplayBatch, ReplayedEvent, ReplayTaken
from crucible_core.protocol.webhooks import EnableWebhook, UpdateWebhook, WebhookView
from crucible_kit.eventlog import event_at
from crucible_kit.handlers.pointers import pointer

from .conftest import Receiver, Service, until


async def batch(service: Service, webhook: str, sequences: list[int], replay: str = "rpl_1") -> ReplayTaken:
    events = []
    for sequence in sequences:
        stored = await event_at(service.bus, sequence)
        assert stored is not None
        events.append(ReplayedEvent(sequence=sequence, time_ms=stored.time_ms, event=msgspec.Raw(stored.data)))
    taken: ReplayTaken = await service.ask(
        "replay", ReplayBatch(replay=replay, target=webhook, events=events), ReplayTaken
    )
    return taken


async def _attempts(service: Service, webhook: WebhookView, count: int) -> bool:
    return len(await service.attempts(webhook)) == count


async def test_a_replayed_delivery_is_new_and_marked(service: Service, receiver: Receiver) -> None:
    webhook = await service.create(receiver.url, event_filters=[{"event_type": "Custom.Ping"}])
    event = await service.append("Custom.Ping", n=1)
    await service.append("Custom.Other")
    await until(lambda: _attempts(service, webhook, 1))
    taken = await batch(service, webhook.id, [1, 2])
    assert (taken.taken, taken.sent, taken.skipped) == (2, 1, 1)
    await until(lambda: _attempts(service, webhook, 2))
    (first, _), (again, body) = receiver.requests
    assert "x-crucible-replay" not in first
    assert again["x-crucible-replay"] == "true"
    assert again["webhook-id"] == first["webhook-id"] == event.metadata.id
    assert again["x-crucible-delivery"] != first["x-crucible-delivery"]
    assert msgspec.json.decode(body)["replay"] is True
    assert msgspec.json.decode(body)["event"]["data"]["payload"] == {"n": 1}
    secret = str(webhook.secret).removeprefix("whsec_")
    key = base64.b64decode(secret)
    assert again["x-crucible-signature"] == f"sha256={hmac.new(key, body, hashlib.sha256).hexdigest()}"
    assert [attempt.replay for attempt in await service.attempts(webhook)] == ["rpl_1", None]


async def test_a_replay_brings_events_from_before_a_change_of_filters(service: Service, receiver: Receiver) -> None:
    webhook = await service.create(receiver.url, event_filters=[{"event_type": "Custom.Ping"}])
    await service.append("Custom.Other")
    patch = {"event_filters": [{"event_type": "Custom.Other"}]}
    await service.ask("update", UpdateWebhook(id=webhook.id, patch=patch), WebhookView)
    taken = await batch(service, webhook.id, [1])
    assert (taken.sent, taken.skipped) == (1, 0)
    await until(lambda: _attempts(service, webhook, 1))


async def test_a_retry_stays_a_replay(service: Service, receiver: Receiver) -> None:
    options = {"retry_delays_s": [0.05], "timeout_ms": 1000}
    webhook = await service.create(receiver.url, event_filters=[{"event_type": "Custom.Ping"}], options=options)

    async def failing(request: Request, body: bytes) -> Response:
        return Response(status_code=503)

    receiver.answer = failing
    await service.append("Custom.Ping")
    await until(lambda: _attempts(service, webhook, 2))
    await batch(service, webhook.id, [1])
    await until(lambda: _attempts(service, webhook, 4))
    marks = [headers.get("x-crucible-replay") for headers, _ in receiver.requests]
    assert marks == [None, None, "true", "true"]


async def test_a_batch_that_comes_twice_is_delivered_once(service: Service, receiver: Receiver) -> None:
    webhook = await service.create(receiver.url)
    await service.append("Custom.Ping")
    await until(lambda: _attempts(service, webhook, 1))
    for _ in range(2):
        assert (await batch(service, webhook.id, [1])).sent == 1
    await until(lambda: _attempts(service, webhook, 2))
    # Later than the queue remembers: another message of the same delivery.
    delivery = next(a.delivery_id for a in await service.attempts(webhook) if a.replay)
    again = pointer(service.bus.names, subjects.DLV, webhook.id, delivery, 1, **{subjects.REPLAY: "rpl_1"})
    await service.bus.store(msgspec.structs.replace(again, msg_id=None))
    await batch(service, webhook.id, [1], "rpl_2")
    await until(lambda: _attempts(service, webhook, 3))
    assert len(receiver.requests) == 3


async def test_dry_is_recorded_and_not_sent(service: Service, receiver: Receiver) -> None:
    webhook = await service.create(receiver.url, options={"replay": "dry"})
    await service.append("Custom.Ping")
    await until(lambda: _attempts(service, webhook, 1))
    await batch(service, webhook.id, [1])
    await until(lambda: _attempts(service, webhook, 2))
    dry = (await service.attempts(webhook))[0]
    assert (dry.outcome, dry.replay, dry.status) == ("dry", "rpl_1", None)
    assert len(receiver.requests) == 1
    view: WebhookView = await service.ask("get", GetRequest(id=webhook.id), WebhookView)
    assert (view.counters.matched, view.counters.invoked, view.counters.ok) == (2, 1, 1)


async def test_targets_that_take_none_say_why(service: Service, receiver: Receiver) -> None:
    off = await service.create(receiver.url, name="off")
    await service.ask("enable", EnableWebhook(id=off.id, enabled=False), WebhookView)
    await service.create(receiver.url, name="skips", options={"replay": "skip"})
    good = await service.create(receiver.url, name="good")
    for name, reason in (("off", "is disabled"), ("skips", "options.replay: skip")):
        with pytest.raises(InvalidError, match=reason) as caught:
            await service.ask("replayable", GetRequest(id=name), Replayable)
        assert caught.value.errors[0].path == "target.webhook"
    with pytest.raises(NotFoundError) as missing:
        await service.ask("replayable", GetRequest(id="goood"), Replayable)
    assert missing.value.errors[0].suggestion == "good"
    for name in ("good", good.id):
        assert (await service.ask("replayable", GetRequest(id=name), Replayable)).id == good.id
    with pytest.raises(NotFoundError):
        await batch(service, "whk_x", [])


async def test_what_a_disabled_webhook_is_sent_waits(service: Service, receiver: Receiver) -> None:
    webhook = await service.create(receiver.url)
    await service.append("Custom.Ping")
    await until(lambda: _attempts(service, webhook, 1))
    await service.ask("enable", EnableWebhook(id=webhook.id, enabled=False), WebhookView)
    sent = 0
    for number in range(20):
        taken = await batch(service, webhook.id, [1], f"rpl_{number}")
        sent += taken.sent
    assert sent == 20
    assert len(receiver.requests) == 1
    await service.ask("enable", EnableWebhook(id=webhook.id, enabled=True), WebhookView)
    await until(lambda: _attempts(service, webhook, 21))
