"""Bringing over what a version before the work engine has left: how far its dispatcher had come, the work that waits
(it becomes pointers to its events), and a consumer for each handler, which is none any more."""

import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping

from crucible_core.errors import NotFoundError
from crucible_core.subjects import ATTEMPT, EVENT_SEQUENCE, JOB, OLD_JOBS, REPLAY, SCHEDULE, SCHEDULE_TARGET
from crucible_kit.buckets import Bucket
from crucible_kit.handlers.service import Service
from crucible_kit.handlers.shards import begin_at
from crucible_kit.nats.bus import Bus, Message
from crucible_kit.nats.frames import Outgoing

log = logging.getLogger(__name__)

_KEPT = (ATTEMPT, EVENT_SEQUENCE, REPLAY)
_TOLD_EVERY = 1000

Find = Callable[[Message], str | None]
Fired = Callable[[], Awaitable[Mapping[str, int]]]


async def _no_times() -> Mapping[str, int]:
    return {}


async def migrate(bus: Bus, shards: Bucket, service: Service, find: Find, fired: Fired = _no_times) -> None:
    """Returns once nothing of it is left. `find` tells for whom a message is, None where that handler is gone; `fired`
    when the last events were committed that handlers were given whose events must be some time apart. Safe to break
    off and to do twice: what was brought over is gone from its old place, and has its id in the new one."""
    names, dispatcher = bus.names, bus.names.durable(f"{service.name}-dispatch")
    with contextlib.suppress(NotFoundError):
        place = names.position(await bus.acknowledged(names.events, dispatcher))  # it knew one stream
        await begin_at(shards, service.name, place, await fired())
    own = names.durable(f"{service.name}-work-")
    for consumer in await bus.consumer_names(service.queue):
        if not consumer.startswith(own):
            await bus.delete_consumer(service.queue, consumer)
    await _move(bus, service, find)
    await bus.delete_consumer(names.events, dispatcher)


async def _move(bus: Bus, service: Service, find: Find) -> None:
    moved = sequence = 0
    while (found := await bus.next(service.queue, sequence + 1, ">")) is not None:
        sequence = found.sequence
        if OLD_JOBS[service.kind] not in found.headers:
            continue
        handler = find(found)
        if handler is not None:
            await bus.store(_pointer(bus, service.kind, handler, found))
        await bus.remove(service.queue, sequence)
        moved += 1
        if moved % _TOLD_EVERY == 0:
            log.info("%s: %d of what the version before has left are brought over", service.name, moved)
    if moved:
        log.info("%s: %d of what the version before has left were brought over", service.name, moved)


def _pointer(bus: Bus, kind: str, handler: str, found: Message) -> Outgoing:
    names, job = bus.names, found.headers[OLD_JOBS[kind]]
    headers = {name: found.headers[name] for name in _KEPT if name in found.headers} | {JOB: job}
    subject, id = names.work(kind, handler), f"{job}:{headers.get(ATTEMPT, '1')}:over"
    if SCHEDULE in found.headers:
        schedule = {SCHEDULE: found.headers[SCHEDULE], SCHEDULE_TARGET: subject}
        return Outgoing(names.schedule(kind, handler, job), b"", headers | schedule, id)
    return Outgoing(subject, b"", headers, id)
