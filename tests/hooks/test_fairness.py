"""Hooks that use up their time, side by side with others: nobody else fails, and nobody else waits for long."""

import asyncio

import msgspec
import pytest

from crucible_core.errors import DeniedError, UnavailableError

from .conftest import System, until

LOOP = "while True: pass"


@pytest.fixture
def few(stopped: System) -> System:
    """A service with four sandbox workers for each timing."""
    stopped.settings = msgspec.structs.replace(stopped.settings, hooks_script_workers=4)
    return stopped


async def test_scripts_that_loop_starve_no_other_post_hook(few: System) -> None:
    async with few.running():
        for name in ("loop-a", "loop-b", "loop-c", "loop-d", "loop-e"):
            await few.register(name, LOOP, on="Custom.loop", options={"timeout_ms": 1000, "concurrency": 8})
        await few.register("good", "'fine'", options={"timeout_ms": 1000})
        for _ in range(4):
            await few.append("Custom.loop")
        await until(lambda: _failed(few, "loop-a"))
        for _ in range(10):
            await few.append()
        await until(lambda: _ran(few, "good", 10), seconds=20)
        assert not [run for run in await few.runs("good") if run.outcome != "ok"]
        for name in ("loop-a", "loop-b", "loop-c", "loop-d", "loop-e"):
            await until(lambda name=name: _failed(few, name), seconds=30)  # type: ignore[misc]


async def test_gates_that_loop_deny_only_their_own_events(few: System) -> None:
    async with few.running():
        for name in ("loop-a", "loop-b"):
            await few.register(name, LOOP, on="Custom.loop", pre=True, options={"timeout_ms": 1000})
        await few.register("good", "None", pre=True, options={"timeout_ms": 500})
        looping = [asyncio.create_task(few.append("Custom.loop")) for _ in range(8)]
        await asyncio.sleep(0)
        for _ in range(20):
            await few.append()
        found = await asyncio.gather(*looping, return_exceptions=True)
        assert all(isinstance(one, DeniedError | UnavailableError) for one in found)


async def test_commands_that_hang_hold_up_no_other_gate(system: System) -> None:
    hang = {"type": "Shell", "command": "sleep 5"}
    await system.register("slow", pre=True, on="Custom.slow", action=hang, options={"timeout_ms": 1500})
    await system.register("quick", pre=True, action={"type": "Shell", "command": "true"})
    slow = [asyncio.create_task(system.append("Custom.slow")) for _ in range(12)]
    await asyncio.sleep(0)
    for _ in range(3):
        await system.append()
    assert not all(task.done() for task in slow)
    assert all(
        isinstance(one, DeniedError | UnavailableError) for one in await asyncio.gather(*slow, return_exceptions=True)
    )


async def _failed(system: System, hook: str) -> bool:
    return any(run.outcome == "failed" and "took longer" in (run.error or "") for run in await system.runs(hook))


async def _ran(system: System, hook: str, times: int) -> bool:
    return len(await system.runs(hook)) >= times
