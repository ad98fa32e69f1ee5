"""Pointers: messages of a work queue that name the event of a job, without its bytes. They carry retries, replays and
all other jobs that do not come from the log at commit. Only a test event, which is not in the log, is in its
pointer."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

import msgspec

from crucible_core import subjects
from crucible_core.envelope import Event, decode
from crucible_core.errors import CrucibleError, NotFoundError, UnavailableError
from crucible_core.limits import REPLAY_WAITING
from crucible_core.protocol.replays import ReplayBatch, ReplayedEvent, ReplayTaken
from crucible_core.subjects import SHARDS, Names, shard_of
from crucible_kit.eventlog import event_at
from crucible_kit.handlers.lanes import Job
from crucible_kit.handlers.service import Service
from crucible_kit.handlers.shards import Ownership, Shard
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.consumer import PoisonError, work
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.message import Message

log = logging.getLogger(__name__)

_WINDOW = 8192
"""Pointers that a replica holds at a time."""
_ACK_WAIT_S = 60.0
_PAUSE_S = 1.0
_OWN_HEADERS = "Nats-"


def pointer(names: Names, kind: str, handler: str, job: str, sequence: int, **more: str) -> Outgoing:
    """The message of a job's first attempt, which names its event. Stored twice, it is there once."""
    headers = {subjects.JOB: job, subjects.ATTEMPT: "1", subjects.EVENT_SEQUENCE: str(sequence), **more}
    return Outgoing(names.work(kind, handler), b"", headers, job)


async def forget(bus: Bus, kind: str, queue: str, handler: str) -> None:
    """Removes the jobs of a handler from the queue, due or scheduled. Safe to do twice."""
    names = bus.names
    for subject in (names.work(kind, handler), names.schedules_of(kind, handler), names.held(kind, handler)):
        await bus.purge(queue, subject)


async def waiting(bus: Bus, kind: str, queue: str, handler: str) -> int:
    """Counts the jobs of a handler in the queue, due or scheduled."""
    names = bus.names
    found = (names.work(kind, handler), names.schedules_of(kind, handler), names.held(kind, handler))
    return sum([(await bus.backlog(queue, subject))[0] for subject in found])


