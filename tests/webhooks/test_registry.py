"""The registry: webhooks are changed, their secrets rotated, their names their own, over all replicas."""

import asyncio
import base64
import hashlib
import hmac
import re
from typing import Any

import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import Response

from crucible_core.errors import ConflictError, InvalidError, NotFoundError
from crucible_core.protocol.parts import Check, Checks, GetRequest, ListRequest
from crucible_core.protocol.parts import TestRequest as Trial
from crucible_core.protocol.webhooks import (
    AttemptsRequest,
    EnableWebhook,
    ResendEvent,
    Resent,
    RotateSecret,
    UpdateWebhook,
    WebhookList,
    WebhookView,
)
from crucible_kit.buckets import open_bucket
from crucible_kit.nats.bus import Bus
from crucible_webhooks.settings import Settings
from tests.cases import each_of

from .conftest import Receiver, Service, until

SECRET = "a-long-enough-secret"


async def update(service: Service, webhook: WebhookView, **patch: Any) -> WebhookView:
    changed: WebhookView = await service.ask("update", UpdateWebhook(id=webhook.id, patch=patch), WebhookView)
    return changed


async def enable(service: Service, webhook: WebhookView, enabled: bool = True, missed: Any = "deliver") -> WebhookView:
    asked = EnableWebhook(id=webhook.id, enabled=enabled, missed=missed)
    return await service.ask("enable", asked, WebhookView)  # type: ignore[no-any-return]


async def get(service: Service, webhook: WebhookView) -> WebhookView:
    return await service.ask("get", GetRequest(id=webhook.id), WebhookView)  # type: ignore[no-any-return]


def signatures(request: tuple[dict[str, str], bytes], secret: str) -> tuple[bool, bool]:
    """Whether the standard signature and our own, of those that were sent, hold for a secret."""
    headers, body = request
    key = base64.b64decode(secret.removeprefix("whsec_")) if secret.startswith("whsec_") else secret.encode()
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    standard = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    own = "sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest()
    return standard in headers["webhook-signature"].split(), own in headers["x-crucible-signature"].split()


# ---- Changing


async def test_webhook_is_changed_by_a_merge_patch(service: Service, receiver: Receiver) -> None:
    webhook = await service.create("http://127.0.0.1:9/", event_filters=[{"event_type": "Custom.Old"}])
    changed = await update(
        service,
        webhook,
        name="new name",
        url=receiver.url,
        event_filters=[{"event_type": "Custom.New"}],
        options={"concurrency": 2},
        auth={"type": "bearer", "token": "t0ken"},
    )
    assert (changed.name, changed.url, changed.auth_type) == ("new name", receiver.url, "bearer")
    assert (changed.options.concurrency, changed.options.timeout_ms) == (2, 15_000)
    assert "t0ken" not in str(changed)
    await service.append("Custom.Old")
    await service.append("Custom.New")
    await until(lambda: receiver.requests)
    [(headers, body)] = receiver.requests
    assert (headers["x-crucible-event-type"], headers["authorization"]) == ("Custom.New", "Bearer t0ken")
    assert signatures((headers, body), str(webhook.secret)) == (True, True)
    again = await update(service, webhook, options=None, auth={"type": "hmac"})
    assert (again.options.concurrency, again.auth_type, again.name) == (8, "hmac", "new name")
    await service.append("Custom.New")
    await until(lambda: len(receiver.requests) == 2)
    assert "authorization" not in receiver.requests[1][0]


