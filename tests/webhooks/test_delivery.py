"""Deliveries by the real service over a real nats-server to a real endpoint."""

import asyncio
import base64
import hashlib
import hmac
import time
from collections import Counter
from email.utils import formatdate
from typing import Any

import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import Response

from crucible_core import subjects
from crucible_core.errors import InvalidError, NotFoundError
from crucible_core.protocol.losses import LossList
from crucible_core.protocol.parts import Check, GetRequest
from crucible_core.protocol.parts import TestRequest as Trial
from crucible_core.protocol.webhooks import EnableWebhook, UpdateWebhook, WebhookList, WebhookView
from crucible_core.times import parse_time
from crucible_kit.buckets import open_bucket
from crucible_kit.handlers.pointers import pointer
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.frames import Outgoing
from tests.cases import each_of

from .conftest import Receiver, Service, Settings, until

FAST = {"timeout_ms": 1000, "retry_delays_s": [0.05, 0.05], "concurrency": 4}


async def test_delivery_is_the_request_of_the_contract(service: Service, receiver: Receiver) -> None:
    webhook = await service.create(receiver.url, event_filters=[{"event_type": "Custom.Ping"}])
    event = await service.append("Custom.Ping", word="hello")
    await service.append("Custom.Other")
    await until(lambda: receiver.requests)
    headers, body = receiver.requests[0]
    assert msgspec.json.decode(body)["event"]["data"] == {"event": "Ping", "payload": {"word": "hello"}}
    assert headers["x-crucible-event-id"] == headers["webhook-id"] == event.metadata.id
    assert headers["x-crucible-event-type"] == "Custom.Ping"
    assert headers["x-crucible-delivery"].startswith("dlv_")
    assert headers["content-type"] == "application/json"
    assert headers["traceparent"].startswith("00-0af7651916cd43dd8448eb211c80319c-")
    assert (headers["crucible-hop"], headers["crucible-correlation-id"]) == ("0", event.metadata.correlation_id)
    assert isinstance(webhook.secret, str)
    key = base64.b64decode(webhook.secret.removeprefix("whsec_"))
    assert headers["x-crucible-signature"] == f"sha256={hmac.new(key, body, hashlib.sha256).hexdigest()}"
    text = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    signature = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{signature}"
    await until(lambda: _count(service, webhook, 1))
    assert (await service.attempts(webhook))[0].outcome == "delivered"
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("name", ["com.example.someevent", "größe/🎉:>x", "日本語"])
async def test_any_type_and_correlation_is_delivered(service: Service, receiver: Receiver, name: str) -> None:
    webhook = await service.create(receiver.url, event_filters=[{"event_type": f"Custom.{name}"}])
    event = await service.append(f"Custom.{name}", word="hello")
    await until(lambda: receiver.requests)
    headers, body = receiver.requests[0]
    assert msgspec.json.decode(body)["event"]["data"]["event"] == name
    assert headers["x-crucible-event-type"].encode("latin-1").decode() == event.dotted
    await until(lambda: _count(service, webhook, 1))
    assert (await service.attempts(webhook))[0].outcome == "delivered"


async def test_failing_endpoint_is_retried_then_exhausted(
    service: Service, receiver: Receiver, told: list[str]
) -> None:
    receiver.answer = _answering(503)
    webhook = await service.create(receiver.url, options=FAST)
    await service.append()
    await until(lambda: _count(service, webhook, 3))
    attempts = await service.attempts(webhook)
    assert [attempt.outcome for attempt in attempts] == ["exhausted", "retrying", "retrying"]
    assert [attempt.attempt for attempt in attempts] == [3, 2, 1]
    assert len({headers["x-crucible-delivery"] for headers, _ in receiver.requests}) == 1
    await until(lambda: "Webhook.Exhausted" in told)


