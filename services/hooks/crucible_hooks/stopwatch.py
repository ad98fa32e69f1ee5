"""The time of one attempt, which stands still while it waits for a place among others."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, TypeVar

T = TypeVar("T")


class Stopwatch:
    """Ends what runs in it with TimeoutError after `seconds`, as `asyncio.timeout` does, less what it stood still."""

    def __init__(self, seconds: float) -> None:
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> "Stopwatch":
        await self._timeout.__aenter__()
        return self

    async def __aexit__(self, *raised: Any) -> None:
        await self._timeout.__aexit__(*raised)

    @property
    def expired(self) -> bool:
        return self._timeout.expired()

    @contextlib.asynccontextmanager
    async def entered(self, place: contextlib.AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
        """The context `place`, whose entering is a wait for others."""
        clock = asyncio.get_running_loop().time
        left = (self._timeout.when() or clock()) - clock()
        if not self.expired:
            self._timeout.reschedule(None)
        async with contextlib.AsyncExitStack() as stack:
            try:
                held = await stack.enter_async_context(place)
            finally:
                if not self.expired:
                    self._timeout.reschedule(clock() + left)
            yield held
