"""Post hooks over several replicas, in processes that are killed, and what waits for a hook that is switched off,
changed or deleted."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crucible_core.protocol.hooks import HookView
from crucible_core.protocol.parts import EnableHook, GetRequest
from crucible_core.subjects import SHARDS
from crucible_kit.buckets import open_bucket
from crucible_kit.handlers.lanes import UNSETTLED

from .conftest import System, until

PLACES = 4
MANY = 120
WAITING = 300
"""Far more than are in hand at a time."""


class Replicas:
    def __init__(self, system: System, folder: Path) -> None:
        self.system = system
        self._folder = folder
        self._processes: list[asyncio.subprocess.Process] = []

    @contextlib.asynccontextmanager
    async def replica(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """One more, in a process of its own, once all shards are shared with it."""
        others = set(await self.owners())
        settings = self.system.settings
        environment = {
            "CRUCIBLE_NATS_URL": settings.nats_url,
            "CRUCIBLE_BUS_PREFIX": settings.bus_prefix,
            "CRUCIBLE_DATA_DIR": str(self._folder / f"data-{len(self._processes)}"),
            "CRUCIBLE_HOOKS_ALLOW_API_SHELL": "true",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "crucible_hooks", env={**os.environ, **environment}
        )
        self._processes.append(process)
        try:
            await until(lambda: self.shared(others), 30)
            yield process
        finally:
            await end(process, signal.SIGKILL)

    async def owners(self) -> Counter[str]:
        bucket = await open_bucket(self.system.bus, "shards")
        records = [json.loads(entry.value) for entry in (await bucket.entries()).values()]
        return Counter(record["owner"] for record in records if not record.get("released"))

    async def shared(self, others: set[str]) -> bool:
        """Whether the replicas that run have all shards, and another one than `others` is among them."""
        found, running = await self.owners(), sum(process.returncode is None for process in self._processes)
        return len(found) == running and sum(found.values()) == SHARDS and bool(found.keys() - others)


async def end(process: asyncio.subprocess.Process, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(how)
    await process.wait()


@pytest.fixture
def replicas(stopped: System, tmp_path: Path) -> Replicas:
    return Replicas(stopped, tmp_path)


async def burst(system: System, count: int = MANY) -> set[str]:
    appended = [await asyncio.gather(*(system.append() for _ in range(20))) for _ in range(count // 20)]
    return {one.id or "" for group in appended for one in group}


def lines(path: Path) -> Counter[str]:
    return Counter(path.read_text().split()) if path.exists() else Counter()


def noting(path: Path, seconds: float = 0.0) -> dict[str, str]:
    """An action that writes down each attempt."""
    return {"type": "Shell", "command": f"printf '%s\\n' {{{{event.id}}}} >>{path}; sleep {seconds}"}


async def test_runs_of_a_killed_replica_go_on_at_another(replicas: Replicas, tmp_path: Path) -> None:
    system, hooks = replicas.system, [f"noted-{n}" for n in range(3)]
    paths = {name: tmp_path / name for name in hooks}
    async with replicas.replica() as first, replicas.replica():
        for name in hooks:
            await system.register(name, action=noting(paths[name]), options={"concurrency": PLACES})
        wanted = await burst(system)
        await until(lambda: sum(lines(paths["noted-0"]).values()) > 10)
        await end(first, signal.SIGKILL)
        wanted |= await burst(system)
        await until(lambda: all(lines(path).keys() >= wanted for path in paths.values()), 60)
        for name in hooks:
            await until(lambda name=name: counted(system, name, len(wanted)), 30)  # type: ignore[misc]
        told = Counter(event.data.payload["run_id"] for event in await all_told(system))
    attempts = [times for path in paths.values() for times in lines(path).values()]
    # What was in hand, or on its way to the disk, no more; and the log heard of each run once.
    assert sum(times - 1 for times in attempts) <= (1 + UNSETTLED) * PLACES * len(hooks)
    assert (len(told), max(told.values())) == (len(hooks) * len(wanted), 1)


async def all_told(system: System) -> list:
    found, after = [], 0
    while True:
        page = await system.page("Hook.Executed", after)
        if not page:
            return found
        found += page
        after = page[-1].sequence or 0


async def counted(system: System, hook: str, ok: int) -> bool:
    return (await system.view(hook)).counters.ok >= ok


async def test_a_replica_that_ends_hands_over_without_a_repeat(replicas: Replicas, tmp_path: Path) -> None:
    system, path = replicas.system, tmp_path / "noted"
    async with replicas.replica() as first:
        await system.register("noted", action=noting(path), options={"concurrency": PLACES})
        wanted = await burst(system, 40)
        async with replicas.replica() as second:
            wanted |= await burst(system, 40)
            await end(first, signal.SIGTERM)
            wanted |= await burst(system, 40)
            await until(lambda: lines(path).keys() >= wanted, 30)
            await end(second, signal.SIGTERM)
    assert max(lines(path).values()) == 1


async def test_a_debounced_hook_fires_over_a_kill_as_it_says(replicas: Replicas) -> None:
    system = replicas.system
    async with replicas.replica() as first:
        await system.register("calm", "event['payload']['n']", options={"debounce_ms": 3_600_000})
        await system.append(payload={"n": 0})
        assert (await system.run_of("calm", "ok")).output == 0
        await end(first, signal.SIGKILL)
    await system.append(payload={"n": 1})
    async with replicas.replica():
        await system.run_of("calm", "skipped")
        assert [run.output for run in await system.runs("calm") if run.outcome == "ok"] == [0]


async def test_a_hook_that_is_changed_while_many_wait_runs_for_each_of_them(system: System, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    await system.register("busy", action=noting(old, 0.01), options={"concurrency": 2})
    wanted = await burst(system, WAITING // 20 * 20)
    await until(lambda: lines(old))
    await system.register("busy", action=noting(new), options={"concurrency": 8})
    wanted |= await burst(system, 20)
    await until(lambda: (lines(old) + lines(new)).keys() >= wanted, 60)
    assert max((lines(old) + lines(new)).values()) == 1
    assert len(lines(new)) > 20


async def test_a_hook_that_is_deleted_while_many_wait_ends_and_the_next_of_its_name_has_none_of_it(
    system: System, tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    await system.register("busy", action=noting(old, 0.05), options={"concurrency": 1})
    await burst(system, WAITING // 20 * 20)
    await until(lambda: lines(old))
    await system.ask("delete", GetRequest(id="busy"), HookView)
    begun = len(lines(old))
    await system.register("busy", action=noting(new))
    own = await burst(system, 20)
    await until(lambda: lines(new).keys() >= own)
    await asyncio.sleep(0.3)
    assert lines(new).keys() == own
    assert len(lines(old)) <= begun + 1


async def test_a_disabled_hook_keeps_what_waits_over_a_restart_and_gets_nothing_of_meanwhile(
    stopped: System, tmp_path: Path
) -> None:
    path = tmp_path / "noted"
    async with stopped.running():
        await stopped.register("busy", action=noting(path, 0.01), options={"concurrency": 2})
        wanted = await burst(stopped, WAITING // 20 * 20)
        await until(lambda: lines(path))
        await stopped.ask("enable", EnableHook(name="busy", enabled=False), HookView)
        await burst(stopped, 20)
    done = len(lines(path))
    async with stopped.running():
        await burst(stopped, 20)
        assert len(lines(path)) == done < len(wanted)
        await stopped.ask("enable", EnableHook(name="busy", enabled=True), HookView)
        wanted |= await burst(stopped, 20)
        await until(lambda: lines(path).keys() >= wanted, 60)
        await asyncio.sleep(0.3)
    assert lines(path).keys() == wanted


async def test_hooks_make_nothing_on_the_bus(system: System) -> None:
    await system.register("first", "1")
    await system.append()
    await system.run_of("first", "ok")
    before = await made(system)
    for n in range(MANY):
        await system.register(f"idle-{n}", "1", on=f"Custom.idle{n}")
    await system.append(f"Custom.idle{MANY - 1}")
    await system.run_of(f"idle-{MANY - 1}", "ok")
    assert await made(system) == before


async def made(system: System) -> list[int]:
    bus = system.bus
    streams = (bus.names.events, bus.names.hook_runs, bus.names.attempts)
    return [len(await bus.stream_names()), *[len(await bus.consumer_names(stream)) for stream in streams]]


@pytest.mark.parametrize(
    "damage", ['{"name": "busy", "id": "%s", "enabled": "perhaps"}', "[]"], ids=["known", "unknown"]
)
async def test_a_hook_whose_record_cannot_be_read_keeps_what_waits_over_a_restart(
    stopped: System, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "noted"
    bucket = await open_bucket(stopped.bus, "hooks")
    async with stopped.running():
        id = (await stopped.register("busy", action=noting(path, 0.01), options={"concurrency": 2})).id
        wanted = await burst(stopped)
        await until(lambda: lines(path))
        entry = await bucket.get("busy")
        assert entry is not None
        await bucket.put("busy", (damage % id if "%" in damage else damage).encode())
        await until(lambda: inert(stopped, "busy"))
    done = len(lines(path))
    async with stopped.running():
        await asyncio.sleep(0.3)
        assert len(lines(path)) == done < len(wanted)
        await bucket.put("busy", entry.value)
        await until(lambda: lines(path).keys() >= wanted, 60)
        await asyncio.sleep(0.3)
    assert lines(path).keys() == wanted
    assert max(lines(path).values()) == 1


async def inert(system: System, hook: str) -> bool:
    return (await system.view(hook)).state.startswith("inert: its record cannot be read")
