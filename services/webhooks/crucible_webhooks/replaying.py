"""Replays into webhooks: stored events become deliveries of their own of one webhook."""

from crucible_core import subjects
from crucible_core.envelope import Event
from crucible_core.errors import FieldError, InvalidError, NotFoundError, UnavailableError
from crucible_core.ids import derive_id
from crucible_core.protocol.replays import Replayable, ReplayBatch, ReplayedEvent, ReplayTaken
from crucible_core.protocol.shared import GetRequest
from crucible_core.protocol.webhooks import WebhookRecord
from crucible_core.suggest import nearest
from crucible_kit.bus import Bus
from crucible_kit.frames import Outgoing
from crucible_kit.metrics import Metrics
from crucible_kit.replaying import Queue, enqueue, headers_of
from crucible_kit.rpc import Context

from .records import state
from .registry import Registry

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
        names = self._bus.names
        queue = Queue(
            names.deliveries, names.durable(record.id), f"webhook {record.name}", "deliveries", enabled=record.enabled
        )

        def delivery(event: Event, replayed: ReplayedEvent) -> Outgoing | None:
            wanted = record.options.replay != "skip" and self._registry.wants(record.id, event)
            return _delivery(self._bus, record.id, event, replayed, request.replay) if wanted else None

        taken = await enqueue(self._bus, queue, request, delivery)
        self._replayed.inc(taken.sent)
        return taken


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


def _delivery(bus: Bus, webhook_id: str, event: Event, replayed: ReplayedEvent, replay: str) -> Outgoing:
    delivery = derive_id("dlv", replayed.time_ms, webhook_id, event.metadata.id, replay)
    headers = headers_of(event, replayed, replay) | {subjects.DELIVERY: delivery}
    return Outgoing(bus.names.delivery(webhook_id), bytes(replayed.event), headers, delivery)


def _refused(message: str) -> InvalidError:
    return InvalidError(f"{_AT}: {message}", errors=[FieldError(_AT, message)])
