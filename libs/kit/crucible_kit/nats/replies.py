"""Waits for answers, and the one sweep that ends those that take too long.

A timer, a task and a context manager for each request would cost more than most requests.
"""

import asyncio
from collections.abc import Awaitable, Callable

from crucible_core import subjects
from crucible_core.errors import CrucibleError, UnavailableError, UnknownOutcomeError
from crucible_kit import deadline
from crucible_kit.nats.message import DISCONNECTED, Message

SWEEP_S = 0.05
DOUBT_S = 0.5
"""After so long, the wait checks that somebody is left who could answer."""

Doubt = Callable[[], Awaitable[CrucibleError]]
"""Returns, with the error that says so, once there is nobody left who could answer."""


class PendingReply:
    """The wait for one answer, or for the first that says something where those may be empty (`skip_empty`).

    `silence` limits the time without a sign of work. `arrived` is called when the request is known to have arrived.
    With an `effect`, the outcome of a request without an answer is unknown.
    """

    __slots__ = (
        "_arrived",
        "_began",
        "_doubt",
        "_doubting",
        "_loop",
        "_patience",
        "_silence",
        "_skip_empty",
        "_timeout",
        "_until",
        "_what",
        "answered",
        "unanswered",
    )

    def __init__(
        self,
        what: str,
        timeout: float,
        silence: float | None = None,
        *,
        skip_empty: bool = False,
        effect: bool = False,
        arrived: Callable[[], None] | None = None,
        doubt: Doubt | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.answered: asyncio.Future[Message | CrucibleError] = self._loop.create_future()
        self.unanswered = UnknownOutcomeError if effect else UnavailableError
        self._what, self._skip_empty, self._arrived, self._doubt = what, skip_empty, arrived, doubt
        self._doubting: asyncio.Task[None] | None = None
        self._began, self._timeout, self._silence = self._loop.time(), timeout, silence
        self._patience = timeout if silence is None else min(timeout, silence)
        self._until = self._began + self._patience

    @property
    def until(self) -> float:
        """By the event loop's clock."""
        return self._until

    def received(self, message: Message) -> None:
        if self.answered.done():
            return
        headers = message.headers
        if message is DISCONNECTED:
            self.end(self.unanswered(f"NATS went away during {self._what}", retry_after=1))
        elif headers and subjects.RECEIVED in headers:
            if self._arrived is not None:
                self._arrived()
        elif headers and subjects.WORKING in headers:
            if self._silence is not None:
                self._until = min(self._began + self._timeout, self._loop.time() + self._silence)
        elif message.data or headers or not self._skip_empty:
            self.answered.set_result(message)

    def end(self, error: CrucibleError) -> None:
        if not self.answered.done():
            self.answered.set_result(error)

    def drop(self) -> None:
        """Ends the wait for a request that was not sent after all."""
        self.end(deadline.late_error(self._what))

    def late(self) -> CrucibleError:
        return self.unanswered(f"{self._what} did not answer within {self._patience:g} s", retry_after=1)

    def look(self, now: float) -> None:
        if now >= self._until:
            self.end(self.late())
        elif self._doubt is not None and self._doubting is None and now >= self._began + DOUBT_S:
            self._doubting = asyncio.create_task(self._ask(self._doubt))

    def close(self) -> None:
        if self._doubting is not None:
            self._doubting.cancel()

    async def _ask(self, doubt: Doubt) -> None:
        self.end(await doubt())


class TimeoutSweep:
    """Looks at all waits, again and again as long as there are any."""

    def __init__(self) -> None:
        self._waits: set[PendingReply] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, waiting: PendingReply) -> None:
        self._waits.add(waiting)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._look)

    def remove(self, waiting: PendingReply) -> None:
        self._waits.discard(waiting)
        waiting.close()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for waiting in list(self._waits):
            waiting.look(now)
        self._timer = loop.call_later(SWEEP_S, self._look) if self._waits else None
