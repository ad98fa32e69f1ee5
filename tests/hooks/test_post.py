"""Post hooks: from a committed event through the queue to effects, records and the log."""

import asyncio

import msgspec
import pytest

from crucible_core import subjects
from crucible_core.access import OPERATOR
from crucible_core.errors import ConflictError, NotFoundError
from crucible_core.limits import HOPS
from crucible_core.protocol.hooks import HookView, RunList, RunRecord
from crucible_core.protocol.losses import Loss, LossesRequest, LossList
from crucible_core.protocol.parts import EnableHook, GetRequest
from crucible_kit.buckets import open_bucket
from crucible_kit.handlers.pointers import pointer, waiting
from crucible_kit.nats.frames import Outgoing
from crucible_kit.rpc import call

from .conftest import System, until


async def test_script_runs_after_commit_and_its_effects_have_the_cause(system: System) -> None:
    script = """
found = memory_query(text=event["payload"]["text"], tags=["#a"])
memory_link(inputs["id"], found[0]["id"], weight=found[0]["score"])
answer = emit("Custom.reply", {"to": event["id"]})
log("linked", found[0]["id"])
print("printed")
{"linked": 1, "reply": answer["sequence"]}
"""
    action = {"type": "Script", "script": script, "inputs": {"id": "{{ event.payload.id }}"}}
    await system.register("linker", action=action)
    cause = await system.append(payload={"id": "mem_1", "text": "clocks"})

    run = await system.run_of("linker", "ok")
    assert run.event_id == cause.id
    assert run.log == ["linked mem_other", "printed"]
    assert run.output["linked"] == 1
    [(operation, request)] = system.memories.effects()
    assert (operation, request.id, request.link and request.link.target) == ("link", "mem_1", "mem_other")
    assert (request.cause.causation_id, request.cause.hop) == (cause.id, 1)
    [reply] = await system.log("Custom.reply")
    assert reply.metadata.causation_id == cause.id
    assert reply.metadata.correlation_id == cause.correlation_id
    assert (reply.metadata.hop, reply.metadata.actor) == (1, "hook:linker")


async def test_run_is_told_in_the_log_with_its_trace(system: System) -> None:
    await system.register("greeter", '"hello"')
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    cause = await system.append(traceparent=trace)
    await until(lambda: _told(system, "Hook.Executed"))
    [told] = await system.log("Hook.Executed")
    assert told.data.payload["hook"] == "greeter"
    assert told.data.payload["output"] == "hello"
    assert told.data.payload["action"] == "Script"
    assert told.metadata.causation_id == cause.id
    assert told.metadata.traceparent is not None
    assert told.metadata.traceparent.split("-")[1] == trace.split("-")[1]
    view = await system.view("greeter")
    assert (view.counters.matched, view.counters.invoked, view.counters.ok) == (1, 1, 1)


@pytest.mark.parametrize("call", ["memory_query('x')[0]['id']", "(await memory_query('x'))[0]['id']"])
async def test_functions_work_with_and_without_await(system: System, call: str) -> None:
    await system.register("asker", call)
    await system.append()
    assert (await system.run_of("asker", "ok")).output == "mem_other"


async def test_run_is_found_by_its_id_and_a_beginning_of_it(system: System) -> None:
    await system.register("greeter", 'log("looked")\n"hello"')
    await system.append()
    made = await system.run_of("greeter", "ok")
    for given in (made.run_id, made.run_id[:-2]):
        found: RunList = await system.ask("run", GetRequest(given), RunList)
        assert [(run.run_id, run.output, run.log) for run in found.runs] == [(made.run_id, "hello", ["looked"])]
    with pytest.raises(NotFoundError):
        await system.ask("run", GetRequest("run_zzz"), RunList)
    await system.append()
    await until(lambda: _counted(system, "greeter", ok=2))
    with pytest.raises(ConflictError, match="may be any of"):
        await system.ask("run", GetRequest("run_"), RunList)


async def test_what_is_only_recorded_triggers_nothing(system: System) -> None:
    await system.register("greeter", '"hello"')
    await system.append(react=False)
    cause = await system.append()
    assert (await system.run_of("greeter", "ok")).event_id == cause.id
    assert (await system.view("greeter")).counters.invoked == 1


