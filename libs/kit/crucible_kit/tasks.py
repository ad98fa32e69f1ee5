"""Ending tasks: those that are begun may finish, for a while."""

import asyncio
from collections.abc import Collection
from typing import Any

_CANCEL_S = 2.0


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
