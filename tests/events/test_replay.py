"""Replays: jobs over a real log into targets that the test plays, across restarts of the service."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette

from crucible_core.access import OPERATOR
from crucible_core.errors import ConflictError, InvalidError, LimitedError, NotFoundError, UnavailableError
from crucible_core.limits import REPLAYS, REPLAYS_ENDED
from crucible_core.protocol.parts import GetRequest, TypeFilter
from crucible_core.protocol.replays import (
    Replay,
    Replayable,
    ReplayBatch,
    ReplayList,
    ReplayTaken,
    ReplayTarget,
    StartReplay,
    SteerReplay,
)
from crucible_kit.clock import fresh_id, now_ms, timestamp
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import Context, Endpoint, call, serve
from crucible_kit.telemetry.spans import Telemetry
from tests.cases import each_of
from tests.places import make_world

from .conftest import Asker, Running, eventually, new

HOOK = ReplayTarget(hook="h")


class Taker:
    """Stands for `hooks`: takes batches as the test says, and remembers what it took, repetitions too."""

    def __init__(self) -> None:
        self.batches: list[ReplayBatch] = []
        self.taken: list[int] = []
        self.room = 10**9
        self.gate = asyncio.Event()
        self.gate.set()
        self.trouble: Exception | None = None
        self.refuses: Callable[[int], bool] = lambda _: False

    async def replayable(self, request: GetRequest, context: Context) -> Replayable:
        if request.id != "h":
            raise NotFoundError(f"there is no hook {request.id}")
        return Replayable(id=request.id)

    async def replay(self, request: ReplayBatch, context: Context) -> ReplayTaken:
        await self.gate.wait()
        if self.trouble:
            raise self.trouble
        self.batches.append(request)
        part = request.events[: self.room]
        self.room -= len(part)
        refused = sum(self.refuses(event.sequence) for event in part)
        self.taken += [event.sequence for event in part if not self.refuses(event.sequence)]
        waiting = None if len(part) == len(request.events) else "no room"
        return ReplayTaken(taken=len(part), sent=len(part) - refused, skipped=refused, waiting=waiting)


@pytest.fixture
async def taker(bus: Bus) -> AsyncIterator[Taker]:
    found = Taker()
    endpoints = {"replayable": Endpoint(GetRequest, found.replayable), "replay": Endpoint(ReplayBatch, found.replay)}
    async with serve(bus, "hooks", endpoints, Telemetry()):
        yield found


async def start(bus: Bus, **asked: Any) -> Replay:
    asked = {"target": HOOK, **asked}
    return await call(bus, OPERATOR, "events", "replay", StartReplay(**asked), Replay)


async def state_of(bus: Bus, replay: Replay) -> Replay:
    return await call(bus, OPERATOR, "events", "replay_get", GetRequest(id=replay.id), Replay)


async def steer(bus: Bus, replay: Replay, action: Any) -> Replay:
    return await call(bus, OPERATOR, "events", "replay_steer", SteerReplay(id=replay.id, action=action), Replay)


async def reaches(bus: Bus, replay: Replay, state: str, seconds: float = 20.0) -> Replay:
    async def there() -> bool:
        return (await state_of(bus, replay)).state.startswith(state)

    await eventually(there, seconds)
    return await state_of(bus, replay)


async def fill(ask: Asker, count: int, type: str = "Custom.note") -> list[int]:
    found: list[int] = []
    for begin in range(0, count, 500):
        results = await ask.append(*[new(type, {"n": n}) for n in range(begin, min(begin + 500, count))])
        found += [result.sequence or 0 for result in results]
    return found


async def test_everything_goes_once_and_in_order(service: Starlette, ask: Asker, bus: Bus, taker: Taker) -> None:
    sequences = await fill(ask, 1200)
    replay = await start(bus)
    assert (replay.state, replay.start, replay.to, replay.total) == ("running", 0, 1200, 1200)
    await ask.one(new())  # after the replay's end
    done = await reaches(bus, replay, "done")
    assert taker.taken == sequences
    assert (done.matched, done.sent, done.skipped, done.position, done.progress) == (1200, 1200, 0, 1200, 1.0)
    assert {batch.replay for batch in taker.batches} == {replay.id}
    event = msgspec.json.decode(bytes(taker.batches[0].events[0].event))
    assert event["data"]["payload"] == {"n": 0}


async def test_range_types_filters_and_rooms_choose(service: Starlette, ask: Asker, bus: Bus, taker: Taker) -> None:
    await fill(ask, 10)
    await fill(ask, 3, "Custom.other")
    await make_world(bus, "default", "attic")
    await ask.one(new(room_id="attic"))
    by_type = await start(bus, start=8, filters=[TypeFilter(event_type="Custom.other")])
    await reaches(bus, by_type, "done")
    assert taker.taken == [11, 12, 13]
    taker.taken.clear()
    narrow = TypeFilter(event_type="Custom.*", filter={"n": {"gte": 2}})
    filtered = await start(bus, start=1, to=12, filters=[narrow])
    done = await reaches(bus, filtered, "done")
    assert taker.taken == [3, 4, 5, 6, 7, 8, 9, 10]
    assert (done.total, done.matched, done.progress) == (11, 8, 1.0)
    taker.taken.clear()
    await reaches(bus, await start(bus, room_id="attic"), "done")
    assert taker.taken == [14]
    taker.taken.clear()
    # More types than are read one by one.
    types = [TypeFilter(event_type=f"Custom.t{n}") for n in range(30)] + [TypeFilter(event_type="Custom.other")]
    await reaches(bus, await start(bus, filters=types), "done")
    assert taker.taken == [11, 12, 13]


async def test_times_are_those_of_the_commits(service: Starlette, ask: Asker, bus: Bus, taker: Taker) -> None:
    await fill(ask, 2)
    await asyncio.sleep(0.05)  # so that the two halves are not of the same millisecond
    first = await bus.get(bus.names.events, 2)
    await fill(ask, 2)
    second = await bus.get(bus.names.events, 3)
    assert first is not None
    assert second is not None
    replay = await start(bus, start=timestamp(second.time_ms))
    assert (replay.start, replay.to) == (2, 4)
    until = await start(bus, to=timestamp(first.time_ms))
    assert (until.start, until.to) == (0, 2)
    assert (await start(bus, start="2099-01-01T00:00:00Z")).total == 0
    await reaches(bus, until, "done")


@each_of(
    ("asked", "path"),
    [
        ({"start": 3, "to": 2}, "from"),
        ({"start": 99}, "from"),
        ({"to": 99}, "to"),
        ({"to": "start"}, "to"),
        ({"start": -1}, "from"),
        ({"start": 2**70}, "from"),
        ({"start": "yesterday"}, "from"),
        ({"start": "2026-13-01"}, "from"),
        ({"start": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "from"),
        ({"world_id": "nowhere"}, "world_id"),
        ({"room_id": "nowhere"}, "room_id"),
        ({"filters": []}, "filters"),
        ({"filters": [TypeFilter(event_type="Memori.Created")]}, "filters.0.event_type"),
        ({"filters": [TypeFilter(event_type="*", filter={"a": {"matchs": "x"}})]}, "filters.0.filter.a.matchs"),
        ({"rate": 0.0}, "rate"),
        ({"rate": 1e300}, "rate"),
        ({"target": ReplayTarget()}, "target"),
        ({"target": ReplayTarget(hook="h", webhook="w")}, "target"),
    ],
)
async def test_what_is_wrong_is_named(
    service: Starlette, ask: Asker, bus: Bus, taker: Taker, asked: dict[str, Any], path: str
) -> None:
    await fill(ask, 5)
    with pytest.raises(InvalidError) as caught:
        await start(bus, **asked)
    assert caught.value.errors[0].path == path
    assert (await call(bus, OPERATOR, "events", "replays", ListNothing(), ReplayList)).replays == []


class ListNothing(msgspec.Struct):
    pass


async def test_unknown_targets(service: Starlette, bus: Bus, taker: Taker) -> None:
    for target in (ReplayTarget(hook="x"), ReplayTarget(subscription="sub_x"), ReplayTarget(subscription="a.b >")):
        with pytest.raises(NotFoundError):
            await start(bus, target=target)
    with pytest.raises(UnavailableError):
        await start(bus, target=ReplayTarget(webhook="w"))


async def test_pause_resume_and_cancel(service: Starlette, ask: Asker, bus: Bus, taker: Taker) -> None:
    sequences = await fill(ask, 600)
    taker.room = 250
    replay = await start(bus)
    await eventually(lambda: _holds(len(taker.taken) == 250))
    paused = await steer(bus, replay, "pause")
    assert paused.state == "paused"
    taker.room = 10**9
    await _released(bus, replay, 250)
    assert len(taker.taken) == 250
    assert (await steer(bus, replay, "pause")).state == "paused"
    assert (await steer(bus, replay, "resume")).state == "running"
    await reaches(bus, replay, "done")
    assert taker.taken == sequences
    with pytest.raises(ConflictError):
        await steer(bus, replay, "cancel")
    with pytest.raises(NotFoundError):
        await call(bus, OPERATOR, "events", "replay_steer", SteerReplay(id="rpl_x", action="pause"), Replay)

    taker.room = 10
    other = await start(bus)
    await eventually(lambda: _holds(len(taker.taken) == 610))
    assert (await steer(bus, other, "cancel")).state == "cancelled"
    taker.room = 10**9
    with pytest.raises(ConflictError):
        await steer(bus, other, "resume")
    await _released(bus, other, 10)
    assert len(taker.taken) == 610
    listed = await call(bus, OPERATOR, "events", "replays", ListNothing(), ReplayList)
    assert [each.state for each in listed.replays] == ["cancelled", "done"]


async def _holds(condition: bool) -> bool:
    return condition


async def _released(bus: Bus, replay: Replay, position: int) -> None:
    """The job has written how far it came."""

    async def written() -> bool:
        return (await state_of(bus, replay)).position == position

    await eventually(written)


async def test_restarts_lose_nothing_and_repeat_nothing(running: Running, ask: Asker, bus: Bus, taker: Taker) -> None:
    async with running():
        sequences = await fill(ask, 900)
        taker.room = 333
        replay = await start(bus)
        await eventually(lambda: _holds(len(taker.taken) == 333))
    taker.room = 333
    async with running():
        await eventually(lambda: _holds(len(taker.taken) == 666))
        await steer(bus, replay, "pause")
    taker.room = 10**9
    async with running():
        assert (await state_of(bus, replay)).state == "paused"
        await steer(bus, replay, "resume")
        done = await reaches(bus, replay, "done")
    assert taker.taken == sequences
    assert (done.matched, done.sent) == (900, 900)


async def test_a_replica_that_dies_is_replaced(running: Running, ask: Asker, bus: Bus, taker: Taker) -> None:
    async with running():
        sequences = await fill(ask, 500)
    async with running() as dying:
        taker.room = 200
        replay = await start(bus)
        await eventually(lambda: _holds(len(taker.taken) == 200))
        await _released(bus, replay, 200)
        # It stays the owner, and does nothing any more.
        dead = msgspec.structs.replace(dying.state.replays.records[replay.id], owner="dead", lease_until_ms=_soon())
        await dying.state.replays.change(replay.id, lambda _: dead)
        taker.room = 10**9
        assert (await state_of(bus, replay)).state == "running"
        await reaches(bus, replay, "done")
    assert taker.taken == sequences


def _soon() -> int:
    return now_ms() + 1500


async def test_one_job_runs_once_though_there_are_two_replicas(
    service: Starlette, running: Running, ask: Asker, bus: Bus, taker: Taker
) -> None:
    sequences = await fill(ask, 1000)
    async with running():
        replays = [await start(bus) for _ in range(5)]
        for replay in replays:
            await reaches(bus, replay, "done")
    assert sorted(taker.taken) == sorted(sequences * 5)


async def test_trouble_is_told_and_waited_for_and_a_refusal_fails(
    service: Starlette, ask: Asker, bus: Bus, taker: Taker
) -> None:
    await fill(ask, 5)
    taker.trouble = UnavailableError("the hook has no worker yet")
    replay = await start(bus)

    async def told() -> bool:
        return (await state_of(bus, replay)).error == "the hook has no worker yet"

    await eventually(told)
    taker.trouble = None
    assert (await reaches(bus, replay, "done")).error is None
    taker.trouble = NotFoundError("there is no hook h")
    failing = await start(bus)
    failed = await reaches(bus, failing, "failed")
    assert (failed.state, failed.error) == ("failed: there is no hook h", "there is no hook h")
    taker.trouble = None
    await steer(bus, failing, "resume")
    assert (await reaches(bus, failing, "done")).error is None


async def test_what_the_target_refuses_is_counted(service: Starlette, ask: Asker, bus: Bus, taker: Taker) -> None:
    await fill(ask, 10)
    taker.refuses = lambda sequence: sequence % 2 == 0
    done = await reaches(bus, await start(bus), "done")
    assert (done.matched, done.sent, done.skipped) == (10, 5, 5)


async def test_rate_is_kept(service: Starlette, ask: Asker, bus: Bus, taker: Taker) -> None:
    await fill(ask, 60)
    began = asyncio.get_running_loop().time()
    await reaches(bus, await start(bus, rate=50.0), "done")
    took = asyncio.get_running_loop().time() - began
    assert 0.7 < took < 5
    assert len(taker.taken) == 60
    # A slow one is stopped at once.
    slow = await start(bus, rate=0.01)
    await eventually(lambda: _holds(len(taker.taken) == 61))
    await steer(bus, slow, "pause")
    await _released(bus, slow, 1)


async def test_the_same_key_is_the_same_replay(service: Starlette, ask: Asker, bus: Bus, taker: Taker) -> None:
    await fill(ask, 5)
    first = await start(bus, idempotency_key="k")
    await reaches(bus, first, "done")
    again = await start(bus, idempotency_key="k", target=ReplayTarget(hook="gone"))
    assert (again.id, again.duplicate, again.state) == (first.id, True, "done")
    both = await asyncio.gather(*(start(bus, idempotency_key="k2") for _ in range(5)))
    assert len({each.id for each in both}) == 1
    assert sum(not each.duplicate for each in both) == 1
    await reaches(bus, both[0], "done")
    assert len(taker.taken) == 10


async def test_unfinished_replays_are_bounded_and_finished_ones_forgotten(
    service: Starlette, ask: Asker, bus: Bus, taker: Taker
) -> None:
    await fill(ask, 2)
    taker.gate.clear()
    replays = [await start(bus) for _ in range(REPLAYS)]
    with pytest.raises(LimitedError):
        await start(bus)
    taker.gate.set()
    for replay in replays:
        await reaches(bus, replay, "done")
    await fill(ask, 1)
    await reaches(bus, await start(bus), "done")
    await service.state.replays.forget_old(now_ms())
    kept = (await call(bus, OPERATOR, "events", "replays", ListNothing(), ReplayList)).replays
    assert len(kept) == REPLAYS_ENDED
    assert kept[0].total == 3
    await service.state.replays.forget_old(now_ms() + 8 * 86_400_000)
    assert (await call(bus, OPERATOR, "events", "replays", ListNothing(), ReplayList)).replays == []


async def test_a_subscriber_gets_batches_and_the_end(service: Starlette, ask: Asker, bus: Bus) -> None:
    sequences = await fill(ask, 1500)
    subscription = fresh_id("sub")
    got: list[ReplayBatch] = []
    ended = asyncio.Event()

    async def attach(request: GetRequest, context: Context) -> GetRequest:
        if request.id != subscription:
            raise NotFoundError("not here")
        return request

    async def take(request: ReplayBatch, context: Context) -> ReplayTaken:
        got.append(request)
        if request.end:
            ended.set()
        return ReplayTaken(taken=len(request.events), sent=len(request.events), skipped=0)

    endpoints = {
        "attach": Endpoint(GetRequest, attach, every_replica=True),
        subscription: Endpoint(ReplayBatch, take, every_replica=True),
    }
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(serve(bus, "gateway", endpoints, Telemetry()))
        await start(bus, target=ReplayTarget(subscription=subscription))
        await asyncio.wait_for(ended.wait(), 20)
        assert [event.sequence for batch in got for event in batch.events] == sequences
        assert (got[-1].end, got[-1].sent) == ("done", 1500)
        left = await start(bus, target=ReplayTarget(subscription=subscription), rate=1.0)
    failed = await reaches(bus, left, "failed", 30)
    assert failed.error == "the subscriber has gone"