async def test_condition_decides_and_an_absent_field_holds_nothing(system: System) -> None:
    await system.register("picky", "1", condition={"expr": '"#research" in event.payload.tags'})
    await system.append(payload={"tags": ["#other"]})
    await system.append(payload={})
    await system.append(payload={"tags": ["#research"]})
    await system.run_of("picky", "ok")
    await until(lambda: _counted(system, "picky", skipped=2))
    assert [run.outcome for run in await system.runs("picky")].count("skipped") == 2
    assert len(await system.log("Hook.Executed")) == 1


async def test_script_condition(system: System) -> None:
    await system.register("picky", "1", condition={"script": "len(event['payload']['tags']) > 1"})
    await system.append(payload={"tags": ["a"]})
    await system.append(payload={"tags": ["a", "b"]})
    await system.run_of("picky", "ok")
    await until(lambda: _counted(system, "picky", skipped=1))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("while True: pass", "took longer than 2000 ms"),
        ("x = []\nwhile True:\n    x.append('a' * 1000000)", "MemoryError"),
        ("def f():\n    f()\nf()", "RecursionError"),
        ("raise ValueError('no good')", "no good"),
        ("import os\nos.listdir('/')", "PermissionError"),
        ("open('/etc/passwd').read()", "PermissionError"),
        ("memory_query(**{'limt': 1})", "limt"),
        ("emit('Custom.big', {'text': 'a' * 2000000})", "may have"),
        ("emit('Memory.Createt')", "Memory.Created"),
        ("emit('System.Started')", "written by Crucible alone"),
        ("import time\ntime.sleep(60)", "sleep limit"),
    ],
)
async def test_bad_script_is_stopped_and_recorded(system: System, script: str, reason: str) -> None:
    await system.register("bad", script, options={"timeout_ms": 2000})
    await system.append()
    run = await system.run_of("bad", "failed")
    assert reason in (run.error or "")
    await until(lambda: _told(system, "Hook.Failed"))
    # The worker that was stopped takes nothing with it.
    await system.register("good", "'fine'")
    await system.append()
    assert (await system.run_of("good", "ok")).output == "fine"


async def test_failed_run_is_tried_again_as_its_options_say(system: System) -> None:
    retry = {"max_attempts": 3, "backoff": "exponential", "delay_ms": 50}
    await system.register("flaky", "raise ValueError('no')", options={"retry": retry})
    await system.append()
    await system.run_of("flaky", "failed")
    runs = await system.runs("flaky")
    assert [(run.attempt, run.outcome) for run in runs] == [(3, "failed"), (2, "retrying"), (1, "retrying")]
    assert len({run.run_id for run in runs}) == 1
    assert all(run.next_attempt_at for run in runs[1:])
    await until(lambda: _told(system, "Hook.Failed"))
    assert len(await system.log("Hook.Failed")) == 1


async def test_second_attempt_does_not_double_effects(system: System) -> None:
    script = """
memory_tag("mem_1", "#seen")
emit("Custom.reply", {"n": 1})
emit("Custom.reply", {"n": 1})
raise ValueError("after the effects")
"""
    await system.register("twice", script, options={"retry": {"max_attempts": 2, "delay_ms": 10}})
    await system.append()
    await system.run_of("twice", "failed")
    assert len(system.memories.effects()) == 1
    assert len(await system.log("Custom.reply")) == 2


async def test_message_that_comes_again_doubles_nothing(system: System) -> None:
    key = (await system.register("once", "emit('Custom.reply')")).id
    cause = await system.append()
    first = await system.run_of("once", "ok")
    # The acknowledgement was lost: the same message comes once more.
    await system.bus.store(pointer(system.bus.names, subjects.RUN, key, first.run_id, cause.sequence or 0))
    await until(lambda: _drained(system, key))
    assert len(await system.log("Custom.reply")) == 1
    assert len(await system.log("Hook.Executed")) == 1


async def test_run_waits_while_a_service_is_away(system: System) -> None:
    system.memories.away = 2
    await system.register("patient", "memory_tag('mem_1', '#x')")
    await system.append()
    run = await system.run_of("patient", "ok")
    assert run.attempt == 1
    assert not await system.log("Hook.Failed")