class Pointers:
    """This replica's consumer of its service's work queue, over all shards that it owns.

    Work for a lane that is full, or is held, is moved to a subject that nobody consumes, and back later.
    """

    def __init__(
        self,
        bus: Bus,
        service: Service,
        shards: Ownership,
        accept: Callable[[Job], bool],
        has_capacity: Callable[[str], bool],
    ) -> None:
        self._bus = bus
        self._service = service
        self._shards = shards
        self._accept, self._has_capacity = accept, has_capacity
        self._aside: set[str] = set()
        """Handlers with work that was moved aside."""
        self._suspect_to = 0
        self._returning: set[asyncio.Task[None]] = set()

    async def take_over(self, shards: Sequence[Shard]) -> None:
        """Takes over the work that the previous owners of shards left in the queue."""
        names, kind = self._bus.names, self._service.kind
        for dead in {shard.dead for shard in shards if shard.dead}:
            consumer = self._consumer(dead)
            with contextlib.suppress(NotFoundError):
                self._suspect_to = max(self._suspect_to, await self._bus.delivered(self._service.queue, consumer))
                await self._bus.delete_consumer(self._service.queue, consumer)
        held = await self._bus.subjects(self._service.queue, names.all_held(kind))
        numbers = {shard.number for shard in shards}
        self._aside |= {handler for handler in map(names.handler_of, held) if shard_of(handler) in numbers}

    def note(self, handler: str) -> None:
        if handler in self._aside and self._has_capacity(handler):
            self._aside.discard(handler)
            task = asyncio.create_task(self._return(handler))
            self._returning.add(task)
            task.add_done_callback(self._returning.discard)

    async def run(self) -> None:
        try:
            while True:
                filters = self._filters()
                consuming = asyncio.create_task(self._consume(filters)) if filters else None
                try:
                    while self._filters() == filters:
                        self._shards.moved.clear()
                        await self._shards.moved.wait()
                finally:
                    if consuming is not None:
                        consuming.cancel()
                        await asyncio.wait([consuming])
        finally:
            with contextlib.suppress(CrucibleError):
                await self._bus.delete_consumer(self._service.queue, self._consumer(self._shards.replica))

    def _filters(self) -> list[str]:
        names, kind, numbers = self._bus.names, self._service.kind, self._shards.owned
        if len(numbers) == SHARDS:
            return [names.all_work(kind)]
        return [names.work_of(kind, number) for number in sorted(numbers)]

    async def _consume(self, filters: Sequence[str]) -> None:
        await work(
            self._bus,
            self._service.queue,
            self._consumer(self._shards.replica),
            self._handle,
            filters=filters,
            concurrency=_WINDOW,
            ack_wait=_ACK_WAIT_S,
        )

    async def _handle(self, message: Message) -> None:
        handler = self._bus.names.handler_of(message.subject)
        if self._service.plan(handler) is None:
            return  # it was deleted while this waited
        job = await self._job(handler, message)
        if job is None:
            return
        if not self._accept(job):
            await self._put_aside(handler, message)
            return
        assert job.over is not None
        await job.over

    async def _job(self, handler: str, message: Message) -> Job | None:
        headers = message.headers
        id, attempt, sequence = (
            headers.get(subjects.JOB),
            headers.get(subjects.ATTEMPT, ""),
            headers.get(subjects.EVENT_SEQUENCE, ""),
        )
        if not id or not attempt.isdecimal() or not sequence.isdecimal():
            raise PoisonError("it does not say what is to be done")
        found = message if message.data else await event_at(self._bus, int(sequence))
        if found is None:
            found = await self._service.left_of(int(sequence))
        if found is None:
            log.warning(
                "%s: %s of %s is not done: the log does not hold its event any more", self._service.name, id, handler
            )
            return None
        event = decode(found.data, int(sequence) or None)
        kept = {name: value for name, value in headers.items() if not name.startswith(_OWN_HEADERS)}
        over = asyncio.get_running_loop().create_future()
        suspect = message.sequence <= self._suspect_to
        return Job(
            handler, id, int(attempt), event, found.data, int(sequence), found.time_ms, kept, message, over, suspect
        )

    async def _put_aside(self, handler: str, message: Message) -> None:
        self._aside.add(handler)
        headers = {name: value for name, value in message.headers.items() if not name.startswith(_OWN_HEADERS)}
        subject = self._bus.names.held(self._service.kind, handler)
        await self._bus.store(Outgoing(subject, message.data, headers))
        self.note(handler)

    async def _return(self, handler: str) -> None:
        """Moves a handler's work that was put aside back into the queue."""
        names, kind, queue = self._bus.names, self._service.kind, self._service.queue
        while self._has_capacity(handler):
            try:
                found = await self._bus.next(queue, 1, names.held(kind, handler))
                if found is None:
                    return
                await self._bus.store(Outgoing(names.work(kind, handler), found.data, found.headers))
                await self._bus.remove(queue, found.sequence)
            except UnavailableError as error:
                log.info("%s: what was put aside for %s waits: %s", self._service.name, handler, error)
                await asyncio.sleep(_PAUSE_S)
        self._aside.add(handler)

    def _consumer(self, replica: str) -> str:
        return self._bus.names.durable(f"{self._service.name}-work-{replica}")


Work = Callable[[Event, ReplayedEvent], Outgoing | None]


class Queue(msgspec.Struct, frozen=True):
    """The work of one handler that waits, by its `kind` and `key`; `handler` and `work` name it in errors: "hook tidy",
    "runs"."""

    stream: str
    kind: str
    key: str
    handler: str
    work: str
    enabled: bool


async def enqueue(bus: Bus, queue: Queue, request: ReplayBatch, work: Work) -> ReplayTaken:
    """Stores the messages that `work` makes of a batch's events, up to the limit; None skips an event. Safe to repeat
    where the messages have ids."""
    subjects = bus.names.work(queue.kind, queue.key), bus.names.held(queue.kind, queue.key)
    waiting = sum([(await bus.backlog(queue.stream, subject))[0] for subject in subjects])
    messages: list[Outgoing] = []
    skipped = 0
    for replayed in request.events:
        event = _decoded(replayed)
        message = None if event is None else work(event, replayed)
        if message is None:
            skipped += 1
        elif len(messages) + waiting < REPLAY_WAITING:
            messages.append(message)
        else:
            break
    if messages:
        await bus.store_all(messages)
    taken = len(messages) + skipped
    disabled = "" if queue.enabled else ", which is disabled"
    full = f"{waiting + len(messages)} {queue.work} wait for {queue.handler}{disabled}"
    reason = None if taken == len(request.events) else full
    return ReplayTaken(taken=taken, sent=len(messages), skipped=skipped, waiting=reason)


def _decoded(replayed: ReplayedEvent) -> Event | None:
    try:
        return decode(bytes(replayed.event), replayed.sequence)
    except msgspec.DecodeError as error:
        log.error("event %d cannot be read: %s", replayed.sequence, error)
        return None
