"""The sandbox: hook scripts in `monty` worker processes, with the functions that they are given and nothing else."""

import ast
import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from weakref import WeakValueDictionary

from pydantic_monty import (
    AsyncFunctionSnapshot,
    AsyncMonty,
    AsyncMontySession,
    ExternalResult,
    MontyComplete,
    MontyError,
    MontyRuntimeError,
    ResourceLimits,
)

from crucible_core.errors import (
    CrucibleError,
    FieldError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)

from .expressions import plain
from .failures import RunError

Function = Callable[..., Awaitable[Any]]
Printed = Callable[[str], None]

_SHOWN = 2000
_INPUT = "<python-input-0>"
"""What monty calls a script in its tracebacks."""
_EXIT_PAUSE_S = 0.1
_BUILTIN: Mapping[type[CrucibleError], type[Exception]] = {
    NotFoundError: LookupError,
    InvalidError: ValueError,
    ForbiddenError: PermissionError,
}
"""What a script can catch in the place of our errors; RuntimeError for all others."""


class Sandbox:
    """Two pools of workers, so that Post hooks never keep a Pre hook waiting. Each starts when it is first needed."""

    def __init__(self, stack: contextlib.AsyncExitStack, workers: int, memory_mb: int) -> None:
        self._stack = stack
        self._workers = workers
        self._memory = memory_mb * 1024 * 1024
        self._pools: dict[str, AsyncMonty] = {}
        self._shares: WeakValueDictionary[tuple[str, str], asyncio.Semaphore] = WeakValueDictionary()
        self._starting = asyncio.Lock()

    async def run(
        self,
        source: str,
        *,
        pool: str,
        name: str,
        timeout_s: float,
        values: dict[str, Any],
        functions: Mapping[str, Function],
        printed: Printed,
    ) -> Any:
        """The script's last expression, as JSON's types. Raises RunError, or UnavailableError where the script failed
        after something that its functions need was away.

        `timeout_s` bounds the script's own computing; what it waits for is the caller's to bound. The worker of a
        cancelled script is replaced.
        """
        limits: ResourceLimits = {
            "max_feed_duration_secs": timeout_s,
            "max_memory": self._memory,
            "max_recursion_depth": 500,
            "max_suspensions": 2000,
            "max_total_sleep_secs": timeout_s,
        }
        workers = await self._pool(pool)
        away: list[UnavailableError] = []
        lookup = {called: _guarded(function, away) for called, function in functions.items()}
        try:
            async with self._share(pool, name), workers.checkout(limits=limits) as session:
                return plain(await _drive(session, source, values, lookup, printed))
        except MontyError as error:
            if away:
                raise away[-1] from None
            text = error.display() if isinstance(error, MontyRuntimeError) else str(error)
            raise RunError(text.replace(_INPUT, name).strip()[-_SHOWN:]) from None

    def _share(self, pool: str, name: str) -> asyncio.Semaphore:
        """A hook's places in a pool, at most half of it: one whose scripts only loop leaves the others theirs."""
        share = self._shares.get((pool, name))
        if share is None:
            share = self._shares[pool, name] = asyncio.Semaphore(max(1, self._workers // 2))
        return share

    async def _pool(self, name: str) -> AsyncMonty:
        async with self._starting:
            if name not in self._pools:
                pool = AsyncMonty(min_processes=1, max_processes=self._workers)
                self._pools[name] = await self._stack.enter_async_context(pool)
            return self._pools[name]


@contextlib.asynccontextmanager
async def open_sandbox(workers: int, memory_mb: int) -> AsyncIterator[Sandbox]:
    async with contextlib.AsyncExitStack() as stack:
        # pydantic-monty's threads outlive the pool for a moment; the interpreter aborts if it ends before they do.
        stack.push_async_callback(asyncio.sleep, _EXIT_PAUSE_S)
        yield Sandbox(stack, workers, memory_mb)


async def _drive(
    session: AsyncMontySession,
    source: str,
    values: dict[str, Any],
    functions: Mapping[str, Function],
    printed: Printed,
) -> Any:
    """Runs a script and answers its calls one by one, so that they need no `await`; with it they work just the same."""
    step = await session.feed_start(
        source, inputs=values, external_lookup=dict(functions), print_callback=lambda _, text: printed(text)
    )
    while not isinstance(step, MontyComplete):
        if isinstance(step, AsyncFunctionSnapshot) and step.function_name in functions and not step.allow_eager_await:
            step = await step.resume(await _answer(functions[step.function_name], step.args, step.kwargs))
        else:
            step = await step.resume_auto()
    return step.output


async def _answer(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExternalResult:
    try:
        return {"return_value": await function(*args, **kwargs)}
    except Exception as error:
        return {"exception": error}


def _guarded(function: Function, away: list[UnavailableError]) -> Function:
    """The function, whose errors are exceptions of the kinds that a script knows."""

    async def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return plain(await function(*args, **kwargs))
        except CrucibleError as error:
            if isinstance(error, UnavailableError):
                away.append(error)
            raise _BUILTIN.get(type(error), RuntimeError)(error.detail) from None
        except TypeError as error:
            raise TypeError(str(error).rpartition(".")[2]) from None

    return call


def check_script(source: str, at: str, forbidden: Mapping[str, str] = {}) -> None:
    """Raises InvalidError for what is no Python, and for a call of a `forbidden` function, with the reason given."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise _refused(at, f"line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise _refused(at, f"not a script: {error or 'nested too deeply'}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in forbidden:
            raise _refused(at, f"line {node.lineno}: {node.func.id}: {forbidden[node.func.id]}")


def _refused(at: str, message: str) -> InvalidError:
    return InvalidError(f"{at}: {message}", errors=[FieldError(at, message)])
