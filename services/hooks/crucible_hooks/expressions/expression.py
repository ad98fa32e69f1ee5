"""Expressions of hooks: checked when they are registered, evaluated within a budget of steps, time and size.

One that is sure to be quick (no loop, no pattern, a small event) is evaluated at once; any other in a worker process,
which the kernel ends when it takes too much.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from crucible_core.errors import InvalidError
from crucible_core.limits import EXPRESSION_CHARACTERS, RENDERED_BYTES
from crucible_core.suggest import nearest
from crucible_hooks.errors import RunError
from crucible_hooks.expressions import cel
from crucible_hooks.stopwatch import Stopwatch
from crucible_kit.isolation import ExhaustedError, WorkerPool

Context = Mapping[str, Any]
"""The variables of expressions: `event` and `inputs`."""

_QUICK_CHARACTERS = 2048
"""Of all sources together: they are compiled here the first time, in about 5 ms at the worst."""
_QUICK_STEPS = 100_000
_QUICK_SIZE = 5_000
_TEXT_STEP = 32
"""Characters of a text that cost as much as one value."""
_PROBLEM = re.compile(r"<input>:(-?\d+):(-?\d+): (.*)")
_UNDECLARED = re.compile(r"undeclared reference to '([^'.]*)[^']*'.*")
_PYTHON = re.compile(r"\b(?:and|or|not|is|None|True|False|lambda|len)\b|\bif\b.*\belse\b")
_STRINGS = re.compile(r"""\"(?:[^"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'""")
_ELSEWHERE = {"len": "size", "length": "size", "includes": "contains", "some": "exists", "every": "all"}


class Expression(msgspec.Struct, frozen=True):
    """`at` is its path in the definition of its hook."""

    source: str
    at: str


def expression(source: str, at: str) -> Expression:
    """Raises InvalidError, its path `at`, for one that is too long; `check` looks at its text."""
    if len(source) > EXPRESSION_CHARACTERS:
        raise InvalidError.field(at, f"an expression may have {EXPRESSION_CHARACTERS} characters")
    return Expression(source, at)


def check(source: str, at: str) -> cel.Syntax:
    """The syntax of an expression. Raises InvalidError for a text that is no CEL and for unknown names.

    It takes milliseconds, at the worst a second: call it in a worker process.
    """
    try:
        cel.check(source)
        return cel.syntax(source)
    except ValueError as error:
        raise _problem(source, at, str(error)) from None


class Evaluator:
    def __init__(self, isolated: WorkerPool) -> None:
        self._isolated = isolated

    async def values(
        self, expressions: Sequence[Expression], context: Context, hook: str, watch: Stopwatch
    ) -> list[Any]:
        """The values, of JSON's types, in order. Waiting for a worker is not counted as the hook's time.

        Raises AbsentError for a field that is not there; RunError for any other failure, also for too high a cost.
        """
        if not expressions:
            return []
        sources = [one.source for one in expressions]
        if _is_quick(sources, context):
            return msgspec.json.decode(evaluate_all(sources, context))  # type: ignore[no-any-return]
        try:
            async with watch.enter(self._isolated.worker(hook)) as worker:
                found = await worker.run(_evaluate_apart, sources, msgspec.json.encode(context))
        except ExhaustedError as error:
            raise RunError(f"{sources[0].strip()[:200]}: {error}") from None
        return msgspec.json.decode(found)  # type: ignore[no-any-return]


def evaluate_all(sources: Sequence[str], context: Context) -> bytes:
    """The values as a JSON list. Raises RunError."""
    activation = cel.activation(context)
    values, size = [], 0
    for source in sources:
        encoded = msgspec.json.encode(cel.evaluate(source, activation))
        size += len(encoded)
        if size > RENDERED_BYTES:
            raise RunError(f"{source.strip()[:200]}: what it comes to is larger than {RENDERED_BYTES >> 20} MiB")
        values.append(msgspec.Raw(encoded))
    return msgspec.json.encode(values)


def _evaluate_apart(sources: Sequence[str], context: bytes) -> bytes:
    return evaluate_all(sources, msgspec.json.decode(context))


def _is_quick(sources: Sequence[str], context: Context) -> bool:
    """True where they take at most some milliseconds, whatever the event holds.

    Without loops each node is computed once, from values that together hold at most `nodes` times what the context
    holds: that is the bound.
    """
    if sum(map(len, sources)) > _QUICK_CHARACTERS:
        return False
    try:
        found = [cel.syntax(source) for source in sources]
    except ValueError:
        return True  # it cannot be parsed, which fails at once
    if not all(one.linear for one in found):
        return False
    steps = sum(one.nodes**2 for one in found)
    most = min(_QUICK_SIZE, _QUICK_STEPS // steps)
    return _size([context], most) <= most


def _size(waiting: list[Any], most: int) -> int:
    """The number of values, of which a long text counts as several; counting stops past `most`."""
    found = 0
    while waiting and found <= most:
        value = waiting.pop()
        found += 1
        if isinstance(value, str):
            found += len(value) // _TEXT_STEP
        elif isinstance(value, dict):
            found += len(value)
            waiting += value.values()
        elif isinstance(value, list):
            found += len(value)
            waiting += value
    return found


# ---- errors of expressions -----------------------------------------------------------------------------------------


def _problem(source: str, at: str, text: str) -> InvalidError:
    line = next(iter(text.splitlines()), "")
    found = _PROBLEM.search(line)
    message = found[3] if found else line.partition(": ")[2] or line
    if "recursion" in message:
        return InvalidError.field(at, "an expression may be nested 32 deep")
    if unknown := _UNDECLARED.fullmatch(message):
        return _unknown(at, unknown[1])
    message = message.replace(" [INVALID_ARGUMENT]", "")[:300]
    where = f"line {found[1]}, column {found[2]}: " if found and not found[1].startswith("-") else ""
    if _PYTHON.search(_STRINGS.sub('""', source)):
        return InvalidError.field(at, f"not a CEL expression: {where}{message}; Python belongs in condition.script")
    return InvalidError.field(at, f"not a CEL expression: {where}{message}")


def _unknown(at: str, name: str) -> InvalidError:
    suggestion = _ELSEWHERE.get(name) or nearest(
        name, [*cel.VARIABLES, *sorted(cel.FUNCTIONS - {"startswith", "endswith"})]
    )
    return InvalidError.field(
        at, f'there is no "{name}": an expression sees event and inputs, and CEL\'s functions', suggestion
    )