@pytest.mark.parametrize(
    ("wish", "least", "most"),
    [("300", 299, 310), ("date", 295, 310), ("9999999999", 86_395, 86_410), ("soon", 0, 10), ("-5", 0, 10)],
)
async def test_retry_after_is_waited_for(
    service: Service, receiver: Receiver, wish: str, least: float, most: float
) -> None:
    async def answer(request: Request, body: bytes) -> Response:
        later = formatdate(time.time() + 300, usegmt=True) if wish == "date" else wish
        return Response(status_code=429, headers={"Retry-After": later})

    receiver.answer = answer
    webhook = await service.create(receiver.url, options={"retry_delays_s": [5]})
    await service.append()
    await until(lambda: _count(service, webhook, 1))
    attempt = (await service.attempts(webhook))[0]
    waits = parse_time(attempt.next_attempt_at, "at") - parse_time(attempt.started_at, "at")
    assert least <= waits / 1_000_000 <= most


async def test_what_is_only_recorded_is_not_delivered(service: Service, receiver: Receiver) -> None:
    await service.create(receiver.url)
    await service.append("Custom.Imported", {subjects.NO_REACTION: "1"})
    await service.append("Custom.Later")
    await until(lambda: bool(receiver.requests))
    assert [headers["x-crucible-event-type"] for headers, _ in receiver.requests] == ["Custom.Later"]


async def test_retry_survives_a_restart(service: Service, receiver: Receiver, nats_url: str) -> None:
    receiver.answer = _answering(500)
    webhook = await service.create(receiver.url, options=FAST | {"retry_delays_s": [1.0]})
    await service.append()
    await until(lambda: len(receiver.requests) == 1)
    other = Service(service.bus, msgspec.structs.replace(service.settings, data_dir=service.settings.data_dir + "2"))
    receiver.answer = _answering(200)
    async with other.running():  # a second replica, as after a restart, takes what is due
        await until(lambda: len(receiver.requests) == 2)
        await until(lambda: _count(service, webhook, 2))


async def test_gone_disables_and_pending_waits_until_enabled(
    service: Service, receiver: Receiver, told: list[str]
) -> None:
    receiver.answer = _answering(410)
    webhook = await service.create(receiver.url, options=FAST)
    await service.append()
    await until(lambda: "Webhook.Disabled" in told)
    assert (await service.ask("get", GetRequest(id=webhook.id), WebhookView)).state.startswith("disabled")
    receiver.answer = _answering(200)
    await service.append("Custom.Later")
    await service.ask("enable", EnableWebhook(id=webhook.id, enabled=True), WebhookView)
    await until(lambda: any(h["x-crucible-event-type"] == "Custom.Later" for h, _ in receiver.requests))


async def test_slow_endpoint_does_not_delay_another(service: Service, receiver: Receiver) -> None:
    async def answer(request: Request, body: bytes) -> Response:
        if request.url.path == "/slow":
            await asyncio.sleep(5)
        return Response()

    receiver.answer = answer
    slow_url = receiver.url.replace("/hook", "/slow")
    await service.create(slow_url, options={"timeout_ms": 4000, "concurrency": 1, "retry_delays_s": []})
    await service.create(receiver.url, name="fast")
    began = time.monotonic()
    for _ in range(10):
        await service.append()
    await until(lambda: sum("fast" not in h for h, _ in receiver.requests) >= 11, 3)
    assert time.monotonic() - began < 3


async def test_redirects_are_not_followed(service: Service, receiver: Receiver) -> None:
    async def redirect(request: Request, body: bytes) -> Response:
        return Response(status_code=302, headers={"Location": "/elsewhere"})

    receiver.answer = redirect
    webhook = await service.create(receiver.url, options=FAST)
    await service.append()
    await until(lambda: _count(service, webhook, 1))
    attempt = (await service.attempts(webhook))[0]
    assert (attempt.outcome, attempt.status) == ("failed", 302)
    assert len(receiver.requests) == 1


async def test_endpoint_that_never_answers_is_given_up_in_time(service: Service, receiver: Receiver) -> None:
    async def hang(request: Request, body: bytes) -> Response:
        await asyncio.sleep(3)
        return Response()

    receiver.answer = hang
    webhook = await service.create(receiver.url, options={"timeout_ms": 200, "concurrency": 1, "retry_delays_s": []})
    await service.append()
    await until(lambda: _count(service, webhook, 1))
    attempt = (await service.attempts(webhook))[0]
    assert "no answer within 0.2 s" in attempt.error
    assert attempt.duration_ms < 1000


async def test_event_after_the_answer_of_create_is_always_delivered(service: Service, receiver: Receiver) -> None:
    for number in range(10):
        await service.create(receiver.url, event_filters=[{"event_type": f"Custom.N{number}"}])
        await service.append(f"Custom.N{number}")
    await until(lambda: len(receiver.requests) == 10)


