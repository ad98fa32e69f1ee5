"""Replays into webhooks, and resends: stored events become new deliveries of one webhook."""

import msgspec

from crucible_core.envelope import Event, decode
from crucible_core.errors import InvalidError, NotFoundError, UnavailableError
from crucible_core.ids import derive_id
from crucible_core.protocol.parts import GetRequest
from crucible_core.protocol.replays import Replayable, ReplayBatch, ReplayedEvent, ReplayTaken
from crucible_core.protocol.webhooks import ResendEvent, Resent, WebhookRecord
from crucible_core.subjects import DLV, REPLAY
from crucible_kit.clock import fresh_id
from crucible_kit.eventlog import event_at
from crucible_kit.handlers.pointers import Queue, enqueue, pointer
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.frames import Outgoing
from crucible_kit.rpc import Context, call
from crucible_kit.telemetry.metrics import Metrics
from crucible_webhooks.records import state
from crucible_webhooks.registry import Registry

_AT = "target.webhook"


class Replayer:
    def __init__(self, bus: Bus, registry: Registry, metrics: Metrics) -> None:
        self._bus = bus
        self._registry = registry
        self._replayed = metrics.counter("webhook_deliveries_replayed", "Deliveries of replayed events enqueued")

    async def resend(self, request: ResendEvent, context: Context) -> Resent:
        """Returns once the new delivery is stored. Raises NotFoundError, and InvalidError that says why not."""
        await self._registry.view.refresh()
        record = self._registry.find_owned(request.webhook, context.principal, "webhook")
        self._check_active(record, "webhook", "an event is sent to it")
        one = GetRequest(id=request.event_id)
        raw = await call(self._bus, context.principal, "events", "get", one, bytes, traceparent=context.traceparent)
        event = decode(raw)
        if not self._registry.may_receive(record, event):
            raise InvalidError.field("webhook", f"the owner of webhook {record.name} may not see {event.metadata.id}")
        if event.redacted is not msgspec.UNSET:
            raise InvalidError.field("event", f"{event.metadata.id} was redacted: nothing of it is left to send")
        names = self._bus.names
        message = await event_at(self._bus, event.sequence or 0)
        if message is None:
            raise NotFoundError(f"the log does not hold {event.metadata.id} any more")
        delivery = fresh_id("dlv")
        await self._bus.store(pointer(names, DLV, record.id, delivery, message.sequence))
        return Resent(delivery_id=delivery, webhook_id=record.id, event_id=event.metadata.id)

    async def replayable(self, request: GetRequest, context: Context) -> Replayable:
        """By id or name. Raises NotFoundError with the nearest, or InvalidError that says why it takes no replay."""
        await self._registry.view.refresh()
        record = self._registry.find_owned(request.id, context.principal, _AT)
        self._check_active(record, _AT, "events are replayed into it")
        if record.options.replay == "skip":
            raise InvalidError.field(
                _AT, f"webhook {record.name} declares options.replay: skip, so it takes no replayed events"
            )
        return Replayable(id=record.id)

    async def replay(self, request: ReplayBatch, context: Context) -> ReplayTaken:
        """Returns once the deliveries are stored. May be repeated: message ids and delivery ids prevent doubles.

        Raises NotFoundError where the webhook is gone, UnavailableError where it cannot be read here.
        """
        await self._registry.catch_up(())
        if (reason := self._registry.inert.get(request.target)) is not None:
            raise UnavailableError(f"webhook {request.target} is inert: {reason}")
        record = self._registry.get(request.target)
        names = self._bus.names
        label = f"webhook {record.name}"
        queue = Queue(names.deliveries, DLV, record.id, label, "deliveries", enabled=record.enabled)

        def delivery(event: Event, replayed: ReplayedEvent) -> Outgoing | None:
            if record.options.replay == "skip" or not self._registry.matches(record.id, event):
                return None
            id = derive_id("dlv", replayed.time_ms, record.id, event.metadata.id, request.replay)
            return pointer(names, DLV, record.id, id, replayed.sequence, **{REPLAY: request.replay})

        taken = await enqueue(self._bus, queue, request, delivery)
        self._replayed.inc(taken.sent)
        return taken

    def _check_active(self, record: WebhookRecord, path: str, before: str) -> None:
        found = state(record, self._registry.inert_reason(record))
        if not record.enabled:
            raise InvalidError.field(path, f"webhook {record.name} is {found}: enable it before {before}")
        if found != "active":
            raise InvalidError.field(path, f"webhook {record.name} is {found}")