@each_of(
    ("patch", "path"),
    [
        ({"url": "ftp://x"}, "url"),
        ({"url": "http://10.0.0.1/"}, "url"),
        ({"name": ""}, "name"),
        ({"name": "whk_1"}, "name"),
        *(({"name": name}, "name") for name in ("..", "line\nfeed", "\x1b[31m", "\x85.", "nul\0")),
        ({"event_filters": []}, "event_filters"),
        ({"event_filters": [{"event_type": "Memory.Craeted"}]}, "event_filters.0.event_type"),
        ({"auth": {"type": "bearer"}}, "auth.token"),
        ({"auth": {"type": "basic", "username": "a:b", "password": "c"}}, "auth.username"),
        ({"auth": {"secret": "x"}}, "auth.secret"),
        ({"auth": {"secret": None}}, "auth.secret"),
        ({"auth": None}, "auth.secret"),
        ({"options": {"timeout_ms": 1}}, "options.timeout_ms"),
    ],
)
async def test_change_is_checked_as_a_new_webhook_is(
    service: Service, receiver: Receiver, patch: dict[str, Any], path: str
) -> None:
    webhook = await service.create(receiver.url)
    before = await get(service, webhook)
    with pytest.raises(InvalidError) as refused:
        await update(service, webhook, **patch)
    assert path in {error.path for error in refused.value.errors}
    assert await get(service, webhook) == before


async def test_changes_at_the_same_time_are_all_made(service: Service, receiver: Receiver) -> None:
    webhook = await service.create(receiver.url)
    patches = [{"name": "other"}, {"options": {"concurrency": 3}}, {"options": {"timeout_ms": 200}}, {"paused": True}]
    await asyncio.gather(*(update(service, webhook, **patch) for patch in patches))
    changed = await get(service, webhook)
    assert (changed.name, changed.options.concurrency, changed.options.timeout_ms) == ("other", 3, 200)
    assert changed.paused


# ---- Names and ids


async def test_name_is_taken_once_over_all_replicas(service: Service, receiver: Receiver) -> None:
    other = Service(service.bus, msgspec.structs.replace(service.settings, data_dir=service.settings.data_dir + "2"))
    async with other.running():
        asked = [service.create(receiver.url, name="one") for _ in range(8)]  # by whichever replica is first
        answers = await asyncio.gather(*asked, return_exceptions=True)
    made = [answer for answer in answers if isinstance(answer, WebhookView)]
    refused = [answer for answer in answers if isinstance(answer, ConflictError)]
    assert (len(made), len(refused)) == (1, 7)
    assert {error.extra["id"] for error in refused} == {made[0].id}
    assert refused[0].errors[0].path == "name"
    second = await service.create(receiver.url, name="two")
    with pytest.raises(ConflictError, match=made[0].id):
        await update(service, second, name="one")
    assert (await update(service, made[0], name="one")).name == "one"  # its own
    await service.ask("delete", GetRequest(id=made[0].id), WebhookView)
    assert (await update(service, second, name="one")).name == "one"


async def test_webhook_is_found_by_its_name_too(service: Service, receiver: Receiver) -> None:
    webhook = await service.create(receiver.url, name="my hook")
    assert (await service.ask("get", GetRequest(id="my hook"), WebhookView)).id == webhook.id
    assert (await service.ask("enable", EnableWebhook(id="my hook", enabled=False), WebhookView)).state == "disabled"
    assert await service.ask("attempts", AttemptsRequest(id="my hook"), Any) == {"attempts": [], "next_cursor": None}
    with pytest.raises(NotFoundError, match='did you mean "my hook"'):
        await service.ask("get", GetRequest(id="my hok"), WebhookView)
    await service.ask("delete", GetRequest(id="my hook"), WebhookView)
    for operation in ("get", "delete"):
        with pytest.raises(NotFoundError, match=f"webhook {webhook.id} was deleted"):
            await service.ask(operation, GetRequest(id=webhook.id), WebhookView)
    with pytest.raises(NotFoundError, match="there is no webhook 'my hook'"):
        await service.ask("get", GetRequest(id="my hook"), WebhookView)


