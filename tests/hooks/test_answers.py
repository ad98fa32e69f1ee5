"""Where the runs of Pre hooks are kept: an answer in the log alone, all else in ATTEMPTS, and both read as one."""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from crucible_core.access import OPERATOR
from crucible_core.envelope import Data, Event, Metadata, Source
from crucible_core.errors import CrucibleError, DeniedError
from crucible_core.position import base_of
from crucible_core.protocol.events import RedactRequest
from crucible_core.protocol.hooks import HookView, RunList, RunRecord, RunsRequest
from crucible_core.protocol.worlds import ChangeWorld
from crucible_core.subjects import Names
from crucible_events.app import create_app as create_events
from crucible_events.settings import Settings as EventsSettings
from crucible_hooks import store
from crucible_hooks.records import attempt_message, run_event
from crucible_hooks.settings import Settings
from crucible_kit.clock import fresh_id, now_ms, timestamp
from crucible_kit.nats.bus import Bus, open_bus
from crucible_kit.nats.message import Message
from crucible_kit.rpc import call

from .conftest import System, until
from .test_pre import intercepted

SECRET = "vermilion"
DENIES = '{"deny": "no"} if event.payload.n == 3 else None'
ASKED_IF = {"expr": "event.payload.n != 1"}


async def attempts(system: System) -> int:
    return await system.bus.last_sequence(system.bus.names.attempts)


async def has(system: System, hook: str, count: int) -> bool:
    return len(await system.runs(hook)) == count


async def judge(system: System, *numbers: int) -> None:
    for n in numbers:
        with contextlib.suppress(DeniedError):
            await system.append(payload={"n": n})


async def pages(system: System, hook: str, limit: int = 2) -> list[RunRecord]:
    found: list[RunRecord] = []
    cursor = None
    while True:
        page: RunList = await system.ask("runs", RunsRequest(name=hook, limit=limit, cursor=cursor), RunList)
        found += page.runs
        cursor = page.next_cursor
        if cursor is None:
            return found


def forget(system: System) -> None:
    """Deletes the index, whose service is stopped."""
    for file in system.folder.parent.glob("data/hooks.sqlite*"):
        file.unlink()


async def test_an_answer_costs_one_durable_write_beside_the_event(system: System) -> None:
    await system.register("gate", '{"deny": "no"} if event.payload.n else log("asked")', pre=True)
    before = await attempts(system)
    allowed = await system.append(payload={"n": 0})
    await judge(system, 1)
    await until(lambda: has(system, "gate", 2))
    assert await attempts(system) == before
    denial, answer = await system.runs("gate")
    [told, told_of_denial] = await system.log("Hook.Executed")
    assert (answer.outcome, answer.event_id, answer.log, answer.error) == ("ok", allowed.id, ["asked"], None)
    assert (denial.outcome, denial.error, denial.output) == ("denied", "no", {"deny": "no"})
    for run, event in ((answer, told), (denial, told_of_denial)):
        payload = event.data.payload
        assert (run.run_id, run.started_at, run.duration_ms) == (
            payload["run_id"], payload["started_at"], payload["duration_ms"],
        )  # fmt: skip
        assert (run.timing, run.attempt, run.world_id, run.room_id, run.replay) == ("Pre", 1, "default", "main", None)
    counters = (await system.view("gate")).counters
    assert (counters.matched, counters.invoked, counters.ok, counters.failed) == (2, 2, 2, 0)
    assert counters.last_fired == denial.started_at


async def test_what_the_log_is_not_told_is_in_the_history(system: System) -> None:
    await system.register("gate", "None", pre=True, condition={"expr": "event.payload.n > 1"})
    before = await attempts(system)
    await judge(system, 1)
    assert (await system.run_of("gate", "skipped")).timing == "Pre"
    assert (await attempts(system), await system.log("Hook.Executed")) == (before + 1, [])


