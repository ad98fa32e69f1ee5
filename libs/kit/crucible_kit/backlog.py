"""What waits in a work queue, as gauges: how much now, how much for its time, and how long the oldest has waited; and
how many messages were put aside."""

import asyncio
import contextlib

from crucible_core.errors import CrucibleError

from .bus import Bus
from .clock import now_ms
from .metrics import Metrics

LOOK_S = 10.0
"""Two questions to NATS for each look; nothing for each handler or message."""


class Backlog:
    """The work queue `stream`, whose messages on `work` are to be done now; the others are schedules.

    What is worked on at this moment counts as waiting: a message leaves the queue when all that follows is durable.
    """

    def __init__(self, bus: Bus, stream: str, work: str, metrics: Metrics) -> None:
        self._bus = bus
        self._stream = stream
        self._work = work
        self._waiting = metrics.gauge("work_waiting", "Runs or deliveries that wait to be done now, or are being done")
        self._scheduled = metrics.gauge("work_scheduled", "Runs or deliveries that wait for their time")
        self._oldest = metrics.gauge("work_oldest_seconds", "How long the oldest that is to be done now has waited")

    async def watch(self) -> None:
        while True:
            with contextlib.suppress(CrucibleError):
                await self._look()
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        waiting, scheduled = await self._bus.backlog(self._stream, self._work)
        oldest = await self._bus.next(self._stream, 1, self._work) if waiting else None
        self._waiting.set(waiting)
        self._scheduled.set(scheduled)
        self._oldest.set(max(now_ms() - oldest.time_ms, 0) / 1000 if oldest else 0)


class ParkedMessages:
    """Those of all consumers and indexes, until ATTEMPTS forgets them."""

    def __init__(self, bus: Bus, metrics: Metrics) -> None:
        self._bus = bus
        self._kept = metrics.gauge("parked_messages", "Messages that were put aside and are kept in ATTEMPTS")

    async def watch(self) -> None:
        while True:
            with contextlib.suppress(CrucibleError):
                await self._look()
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        names = self._bus.names
        kept, _ = await self._bus.backlog(names.attempts, names.all_parked)
        self._kept.set(kept)