async def test_names_that_look_alike_are_one(service: Service, receiver: Receiver) -> None:
    composed, decomposed = "Caf\u00e9", "Cafe\u0301"
    webhook = await service.create(receiver.url, name=decomposed)
    assert webhook.name == composed
    for name in (composed, decomposed):
        assert (await service.ask("get", GetRequest(id=name), WebhookView)).id == webhook.id
        with pytest.raises(ConflictError, match=webhook.id):
            await service.create(receiver.url, name=name)
    other = await service.create(receiver.url)
    with pytest.raises(ConflictError, match=webhook.id):
        await update(service, other, name=decomposed)


@each_of("name", ["", "  ", "\u200b", "\u00a0\ufeff", "\u202e"])
async def test_name_has_something_to_be_seen(service: Service, receiver: Receiver, name: str) -> None:
    with pytest.raises(InvalidError) as refused:
        await service.create(receiver.url, name=name)
    assert refused.value.errors[0].path == "name"


# ---- Secrets


@each_of(
    "secret",
    [
        *("x", "short", "elevenbytes", "whsec_", "whsec_%%", "whsec_not base64!", "whsec_eA==", "s" * 2000),
        "whsec_" + base64.b64encode(b"k" * 23).decode(),
        "whsec_" + base64.b64encode(b"k" * 65).decode(),
        "whsec_" + base64.b64encode(b"k" * 32).decode()[:-1],
        "whsec_" + base64.urlsafe_b64encode(b"\xff" * 32).decode(),
    ],
)
async def test_secret_that_can_be_guessed_or_read_in_two_ways_is_refused(
    service: Service, receiver: Receiver, secret: str
) -> None:
    with pytest.raises(InvalidError) as refused:
        await service.create(receiver.url, auth={"secret": secret})
    assert [error.path for error in refused.value.errors] == ["auth.secret"]
    webhook = await service.create(receiver.url)
    with pytest.raises(InvalidError) as refused:
        await service.ask("rotate_secret", RotateSecret(id=webhook.id, secret=secret), WebhookView)
    assert [error.path for error in refused.value.errors] == ["secret"]


@each_of(
    "secret",
    ["my-own-secret", "twelve bytes", "ßßßßßß", *("whsec_" + base64.b64encode(b"k" * n).decode() for n in (24, 64))],
)
async def test_good_secret_is_taken(service: Service, receiver: Receiver, secret: str) -> None:
    assert (await service.create(receiver.url, auth={"secret": secret})).secret == secret


async def test_webhooks_are_listed_and_tried_page_by_page(service: Service, receiver: Receiver) -> None:
    made = sorted([(await service.create(receiver.url)).id for _ in range(5)])
    listed, tried = [], []
    page, checks = WebhookList([]), Checks([])
    while True:
        page = await service.ask("list", ListRequest(limit=2, cursor=page.next_cursor), WebhookList)
        checks = await service.ask("test_all", ListRequest(limit=2, cursor=checks.next_cursor), Checks)
        listed += [webhook.id for webhook in page.webhooks]
        tried += [(one.id, one.check.verdict) for one in checks.checks]
        if page.next_cursor is None and checks.next_cursor is None:
            break
    assert listed == made
    assert tried == [(webhook, "accepts connections") for webhook in made]


async def test_both_secrets_sign_until_the_grace_ends(service: Service, receiver: Receiver) -> None:
    webhook = await service.create(receiver.url, auth={"secret": SECRET})
    rotated = await service.ask("rotate_secret", RotateSecret(id=webhook.id, grace_s=3600), WebhookView)
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", rotated.secret)
    assert rotated.old_secret_until > rotated.updated_at
    await service.append()
    await until(lambda: receiver.requests)
    assert signatures(receiver.requests[0], SECRET) == (True, True)
    assert signatures(receiver.requests[0], rotated.secret) == (True, True)
    shown = msgspec.json.encode(
        [await get(service, webhook), await service.ask("list", GetRequest(id=""), WebhookList)]
    )
    assert rotated.secret.encode() not in shown
    assert SECRET.encode() not in shown


