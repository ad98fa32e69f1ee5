"""Attempts: runs each attempt of a job, and makes its outcome durable before the job is over."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from crucible_core import subjects
from crucible_core.errors import CrucibleError, LimitedError, UnavailableError
from crucible_core.limits import CRASHES, PARK_AFTER
from crucible_core.subjects import shard_of
from crucible_kit.handlers.lanes import Job
from crucible_kit.handlers.service import Outcome, Service
from crucible_kit.handlers.shards import Ownership, Shard, ShardRecord
from crucible_kit.nats.bus import MAX_BATCH, Bus, DuplicateError
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.reader import read

log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 15.0
_SUSPECTS_AT_ONCE = 16
FEW = 12
"""Up to so many messages are stored one by one, pipelined: the server takes longer to open a batch."""
_GATHER_S = 0.01
"""Pause after a batch, in which the next one gathers: each costs the server some files, and a sync of the disk that
appends wait for, too."""


class Attempts:
    def __init__(self, bus: Bus, service: Service, shards: Ownership) -> None:
        self._bus = bus
        self._service = service
        self._shards = shards
        self._outcomes = OutcomeWriter(bus)
        self._recorded: dict[int, dict[str, tuple[int, bytes]]] = {}
        """By shard whose owner was killed: the last record of each job that may begin again, and its attempt."""
        self._suspects = asyncio.Semaphore(_SUSPECTS_AT_ONCE)
        self._alone = asyncio.Lock()

    async def load(self, shards: Sequence[Shard], slack_ms: int) -> None:
        """Reads the outcomes that killed owners have recorded and that are not in the records of their shards yet."""
        dead = [shard for shard in shards if shard.dead]
        times = await asyncio.gather(*(self._began_ms(shard.record) for shard in dead))
        began = {shard.number: at_ms for shard, at_ms in zip(dead, times, strict=True) if at_ms is not None}
        if not began:
            return
        self._recorded |= {number: {} for number in began}
        history = self._bus.names.attempts_of(self._service.kind)
        reading = read(self._bus, self._bus.names.attempts, filters=[history], since_ms=min(began.values()) - slack_ms)
        async for messages in reading:
            if not messages:
                break
            for message in messages:
                number = shard_of(self._bus.names.handler_of(message.subject))
                with contextlib.suppress(msgspec.DecodeError):
                    if number in began:
                        job, attempt = self._service.identify(message.data)
                        self._recorded[number][job] = attempt, message.data
        await reading.aclose()

    async def _began_ms(self, record: ShardRecord) -> int | None:
        """The time before which no job began that the record does not cover: the commit of the first event after its
        positions, or the record's own `began_ms` where that is later."""
        names = self._bus.names
        positions = [names.position(encoded) for encoded in (record.position, *record.lanes.values())]
        first = positions[0].least(*positions)
        found = [
            await self._bus.next(stream, first.end_of(number) + 1, ">")
            for number, stream in enumerate(names.log_streams)
        ]
        times = [message.time_ms for message in found if message is not None]
        return max(min(times), record.began_ms) if times else None

    def forget(self, shard: int) -> None:
        """Drops the records of a shard, once the jobs of its killed owner are over or it has another owner."""
        self._recorded.pop(shard, None)

    def is_recorded(self, job: Job) -> bool:
        return job.id in self._recorded.get(shard_of(job.handler), ())

    async def run(self, job: Job) -> Outcome:
        """Runs one attempt, or finishes one that is recorded already."""
        found = await self._earlier(job)
        if found is not None:
            return await self._persist(job, lambda: self._service.again(job, found)) or Outcome()
        return await (self._suspect(job) if job.suspect else self._attempt(job))

    async def record_outcome(self, job: Job, outcome: Outcome) -> None:
        """Returns once the outcome is recorded, and the next attempt is in the work queue. Safe to do twice."""
        if outcome.retry_at_ms is not None:
            retry_at_ms = outcome.retry_at_ms
            await self._persist(job, lambda: self._schedule(job, retry_at_ms))
        if outcome.record is not None:
            await self.record(job, outcome.record)

    async def run_effects(self, job: Job, follows: Callable[[], Awaitable[None]]) -> None:
        """Runs the effects that follow from a job, until they succeed."""
        await self._persist(job, follows)

    async def record(self, job: Job, record: Outgoing) -> None:
        await self._persist(job, lambda: self._outcomes.store(record))

    # ---- one attempt

    async def _earlier(self, job: Job) -> bytes | None:
        """The record of this attempt, where there is one already."""
        if job.pointer is None:
            if not self._recorded:
                return None
            attempt, record = self._recorded.get(shard_of(job.handler), {}).get(job.id, (0, b""))
            return record if attempt >= job.attempt else None
        subject = self._bus.names.attempt(self._service.kind, job.handler, job.id)
        last = await self._persist(job, lambda: self._bus.last(self._bus.names.attempts, subject))
        if last is None or self._service.identify(last.data)[1] < job.attempt:
            return None
        return last.data

    async def _attempt(self, job: Job) -> Outcome:
        failures = 0
        pause_s = _FIRST_PAUSE_S
        while True:
            await self._shards.wait_alive()
            job.tries += 1
            try:
                return await self._service.attempt(job)
            except (LimitedError, UnavailableError) as error:
                log.info("%s: %s of %s waits: %s", self._service.name, job.id, job.handler, error)
            except Exception as error:
                failures += 1
                log.warning("%s: %s of %s failed: %s", self._service.name, job.id, job.handler, error, exc_info=True)
                if failures >= PARK_AFTER:
                    return await self._parked(job, f"failed {failures} times: {error}")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _persist(self, job: Job, step: Callable[[], Awaitable[T]]) -> T | None:
        """Does one step, until nothing that it needs is away."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return await step()
            except (LimitedError, UnavailableError) as error:
                log.info("%s: the outcome of %s waits: %s", self._service.name, job.id, error)
            except CrucibleError as error:
                log.error("%s: the outcome of %s is refused: %s", self._service.name, job.id, error)
                return None
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _schedule(self, job: Job, at_ms: int) -> None:
        names, kind, following = self._bus.names, self._service.kind, str(job.attempt + 1)
        headers = {**job.headers, subjects.JOB: job.id, subjects.ATTEMPT: following}
        headers[subjects.EVENT_SEQUENCE] = str(job.sequence)
        await self._bus.schedule(
            names.schedule(kind, job.handler, job.id),
            names.work(kind, job.handler),
            at_ms,
            b"" if job.sequence else job.raw,
            headers,
            f"{job.id}:{following}",
        )

    # ---- suspects

    async def _suspect(self, job: Job) -> Outcome:
        """Runs a job that may have killed a process. A mark is stored before it begins; a job whose process ended runs
        alone the next time, so that the cause of a second end is known."""
        subject = self._bus.names.trial(self._service.name, job.id)
        last = await self._persist(job, lambda: self._bus.last(self._bus.names.attempts, subject))
        ended = int(last.data) if last else 0
        if ended >= CRASHES:
            return await self._parked(job, f"{ended} processes ended while they worked on it")
        async with self._alone if ended else self._suspects:
            await self._persist(job, lambda: self._bus.store(Outgoing(subject, b"%d" % (ended + 1))))
            outcome = await self._attempt(job)
        await self._persist(job, lambda: self._bus.store(Outgoing(subject, b"0")))
        return outcome

    async def _parked(self, job: Job, reason: str) -> Outcome:
        log.error("%s: %s of %s is put aside: %s", self._service.name, job.id, job.handler, reason)
        headers = {subjects.REASON: reason[:500], subjects.ORIGIN: f"{job.handler} {job.sequence}"}
        parked = Outgoing(
            self._bus.names.parked(self._service.name), job.raw, headers, f"parked:{job.id}:{job.attempt}"
        )
        await self._persist(job, lambda: self._bus.store(parked))
        self._bus.note_parked()
        return await self._service.parked(job, reason)


class OutcomeWriter:
    """Writer of outcome records: while one write is under way, the next batch gathers."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: list[tuple[Outgoing, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def store(self, message: Outgoing) -> None:
        """Returns once the message, which has an id, is stored. After an UnavailableError it may be stored, and may be
        stored again."""
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((message, stored))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        await stored

    async def _write(self) -> None:
        try:
            while self._waiting:
                taken, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                try:
                    await self._store([message for message, _ in taken])
                except CrucibleError as error:
                    _resolve(taken, error)
                else:
                    _resolve(taken, None)
                if len(taken) > FEW:
                    await asyncio.sleep(_GATHER_S)
        finally:
            self._writing = None
            _resolve(self._waiting, UnavailableError("this process is ending"))

    async def _store(self, messages: Sequence[Outgoing]) -> None:
        if len(messages) > FEW:
            try:
                await self._bus.commit(messages)
                return
            except DuplicateError:  # one of them is stored already: which, shows one by one
                pass
        await self._bus.store_all(messages)


def _resolve(taken: Sequence[tuple[Outgoing, "asyncio.Future[None]"]], error: Exception | None) -> None:
    for _, stored in taken:
        if not stored.done():
            if error is None:
                stored.set_result(None)
            else:
                stored.set_exception(error)
