"""Tasks that share an event loop: ending them, and yielding to others during long work."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from typing import Any

from crucible_core.limits import TURN_S

_CANCEL_S = 2.0


class Turn:
    """The time that one task may take at a stretch: `if turn.over: await turn.pass_on()` between its steps."""

    def __init__(self) -> None:
        self._end = time.monotonic() + TURN_S

    @property
    def over(self) -> bool:
        return time.monotonic() > self._end

    async def pass_on(self) -> None:
        await asyncio.sleep(0)
        self._end = time.monotonic() + TURN_S


@contextlib.asynccontextmanager
async def run_tasks(*functions: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Runs tasks while the context is open; the failure of one ends it."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(function()) for function in functions]
        yield
        for task in tasks:
            task.cancel()


async def finish(tasks: "Collection[asyncio.Task[Any]]", grace: float) -> None:
    """Waits until tasks are done, and cancels the rest after `grace` seconds. Never raises their errors."""
    if tasks:
        try:
            await asyncio.wait(tasks, timeout=grace)
        finally:
            for task in list(tasks):
                task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CANCEL_S)
