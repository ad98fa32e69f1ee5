"""The requests of the webhooks service."""

import logging
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from crucible_core.envelope import Source
from crucible_core.errors import CrucibleError
from crucible_core.protocol.events import NewEvent, TracedDelivery
from crucible_core.protocol.parts import Check, Checks, Counters, GetRequest, ListRequest, TestRequest
from crucible_core.protocol.replays import ReplayBatch
from crucible_core.protocol.webhooks import (
    AttemptList,
    AttemptRecord,
    AttemptsRequest,
    CreateWebhook,
    EnableWebhook,
    ResendEvent,
    RotateSecret,
    TracedDeliveries,
    TracedRequest,
    UpdateWebhook,
    WebhookList,
    WebhookRecord,
    WebhookView,
)
from crucible_core.subjects import DLV
from crucible_core.times import format_time, parse_time
from crucible_kit.clock import fresh_id, now_ms, timestamp
from crucible_kit.eventlog import log_end
from crucible_kit.events import append
from crucible_kit.handlers.pointers import forget
from crucible_kit.http.exchange import Exchanger
from crucible_kit.index.index import Index
from crucible_kit.nats.bus import Bus
from crucible_kit.pages import answer_bytes, check_page, list_page
from crucible_kit.rpc import Context, Endpoint
from crucible_webhooks import store
from crucible_webhooks.records import make_record, patch_record, replace_secret, url_origin, view, with_former_types
from crucible_webhooks.registry import WEBHOOKS, Registry, WebhookEntry
from crucible_webhooks.replays import Replayer
from crucible_webhooks.settings import Settings
from crucible_webhooks.test import test_webhook

log = logging.getLogger(__name__)


