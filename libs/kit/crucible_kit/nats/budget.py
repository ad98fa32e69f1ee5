"""Budgets of bytes: those who want some wait in line until there is room, so that the sum of all stays bounded; and the
budgets of a connection to NATS."""

import asyncio
from collections import deque
from types import TracebackType
from typing import Self

INFLOW_BYTES = 16 * 1024 * 1024
"""What may be on its way to a connection of large messages, and as much again of small ones: a server cuts off a client
that has 64 MiB to read, whatever the reason."""
LEAST_PULL_BYTES = 64 * 1024
_MOST_PULL_BYTES = 2 * 1024 * 1024
_OUTFLOW_BYTES = 8 * 1024 * 1024
"""What may be on its way to each service of large requests from here; there are others who send."""
_REQUESTS_BYTES = 32 * 1024 * 1024
"""What large requests that are worked on come to before more are kept waiting at their senders."""


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
    """First come, first served: a large wish is not passed by small ones for ever."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> Share:
        """Waits until so many bytes are free. More than there are at all counts as all."""
        size = min(size, self.total)
        if self._line or size > self.free:
            await self._wait(size)
        else:
            self.free -= size
        return Share(self, size)

    def give_back(self, size: int) -> None:
        self.free += size
        while self._line and (self._line[0][1].done() or self._line[0][0] <= self.free):
            wanted, turn = self._line.popleft()
            if not turn.done():
                self.free -= wanted
                turn.set_result(None)

    async def _wait(self, size: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            # Cancelled in its turn: what it was given goes on to the next one. Cancelled before: nobody waits for it.
            self.give_back(0 if turn.cancelled() else size)
            raise


class Flow:
    """What may be on its way to a connection and from it, and what its process holds of what has come."""

    def __init__(self) -> None:
        self.inflow = Budget(INFLOW_BYTES)
        """For all that was asked for and may be large."""
        self.requests = Budget(_REQUESTS_BYTES)
        """For the large requests that are worked on here."""
        self.pulls = 0
        """The consumers that are being pulled from."""
        self.held_bytes = 0
        """Of the messages of consumers that are being worked on."""
        self._outflow: dict[str, Budget] = {}

    def outflow(self, service: str) -> Budget:
        """For the large requests to a service that have not arrived there yet."""
        return self._outflow.setdefault(service, Budget(_OUTFLOW_BYTES))

    @property
    def pull_bytes(self) -> int:
        """What one pull request may bring; each consumer may have two open."""
        part = INFLOW_BYTES // (2 * max(1, self.pulls))
        return max(LEAST_PULL_BYTES, min(part, _MOST_PULL_BYTES))
