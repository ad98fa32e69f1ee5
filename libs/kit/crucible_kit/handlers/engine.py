"""The engine of a replica: moves events from the log to lanes, jobs from lanes to attempts, and records their
outcomes."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import TypeVar

import msgspec

from crucible_core.envelope import Event, decode
from crucible_core.errors import CrucibleError, UnavailableError
from crucible_core.limits import HOPS, IN_HAND_BYTES
from crucible_core.position import Position
from crucible_core.subjects import shard_of
from crucible_kit.backlog import Backlog
from crucible_kit.buckets import Bucket
from crucible_kit.clock import now_ms
from crucible_kit.eventlog import LogState, log_end, log_state, read_log
from crucible_kit.handlers.attempts import Attempts
from crucible_kit.handlers.dispatch import Reader
from crucible_kit.handlers.lanes import CAPACITY, Job, Lane
from crucible_kit.handlers.pointers import Pointers
from crucible_kit.handlers.progress import CLOCKS_DIFFER_MS, Progress
from crucible_kit.handlers.requests import reach_all, serve_peers
from crucible_kit.handlers.service import Plan, Service, subjects_of
from crucible_kit.handlers.shards import Ownership, Shard, ShardRecord
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.message import Message
from crucible_kit.tasks import finish
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.telemetry.spans import Telemetry

log = logging.getLogger(__name__)

T = TypeVar("T")

GRACE_S = 10.0
"""Time for running jobs to finish when their shard goes to another replica."""
MAX_EXAMINED = 10_000
_PART = CAPACITY // 4
"""Events that a lane reads from the log at a time: any beyond its capacity were sent in vain."""
_READERS = 4
"""Lanes that read the log by themselves at a time."""
_REFILL = CAPACITY // 4
"""Events that still wait in a lane when it reads on."""
_PAUSE_S = 0.5
_AGAIN_S = 5.0


class Engine:
    """Serves the handlers of the shards that this replica owns, until `run` is cancelled."""

    def __init__(self, bus: Bus, bucket: Bucket, service: Service, telemetry: Telemetry, metrics: Metrics) -> None:
        self._bus = bus
        self._telemetry = telemetry
        self._service = service
        self._shards = Ownership(
            bus,
            bucket,
            service.name,
            taken=self._take,
            dropped=self._drop,
            record_of=self._record_of,
            first=self._first,
        )
        self._owned: dict[int, Progress] = {}
        self._last: dict[int, ShardRecord] = {}
        """The last records of shards that were given up."""
        self._reader = Reader(bus, service, telemetry, self._offer, self._pass, self._start_over)
        self._catching_up: set[asyncio.Task[None]] = set()
        self._readers = asyncio.Semaphore(_READERS)
        self._held_bytes = 0
        self._attempts = Attempts(bus, service, self._shards)
        self._pointers = Pointers(bus, service, self._shards, self._accept, self._has_capacity)
        work = bus.names.all_work(service.kind)
        self._backlog = Backlog(bus, service.queue, work, metrics, self._in_lanes)

    async def run(self) -> None:
        try:
            await self._run()
        finally:
            self._reader.end()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._shards.run())
            tasks.create_task(self._pointers.run())
            tasks.create_task(self._backlog.watch())
            answering = serve_peers(self._bus, self._service, self._shards.replica, self._in_log, self._telemetry)
            tasks.create_task(answering)

    async def begun(self, timeout: float = 30.0) -> None:
        """Waits until every shard has a replica that serves it, this one or another. Raises UnavailableError."""
        try:
            async with asyncio.timeout(timeout):
                await self._shards.begun.wait()
        except TimeoutError as error:
            raise UnavailableError(f"nobody serves all shards of {self._service.name}", retry_after=1) from error

    def note(self, handler: str) -> None:
        """Notes that a handler has come, gone or changed: it may continue now."""
        self._reader.note()
        progress = self._owned.get(shard_of(handler))
        if progress is None:
            return
        if handler in progress.lanes:
            self._pump(progress.lanes[handler])
        elif (plan := self._service.plan(handler)) is not None and plan.held and plan.keeps:
            self._hold(handler)
        self._pointers.note(handler)

    def _hold(self, handler: str) -> None:
        """Keeps the position of a handler that is not served for now."""
        if (progress := self._owned.get(shard_of(handler))) is not None:
            progress.lane(handler, self._reader.at).behind = True

    async def reach_all(self, revision: int) -> None:
        """Waits until every replica works with a revision of the registry."""
        if not self._shards.alone:
            await reach_all(self._bus, self._service.name, revision)

    async def _in_log(self, handler: str) -> int:
        """Counts the jobs of a handler that wait in the log, or are under way. It examines at most `MAX_EXAMINED`
        events."""
        lane, plan = self._lane(handler), self._service.plan(handler)
        if lane is None or plan is None:
            return 0
        found = lane.from_log
        if not lane.behind:
            return found
        examined = 0
        async with contextlib.aclosing(self._behind(lane, plan)) as batches:
            async for messages in batches:
                found += sum(self._is_wanted(handler, message) is not None for message in messages)
                examined += len(messages)
                if not messages or examined >= MAX_EXAMINED:
                    break
        return found

    def _in_lanes(self) -> tuple[int, int]:
        lanes = list(self._all_lanes())
        return sum(lane.from_log for lane in lanes), min((lane.began_ms for lane in lanes if lane.began_ms), default=0)

    # ---- shards

    async def _first(self, shard: int) -> Position:
        """The position where a new shard begins: before the first event that one of its handlers waits for."""
        end = await log_end(self._bus)  # first: a handler that comes now begins there
        since = self._service.since(shard)
        return end if since is None else since

    async def _take(self, shards: list[Shard]) -> None:
        state = await log_state(self._bus)
        await self._attempts.load(shards, CLOCKS_DIFFER_MS)
        await self._pointers.take_over(shards)
        for progress in self._owned.values():
            progress.ahead = progress.at(self._reader.at)
        for shard in shards:
            self._last.pop(shard.number, None)
            self._owned[shard.number] = Progress(shard, self._service, self._bus.names, state)
        self._read_on()
        for handler in self._service.unreadable():
            self._hold(handler)
        for shard in shards:
            for lane in list(self._owned[shard.number].lanes.values()):
                self._pump(lane)

    async def _drop(self, shards: list[Shard]) -> None:
        dropped = [(shard, self._owned.pop(shard.number)) for shard in shards if shard.number in self._owned]
        lanes = [lane for _, progress in dropped for lane in progress.lanes.values()]
        for _, progress in dropped:
            progress.stop(self._reader.at)
        for lane in lanes:
            lane.closed = True
            for job in (*lane.waiting, *lane.pointers):
                self._let_go(job)
        recording = [lane.recording for lane in lanes if lane.recording is not None]
        await finish([*recording, *(task for lane in lanes for task in lane.running.values())], GRACE_S)
        for shard, progress in dropped:
            self._last[shard.number] = progress.record(shard.record, self._bus.names.start, self._bus.now_ms())
            self._attempts.forget(shard.number)

    def _record_of(self, shard: Shard) -> ShardRecord:
        return self._last.pop(shard.number, None) or self._record(shard)

    def _record(self, shard: Shard) -> ShardRecord:
        progress = self._owned.get(shard.number)
        if progress is None:
            return shard.record
        for lane in list(progress.lanes.values()):
            progress.close_idle(lane, self._reader.at)
        if progress.is_settled(progress.suspect_to, self._reader.at):
            self._attempts.forget(shard.number)
        return progress.record(shard.record, self._reader.at, self._bus.now_ms())

    # ---- reading the log

    def _read_on(self) -> None:
        """Restarts the shared reader from the least position of the shards and lanes."""
        near = [lane.fed for lane in self._all_lanes() if not lane.behind]
        ahead = [progress.ahead for progress in self._owned.values() if progress.ahead is not None]
        first, *others = (*ahead, *near)
        self._reader.begin(first.least(*others))

    def _start_over(self, found: LogState) -> None:
        for progress in self._owned.values():
            for job in progress.start_over(found, self._reader.at):
                self._let_go(job)
        self._read_on()

    def _pass(self) -> None:
        for progress in self._owned.values():
            progress.pass_to(self._reader.at)

    def _offer(self, handler: str, message: Message, event: Event) -> None:
        progress = self._owned.get(shard_of(handler))
        if progress is None:
            return
        lane = progress.lanes.get(handler)
        fed = progress.at(self._reader.at) if lane is None else lane.fed
        plan = self._service.plan(handler)
        if plan is None or fed.covers(message.sequence) or plan.since.covers(message.sequence):
            return
        job = self._job(handler, message, event)
        lane = lane or progress.open_for(job, self._reader.at)
        if lane.behind:
            lane.keep(job)
        elif plan.held or lane.full or (self._held_bytes > IN_HAND_BYTES and lane.waiting):
            lane.behind = True
        else:
            self._put(lane, job)
            self._pump(lane)

    def _job(self, handler: str, message: Message, event: Event) -> Job:
        id = self._service.job_id(handler, event, message.time_ms)
        return Job(handler, id, 1, event, message.data, message.sequence, message.time_ms)

    def _put(self, lane: Lane, job: Job) -> None:
        self._held_bytes += len(job.raw)
        lane.put(job, now_ms())

    # ---- lanes

    def _all_lanes(self) -> Iterator[Lane]:
        return (lane for progress in self._owned.values() for lane in progress.lanes.values())

    def _lane(self, handler: str) -> Lane | None:
        progress = self._owned.get(shard_of(handler))
        return None if progress is None else progress.lanes.get(handler)

    def _pump(self, lane: Lane) -> None:
        """Begins as many jobs as there are slots, and closes a lane that is idle."""
        if lane.closed:
            return
        plan = self._service.plan(lane.handler)
        if plan is None:
            self._forget(lane)
            return
        for skipped in lane.skip(plan.since):
            self._let_go(skipped)
        if not plan.held:
            self._begin_some(lane, plan)
            if not lane.pointers:
                self._pointers.note(lane.handler)
            few = len(lane.waiting) <= _REFILL and self._held_bytes <= IN_HAND_BYTES
            if lane.behind and not lane.catching_up and (few or not lane.waiting):
                self._catch_up(lane, plan)
        self._owned[lane.shard].close_idle(lane, self._reader.at)

    def _begin_some(self, lane: Lane, plan: Plan) -> None:
        while lane.has_slot(plan.concurrency) and not lane.empty:
            job = lane.take()
            if self._is_due(lane, plan, job):
                self._begin(lane, job)
            else:
                self._hold_back(lane, job)

    def _is_due(self, lane: Lane, plan: Plan, job: Job) -> bool:
        """Returns False for a job that comes too soon. The last event of a chain causes nothing, and delays nothing."""
        free = job.pointer is not None or not plan.apart_ms or job.event.metadata.hop >= HOPS
        return free or lane.fires(job, plan.apart_ms)

    def _hold_back(self, lane: Lane, job: Job) -> None:
        self._let_go(job)
        lane.held_back.append(job)
        if lane.recording is None:
            lane.recording = asyncio.create_task(self._record_held_back(lane))

    async def _record_held_back(self, lane: Lane) -> None:
        try:
            while jobs := lane.held_back:
                lane.held_back = []
                await self._attempts.record(jobs[0], self._service.held_back(jobs[0], len(jobs)))
                for job in jobs:
                    lane.settle(job)
        finally:
            lane.recording = None
            self._pump(lane)

    def _begin(self, lane: Lane, job: Job) -> None:
        if lane.suspects and job.pointer is None and not self._attempts.is_recorded(job):
            job.suspect = self._owned[lane.shard].suspect_to.covers(job.sequence)
            lane.suspects = lane.suspects - 1 if job.suspect else 0
        lane.running[job] = asyncio.create_task(self._do(lane, job))

    def _forget(self, lane: Lane) -> None:
        """Closes the lane of a deleted handler; running jobs go on."""
        lane.closed = True
        for job in (*lane.waiting, *lane.pointers):
            self._let_go(job)
        self._owned[lane.shard].lanes.pop(lane.handler, None)

    def _let_go(self, job: Job) -> None:
        if job.pointer is None:
            self._held_bytes -= len(job.raw)
        elif job.over is not None and not job.over.done():
            job.over.cancel()

    async def _do(self, lane: Lane, job: Job) -> None:
        try:
            outcome = await self._insist(job, lambda: self._attempts.run(job))
            lane.end_attempt(job, again=outcome.retry_at_ms is not None)
            self._pump(lane)
            await self._insist(job, lambda: self._attempts.record_outcome(job, outcome))
            lane.ended.discard(job)
            if (follows := outcome.follows) is not None:
                lane.following.add(job)
                self._pump(lane)
                await self._insist(job, lambda: self._attempts.run_effects(job, follows))
            lane.settle(job)
            if job.over is not None and not job.over.done():
                job.over.set_result(None)
        finally:
            del lane.running[job]
            lane.ended.discard(job)
            lane.following.discard(job)
            self._let_go(job)
            self._pump(lane)

    async def _insist(self, job: Job, step: Callable[[], Awaitable[T]]) -> T:
        """Repeats a step until it succeeds: an exception here is a mistake of ours, not the handler's failure."""
        while True:
            try:
                return await step()
            except Exception:
                log.exception("%s: %s of %s broke off; it is done again", self._service.name, job.id, job.handler)
                await asyncio.sleep(_AGAIN_S)

    # ---- lanes that are behind

    def _catch_up(self, lane: Lane, plan: Plan) -> None:
        lane.catching_up = True
        task = asyncio.create_task(self._catch_up_from_log(lane, plan))
        self._catching_up.add(task)
        task.add_done_callback(self._catching_up.discard)

    async def _catch_up_from_log(self, lane: Lane, plan: Plan) -> None:
        try:
            async with self._readers:
                reached = await self._read_for(lane, plan)
        except CrucibleError as error:
            log.info("%s: %s reads on later: %s", self._service.name, lane.handler, error)
            reached = False
            await asyncio.sleep(_PAUSE_S)
        finally:
            lane.catching_up = False
        if not (reached and lane.join(self._reader.at, now_ms())):
            lane.give_up_joining()
        self._pump(lane)

    async def _read_for(self, lane: Lane, plan: Plan) -> bool:
        """Fills a lane from the log. Returns True if it has all that the shared reader had brought at the start."""
        lane.begin_to_join(self._reader.at)
        until, looked_to = self._reader.at, lane.fed
        async with contextlib.aclosing(self._behind(lane, plan)) as batches:
            async for messages in batches:
                if not messages:
                    return True
                for message in messages:
                    looked_to = looked_to.after(message.sequence)
                    if not until.covers(message.sequence):
                        if looked_to.reaches(until):
                            return True
                        continue
                    if lane.full or lane.closed or (self._held_bytes > IN_HAND_BYTES and lane.waiting):
                        return False
                    if (event := self._is_wanted(lane.handler, message)) is not None:
                        self._put(lane, self._job(lane.handler, message, event))
                    lane.fed = lane.fed.after(message.sequence)
        return False

    def _behind(self, lane: Lane, plan: Plan) -> AsyncGenerator[list[Message], None]:
        """The events of the log that a lane does not have yet."""
        return read_log(
            self._bus, after=lane.fed.most(plan.since), filters=subjects_of(plan.types, self._bus.names), batch=_PART
        )

    def _is_wanted(self, handler: str, message: Message) -> Event | None:
        if not self._reader.may_want(message):
            return None
        try:
            event = decode(message.data, message.sequence)
        except msgspec.DecodeError:  # it was parked when it came first
            return None
        return event if self._service.wants(handler, event) else None

    # ---- jobs from the work queue

    def _accept(self, job: Job) -> bool:
        """Takes a job from the work queue. Returns False where its lane is full, or is held."""
        progress = self._owned.get(shard_of(job.handler))
        if progress is None or not self._has_capacity(job.handler):
            return False
        lane = progress.lane(job.handler, self._reader.at)
        lane.pointers.append(job)
        self._pump(lane)
        return True

    def _has_capacity(self, handler: str) -> bool:
        plan, lane = self._service.plan(handler), self._lane(handler)
        return plan is None or not (plan.held or (lane is not None and lane.pointers_full))
