"""Starting, showing and steering replays, and giving those that run to this replica's jobs."""

import asyncio
import contextlib
import logging
import math
import secrets
from collections.abc import Mapping

import msgspec

from crucible_core.errors import ConflictError, CrucibleError, FieldError, InvalidError, LimitedError
from crucible_core.protocol.parts import GetRequest, TypeFilter
from crucible_core.protocol.replays import Replay, ReplayList, StartReplay, SteerReplay
from crucible_events.replay import extent, registry
from crucible_events.replay.extent import select
from crucible_events.replay.jobs import LEASE_S, Job
from crucible_events.replay.registry import CANCELLED, FAILED, PAUSED, RUNNING, Record, Replays, view
from crucible_events.worlds.registry import Places
from crucible_kit.clock import fresh_id, now_ms, timestamp
from crucible_kit.nats.bus import Bus
from crucible_kit.principals import Principals
from crucible_kit.rpc import Context, Endpoint
from crucible_kit.tasks import finish
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.types import Types

log = logging.getLogger(__name__)

MAX_RUNNING = 16
"""Jobs of one replica; others wait."""
MAX_UNFINISHED = 100
MAX_RATE = 1_000_000
_START_S = 30.0
_LOOK_S = 1.0
_TIDY_S = 60.0
_GRACE_S = 5.0
_EVERYTHING = [TypeFilter(event_type="*")]
_STEPS = {
    "pause": (PAUSED, frozenset({RUNNING})),
    "resume": (RUNNING, frozenset({PAUSED, FAILED})),
    "cancel": (CANCELLED, frozenset({RUNNING, PAUSED, FAILED})),
}
"""What an action leads to, and from where."""


class ListRequest(msgspec.Struct):
    pass