def endpoints(
    bus: Bus,
    registry: Registry,
    index: Index,
    exchanger: Exchanger,
    replayer: Replayer,
    settings: Settings,
    waiting: Callable[[str], Awaitable[int]],
) -> Mapping[str, Endpoint]:
    """By operation; see `crucible_core.protocol` for requests and replies. `waiting` counts a webhook's
    deliveries that are not over."""

    async def create(request: CreateWebhook, context: Context) -> WebhookView:
        id, now, timeout_ms = fresh_id("whk"), timestamp(), settings.webhooks_timeout_ms
        since = await log_end(bus)
        record = await registry.types.resolve(
            lambda catalogue: make_record(request, id, now, timeout_ms, exchanger.guard, catalogue)
        )
        record.since, record.owner = since.encoded, context.principal.id
        await registry.check_world(record.world_id, context.principal)
        await registry.create(record)
        await append_change("Webhook.Registered", record, context)
        created = webhook_view(record, Counters())
        created.secret = record.auth.secret or ""
        return created

    async def append_change(event_type: str, record: WebhookRecord, context: Context) -> None:
        await append_webhook_event(bus, event_type, record, registry.home_of(record), context)

    def webhook_view(record: WebhookRecord, counters: Counters) -> WebhookView:
        return view(record, counters, registry.inert_reason(record), registry.warnings(record))

    async def counted_view(record: WebhookRecord) -> WebhookView:
        return webhook_view(record, (await store.counters(index, record.id)).get(record.id, Counters()))

    async def list_all(request: ListRequest, context: Context) -> WebhookList:
        await registry.view.refresh()
        counted = await store.counters(index)
        shown, cursor = list_page(
            registry.visible_to(context.principal),
            _id,
            lambda entry: webhook_view(entry.record, counted.get(entry.id, Counters())),
            request,
            answer_bytes(bus),
        )
        return WebhookList(webhooks=shown, next_cursor=cursor)

    async def get(request: GetRequest, context: Context) -> WebhookView:
        await registry.view.refresh()
        found = await counted_view(registry.find(request.id, context.principal))
        found.waiting = await waiting(found.id)
        return found

    async def update(request: UpdateWebhook, context: Context) -> WebhookView:
        await registry.view.refresh()
        record, timeout_ms = registry.find_owned(request.id, context.principal), settings.webhooks_timeout_ms
        patched = await registry.types.resolve(
            lambda catalogue: patch_record(record, request.patch, timeout_ms, exchanger.guard, catalogue)
        )
        await registry.check_world(patched.world_id, context.principal)
        catalogue, end = registry.types.catalogue, await log_end(bus)

        def change(now: WebhookRecord) -> WebhookRecord:
            after = patch_record(now, request.patch, timeout_ms, exchanger.guard, catalogue)
            return with_former_types(after, now, catalogue, end)

        changed = await registry.change(record.id, change)
        await append_change("Webhook.Registered", changed, context)
        return await counted_view(changed)

    async def rotate_secret(request: RotateSecret, context: Context) -> WebhookView:
        await registry.view.refresh()
        now_us = now_ms() * 1000
        record = await registry.change(
            registry.find_owned(request.id, context.principal).id,
            lambda now: replace_secret(now, request.secret, request.grace_s, now_us),
        )
        await append_change("Webhook.Registered", record, context)
        found = await counted_view(record)
        found.secret = record.auth.secret or ""
        return found

    async def delete(request: GetRequest, context: Context) -> WebhookView:
        await registry.view.refresh()
        record = await registry.delete(registry.find_owned(request.id, context.principal).id)
        await forget(bus, DLV, bus.names.deliveries, record.id)
        await append_change("Webhook.Unregistered", record, context)
        return view(record, Counters())

    async def enable(request: EnableWebhook, context: Context) -> WebhookView:
        await registry.view.refresh()
        record = registry.find_owned(request.id, context.principal)
        since = None
        if request.enabled and request.missed == "skip" and not (record.enabled and not record.paused):
            since = (await log_end(bus)).encoded
            await forget(bus, DLV, bus.names.deliveries, record.id)
        return await counted_view(await registry.set_enabled(record.id, request.enabled, since=since))

    async def attempts(request: AttemptsRequest, context: Context) -> AttemptList:
        await registry.view.refresh()
        record = registry.find(request.id, context.principal)
        found = await store.attempts(index, record.id, request.limit, request.cursor)
        found.attempts = [one for one in found.attempts if _may_show(one, context)]
        return found

    async def traced(request: TracedRequest, context: Context) -> TracedDeliveries:
        latest = await store.latest_attempts(index, request.correlation_id)
        if not context.principal.admin:
            visible = {record.id for record in registry.visible_to(context.principal)}
            latest = [one for one in latest if one.webhook_id in visible and _may_show(one, context)]
        return TracedDeliveries(deliveries=[_traced_delivery(attempt) for attempt in latest])

    async def test(request: TestRequest, context: Context) -> Check:
        await registry.catch_up(())
        return await test_webhook(registry, exchanger, registry.find_owned(request.id, context.principal), request)

    async def test_all(request: ListRequest, context: Context) -> Checks:
        await registry.catch_up(())
        return await check_page(
            registry.owned_by(context.principal),
            _id,
            _id,
            lambda entry: test_webhook(registry, exchanger, entry.record, TestRequest(id=entry.id)),
            request,
        )

    return {
        "create": Endpoint(CreateWebhook, create, stores=True),
        "list": Endpoint(ListRequest, list_all),
        "get": Endpoint(GetRequest, get),
        "delete": Endpoint(GetRequest, delete),
        "update": Endpoint(UpdateWebhook, update),
        "enable": Endpoint(EnableWebhook, enable),
        "rotate_secret": Endpoint(RotateSecret, rotate_secret),
        "resend": Endpoint(ResendEvent, replayer.resend),
        "attempts": Endpoint(AttemptsRequest, attempts),
        "traced": Endpoint(TracedRequest, traced),
        "test": Endpoint(TestRequest, test),
        "test_all": Endpoint(ListRequest, test_all),
        "replayable": Endpoint(GetRequest, replayer.replayable),
        "replay": Endpoint(ReplayBatch, replayer.replay),
        **registry.types.endpoints(),
    }


def _id(record: WebhookEntry) -> str:
    return record.id


def _may_show(attempt: AttemptRecord, context: Context) -> bool:
    return context.scope.may_show(attempt.world_id, attempt.room_id, attempt.event_type)


def _traced_delivery(attempt: AttemptRecord) -> TracedDelivery:
    ended = parse_time(attempt.started_at, "started_at") + int(attempt.duration_ms * 1000)
    return TracedDelivery(
        delivery_id=attempt.delivery_id,
        webhook_id=attempt.webhook_id,
        webhook=attempt.webhook,
        event_id=attempt.event_id,
        outcome=attempt.outcome,
        attempts=attempt.attempt,
        ended_at=format_time(ended),
        status=attempt.status,
        error=attempt.error,
    )


async def append_webhook_event(
    bus: Bus, event_type: str, record: WebhookRecord, world_id: str, context: Context
) -> None:
    """Appends the event of a change of configuration; the change itself is durable already."""
    payload = {"id": record.id, "name": record.name, "url": url_origin(record.url)}
    event = NewEvent(
        type=event_type,
        payload=msgspec.Raw(msgspec.json.encode(payload)),
        source=Source("system", "webhooks"),
        actor="system:webhooks",
        world_id=world_id,
        entity=record.id,
        traceparent=context.traceparent,
        idempotency_key=f"{event_type}:{record.id}:{record.updated_at}",
    )
    try:
        await append(bus, WEBHOOKS, [event], traceparent=context.traceparent)
    except CrucibleError as error:
        log.warning("%s of %s was not recorded: %s", event_type, record.id, error)
