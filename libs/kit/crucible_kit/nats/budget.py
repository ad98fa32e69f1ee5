"""Budgets of bytes: takers wait in line until enough is free, so that the sum stays bounded; and the budgets of a
connection to NATS."""

import asyncio
from collections import deque
from types import TracebackType
from typing import Self

from crucible_core.limits import IN_HAND_BYTES, INFLOW_BYTES, OUTFLOW_BYTES

LEAST_PULL_BYTES = 64 * 1024
_MAX_PULL_BYTES = 2 * 1024 * 1024


class Share:
    """Bytes of a budget, until `release`; it may be called again."""

    __slots__ = ("_budget", "_size")

    def __init__(self, budget: "Budget", size: int) -> None:
        self._budget = budget
        self._size = size

    def release(self) -> None:
        size, self._size = self._size, 0
        if size:
            self._budget.give_back(size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Budget:
    """First come, first served, so that small takers do not pass a large one for ever."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> Share:
        """Waits until so many bytes are free; a size beyond the total counts as the total."""
        size = min(size, self.total)
        if self._line or size > self.free:
            await self._wait(size)
        else:
            self.free -= size
        return Share(self, size)

    def give_back(self, size: int) -> None:
        self.free += size
        while self._line and (self._line[0][1].done() or self._line[0][0] <= self.free):
            size, turn = self._line.popleft()
            if not turn.done():
                self.free -= size
                turn.set_result(None)

    async def _wait(self, size: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            # Cancelled after its turn: its share goes to the next one. Cancelled before: the line may move.
            self.give_back(0 if turn.cancelled() else size)
            raise


class Flow:
    """The budgets of a connection, in both directions, and the bytes that its process holds."""

    def __init__(self) -> None:
        self.inflow = Budget(INFLOW_BYTES)
        """For answers and pulls that may be large."""
        self.requests = Budget(IN_HAND_BYTES)
        """For the large requests in work here."""
        self.pulls = 0
        """Number of open pulls."""
        self.held_bytes = 0
        """Bytes of the consumers' messages in work."""
        self._outflow: dict[str, Budget] = {}

    def outflow(self, service: str) -> Budget:
        """The budget for large requests on their way to a service."""
        return self._outflow.setdefault(service, Budget(OUTFLOW_BYTES))

    @property
    def pull_bytes(self) -> int:
        """Byte limit of one pull request; each consumer may have two open."""
        part = INFLOW_BYTES // (2 * max(1, self.pulls))
        return max(LEAST_PULL_BYTES, min(part, _MAX_PULL_BYTES))
