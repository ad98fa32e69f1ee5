"""Requests about replays: they are started, listed and steered."""

import math
from collections.abc import Mapping

import msgspec

from crucible_core.errors import ConflictError, InvalidError, LimitedError
from crucible_core.limits import REPLAY_RATE, REPLAYS
from crucible_core.protocol.parts import GetRequest, TypeFilter
from crucible_core.protocol.replays import Replay, ReplayList, StartReplay, SteerReplay
from crucible_events.replay import extent, registry
from crucible_events.replay.extent import select
from crucible_events.replay.registry import CANCELLED, FAILED, PAUSED, RUNNING, Record, Replays, view
from crucible_events.worlds.registry import Places
from crucible_kit.clock import fresh_id, now_ms, timestamp
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import Context, Endpoint
from crucible_kit.types import Types

_EVERYTHING = [TypeFilter(event_type="*")]
_ACTIONS = {
    "pause": (PAUSED, frozenset({RUNNING})),
    "resume": (RUNNING, frozenset({PAUSED, FAILED})),
    "cancel": (CANCELLED, frozenset({RUNNING, PAUSED, FAILED})),
}
"""By action, the new state and the states that it starts from."""


class ListRequest(msgspec.Struct):
    pass


class ReplayApi:
    def __init__(self, bus: Bus, replays: Replays, types: Types, places: Places) -> None:
        self._bus = bus
        self._types = types
        self._replays = replays
        self._places = places

    def endpoints(self) -> Mapping[str, Endpoint]:
        return {
            "replay": Endpoint(StartReplay, self.start, stores=True),
            "replays": Endpoint(ListRequest, self.list_all),
            "replay_get": Endpoint(GetRequest, self.get),
            "replay_steer": Endpoint(SteerReplay, self.steer),
        }

    async def start(self, request: StartReplay, context: Context) -> Replay:
        """Answered once the record is durable. Raises InvalidError, NotFoundError, LimitedError."""
        key = request.idempotency_key
        replay = fresh_id("rpl") if key is None else await self._replays.id_of(key)
        await self._replays.view.refresh()
        if key is not None and replay in self._replays.records:
            return view(self._replays.records[replay], duplicate=True)
        if sum(not record.finished for record in self._replays.records.values()) >= REPLAYS:
            raise LimitedError(f"{REPLAYS} replays are not finished yet; cancel one", retry_after=10)
        record = await self._new_record(request, replay, context)
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
        """Raises ConflictError where the replay cannot take that action any more."""
        await self._replays.view.refresh()
        self._replays.get(request.id, context.principal)
        new_state, possible = _ACTIONS[request.action]

        def change(now: Record) -> Record | None:
            if now.state == new_state:
                return None
            if now.state not in possible:
                raise ConflictError(f"replay {now.id} is {now.state}: it cannot be {new_state} any more")
            times = {"updated_at": timestamp(), "changed_ms": now_ms()}
            return msgspec.structs.replace(now, state=new_state, error=None, **times)

        record = await self._replays.change(request.id, change)
        if new_state == CANCELLED and not record.owner:  # else the job says so when it ends
            await registry.announce_end(self._bus, record.target, record.id, record.state, record.sent)
        return view(record)

    async def _new_record(self, request: StartReplay, replay: str, context: Context) -> Record:
        filters = _EVERYTHING if request.filters is None else request.filters
        world_id, room_id, names = request.world_id, request.room_id, self._bus.names
        scope = context.scope
        selection = await self._types.resolve(lambda known: select(filters, world_id, room_id, names, known, scope))
        await self._places.check_readable(world_id, room_id, scope)
        if request.rate is not None and not (math.isfinite(request.rate) and 0 < request.rate <= REPLAY_RATE):
            message = f"must be more than 0 and at most {REPLAY_RATE} events a second"
            raise InvalidError.field("rate", message)
        within = await extent.resolve(self._bus, request.start, request.to)
        target = await registry.find_target(self._bus, context.principal, request.target, context.traceparent)
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
