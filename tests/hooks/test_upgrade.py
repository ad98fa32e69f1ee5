"""A data directory of the version before the work engine: what waits in it is run, and nothing twice."""

import asyncio

import msgspec

from crucible_core import subjects
from crucible_core.protocol.hooks import HookRecord
from crucible_kit.buckets import open_bucket
from crucible_kit.clock import fresh_id, now_ms, timestamp
from crucible_kit.eventlog import event_at
from crucible_kit.nats.bus import Bus, Message
from crucible_kit.nats.consumer import ensure_durable, work
from crucible_kit.nats.frames import Outgoing

from .conftest import System, definition, until

CALM_MS = 3_600_000


async def test_what_waits_is_brought_over(stopped: System) -> None:
    bus = stopped.bus
    names, prefix = bus.names, bus.names.prefix
    await bus.ensure_stream(
        names.hook_runs,
        subjects=[f"{prefix}.run.*", f"{prefix}.sched.run.>"],
        retention="workqueue",
        allow_direct=True,
        allow_msg_ttl=True,
        allow_msg_schedules=True,
    )
    hooks = await open_bucket(bus, "hooks")
    ids = {name: fresh_id("hok") for name in ("old", "calm", "off")}
    for name, id in ids.items():
        wanted = definition(name, "event['payload']['n']", options={"debounce_ms": CALM_MS if name == "calm" else 0})
        record = HookRecord(
            name=name, definition=wanted, enabled=name != "off", origin="api", updated_at=timestamp(), id=id
        )
        await hooks.put(name, msgspec.json.encode(record))
    durable = names.durable("hook-old")
    await ensure_durable(bus, names.hook_runs, durable, [f"{prefix}.run.old"])
    events = [await _stored(stopped, n) for n in range(4)]
    await _waits(bus, events[0], ids["old"], "run_waits", 1)
    await _waits(bus, events[1], ids["old"], "run_retried", 3)
    await _waits(bus, events[2], fresh_id("hok"), "run_of_a_deleted_one", 1)
    await _dispatched_up_to(bus, events[2].sequence)
    mark = {"at_ms": events[2].time_ms, "event_id": "evt_2", "hook_id": ids["calm"]}
    await (await open_bucket(bus, "marks")).put("calm", msgspec.json.encode(mark))

    async with stopped.running():
        await until(lambda: _ran(stopped, "old", 3))
        runs = {run.run_id: (run.output, run.attempt) for run in await stopped.runs("old")}
        assert (runs.pop("run_waits"), runs.pop("run_retried")) == ((0, 1), (1, 3))
        assert list(runs.values()) == [(3, 1)]
        await until(lambda: _ran(stopped, "calm", 1))
        [held_back] = await stopped.runs("calm")
        assert (held_back.outcome, held_back.output) == ("skipped", {"events": 1})
        assert await stopped.runs("off") == []
        consumers = [*await bus.consumer_names(names.hook_runs), *await bus.consumer_names(names.events)]
        assert not [name for name in consumers if "hook-" in name or "dispatch" in name]
        assert await bus.next(names.hook_runs, 1, ">") is None


async def _stored(system: System, n: int) -> Message:
    appended = await system.append(payload={"n": n})
    message = await event_at(system.bus, appended.sequence or 0)
    assert message is not None
    return message


async def _waits(bus: Bus, event: Message, id: str, run: str, attempt: int) -> None:
    prefix = bus.names.prefix
    headers = {
        "Crucible-Run": run,
        subjects.REGISTRATION: id,
        subjects.ATTEMPT: str(attempt),
        subjects.EVENT_SEQUENCE: str(event.sequence),
    }
    target = f"{prefix}.run.old"
    if attempt == 1:
        await bus.store(Outgoing(target, event.data, headers, run))
    else:
        subject = f"{prefix}.sched.run.old.{run}"
        await bus.schedule(subject, target, now_ms() + 1500, event.data, headers, f"{run}:{attempt}")


async def _dispatched_up_to(bus: Bus, sequence: int) -> None:
    names = bus.names
    taken: list[int] = []

    async def take(message: Message) -> None:
        taken.append(message.sequence)
        if message.sequence > sequence:
            raise RuntimeError("not yet")

    working = asyncio.create_task(
        work(bus, names.events, names.durable("hooks-dispatch"), take, filters=[names.all_events])
    )
    await until(lambda: sequence in taken)
    await asyncio.sleep(0.2)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def _ran(system: System, hook: str, count: int) -> bool:
    return len(await system.runs(hook)) == count
