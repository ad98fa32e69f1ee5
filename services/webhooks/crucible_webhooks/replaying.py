"""Replays into webhooks: stored events become deliveries of their own of one webhook, a bounded number at a time, so
that what is live never waits behind a long past."""

import logging

import msgspec

from crucible_core import subjects
from crucible_core.envelope import Event, decode
from crucible_core.errors import FieldError, InvalidError, NotFoundError, UnavailableError
from crucible_core.ids import derive_id
from crucible_core.protocol.replays import Replayable, ReplayBatch, ReplayedEvent, ReplayTaken
from crucible_core.protocol.shared import GetRequest
from crucible_core.protocol.webhooks import WebhookRecord
from crucible_core.suggest import nearest
from crucible_kit.bus import Bus
from crucible_kit.frames import Outgoing
from crucible_kit.metrics import Metrics
from crucible_kit.rpc import Context

from .records import state
from .registry import Registry

log = logging.getLogger(__name__)

MOST_WAITING = 1000
"""Deliveries of one webhook, live ones among them, beyond which a replay waits."""
_AT = "target.webhook"


class Replayer:
    def __init__(self, bus: Bus, registry: Registry, metrics: Metrics) -> None:
        self._bus = bus
        self._registry = registry
        self._replayed = metrics.counter("webhook_deliveries_replayed", "Deliveries of replayed events enqueued")

    async def replayable(self, request: GetRequest, context: Context) -> Replayable:
        """By id or name. Raises NotFoundError with the nearest, or InvalidError that says why it takes no replay."""
        await self._registry.view.refresh()
        record = find(self._registry, request.id)
        found = state(record, self._registry.inert.get(record.id))
        if not record.enabled:
            raise _refused(f"webhook {record.name} is {found}: enable it before events are replayed into it")
        if found != "active":
            raise _refused(f"webhook {record.name} is {found}")
        if record.options.replay == "skip":
            raise _refused(f"webhook {record.name} declares options.replay: skip, so it takes no replayed events")
        return Replayable(id=record.id)

    async def replay(self, request: ReplayBatch, context: Context) -> ReplayTaken:
        """Returns once the deliveries are stored. May be repeated: message ids and delivery ids tell what was done.

        Raises NotFoundError where the webhook is gone, UnavailableError where it cannot be read here.
        """
        await self._registry.view.refresh()
        if self._registry.is_deleted(request.target):
            raise _missing(self._registry, request.target)
        if (reason := self._registry.inert.get(request.target)) is not None:
            raise UnavailableError(f"webhook {request.target} is inert: {reason}")
        record = self._registry.get(request.target)
        waiting = await self._waiting(record)
        deliveries: list[Outgoing] = []
        skipped = 0
        for replayed in request.events:
            event = _event(replayed)
            if event is None or not self._takes(record, event):
                skipped += 1
            elif len(deliveries) + waiting < MOST_WAITING:
                deliveries.append(_delivery(self._bus, record.id, event, replayed, request.replay))
            else:
                break
        if deliveries:
            await self._bus.store_all(deliveries)
            self._replayed.inc(len(deliveries))
        taken = len(deliveries) + skipped
        why = None if taken == len(request.events) else _why(record, waiting + len(deliveries))
        return ReplayTaken(taken=taken, sent=len(deliveries), skipped=skipped, waiting=why)

    def _takes(self, record: WebhookRecord, event: Event) -> bool:
        return record.options.replay != "skip" and self._registry.wants(record.id, event)

    async def _waiting(self, record: WebhookRecord) -> int:
        """How many deliveries wait for the webhook or are under way."""
        names = self._bus.names
        try:
            return sum(await self._bus.consumer_backlog(names.deliveries, names.durable(record.id)))
        except NotFoundError:
            raise UnavailableError(f"webhook {record.name} has no worker yet", retry_after=1) from None


def find(registry: Registry, name: str) -> WebhookRecord:
    """The webhook with that id, else the only one with that name. Raises NotFoundError, InvalidError."""
    if (record := registry.records.get(name)) is not None:
        return record
    named = [record for record in registry.records.values() if record.name == name]
    if not named:
        raise _missing(registry, name)
    if len(named) > 1:
        ids = ", ".join(sorted(record.id for record in named)[:5])
        raise _refused(f"{len(named)} webhooks are called {name[:100]!r}: give the id of one ({ids})")
    return named[0]


def _missing(registry: Registry, name: str) -> NotFoundError:
    known = [text for record in registry.records.values() for text in (record.name, record.id)]
    suggestion = nearest(name, known)
    hint = f' (did you mean "{suggestion}"?)' if suggestion else ""
    error = FieldError(_AT, "there is no such webhook", suggestion)
    return NotFoundError(f"there is no webhook {name[:100]!r}{hint}", errors=[error])


def _why(record: WebhookRecord, waiting: int) -> str:
    disabled = "" if record.enabled else ", which is disabled"
    return f"{waiting} deliveries wait for webhook {record.name}{disabled}"


def _event(replayed: ReplayedEvent) -> Event | None:
    try:
        return decode(bytes(replayed.event), replayed.sequence)
    except msgspec.DecodeError as error:
        log.error("event %d cannot be read: %s", replayed.sequence, error)
        return None


def _delivery(bus: Bus, webhook_id: str, event: Event, replayed: ReplayedEvent, replay: str) -> Outgoing:
    delivery = derive_id("dlv", replayed.time_ms, webhook_id, event.metadata.id, replay)
    headers = {
        subjects.DELIVERY: delivery,
        subjects.ATTEMPT: "1",
        subjects.EVENT_SEQUENCE: str(replayed.sequence),
        subjects.REPLAY: replay,
    }
    if event.metadata.traceparent:
        headers[subjects.TRACEPARENT] = event.metadata.traceparent
    return Outgoing(bus.names.delivery(webhook_id), bytes(replayed.event), headers, delivery)


def _refused(message: str) -> InvalidError:
    return InvalidError(f"{_AT}: {message}", errors=[FieldError(_AT, message)])
