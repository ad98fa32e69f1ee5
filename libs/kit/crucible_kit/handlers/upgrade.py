"""Migration from a version before the work engine: it takes over the dispatcher's position, turns waiting work into
pointers to its events, and deletes the consumer of each handler."""

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
_LOG_EVERY = 1000

Find = Callable[[Message], str | None]
Fired = Callable[[], Awaitable[Mapping[str, int]]]


async def _no_times() -> Mapping[str, int]:
    return {}


async def migrate(bus: Bus, shards: Bucket, service: Service, find: Find, fired: Fired = _no_times) -> None:
    """Migrates a service, and returns once nothing is left to do. `find` returns the handler of a message, None where
    it is gone; `fired` the commit times of the last events of handlers whose events must be some time apart. Safe to
    break off and to do twice: each message has its id in the new queue, and leaves the old one."""
    names, dispatcher = bus.names, bus.names.durable(f"{service.name}-dispatch")
    with contextlib.suppress(NotFoundError):
        position = names.position(await bus.acknowledged(names.events, dispatcher))  # it knew one stream
        await begin_at(shards, service.name, position, await fired())
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
        if moved % _LOG_EVERY == 0:
            log.info("%s: %d messages of the previous version are migrated", service.name, moved)
    if moved:
        log.info("%s: %d messages of the previous version were migrated", service.name, moved)


def _pointer(bus: Bus, kind: str, handler: str, found: Message) -> Outgoing:
    names, job = bus.names, found.headers[OLD_JOBS[kind]]
    headers = {name: found.headers[name] for name in _KEPT if name in found.headers} | {JOB: job}
    subject, id = names.work(kind, handler), f"{job}:{headers.get(ATTEMPT, '1')}:over"
    if SCHEDULE in found.headers:
        schedule = {SCHEDULE: found.headers[SCHEDULE], SCHEDULE_TARGET: subject}
        return Outgoing(names.schedule(kind, handler, job), b"", headers | schedule, id)
    return Outgoing(subject, b"", headers, id)