class Replaying:
    """The requests, and the jobs of this replica, each of which holds a lease."""

    def __init__(
        self, bus: Bus, replays: Replays, types: Types, places: Places, principals: Principals, metrics: Metrics
    ) -> None:
        self._bus = bus
        self._types = types
        self._replays = replays
        self._places = places
        self._principals = principals
        self._me = secrets.token_hex(8)
        self._jobs: dict[str, tuple[Job, asyncio.Task[None]]] = {}
        self._news = asyncio.Event()
        self._handed_on = metrics.counter("replayed_events", "Events that replays handed on", ("target",))
        metrics.gauge("replays_running", "Replays that this process works on").set_function(lambda: len(self._jobs))
        replays.changed = self._changed

    def endpoints(self) -> Mapping[str, Endpoint]:
        return {
            "replay": Endpoint(StartReplay, self.start, stores=True),
            "replays": Endpoint(ListRequest, self.list_all),
            "replay_get": Endpoint(GetRequest, self.get),
            "replay_steer": Endpoint(SteerReplay, self.steer),
        }

    # ---- requests

    async def start(self, request: StartReplay, context: Context) -> Replay:
        """Answered once the record is durable. Raises InvalidError, NotFoundError, LimitedError."""
        key = request.idempotency_key
        replay = fresh_id("rpl") if key is None else await self._replays.id_of(key)
        await self._replays.view.refresh()
        if key is not None and replay in self._replays.records:
            return view(self._replays.records[replay], duplicate=True)
        if sum(not record.finished for record in self._replays.records.values()) >= MAX_UNFINISHED:
            raise LimitedError(f"{MAX_UNFINISHED} replays are not finished yet; cancel one", retry_after=10)
        record = await self._checked(request, replay, context)
        try:
            await self._replays.create(record)
        except ConflictError:  # the same key, at the same moment
            await self._replays.view.refresh()
            return view(self._replays.get(replay), duplicate=True)
        return view(record)

    async def list_all(self, request: ListRequest, context: Context) -> ReplayList:
        await self._replays.view.refresh()
        newest = sorted(self._replays.of(context.principal), key=lambda record: record.created_at, reverse=True)
        return ReplayList(replays=[view(record) for record in newest])

    async def get(self, request: GetRequest, context: Context) -> Replay:
        await self._replays.view.refresh()
        return view(self._replays.get(request.id, context.principal))

    async def steer(self, request: SteerReplay, context: Context) -> Replay:
        """Raises ConflictError where the replay is past that."""
        await self._replays.view.refresh()
        self._replays.get(request.id, context.principal)
        wanted, possible = _STEPS[request.action]

        def change(now: Record) -> Record | None:
            if now.state == wanted:
                return None
            if now.state not in possible:
                raise ConflictError(f"replay {now.id} is {now.state}: it cannot be {wanted} any more")
            moment = {"updated_at": timestamp(), "changed_ms": now_ms()}
            return msgspec.structs.replace(now, state=wanted, error=None, **moment)

        record = await self._replays.change(request.id, change)
        if wanted == CANCELLED and not record.owner:  # else the job says so when it ends
            await registry.say_goodbye(self._bus, record.target, record.id, record.state, record.sent)
        return view(record)

    async def _checked(self, request: StartReplay, replay: str, context: Context) -> Record:
        filters = _EVERYTHING if request.filters is None else request.filters
        world_id, room_id, names = request.world_id, request.room_id, self._bus.names
        scope = context.scope
        selection = await self._types.resolve(lambda known: select(filters, world_id, room_id, names, known, scope))
        await self._places.check_readable(world_id, room_id, scope)
        if request.rate is not None and not (math.isfinite(request.rate) and 0 < request.rate <= MAX_RATE):
            message = f"must be more than 0 and at most {MAX_RATE} events a second"
            raise InvalidError(f"rate: {message}", errors=[FieldError("rate", message)])
        within = await extent.resolve(self._bus, request.start, request.to)
        target = await registry.find(self._bus, context.principal, request.target, context.traceparent)
        now = timestamp()
        return Record(
            id=replay,
            start=within.after.encoded,
            to=within.to.encoded,
            position=within.after.encoded,
            total=await extent.count(self._bus, within, selection.subjects),
            wanted=request.target,
            target=target,
            filters=filters,
            rate=request.rate,
            world_id=request.world_id,
            room_id=request.room_id,
            created_at=now,
            updated_at=now,
            changed_ms=now_ms(),
            principal=context.principal.id,
        )

    # ---- jobs

    async def run(self) -> None:
        """Works on replays until cancelled; then others may go on with them."""
        await self._replays.view.reach(0, timeout=_START_S)
        tidy_at = 0.0
        try:
            while True:
                self._news.clear()
                with contextlib.suppress(CrucibleError):
                    await self._begin()
                    if (now := asyncio.get_running_loop().time()) >= tidy_at:
                        tidy_at = now + _TIDY_S
                        await self._replays.forget_old(now_ms())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._news.wait()
        finally:
            for job, _ in self._jobs.values():
                job.stop()
            await finish({task for _, task in self._jobs.values()}, _GRACE_S)

    async def _begin(self) -> None:
        for record in sorted(self._replays.records.values(), key=lambda record: record.created_at):
            if len(self._jobs) >= MAX_RUNNING:
                return
            if record.id not in self._jobs and _is_free(record):
                claimed = await self._replays.change(record.id, self._claim)
                if claimed.owner == self._me:
                    self._work_on(claimed)

    def _claim(self, record: Record) -> Record | None:
        if not _is_free(record):
            return None
        return msgspec.structs.replace(record, owner=self._me, lease_until_ms=now_ms() + int(LEASE_S * 1000))

    def _work_on(self, record: Record) -> None:
        job = Job(self._bus, self._replays, self._types, self._principals, record, self._me, self._handed_on)
        task = asyncio.create_task(job.run())
        self._jobs[record.id] = (job, task)
        task.add_done_callback(lambda _: self._ended(record.id))

    def _ended(self, replay: str) -> None:
        self._jobs.pop(replay, None)
        self._news.set()

    def _changed(self, replay: str) -> None:
        running = self._jobs.get(replay)
        if running is not None:
            running[0].nudge()
        else:
            self._news.set()


def _is_free(record: Record) -> bool:
    """Whether nobody works on a replay that should run. An owner that this process is not, or no longer, is waited for
    until its lease ends."""
    return record.state == RUNNING and (not record.owner or record.lease_until_ms < now_ms())
