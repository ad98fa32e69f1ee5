"""Gauges of the work queues: messages due now, messages scheduled, the age of the oldest, and parked messages."""

import asyncio
import contextlib
from collections.abc import Callable

from crucible_core.errors import CrucibleError
from crucible_kit.clock import now_ms
from crucible_kit.nats.bus import Bus
from crucible_kit.telemetry.metrics import Metrics

MEASURE_EVERY_S = 10.0
"""A measurement costs two requests to NATS, however many handlers and messages there are."""


class Backlog:
    """The work queue `stream`: its messages on `work` are due now, the others are schedules.

    Work in progress counts as waiting: a message leaves the queue when everything that follows from it is durable.
    """

    def __init__(
        self,
        bus: Bus,
        stream: str,
        work: str,
        metrics: Metrics,
        in_lanes: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        """`in_lanes` returns the number of runs that wait outside the queue, and the time of the oldest (Unix ms)."""
        self._in_lanes = in_lanes
        self._bus = bus
        self._stream = stream
        self._work = work
        self._waiting = metrics.gauge("work_waiting", "Runs or deliveries that wait to be done now, or are being done")
        self._scheduled = metrics.gauge("work_scheduled", "Runs or deliveries that wait for their time")
        self._oldest = metrics.gauge("work_oldest_seconds", "How long the oldest that is to be done now has waited")

    async def watch(self) -> None:
        while True:
            with contextlib.suppress(CrucibleError):
                await self._measure()
            await asyncio.sleep(MEASURE_EVERY_S)

    async def _measure(self) -> None:
        waiting, scheduled = await self._bus.backlog(self._stream, self._work)
        oldest = await self._bus.next(self._stream, 1, self._work) if waiting else None
        more, since_ms = self._in_lanes()
        times = [time_ms for time_ms in (oldest.time_ms if oldest else 0, since_ms) if time_ms]
        self._waiting.set(waiting + more)
        self._scheduled.set(scheduled)
        self._oldest.set(max(now_ms() - min(times), 0) / 1000 if times else 0)


class ParkedMessages:
    """The parked messages of all consumers and indexes, until ATTEMPTS drops them."""

    def __init__(self, bus: Bus, metrics: Metrics) -> None:
        self._bus = bus
        self._parked = metrics.gauge("parked_messages", "Messages that were put aside and are kept in ATTEMPTS")

    async def watch(self) -> None:
        while True:
            with contextlib.suppress(CrucibleError):
                await self._measure()
            await asyncio.sleep(MEASURE_EVERY_S)

    async def _measure(self) -> None:
        names = self._bus.names
        parked, _ = await self._bus.backlog(names.attempts, names.all_parked)
        self._parked.set(parked)