async def test_undecodable_event_is_parked_and_blocks_nothing(service: Service, receiver: Receiver) -> None:
    await service.create(receiver.url)
    names = service.bus.names
    await service.bus.store(Outgoing(names.event("default", "main", "Custom", "Bad", None), b"\xffnot json"))
    await service.append()
    await until(lambda: receiver.requests)
    parked = names.parked("webhooks")
    await until(lambda: service.bus.last(names.attempts, parked))
    assert await service.metric("crucible_messages_parked_total") == 1


async def test_deleted_webhook_gets_nothing_more(service: Service, receiver: Receiver) -> None:
    webhook = await service.create(receiver.url)
    await service.ask("delete", GetRequest(id=webhook.id), WebhookView)
    kept = await service.create(receiver.url, name="kept")
    await service.append()
    await until(lambda: _count(service, kept, 1))
    assert len(receiver.requests) == 1
    with pytest.raises(NotFoundError):
        await service.attempts(webhook)


async def test_webhook_is_not_sent_its_own_failures(service: Service, receiver: Receiver) -> None:
    webhook = await service.create(receiver.url)
    await service.append("Webhook.Exhausted", id=webhook.id)
    await service.append("Custom.Next")
    await until(lambda: _count(service, webhook, 1))
    assert receiver.requests[0][0]["x-crucible-event-type"] == "Custom.Next"


@each_of(
    ("fields", "path"),
    [
        ({"url": "ftp://x"}, "url"),
        ({"url": "http://"}, "url"),
        ({"url": "http://user:pw@host/"}, "url"),
        ({"name": " "}, "name"),
        ({"event_filters": []}, "event_filters"),
        ({"event_filters": [{"event_type": "Memory.Craeted"}]}, "event_filters.0.event_type"),
        (
            {"event_filters": [{"event_type": "Memory.Created", "filter": {"contnt": "x"}}]},
            "event_filters.0.filter.contnt",
        ),
        ({"auth": {"type": "bearer"}}, "auth.token"),
        ({"auth": {"type": "hmac", "secret": "whsec_%%"}}, "auth.secret"),
        ({"options": {"timeout_ms": 1}}, "options.timeout_ms"),
        ({"options": {"retry_delays_s": [-1]}}, "options.retry_delays_s"),
    ],
)
async def test_mistakes_are_named(service: Service, receiver: Receiver, fields: dict[str, Any], path: str) -> None:
    url = fields.pop("url", receiver.url)
    with pytest.raises(InvalidError) as refused:
        await service.create(url, **fields)
    assert path in {error.path for error in refused.value.errors}


async def test_bearer_credentials_are_sent_and_never_shown(service: Service, receiver: Receiver) -> None:
    webhook = await service.create(receiver.url, auth={"type": "bearer", "token": "t0ken"})
    await service.append()
    await until(lambda: receiver.requests)
    assert receiver.requests[0][0]["authorization"] == "Bearer t0ken"
    assert "x-crucible-signature" in receiver.requests[0][0]
    listed = await service.ask("list", GetRequest(id=""), WebhookList)
    text = msgspec.json.encode(listed)
    assert b"t0ken" not in text
    assert str(webhook.secret).encode() not in text


async def test_failing_webhooks_do_not_tell_each_other_without_end(
    service: Service, receiver: Receiver, told: list[str]
) -> None:
    receiver.answer = _answering(404)
    webhooks = [await service.create(receiver.url, name=f"w{number}") for number in range(3)]
    await service.append()
    await until(lambda: told.count("Webhook.Exhausted") == 3)
    for webhook in webhooks:
        await service.append("Webhook.Exhausted", id=webhook.id)
    await until(lambda: len(receiver.requests) == 3 + 3 * 2)
    await service.append("Custom.Last")
    await until(lambda: told.count("Webhook.Exhausted") == 6)


async def test_new_webhook_does_not_get_what_was_before_it(service: Service, receiver: Receiver) -> None:
    await service.append("Custom.Before")
    kept = await service.create(receiver.url)
    await service.append("Custom.After")
    await until(lambda: _count(service, kept, 1))
    assert [headers["x-crucible-event-type"] for headers, _ in receiver.requests] == ["Custom.After"]