async def test_without_a_grace_the_secret_before_signs_no_more(service: Service, receiver: Receiver) -> None:
    webhook = await service.create(receiver.url, auth={"secret": SECRET})
    asked = RotateSecret(id=webhook.id, grace_s=0, secret="another-long-secret")
    assert (await service.ask("rotate_secret", asked, WebhookView)).secret == "another-long-secret"
    await service.append()
    await until(lambda: receiver.requests)
    assert signatures(receiver.requests[0], SECRET) == (False, False)
    assert signatures(receiver.requests[0], "another-long-secret") == (True, True)


async def test_grace_is_bounded(service: Service, receiver: Receiver) -> None:
    webhook = await service.create(receiver.url)
    for grace_s in (-1.0, 1e9):
        with pytest.raises(InvalidError, match="grace_s"):
            await service.ask("rotate_secret", RotateSecret(id=webhook.id, grace_s=grace_s), WebhookView)


# ---- Disabled and paused


@pytest.mark.parametrize("how", ["paused", "disabled"])
async def test_what_was_missed_is_delivered_or_skipped(service: Service, receiver: Receiver, how: str) -> None:
    async def stop() -> WebhookView:
        if how == "paused":
            return await update(service, webhook, paused=True)
        return await enable(service, webhook, False)

    webhook = await service.create(receiver.url)
    assert (await stop()).state == how
    await service.append("Custom.First")
    await until(lambda: _waits(service, webhook, 1))
    assert (await enable(service, webhook)).state == "active"
    await until(lambda: len(receiver.requests) == 1)
    await stop()
    await service.append("Custom.Second")
    await until(lambda: _waits(service, webhook, 1))
    await enable(service, webhook, missed="skip")
    await service.append("Custom.Third")
    await until(lambda: len(receiver.requests) == 2)
    assert [headers["x-crucible-event-type"] for headers, _ in receiver.requests] == ["Custom.First", "Custom.Third"]


async def test_what_waits_for_its_time_is_counted(service: Service, receiver: Receiver) -> None:
    async def fail(request: Request, body: bytes) -> Response:
        return Response(status_code=503)

    receiver.answer = fail
    webhook = await service.create(receiver.url, options={"retry_delays_s": [60]})
    assert (await get(service, webhook)).waiting == 0
    await service.append()
    await until(lambda: _waits(service, webhook, 1))


# ---- Trying and resending


async def test_test_really_sends_an_event_of_the_type_that_was_asked_for(service: Service, receiver: Receiver) -> None:
    filters = [{"event_type": "Memory.*", "filter": {}}]
    webhook = await service.create(receiver.url, event_filters=filters)
    asked = Trial(id=webhook.id, dry_run=False, type="memory.tagged")
    assert (await service.ask("test", asked, Check)).verdict == "live"
    assert receiver.requests[0][0]["x-crucible-event-type"] == "Memory.Tagged"
    other = await service.ask("test", Trial(id=webhook.id, dry_run=False, type="File.Created"), Check)
    assert (other.verdict, other.reason) == ("inert", "matches: the webhook is not for File.Created")
    with pytest.raises(InvalidError):
        await service.ask("test", Trial(id=webhook.id, type="Memory.Craeted"), Check)
    assert len(receiver.requests) == 1


async def test_failure_of_a_test_is_told_in_plain_words(service: Service) -> None:
    webhook = await service.create("http://127.0.0.1:9/")
    for dry_run in (True, False):
        checked = await service.ask("test", Trial(id=webhook.id, dry_run=dry_run), Check)
        assert checked.verdict == "inert"
        assert checked.reason.endswith(": the connection was refused")


