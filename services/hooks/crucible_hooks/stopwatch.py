"""The time-out of one attempt, which stands still while the attempt waits for a slot."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, TypeVar

T = TypeVar("T")


class Stopwatch:
    """Raises TimeoutError after `seconds`, as `asyncio.timeout` does, without the time for which it stood still."""

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
    async def enter(self, slot: contextlib.AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
        """Enters the context `slot`; the time stands still until then."""
        clock = asyncio.get_running_loop().time
        left = (self._timeout.when() or clock()) - clock()
        if not self.expired:
            self._timeout.reschedule(None)
        async with contextlib.AsyncExitStack() as stack:
            try:
                held = await stack.enter_async_context(slot)
            finally:
                if not self.expired:
                    self._timeout.reschedule(clock() + left)
            yield held
