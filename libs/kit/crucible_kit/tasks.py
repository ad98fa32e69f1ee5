"""Tasks that share an event loop: how they end, and how one that has much to do lets the others have their turn."""

import asyncio
import time
from collections.abc import Collection
from typing import Any

from crucible_core.limits import TURN_S

_CANCEL_S = 2.0


class Turn:
    """What one task may do at a stretch: `if turn.over: await turn.pass_on()`, between any two things that it does."""

    def __init__(self) -> None:
        self._end = time.monotonic() + TURN_S

    @property
    def over(self) -> bool:
        return time.monotonic() > self._end

    async def pass_on(self) -> None:
        await asyncio.sleep(0)
        self._end = time.monotonic() + TURN_S


async def finish(tasks: "Collection[asyncio.Task[Any]]", grace: float) -> None:
    """Waits until tasks are done; those that are not after `grace` seconds are cancelled. Never raises what they do."""
    if tasks:
        try:
            await asyncio.wait(tasks, timeout=grace)
        finally:
            for task in list(tasks):
                task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CANCEL_S)
