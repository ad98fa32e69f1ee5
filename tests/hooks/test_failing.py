"""Hooks whose runs fail the same way again and again: said in their state, through restarts, until one goes well."""

from typing import Any

import pytest

from crucible_core.errors import DeniedError
from crucible_core.limits import FAILING_AFTER
from crucible_core.protocol.parts import Check
from crucible_core.protocol.parts import TestRequest as Request

from .conftest import System, until


async def fails(system: System, hook: str, times: int, payload: Any = None, outcome: str = "failed") -> None:
    """So many runs of the hook more, of which none goes well."""
    before = len(await system.runs(hook))
    for _ in range(times):
        await system.append(payload=payload or {"n": 1})

    async def recorded() -> bool:
        runs = await system.runs(hook)
        return len(runs) >= before + times and {run.outcome for run in runs[:times]} == {outcome}

    await until(recorded)


@pytest.mark.parametrize(
    ("parts", "reason", "outcome"),
    [
        ({"script": "event.payload.tgs"}, "KeyError: tgs", "failed"),
        ({"script": "1", "condition": {"expr": "event.payload.tgs == 1"}}, "there is no tgs", "skipped"),
        ({"script": "1", "condition": {"script": "event.payload.tgs == 1"}}, "tgs", "skipped"),
        ({"action": {"type": "Shell", "command": "exit 3"}}, "exit code 3", "failed"),
        ({"action": {"type": "HTTP", "url": "http://127.0.0.1:1/{{event.payload.n}}"}}, "refused", "failed"),
        ({"action": {"type": "HTTP", "url": "http://127.0.0.1:1/{{event.payload.x}}"}}, "there is no x", "failed"),
    ],
)
async def test_ten_runs_that_fail_alike_are_said(system: System, parts: Any, reason: str, outcome: str) -> None:
    await system.register("bad", **parts)
    await fails(system, "bad", FAILING_AFTER - 1, outcome=outcome)
    assert await system.state("bad") == "active"
    await fails(system, "bad", 1, outcome=outcome)
    state = await system.state("bad")
    assert state is not None
    assert state.startswith("failing: ")
    assert reason in state
    check: Check = await system.ask("test", Request(id="bad"), Check)
    assert check.verdict == "failing"


async def test_it_survives_a_restart_and_ends_with_a_success(stopped: System) -> None:
    async with stopped.running():
        await stopped.register("picky", "event.payload.tags[0]")
        await fails(stopped, "picky", FAILING_AFTER)
        assert (await stopped.view("picky")).state == "failing: line 1: KeyError: tags"
    async with stopped.running():
        assert (await stopped.view("picky")).state == "failing: line 1: KeyError: tags"
        await stopped.append(payload={"tags": ["a"]})
        await stopped.run_of("picky", "ok")
        assert await stopped.state("picky") == "active"


async def test_it_ends_with_a_change_of_the_hook(system: System) -> None:
    await system.register("picky", "event.payload.tags")
    await fails(system, "picky", FAILING_AFTER)
    await system.register("picky", "event.payload.tag")
    assert await system.state("picky") == "active"
    await fails(system, "picky", FAILING_AFTER)
    assert "tag" in (await system.state("picky") or "")


async def test_failures_of_several_kinds_are_no_streak(system: System) -> None:
    script = "if event.payload.n % 2:\n    raise ValueError('a')\nraise TypeError('b')"
    await system.register("bad", script, options={"concurrency": 1})
    for n in range(FAILING_AFTER):
        await fails(system, "bad", 1, {"n": n})
    assert await system.state("bad") == "active"


async def test_condition_that_says_no_ends_a_streak_of_conditions_that_cannot_say(system: System) -> None:
    await system.register("picky", "1", condition={"expr": "event.payload.a == 1"})
    await fails(system, "picky", FAILING_AFTER, outcome="skipped")
    assert "failing" in (await system.state("picky") or "")
    await fails(system, "picky", 1, {"a": 2}, outcome="skipped")
    assert await system.state("picky") == "active"


async def test_gate_that_fails_is_said_too(system: System) -> None:
    await system.register("gate", '{"denied": "x"}', pre=True)
    for _ in range(FAILING_AFTER):
        with pytest.raises(DeniedError):
            await system.append()

    async def said() -> bool:
        return "an object with denied" in (await system.state("gate") or "")

    await until(said)
