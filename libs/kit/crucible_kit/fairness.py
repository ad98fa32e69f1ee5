"""Fair sharing of slots for concurrent work: the key with the fewest slots is served first, and none holds them all."""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator
from itertools import count


class Slots:
    """`total` slots, of which one key holds at most `each`.

    A greedy key, whose last turn used up its time, holds one slot, and all greedy keys together at most half of them:
    the rest is always there for the others.
    """

    def __init__(self, total: int, each: int) -> None:
        self._free = total
        self._each = max(1, min(each, total))
        self._for_greedy = max(1, total // 2)
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}
        self._arrivals = count()
        self._greedy: set[str] = set()

    @contextlib.asynccontextmanager
    async def take(self, key: str) -> AsyncIterator[None]:
        """Waits for a slot for this key, and holds it while the context is open."""
        await self._acquire(key)
        try:
            yield
        finally:
            self._release(key)

    def record_turn(self, key: str, *, greedy: bool) -> None:
        """Records whether the key's last turn used up its time."""
        if greedy:
            self._greedy.add(key)
        elif key in self._greedy:
            self._greedy.discard(key)
            self._grant()

    async def _acquire(self, key: str) -> None:
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append((next(self._arrivals), granted))
        self._grant()
        try:
            await granted
        except asyncio.CancelledError:
            if not granted.cancelled():
                self._release(key)
            raise

    def _release(self, key: str) -> None:
        self._free += 1
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
        self._grant()

    def _grant(self) -> None:
        while self._free and (key := self._next()) is not None:
            _, granted = self._waiting[key].popleft()
            self._free -= 1
            self._held[key] += 1
            granted.set_result(None)

    def _next(self) -> str | None:
        """The next key to serve: of those that may have one more slot the one with the fewest, then the first come."""
        for key, line in list(self._waiting.items()):
            while line and line[0][1].cancelled():
                line.popleft()
            if not line:
                del self._waiting[key]
        greedy_may_take = sum(self._held[key] for key in self._greedy) < self._for_greedy
        ready = (key for key in self._waiting if self._may_have(key, greedy_may_take))
        return min(ready, key=lambda key: (self._held[key], self._waiting[key][0][0]), default=None)

    def _may_have(self, key: str, greedy_may_take: bool) -> bool:
        if key in self._greedy:
            return greedy_may_take and not self._held[key]
        return self._held[key] < self._each