async def test_debounce_lets_the_first_pass(system: System) -> None:
    await system.register("calm", "event['payload']['n']", options={"debounce_ms": 60_000})
    for n in range(5):
        await system.append(payload={"n": n})
    assert (await system.run_of("calm", "ok")).output == 0
    await until(lambda: _counted(system, "calm", skipped=4))
    counters = (await system.view("calm")).counters
    assert (counters.matched, counters.invoked, counters.ok) == (5, 1, 1)


async def test_debounce_lets_the_next_pass_after_its_time(system: System) -> None:
    await system.register("calm", "event['payload']['n']", options={"debounce_ms": 100})
    await system.append(payload={"n": 0})
    await system.run_of("calm", "ok")
    await asyncio.sleep(0.12)  # the time that is tested
    await system.append(payload={"n": 1})
    await until(lambda: _counted(system, "calm", ok=2))


async def test_chain_ends_at_the_depth_limit_and_says_so(system: System) -> None:
    await system.register("echo", "emit('Custom.note', {'n': 1})")
    await system.append()
    stopped = await system.run_of("echo", "stopped")
    assert str(HOPS) in (stopped.error or "")
    await until(lambda: _told(system, "Hook.Failed"))
    assert [event.metadata.hop for event in await system.log("Custom.note")] == list(range(HOPS + 1))
    [told] = await system.log("Hook.Failed")
    assert told.data.payload["outcome"] == "stopped"


async def test_wildcard_hook_does_not_hear_of_its_own_runs(system: System) -> None:
    await system.register("all", "1", on="*")
    await system.append()
    await until(lambda: _told(system, "Hook.Executed"))
    await system.append(type="Custom.last")
    await until(lambda: _ran_for(system, "all", "Custom.last"))
    types = {run.event_type for run in await system.runs("all")}
    assert types <= {"Hook.Registered", "Custom.note", "Custom.last"}


async def test_hook_on_hooks_is_told_and_its_chain_ends(system: System) -> None:
    await system.register("watcher", "event['payload']['hook']", on="Hook.Executed")
    await system.register("worker", "1")
    await system.append()
    await system.run_of("watcher", "stopped")
    outputs = [run.output for run in await system.runs("watcher") if run.outcome == "ok"]
    assert "worker" in outputs


async def test_each_trigger_is_told_once_and_none_by_the_hooks_own_events(system: System) -> None:
    view = await system.register("worker", "1")
    await system.register("calm", "1", options={"debounce_ms": 60_000})
    await system.register("watcher", "1", on="Hook.*")
    await system.register("all", "1", on="*")
    first, second = await system.append(payload={"n": 1}), await system.append(payload={"n": 2})
    await until(lambda: _counted(system, "worker", ok=2))
    await until(lambda: _ran_for(system, "all", "Custom.note"))
    await system.run_of("watcher", "stopped")
    told = [event for event in await system.log("Hook.Triggered") if event.data.payload["hook"] == "worker"]
    assert [event.metadata.causation_id for event in told] == [first.id, second.id]
    runs = {run.run_id for run in await system.runs("worker")}
    assert {event.data.payload["run_id"] for event in told} == runs
    assert told[0].data.payload["hook_id"] == view.id
    assert (told[0].metadata.hop, told[0].metadata.correlation_id) == (1, first.correlation_id)
    causes = [
        (event.data.payload["hook"], event.data.payload["event_type"]) for event in await system.log("Hook.Triggered")
    ]
    assert (causes.count(("calm", "Custom.note")), causes.count(("all", "Custom.note"))) == (1, 2)
    assert not [hook for hook, type in causes if hook == "watcher" or type.startswith("Hook.")]


async def test_undecodable_run_is_parked_and_the_next_one_runs(system: System) -> None:
    key = (await system.register("steady", "1")).id
    await system.bus.store(Outgoing(system.bus.names.work(subjects.RUN, key), b"not an event", {}, "bad"))
    await system.append()
    await system.run_of("steady", "ok")
    await until(lambda: _drained(system, key))
    parked = await system.bus.last(system.bus.names.attempts, system.bus.names.all_parked)
    assert parked is not None
    assert parked.data == b"not an event"


async def test_undecodable_event_is_parked_and_the_next_one_triggers(system: System) -> None:
    await system.register("steady", "1")
    names = system.bus.names
    await system.bus.store(Outgoing(names.event("default", "main", "Custom", "note", None), b"not an event"))
    await system.append()
    await system.run_of("steady", "ok")
    parked = await system.bus.last(names.attempts, names.parked("hooks"))
    assert parked is not None