async def test_record_of_an_answer_that_may_not_be_told_is_kept(system: System) -> None:
    await system.register("silence", '{"deny": "no word"}', pre=True, on="Hook.Executed")
    await system.register("gate", "None", pre=True)
    await system.append()
    assert (await system.run_of("gate", "ok")).timing == "Pre"
    assert (await system.run_of("silence", "denied")).event_type == "Hook.Executed"
    assert await system.log("Hook.Executed") == []
    assert (await system.view("gate")).counters.ok == 1


async def test_pages_go_through_both_sources_in_one_order(stopped: System) -> None:
    async with stopped.running():
        await stopped.register("gate", DENIES, pre=True, condition=ASKED_IF)
        for n in (0, 1, 2, 3, 1, 1, 0):
            count = len(await stopped.runs("gate"))
            await judge(stopped, n)
            await until(partial(has, stopped, "gate", count + 1))
        runs = await stopped.runs("gate")
        assert [run.outcome for run in runs] == ["ok", "skipped", "skipped", "denied", "ok", "skipped", "ok"]
        for limit in range(1, 8):
            assert await pages(stopped, "gate", limit) == runs
        counters = (await stopped.view("gate")).counters
        with pytest.raises(CrucibleError, match="cursor"):
            await stopped.ask("runs", RunsRequest(name="gate", cursor="17"), RunList)
    async with stopped.running():
        assert await pages(stopped, "gate") == runs
        await judge(stopped, 2)
        await until(lambda: has(stopped, "gate", 8))
    forget(stopped)
    async with stopped.running():
        assert (await pages(stopped, "gate"))[1:] == runs
        now = (await stopped.view("gate")).counters
        assert (now.matched, now.ok, now.skipped) == (counters.matched + 1, counters.ok + 1, counters.skipped)


async def test_answers_that_an_older_version_has_kept_twice_count_once(stopped: System) -> None:
    """It put each into ATTEMPTS and into the log."""
    async with stopped.running():
        await stopped.register("gate", DENIES, pre=True)
        await judge(stopped, 0, 3)
        await until(lambda: has(stopped, "gate", 2))
        runs, counters = await stopped.runs("gate"), (await stopped.view("gate")).counters
        for run in runs[::-1]:  # it was the order in which they ended
            await stopped.bus.store(attempt_message(stopped.bus.names, run))
    for _ in range(2):
        async with stopped.running():
            assert await stopped.runs("gate") == runs
            assert (await stopped.view("gate")).counters == counters
        forget(stopped)


async def test_what_an_import_brings_back_is_not_counted(system: System) -> None:
    await system.register("gate", "None", pre=True)
    await system.append()
    await until(lambda: has(system, "gate", 1))
    [told] = await system.log("Hook.Executed")
    payload = {**told.data.payload, "run_id": "run_of_another_log"}
    await system.append("Hook.Executed", payload, react=False, outside=True)
    await system.append()
    await until(lambda: has(system, "gate", 2))
    assert "run_of_another_log" not in {run.run_id for run in await system.runs("gate")}
    assert (await system.view("gate")).counters.ok == 2


async def test_redaction_of_an_answer_takes_its_record_along(stopped: System) -> None:
    async with stopped.running():
        await stopped.register("scribe", '{"payload": {"text": event.payload.text.upper()}}', pre=True)
        await stopped.append(payload={"text": SECRET})
        await stopped.append(payload={"text": "plain"})
        await until(lambda: has(stopped, "scribe", 2))
        [told, _] = await stopped.log("Hook.Executed")
        assert SECRET.upper() in str(told.data.payload)
        await call(stopped.bus, OPERATOR, "events", "redact", RedactRequest(id=told.metadata.id), bytes)
        await until(lambda: has(stopped, "scribe", 1))
        assert (await stopped.view("scribe")).counters.ok == 2
        [left] = await stopped.runs("scribe")
    files = list(stopped.folder.parent.glob("data/hooks.sqlite*"))
    assert not any(SECRET.upper().encode() in file.read_bytes() for file in files)
    forget(stopped)
    async with stopped.running():
        assert await stopped.runs("scribe") == [left]


