"""Expressions: their values, what is refused, which fields they read, and the budget that none of them exceeds."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from crucible_core.errors import InvalidError
from crucible_core.limits import EXPRESSION_CHARACTERS
from crucible_hooks.errors import AbsentError, RunError
from crucible_hooks.expressions import cel
from crucible_hooks.expressions.expression import Evaluator, check, expression
from crucible_hooks.stopwatch import Stopwatch
from crucible_kit.isolation import ExhaustedError, WorkerPool, open_worker_pool

PAYLOAD: dict[str, Any] = {
    "id": "m1",
    "n": 3,
    "f": 2.5,
    "big": 2**80,
    "tags": ["a", "b"],
    "none": None,
    "nul": "ok\0secret",
    "keys": {"a\0b": 1},
    "links": [{"target": "x"}],
}
CONTEXT = {"event": {"payload": PAYLOAD}, "inputs": {"who": "me"}}


@pytest.fixture
async def evaluator() -> AsyncIterator["Evaluated"]:
    async with open_worker_pool(2, cpu_s=0.5) as isolated:
        yield Evaluated(isolated)


class Evaluated:
    def __init__(self, isolated: WorkerPool) -> None:
        self._evaluator = Evaluator(isolated)

    async def value(self, source: str, payload: Any = None, seconds: float = 30.0, hook: str = "hook") -> Any:
        context = CONTEXT if payload is None else {"event": {"payload": payload}, "inputs": {}}
        async with Stopwatch(seconds) as watch:
            [value] = await self._evaluator.values([expression(source, "x")], context, hook, watch)
        return value


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("event.payload.id", "m1"),
        ('event["payload"]["id"]', "m1"),
        ('"a" in event.payload.tags', True),
        ('event.payload.tags.contains("a")', True),
        ('event.payload.tags.contains("c")', False),
        ("[1, 2].contains(2) && [1.5].contains(1.5) && [null].contains(null) && [[1]].contains([1])", True),
        ("[1].contains(true) || [true].contains(1)", False),
        ('event.payload.contains("id") && event.payload.id.contains("1")', True),
        ('event.payload.id.startsWith("m") && event.payload.id.startswith("m") && "x".endswith("x")', True),
        ("event.payload.n + 1", 4),
        ("event.payload.n == 3.0 && event.payload.n > 2.5", True),
        ("event.payload.big > 1.0", True),
        ("has(event.payload.x)", False),
        ("event.payload.tags.map(t, t + '!')", ["a!", "b!"]),
        ("event.payload.links.exists(l, l.target == 'x')", True),
        ("event.payload.tags.all(a, event.payload.tags.exists(b, a == b))", True),
        ("event.payload.id.matches('^m[0-9]$') && inputs.who == 'me'", True),
        ("timestamp('2026-01-01T00:00:00Z')", "2026-01-01T00:00:00Z"),
        ("event.payload.none", None),
        ('event.payload.nul.contains("secret") && event.payload.nul.size() == 9', True),
        ("event.payload.nul", "ok\0secret"),
        ("event.payload.keys", {"a\0b": 1}),
    ],
)
async def test_value(evaluator: Evaluated, source: str, value: Any) -> None:
    check(source, "x")
    assert await evaluator.value(source) == value


@pytest.mark.parametrize(
    "source", ["event.payload.x == 1", "event.payload.tags[7]", "event.payload.links.all(l, l.no)"]
)
async def test_what_is_not_there_is_told_apart_from_other_mistakes(evaluator: Evaluated, source: str) -> None:
    with pytest.raises(AbsentError, match="there is no"):
        await evaluator.value(source)
    with pytest.raises(RunError, match="overload") as wrong:
        await evaluator.value("event.payload.n + event.payload.id")
    assert not isinstance(wrong.value, AbsentError)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "not a CEL expression"),
        ("1 +", "not a CEL expression"),
        ("even.x", '"even".*did you mean "event"'),
        ("nofunction(1)", "nofunction"),
        ("event.payload.id.startWith('a')", 'did you mean "startsWith"'),
        ("len(event.payload.tags) > 1", 'did you mean "size"'),
        ('"a" in event.payload.tags and True', r"Python belongs in condition\.script"),
        ("'a' + 1", "no matching overload"),
        ("(" * 30 + "(" * 500, "nested"),
        ("[" * 2000, "nested"),
        ("!" * 4000, "not a CEL expression"),
        ("-" * 4001, "not a CEL expression"),
        ("1" + "+1" * 2000, "nested"),
        ("event" + ".a" * 2000, "nested"),
        ("event.map(x, " * 300, "nested"),
    ],
)
def test_bad_expression_is_refused_with_its_place(source: str, message: str) -> None:
    with pytest.raises(InvalidError, match=message) as refused:
        check(source, "condition.expr")
    assert refused.value.errors[0].path == "condition.expr"


def test_long_expression_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(InvalidError, match=r"condition\.expr"):
        expression("x" * (EXPRESSION_CHARACTERS + 1), "condition.expr")


@pytest.mark.parametrize(
    ("source", "fields"),
    [
        ("event.payload.a.b == inputs.c", {"event.payload.a.b", "inputs.c"}),
        ('event["payload"]["a"][0].b', {"event.payload.a.0.b"}),
        ("has(event.payload.a)", {"event.payload.a"}),
        ("event.payload.a.contains(event.id)", {"event.payload.a", "event.id"}),
        ("event.payload.a.exists(x, x.b > 1)", {"event.payload.a", "event.payload.a.0.b"}),
        ("event.payload.a.exists(event, event.b > 1)", {"event.payload.a", "event.payload.a.0.b"}),
        ("event.payload.a.all(k, k != 'x')", {"event.payload.a"}),
        ("event.payload[event.payload.k]", {"event.payload", "event.payload.k"}),
        ("{'x': event.payload.a}.x == [event.payload.b]", {"event.payload.a", "event.payload.b"}),
    ],
)
def test_fields_that_an_expression_reads(source: str, fields: set[str]) -> None:
    assert {".".join(place) for place in cel.syntax(source).fields} == fields


def _bomb() -> dict[str, Any]:
    numbers = list(range(20_000))
    return {"a": numbers, "b": numbers, "c": numbers, "s": "a" * 200_000}


@pytest.mark.parametrize(
    "source",
    [
        "event.payload.a.all(x, event.payload.b == event.payload.c)",
        "event.payload.a.map(x, event.payload.b)",
        "event.payload.a.all(x, event.payload.b.all(y, event.payload.c.all(z, true)))",
        "[event.payload.s]" + ".map(x, x + x)" * 25 + "[0].size() > 0",
        'event.payload.s.matches("(a?){100}(a?){100}b")',
        "event.payload.a" + ".map(x, [x, x])" * 10,
    ],
)
async def test_no_expression_holds_up_the_loop_or_exceeds_its_budget(evaluator: Evaluated, source: str) -> None:
    payload, began = _bomb(), time.process_time()
    with contextlib.suppress(RunError):
        await evaluator.value(source, payload, hook="bomb")
    assert time.process_time() - began < 0.5  # of this process: the workers' time is their own


async def test_cheap_expression_is_not_held_up_by_dear_ones(evaluator: Evaluated) -> None:
    dear = [
        asyncio.create_task(evaluator.value("event.payload.a.all(x, event.payload.b == event.payload.c)", _bomb()))
        for _ in range(2)
    ]
    assert await evaluator.value("event.payload.tags.contains('a')") is True
    assert await evaluator.value("event.payload.tags.exists(t, t == 'a')", hook="another") is True
    assert not all(task.done() for task in dear)
    await asyncio.gather(*dear, return_exceptions=True)


async def test_time_out_ends_the_worker(evaluator: Evaluated) -> None:
    with pytest.raises(TimeoutError):
        await evaluator.value("event.payload.a.all(x, event.payload.b == event.payload.c)", _bomb(), seconds=0.1)
    assert await evaluator.value("event.payload.tags.exists(t, t == 'a')") is True


async def test_check_of_anything_ends(evaluator: Evaluated) -> None:
    async with open_worker_pool(1, cpu_s=0.5) as isolated:
        for source in ("[{" * 2000, '"' + "\\" * 4000, "a?b:" * 1000, ".map(x," * 500 + "1", "\0" * 100, "'''" * 1000):
            with contextlib.suppress(InvalidError, ExhaustedError):
                await isolated.run("x", check, source, "x")