async def test_attempt_that_was_made_is_not_made_again(service: Service, receiver: Receiver, told: list[str]) -> None:
    receiver.answer = _answering(404)
    webhook = await service.create(receiver.url)
    await service.append()
    await until(lambda: told.count("Webhook.Exhausted") == 1)
    names = service.bus.names
    attempt = (await service.attempts(webhook))[0]
    told.clear()
    # The same delivery comes once more, as after a crash before the acknowledgement.
    await service.bus.store(pointer(names, "dlv", webhook.id, attempt.delivery_id, attempt.event_sequence))
    await until(lambda: told == ["Webhook.Exhausted"])
    assert len(receiver.requests) == 1


async def test_record_that_cannot_be_read_keeps_what_waits(service: Service, receiver: Receiver) -> None:
    webhook = await service.create(receiver.url)
    await service.ask("enable", EnableWebhook(id=webhook.id, enabled=False), WebhookView)
    await service.append()
    bucket = await open_bucket(service.bus, "webhooks")
    before = await bucket.get(webhook.id)
    assert before is not None
    await bucket.put(webhook.id, b'{"of": "another version"}')
    other = await service.create(receiver.url, name="other")
    await service.append("Custom.Other")
    await until(lambda: _count(service, other, 1))
    enabled = msgspec.json.decode(before.value) | {"enabled": True}
    await bucket.put(webhook.id, msgspec.json.encode(enabled))
    await until(lambda: len(receiver.requests) == 3)  # what came while its record could not be read, too


async def test_deleted_webhook_does_not_come_back(service: Service, receiver: Receiver) -> None:
    async def slowly_gone(request: Request, body: bytes) -> Response:
        await service.ask("delete", GetRequest(id=webhook.id), WebhookView)
        return Response(status_code=410)

    receiver.answer = slowly_gone
    webhook = await service.create(receiver.url)
    await service.append()
    await until(lambda: receiver.requests)
    receiver.answer = _answering(200)
    kept = await service.create(receiver.url, name="kept")
    await service.append()
    await until(lambda: _count(service, kept, 1))
    listed = await service.ask("list", GetRequest(id=""), WebhookList)
    assert [one.name for one in listed.webhooks] == ["kept"]


async def test_check_says_live_or_why_not(service: Service, receiver: Receiver) -> None:
    webhook = await service.create(receiver.url)
    assert (await service.ask("test", Trial(id=webhook.id), Check)).verdict == "accepts connections"
    assert not receiver.requests  # a dry run only connects
    sent = await service.ask("test", Trial(id=webhook.id, dry_run=False), Check)
    assert sent.verdict == "live"
    assert len(receiver.requests) == 1
    dead = await service.create("http://127.0.0.1:9/")
    checked = await service.ask("test", Trial(id=dead.id), Check)
    assert checked.verdict == "inert"
    assert "endpoint" in (checked.reason or "")


def _answering(status: int) -> Any:
    async def answer(request: Request, body: bytes) -> Response:
        return Response(status_code=status)

    return answer


async def _count(service: Service, webhook: WebhookView, count: int) -> bool:
    return len(await service.attempts(webhook)) == count


async def test_a_parked_delivery_is_a_failed_attempt_of_its_webhook(
    bus: Bus, settings: Settings, receiver: Receiver, told: list[str]
) -> None:
    """Two processes have ended over it: that is what is noted beside the queue."""
    service, names = Service(bus, settings), bus.names
    async with service.running():
        webhook = await service.create(receiver.url, event_filters=[{"event_type": "Custom.Other"}])
        event = await service.append()
    await bus.store(Outgoing(names.trial("webhooks", "dlv_deadly"), b"2"))
    sequence = await bus.last_sequence(names.events)
    await service.killed_over(pointer(names, subjects.DLV, webhook.id, "dlv_deadly", sequence))

    async def recorded() -> bool:
        return bool(await service.attempts(webhook))

    async with service.running():
        await until(recorded)
        [attempt] = await service.attempts(webhook)
    assert (attempt.outcome, attempt.attempt, attempt.event_id) == ("failed", 1, event.metadata.id)
    assert attempt.error == "put aside: 2 processes ended while they worked on it"
    assert told.count("Webhook.Exhausted") == 1
    assert receiver.requests == []
    parked = await bus.last(names.attempts, names.parked("webhooks"))
    assert parked is not None
    assert parked.headers[subjects.REASON] == "2 processes ended while they worked on it"