async def test_answers_are_kept_while_events_is_away(bus: Bus, settings: Settings) -> None:
    mine: dict[str, Any] = {
        "nats_url": settings.nats_url,
        "bus_prefix": settings.bus_prefix,
        "data_dir": settings.data_dir,
    }
    events = create_events(EventsSettings(**mine))
    system = System(bus, settings, None, events)  # type: ignore[arg-type]
    async with contextlib.AsyncExitStack() as hooks:
        async with events.router.lifespan_context(events):
            await until(lambda: not events.state.ready())
            await hooks.enter_async_context(system.running())
            await system.register("gate", "None", pre=True)
        before = await attempts(system)
        await intercepted(system, "gate", payload={"n": 1})
        kept = await system.run_of("gate", "ok")
        assert await attempts(system) == before + 1
        events = create_events(EventsSettings(**mine))
        async with events.router.lifespan_context(events):
            await until(lambda: not events.state.ready())
            await until(lambda: system.log("Hook.Executed"))
            await judge(system, 2)
            await until(lambda: has(system, "gate", 2))
            assert (await system.runs("gate"))[1] == kept
            assert (await system.view("gate")).counters.ok == 2


async def test_answers_are_found_in_all_streams(nats_url: str, names: Names, tmp_path: Path) -> None:
    (tmp_path / "hooks").mkdir()
    mine: dict[str, Any] = {"nats_url": nats_url, "bus_prefix": names.prefix, "streams": 3}
    mine |= {"data_dir": str(tmp_path / "data")}
    events = create_events(EventsSettings(**mine))
    worlds = ("default", "red", "pink")
    assert len({Names(streams=3).stream_of(world) for world in worlds}) == 3
    async with (
        open_bus(nats_url, Names(names.prefix, streams=3)) as bus,
        events.router.lifespan_context(events),
    ):
        await until(lambda: not events.state.ready())
        system = System(bus, Settings(**mine, hooks_dir=str(tmp_path / "hooks")), None, events)  # type: ignore[arg-type]
        for world in worlds[1:]:
            await call(bus, OPERATOR, "events", "create_world", ChangeWorld(id=world), bytes)
        async with system.running():
            await system.register("gate", "None", pre=True, condition=ASKED_IF)
            for n, world in enumerate((*worlds, "default", "pink")):
                await system.append(payload={"n": n}, world_id=world)
                await until(partial(has, system, "gate", n + 1))
            runs = await pages(system, "gate")
            assert [run.world_id for run in runs] == ["pink", "default", "pink", "red", "default"]
            assert [run.outcome for run in runs] == ["ok", "ok", "ok", "skipped", "ok"]
        forget(system)
        async with system.running():
            assert await pages(system, "gate") == runs


async def test_a_kill_loses_no_answer_that_is_told_and_doubles_none(stopped: System) -> None:
    environment = {
        "CRUCIBLE_NATS_URL": stopped.settings.nats_url,
        "CRUCIBLE_BUS_PREFIX": stopped.settings.bus_prefix,
        "CRUCIBLE_DATA_DIR": stopped.settings.data_dir,
    }

    @contextlib.asynccontextmanager
    async def process() -> AsyncIterator[asyncio.subprocess.Process]:
        command = (sys.executable, "-m", "crucible_hooks")
        running = await asyncio.create_subprocess_exec(*command, env={**os.environ, **environment})
        try:
            yield running
        finally:
            with contextlib.suppress(ProcessLookupError):
                running.send_signal(signal.SIGKILL)
            await running.wait()

    async def answers(n: int) -> None:
        with contextlib.suppress(CrucibleError):
            await stopped.append(payload={"n": n})

    async with process():
        await until(lambda: registered(stopped), 30)
        asking = [asyncio.create_task(answers(n)) for n in range(2, 150)]
        await until(lambda: stopped.log("Hook.Executed"))
        await asyncio.sleep(random.uniform(0, 0.1))
    await asyncio.gather(*asking)
    for rebuilt in (False, True):
        if rebuilt:
            forget(stopped)
        async with stopped.running():
            told = {event.data.payload["run_id"] for event in await stopped.log("Hook.Executed")}
            found = [run.run_id for run in await pages(stopped, "gate", 50) if run.outcome == "ok"]
            assert sorted(found) == sorted(told)
            assert (await stopped.view("gate")).counters.ok == len(told)


