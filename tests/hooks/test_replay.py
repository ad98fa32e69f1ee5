"""Replays into hooks: from the request through the queue to runs that know that they are replayed."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from crucible_core import subjects
from crucible_core.access import OPERATOR
from crucible_core.errors import InvalidError, NotFoundError
from crucible_core.limits import HOPS, REPLAY_WAITING
from crucible_core.protocol.events import Appended
from crucible_core.protocol.hooks import HookView
from crucible_core.protocol.parts import EnableHook, GetRequest, TypeFilter
from crucible_core.protocol.replays import (
    Replay,
    Replayable,
    ReplayBatch,
    ReplayedEvent,
    ReplayTaken,
    ReplayTarget,
    StartReplay,
)
from crucible_kit.eventlog import event_at
from crucible_kit.handlers.pointers import pointer
from crucible_kit.nats.bus import Message
from crucible_kit.rpc import call

from .conftest import System, until


async def replay(system: System, hook: str, **asked: Any) -> Replay:
    """A whole one, through events, once it is done."""
    request = StartReplay(target=ReplayTarget(hook=hook), **asked)
    started = await call(system.bus, OPERATOR, "events", "replay", request, Replay, timeout=20)
    found: list[Replay] = []

    async def done() -> bool:
        found[:] = [await call(system.bus, OPERATOR, "events", "replay_get", GetRequest(id=started.id), Replay)]
        return found[0].state != "running"

    await until(done)
    assert found[0].state == "done", found
    return found[0]


async def batch(system: System, hook: str, events: Sequence[Appended | int], name: str = "rpl_1") -> ReplayTaken:
    stored: list[Message] = []
    for event in events:
        sequence = event if isinstance(event, int) else event.sequence or 0
        message = await event_at(system.bus, sequence)
        assert message is not None
        stored.append(message)
    request = ReplayBatch(
        replay=name,
        target=hook,
        events=[ReplayedEvent(sequence=m.sequence, time_ms=m.time_ms, event=msgspec.Raw(m.data)) for m in stored],
    )
    taken: ReplayTaken = await system.ask("replay", request, ReplayTaken)
    return taken


async def runs(system: System, hook: str, count: int) -> list[Any]:
    async def there() -> bool:
        return len(await system.runs(hook)) >= count

    await until(there)
    return await system.runs(hook)


async def test_past_events_run_again_and_know_it(system: System) -> None:
    await system.register("echo", 'log(event["replay"]); emit("Custom.echo", {"of": event["id"]}); event["replay"]')
    events = [await system.append(payload={"n": n}) for n in range(3)]
    first = await runs(system, "echo", 3)
    assert [run.output for run in first] == [False] * 3
    assert [run.replay for run in first] == [None] * 3

    done = await replay(system, "echo")
    assert done.sent == 3
    both = await runs(system, "echo", 6)
    again = [run for run in both if run.replay]
    assert [run.output for run in again] == [True] * 3
    assert {run.replay for run in again} == {done.id}
    assert {run.event_id for run in again} == {event.id for event in events}
    assert len({run.run_id for run in both}) == 6
    await until(lambda: _count(system, "Custom.echo", 6))
    await until(lambda: _count(system, "Hook.Executed", 6))
    told = [event.data.payload.get("replay") for event in await system.log("Hook.Executed")]
    assert sorted(told, key=str) == [None] * 3 + [True] * 3


async def _count(system: System, type: str, count: int) -> bool:
    return len(await system.log(type)) == count


async def test_conditions_templates_and_commands_see_it(system: System) -> None:
    condition = {"expr": "event.replay"}
    shell = {"type": "Shell", "command": "cat; printf ' %s' {{ event.replay }}"}
    await system.register("only-replays", action=shell, condition=condition)
    await system.append()
    assert (await system.run_of("only-replays", "skipped")).replay is None
    await replay(system, "only-replays")
    run = await system.run_of("only-replays", "ok")
    text, _, last = run.output.rpartition(" ")
    assert last == "true"
    assert msgspec.json.decode(text)["replay"] is True


async def test_its_own_trigger_filters_and_depth_still_decide(system: System) -> None:
    await system.register("picky", "1", filter={"n": {"gte": 1}})
    events = [await system.append(payload={"n": n}) for n in range(3)]
    other = await system.append("Custom.other", {"n": 5})
    deep = await system.append(payload={"n": 5}, hop=HOPS)
    taken = await batch(system, "picky", [*events, other, deep])
    assert (taken.taken, taken.sent, taken.skipped) == (5, 2, 3)


async def test_debounce_does_not_swallow_replayed_events(system: System) -> None:
    await system.register("calm", "1", options={"debounce_ms": 60_000})
    for n in range(4):
        await system.append(payload={"n": n})
    await system.run_of("calm", "ok")
    assert (await replay(system, "calm")).sent == 4
    await until(lambda: _ok(system, "calm", 5))


async def _ok(system: System, hook: str, count: int) -> bool:
    return [run.outcome for run in await system.runs(hook)].count("ok") == count


async def test_a_batch_that_comes_twice_runs_once(system: System) -> None:
    key = (await system.register("once", "1", options={"retry": {"max_attempts": 1}})).id
    events = [await system.append(payload={"n": n}) for n in range(3)]
    await runs(system, "once", 3)
    for _ in range(2):
        assert (await batch(system, "once", events)).sent == 3
    await runs(system, "once", 6)
    # Later than the queue remembers: another message of the same run.
    sequence = events[0].sequence or 0
    run = next(r for r in await system.runs("once") if r.replay and r.event_id == events[0].id)
    again = pointer(system.bus.names, subjects.RUN, key, run.run_id, sequence, **{subjects.REPLAY: "rpl_1"})
    await system.bus.request(again.subject, again.data, headers=again.headers)
    await system.append(payload={"n": 9})
    await runs(system, "once", 7)
    assert len(await system.runs("once")) == 7


async def test_dry_changes_nothing_and_notes_what_it_would(system: System) -> None:
    script = 'emit("Custom.echo", {}); memory_tag("mem_1", "#x"); "done"'
    condition = {"expr": "event.payload.n > 0"}
    await system.register("careful", script, options={"replay": "dry"}, condition=condition)
    for n in range(2):
        await system.append(payload={"n": n})
    await system.run_of("careful", "ok")
    await until(lambda: _count(system, "Hook.Executed", 1))
    done = await replay(system, "careful")
    assert done.sent == 2
    run = await system.run_of("careful", "dry")
    assert run.effects == ["Custom.echo", "Memory.Tagged mem_1 #x"]
    assert (run.replay, run.output) == (done.id, "done")
    await until(lambda: _outcomes(system, "careful", ["dry", "ok", "skipped", "skipped"]))
    assert len(system.memories.effects()) == 1
    assert len(await system.log("Custom.echo")) == 1
    assert len(await system.log("Hook.Executed")) == 1
    assert (await system.view("careful")).counters.ok == 1


async def _outcomes(system: System, hook: str, wanted: list[str]) -> bool:
    return sorted(run.outcome for run in await system.runs(hook)) == wanted


async def test_targets_that_take_none_say_why(system: System) -> None:
    await system.register("gate", "None", pre=True)
    await system.register("skips", "1", options={"replay": "skip"})
    await system.register("off", "1")
    await system.ask("enable", EnableHook(name="off", enabled=False), HookView)
    for name, reason in (("gate", "Pre hook"), ("skips", "options.replay: skip"), ("off", "is disabled")):
        with pytest.raises(InvalidError, match=reason) as caught:
            await system.ask("replayable", GetRequest(id=name), Replayable)
        assert caught.value.errors[0].path == "target.hook"
    with pytest.raises(NotFoundError) as missing:
        await system.ask("replayable", GetRequest(id="gat"), Replayable)
    assert missing.value.errors[0].suggestion == "gate"
    with pytest.raises(InvalidError, match=r"options\.replay"):
        await system.register("wrong", "1", options={"replay": "never"})


async def test_what_waits_is_bounded_and_a_hook_that_is_disabled_meanwhile_keeps_it(system: System) -> None:
    await system.register("slow", "1", on="Custom.rare")
    for n in range(3):
        await system.append("Custom.rare", {"n": n})
    await runs(system, "slow", 3)
    await system.ask("enable", EnableHook(name="slow", enabled=False), HookView)
    sent = 0
    for number in range(400):
        taken = await batch(system, "slow", [1, 2, 3, 4, 5], f"rpl_{number}")
        sent += taken.sent
        if taken.waiting:
            break
    assert sent == REPLAY_WAITING
    assert taken.waiting == f"{REPLAY_WAITING} runs wait for hook slow, which is disabled"


async def test_more_events_than_may_wait_all_run(system: System) -> None:
    count = REPLAY_WAITING + 100
    for begin in range(0, count, 100):
        await asyncio.gather(*(system.append("Custom.bulk", {"n": n}) for n in range(begin, begin + 100)))
    action = {"type": "Shell", "command": "exit 0"}
    await system.register("quick", action=action, on="Custom.bulk", condition={"expr": "event.payload.n < 0"})
    done = await replay(system, "quick", filters=[TypeFilter(event_type="Custom.bulk")])
    assert done.sent == count
    await until(lambda: _skipped(system, "quick", count), 60)


async def _skipped(system: System, hook: str, count: int) -> bool:
    return (await system.view(hook)).counters.skipped == count
