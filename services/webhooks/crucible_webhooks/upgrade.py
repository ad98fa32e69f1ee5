"""What a version before the work engine has left is brought over at the start: how far its dispatcher had come, the
deliveries that wait (they become pointers to their events), and a consumer for each webhook, which is none any more."""

import contextlib
import logging

from crucible_core.errors import NotFoundError
from crucible_core.position import Position
from crucible_core.subjects import ATTEMPT, DELIVERY, DLV, EVENT_SEQUENCE, JOB, REPLAY, SCHEDULE, SCHEDULE_TARGET
from crucible_kit.bus import Bus, Message
from crucible_kit.frames import Outgoing

log = logging.getLogger(__name__)

_DISPATCHER = "webhooks-dispatch"
_KEPT = (ATTEMPT, EVENT_SEQUENCE, REPLAY)
_TOLD_EVERY = 1000


async def dispatched(bus: Bus) -> Position | None:
    """The place in the log that the dispatcher of the version before had come to; None where there was none."""
    with contextlib.suppress(NotFoundError):
        acknowledged = await bus.acknowledged(bus.names.events, bus.names.durable(_DISPATCHER))
        return bus.names.position(acknowledged)  # it knew one stream
    return None


async def bring_over(bus: Bus) -> None:
    """Safe to break off and to do twice: what was brought over is gone from its old place, and has its id in the
    new one."""
    names, queue = bus.names, bus.names.deliveries
    consumers = [name for name in await bus.consumer_names(queue) if name.startswith(names.durable("whk_"))]
    for consumer in consumers:
        await bus.delete_consumer(queue, consumer)
    moved = sequence = 0
    while (found := await bus.next(queue, sequence + 1, ">")) is not None:
        sequence = found.sequence
        if DELIVERY in found.headers:
            await bus.store(_pointer(bus, found))
            await bus.remove(queue, sequence)
            moved += 1
            if moved % _TOLD_EVERY == 0:
                log.info("%d deliveries of the version before are brought over", moved)
    if moved:
        log.info("%d deliveries of the version before were brought over", moved)


async def forget_dispatcher(bus: Bus) -> None:
    """Once every shard has a place of its own."""
    await bus.delete_consumer(bus.names.events, bus.names.durable(_DISPATCHER))


def _pointer(bus: Bus, found: Message) -> Outgoing:
    names, delivery = bus.names, found.headers[DELIVERY]
    webhook = names.hook_of(found.subject)
    headers = {name: found.headers[name] for name in _KEPT if name in found.headers} | {JOB: delivery}
    subject, id = names.work(DLV, webhook), f"{delivery}:{headers.get(ATTEMPT, '1')}:over"
    if SCHEDULE in found.headers:
        schedule = {SCHEDULE: found.headers[SCHEDULE], SCHEDULE_TARGET: subject}
        return Outgoing(names.schedule(DLV, webhook, delivery), b"", headers | schedule, id)
    return Outgoing(subject, b"", headers, id)