async def test_disabled_hook_does_not_run_until_it_is_enabled(system: System) -> None:
    await system.register("switch", "event['payload']['n']")
    disabled: HookView = await system.ask("enable", EnableHook(name="switch", enabled=False), HookView)
    assert disabled.state == "disabled"
    await system.append(payload={"n": 1})
    await system.register("other", "1")
    await system.append(type="Custom.note", payload={"n": 2})
    await system.run_of("other", "ok")
    assert await system.runs("switch") == []
    await system.ask("enable", EnableHook(name="switch", enabled=True), HookView)
    await system.append(payload={"n": 3})
    assert (await system.run_of("switch", "ok")).output == 3


async def test_deleted_hook_leaves_no_work(system: System) -> None:
    retry = {"max_attempts": 2, "delay_ms": 60_000}
    key = (await system.register("gone", "raise ValueError('x')", options={"retry": retry})).id
    await system.append()
    await system.run_of("gone", "retrying")
    await system.ask("delete", GetRequest(id="gone"), HookView)
    await until(lambda: _drained(system, key))
    await until(lambda: _told(system, "Hook.Unregistered"))


async def test_work_survives_a_restart(stopped: System) -> None:
    async with stopped.running():
        await stopped.register("later", "event['payload']['n']")
    await stopped.append(payload={"n": 7})
    async with stopped.running():
        assert (await stopped.run_of("later", "ok")).output == 7
        assert [record.outcome for record in await stopped.runs("later")] == ["ok"]


async def _told(system: System, type: str) -> bool:
    return bool(await system.log(type))


async def _counted(system: System, hook: str, **wanted: int) -> bool:
    counters = msgspec.to_builtins((await system.view(hook)).counters)
    return all(counters[name] == value for name, value in wanted.items())


async def _drained(system: System, key: str) -> bool:
    return not await waiting(system.bus, subjects.RUN, system.bus.names.hook_runs, key)


async def _ran_for(system: System, hook: str, type: str) -> bool:
    runs: list[RunRecord] = await system.runs(hook)
    return any(run.event_type == type for run in runs)


async def test_looping_hook_leaves_workers_to_the_others(system: System) -> None:
    await system.register("loop", "while True: pass", options={"timeout_ms": 3000, "concurrency": 16})
    for _ in range(16):
        await system.append()
    await system.register("quick", "1 + 1", on="Custom.other")
    await system.append("Custom.other")
    assert (await system.run_of("quick", "ok", 2.5)).output == 2


async def test_a_record_that_the_history_has_lost_is_noticed_at_the_next_start(stopped: System) -> None:
    bus, names = stopped.bus, stopped.bus.names
    async with stopped.running():
        await stopped.register("steady", "1")
        await stopped.append()
        await stopped.run_of("steady", "ok")
    record = await bus.last(names.attempts, names.attempts_of(subjects.RUN))
    assert record is not None
    await bus.remove(names.attempts, record.sequence)
    async with stopped.running():

        async def told() -> list[Loss]:
            return (await call(bus, OPERATOR, "events", "losses", LossesRequest(), LossList)).losses

        await until(told)
        [loss] = await told()
        assert (loss.stream, loss.kind) == (names.attempts, "missing")
        assert (loss.first, loss.last, loss.count) == (record.sequence, record.sequence, 1)
        assert [run.outcome for run in await stopped.runs("steady")] == ["ok"]  # the index has it still


async def test_a_change_of_types_is_for_what_comes_after_it_also_when_the_log_is_read_again(stopped: System) -> None:
    async with stopped.running():
        await stopped.register("noting", "1", on="Custom.wanted")
        shards = await open_bucket(stopped.bus, "shards")
        early = await shards.entries()
        wanted = await stopped.append("Custom.wanted")
        await stopped.append("Custom.other")
        await stopped.register("noting", "1", on="Custom.*")
        await stopped.run_of("noting", "ok")
    for key in early:  # as if their owner had been killed before it told how far it was
        await shards.put(key, early[key].value)
    async with stopped.running():
        last = await stopped.append("Custom.other")

        async def noted() -> bool:
            return last.id in {run.event_id for run in await stopped.runs("noting")}

        await until(noted)
        await asyncio.sleep(0.3)
        assert [run.event_id for run in await stopped.runs("noting")] == [last.id, wanted.id]