async def test_an_attempt_that_the_history_has_lost_is_noticed_at_the_next_start(
    bus: Bus, settings: Settings, told: list[str], receiver: Receiver
) -> None:
    service, names = Service(bus, settings), bus.names
    async with service.running():
        webhook = await service.create(receiver.url)
        await service.append()

        async def attempted() -> bool:
            return bool(await service.attempts(webhook))

        await until(attempted)
    record = await bus.last(names.attempts, names.attempts_of("dlv"))
    assert record is not None
    await bus.remove(names.attempts, record.sequence)
    bucket = await open_bucket(bus, "losses")
    async with service.running():
        await until(lambda: bucket.get("log"))
    kept = await bucket.get("log")
    assert kept is not None
    [loss] = msgspec.json.decode(kept.value, type=LossList).losses
    assert (loss.stream, loss.kind, loss.first, loss.count) == (names.attempts, "missing", record.sequence, 1)


async def test_a_change_of_filters_is_for_what_comes_after_it_also_when_the_log_is_read_again(
    bus: Bus, settings: Settings, told: list[str], receiver: Receiver
) -> None:
    service = Service(bus, settings)
    async with service.running():
        webhook = await service.create(receiver.url, event_filters=[{"event_type": "Custom.Wanted"}])
        shards = await open_bucket(bus, "shards")
        early = await shards.entries()
        wanted = await service.append("Custom.Wanted")
        await service.append("Custom.Other")
        patch = {"event_filters": [{"event_type": "Custom.*"}]}
        await service.ask("update", UpdateWebhook(id=webhook.id, patch=patch), WebhookView)
        await until(lambda: receiver.requests)
    for key in early:  # as if their owner had been killed before it told how far it was
        await shards.put(key, early[key].value)
    async with service.running():
        last = await service.append("Custom.Other")
        await until(lambda: len(receiver.requests) > 1)
        await asyncio.sleep(0.3)
    assert [headers["webhook-id"] for headers, _ in receiver.requests] == [wanted.metadata.id, last.metadata.id]


async def test_an_endpoint_that_answers_gets_all_its_slots_and_one_that_does_not_gets_few(
    service: Service, receiver: Receiver
) -> None:
    under_way, most, answered, over = Counter[str](), Counter[str](), Counter[str](), asyncio.Event()

    async def answer(request: Request, body: bytes) -> Response:
        path = request.url.path
        under_way[path] += 1
        most[path] = max(most[path], under_way[path])
        await (over.wait() if path == "/stuck" else asyncio.sleep(0.05))
        under_way[path] -= 1
        answered[path] += 1
        return Response()

    receiver.answer = answer
    origin = receiver.url.removesuffix("/hook")
    for path in ("/stuck", "/good"):
        await service.create(origin + path, options={"concurrency": 8, "timeout_ms": 30_000})
    for n in range(60):
        await service.append(n=n)
    await until(lambda: answered["/good"] == 60)
    assert most["/good"] == 8
    assert most["/stuck"] <= 2
    over.set()


async def test_what_waits_outlives_a_change_of_filters_and_back(service: Service, receiver: Receiver) -> None:
    webhook = await service.create(receiver.url, event_filters=[{"event_type": "Custom.A"}], paused=True)
    early = await service.append("Custom.A")
    await service.append("Custom.B")
    for patch in ({"event_filters": [{"event_type": "Custom.B"}]}, {"event_filters": [{"event_type": "Custom.*"}]}):
        await service.ask("update", UpdateWebhook(id=webhook.id, patch=patch), WebhookView)
    patch = {"event_filters": [{"event_type": "Custom.A"}], "paused": False}
    await service.ask("update", UpdateWebhook(id=webhook.id, patch=patch), WebhookView)
    late = await service.append("Custom.A")
    await until(lambda: len(receiver.requests) > 1)
    await asyncio.sleep(0.3)
    assert [headers["webhook-id"] for headers, _ in receiver.requests] == [early.metadata.id, late.metadata.id]