@pytest.mark.parametrize("host", ["127.0.0.1", "127。0。0。1", "[::ffff:127.0.0.1]"])
async def test_what_is_closed_is_reached_neither_by_tests_nor_by_deliveries(
    bus: Bus, settings: Settings, told: list[str], receiver: Receiver, host: str
) -> None:
    closed = Service(bus, msgspec.structs.replace(settings, egress_allow=()))
    async with closed.running():
        with pytest.raises(InvalidError, match="which CRUCIBLE_EGRESS_ALLOW does not name") as refused:
            await closed.create(receiver.url.replace("127.0.0.1", host))
        assert refused.value.errors[0].path == "url"
        webhook = await closed.create("https://example.com/", options={"retry_delays_s": []})
        # As it was registered while the setting was another one.
        bucket = await open_bucket(bus, "webhooks")
        stored = await bucket.get(webhook.id)
        assert stored is not None
        record = msgspec.json.decode(stored.value) | {"url": receiver.url.replace("127.0.0.1", host)}
        await bucket.put(webhook.id, msgspec.json.encode(record))
        for dry_run in (True, False):
            checked = await closed.ask("test", Trial(id=webhook.id, dry_run=dry_run), Check)
            assert (checked.verdict, "CRUCIBLE_EGRESS_ALLOW" in checked.reason) == ("inert", True)
        await closed.append()
        await until(lambda: told.count("Webhook.Exhausted") == 1)
        await until(lambda: closed.attempts(webhook))
        assert "CRUCIBLE_EGRESS_ALLOW" in (await closed.attempts(webhook))[0].error
    assert receiver.requests == []


async def test_event_is_sent_again_to_one_webhook(service: Service, receiver: Receiver) -> None:
    other = await service.create(receiver.url, event_filters=[{"event_type": "Custom.Other"}])
    event = await service.append("Custom.Ping", word="hello")
    for name in (other.id, other.name):
        asked = ResendEvent(event_id=event.metadata.id, webhook=name)
        resent = await service.ask("resend", asked, Resent)
        assert (resent.webhook_id, resent.event_id) == (other.id, event.metadata.id)
    await until(lambda: len(receiver.requests) == 2)
    assert {headers["webhook-id"] for headers, _ in receiver.requests} == {event.metadata.id}
    assert len({headers["x-crucible-delivery"] for headers, _ in receiver.requests}) == 2
    assert "x-crucible-replay" not in receiver.requests[0][0]
    body = msgspec.json.decode(receiver.requests[0][1])["event"]
    assert body["data"]["payload"] == {"word": "hello"}
    assert "sequence" not in body


async def test_what_cannot_be_sent_again_says_why(service: Service, receiver: Receiver) -> None:
    webhook = await service.create(receiver.url)
    event = await service.append()
    await until(lambda: len(receiver.requests) == 1)
    with pytest.raises(NotFoundError, match="no event evt_x"):
        await service.ask("resend", ResendEvent(event_id="evt_x", webhook=webhook.id), Resent)
    with pytest.raises(NotFoundError) as missing:
        await service.ask("resend", ResendEvent(event_id=event.metadata.id, webhook="nobody"), Resent)
    assert missing.value.errors[0].path == "webhook"
    await enable(service, webhook, False)
    with pytest.raises(InvalidError, match="is disabled: enable it"):
        await service.ask("resend", ResendEvent(event_id=event.metadata.id, webhook=webhook.id), Resent)


async def _waits(service: Service, webhook: WebhookView, count: int) -> bool:
    return (await get(service, webhook)).waiting == count


async def test_other_filters_are_for_what_comes_after_them(service: Service, receiver: Receiver) -> None:
    webhook = await service.create(receiver.url, event_filters=[{"event_type": "Custom.Wanted"}])
    for n in range(5):
        await service.append("Custom.Other", n=n)
    patch = {"event_filters": [{"event_type": "Custom.*"}]}
    await service.ask("update", UpdateWebhook(id=webhook.id, patch=patch), WebhookView)
    last = await service.append("Custom.Other", n=5)
    await until(lambda: receiver.requests)
    await asyncio.sleep(0.5)
    assert [headers["webhook-id"] for headers, _ in receiver.requests] == [last.metadata.id]