async def registered(system: System) -> HookView | None:
    with contextlib.suppress(CrucibleError):
        return await system.register("gate", "None", pre=True)
    return None


# ---- the index, whatever order its sources come in -------------------------------------------------------------------


def message(run: RunRecord, sequence: int) -> Message:
    """As the index is given it: of a Pre hook's answer the event, of any other run the record in the history."""
    if run.outcome == "skipped":
        return Message("att", msgspec.json.encode(run), sequence=sequence, time_ms=sequence)
    about = Metadata(
        id=run.event_id, timestamp=timestamp(now_ms()), source=Source("user", "a"), actor="a", correlation_id="c"
    )
    told = run_event(run, Event("Custom", Data("note", {}), about), "Script", "")
    assert told is not None
    raw = b'{"type":"Hook","data":{"event":"x","payload":%s},"metadata":{"world_id":"w","room_id":"r"}}' % told.payload
    return Message("evt", raw, sequence=base_of(1) + sequence, time_ms=sequence)


def history(*outcomes: tuple[str, str | None]) -> list[Message]:
    return [
        message(
            RunRecord(
                run_id=fresh_id("run"), hook="g", timing="Pre", event_id=fresh_id("evt"), event_type="Custom.note",
                correlation_id="c", attempt=1, outcome=outcome, started_at=timestamp(1000 * n), duration_ms=0.0,
                error=error, hook_id="h",
            ),
            n,
        )
        for n, (outcome, error) in enumerate(outcomes, 1)
    ]  # fmt: skip


FALSE = ("skipped", "condition: false")


@pytest.mark.parametrize(
    ("runs", "failing"),
    [
        ([("failed", "a")] * 10, True),
        ([("ok", None), *[("failed", "a")] * 10], True),
        ([*[("failed", "a")] * 9, ("ok", None), ("failed", "a")], False),
        ([*[("failed", "a")] * 9, ("failed", "b"), ("failed", "a")], False),
        ([("failed", "b"), *[("failed", "a")] * 10], True),
        ([*[("failed", "condition: a")] * 9, FALSE, ("failed", "condition: a")], False),
        ([*[("failed", "a")] * 5, FALSE, *[("failed", "a")] * 5], True),
        ([*[("failed", "a")] * 10, ("denied", "no")], False),
    ],
)
def test_what_is_known_does_not_depend_on_the_order_of_the_sources(runs: list[Any], failing: bool) -> None:
    messages = history(*runs)
    known: list[Any] = []
    shuffled = [sorted(messages, key=lambda one: one.sequence), messages[::-1]]
    shuffled += [random.Random(seed).sample(messages, len(messages)) for seed in range(8)]
    for order in itertools.chain([messages], shuffled):
        connection = sqlite3.connect(":memory:")
        connection.executescript(store.SCHEMA)
        store.apply(connection, order)
        store.apply(connection, order)  # twice is as good as once
        rows = connection.execute(store._STREAKS).fetchall()
        streaks = [store.Streak(row[1], msgspec.json.decode(row[2]), row[3]) for row in rows]
        counters = connection.execute("SELECT * FROM counters").fetchall()
        known.append((counters, [streak.since("") for streak in streaks]))
        connection.close()
    assert all(one == known[0] for one in known)
    assert any(known[0][1]) is failing
