"""Durable work: consumers that survive restarts, whose messages are acknowledged only when their effect is durable."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence

from crucible_core import subjects
from crucible_core.errors import CrucibleError, NotFoundError, UnavailableError
from crucible_core.limits import PARK_AFTER
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.inflight import InFlight, PoisonError, open_in_flight
from crucible_kit.nats.message import Handler, Message
from crucible_kit.nats.pull import Backoff, LostError, Pull, open_pull
from crucible_kit.tasks import finish
from crucible_kit.telemetry.spans import Telemetry

__all__ = ["PARK_AFTER", "PoisonError", "ensure_durable", "work", "work_batches"]

log = logging.getLogger(__name__)

BatchHandler = Callable[[list[Message]], Awaitable[None]]

GRACE_S = 10.0
"""Time for handlers to finish once the work is cancelled."""
_PAUSE_S = 1.0


async def ensure_durable(
    bus: Bus,
    stream: str,
    durable: str,
    filters: Sequence[str],
    *,
    concurrency: int = 256,
    ack_wait: float = 30.0,
    deliver: str = "all",
) -> None:
    """Creates or updates a durable consumer. At most `concurrency` of its messages are being worked on at any moment,
    counted over all replicas. `deliver` is "all" or "new" and matters only when it is created."""
    with contextlib.suppress(NotFoundError):  # where it begins cannot be changed: to try is refused
        deliver = (await bus.consumer_options(stream, durable))["deliver_policy"]
    await bus.ensure_consumer(
        stream,
        durable,
        durable_name=durable,
        description=f"Crucible: how far {durable} has come in {stream}",
        ack_policy="explicit",
        ack_wait=ack_wait,
        max_ack_pending=concurrency,
        max_deliver=-1,
        deliver_policy=deliver,
        filter_subjects=list(filters),
    )


async def work(
    bus: Bus,
    stream: str,
    durable: str,
    handler: Handler,
    *,
    filters: Sequence[str],
    concurrency: int = 8,
    ack_wait: float = 30.0,
    deliver: str = "all",
    grace: float = GRACE_S,
) -> None:
    """Handles each message of a durable consumer, `concurrency` at a time, until cancelled; what is begun finishes.

    A handler that returns acknowledges its message. One that raises `PoisonError` or `msgspec.DecodeError` parks
    it. After anything else the message is delivered again, and parked when it has failed ten times, not counting
    the times that something was away. A message in flight when a process ended is worked on alone, and parked when
    two processes have ended over it. Heartbeats keep the messages of long handlers. At the end, a handler that
    takes more than `grace` (s) is cancelled, and its message is given back, as are those that had not begun.
    """
    backoff = Backoff(bus, durable)
    async with open_in_flight(bus, durable, ack_wait) as in_flight:
        workers = _Workers(in_flight, handler, concurrency, grace)
        try:
            while True:
                try:
                    await ensure_durable(
                        bus, stream, durable, filters, concurrency=concurrency, ack_wait=ack_wait, deliver=deliver
                    )
                    await workers.pull(bus, stream)
                except (LostError, CrucibleError) as error:
                    await backoff.after(error)
        finally:
            await workers.finish()


async def work_batches(
    bus: Bus,
    stream: str,
    durable: str,
    handler: BatchHandler,
    *,
    filters: Sequence[str],
    batch: int = 200,
    ack_wait: float = 30.0,
    deliver: str = "all",
    grace: float = GRACE_S,
    telemetry: Telemetry | None = None,
) -> None:
    """Like `work`, for handlers that take all waiting messages at once, in order: dispatchers. Each batch has a span.

    A batch that fails with UnavailableError is tried again as it is, for a while. After any other failure it is tried
    message by message, so that one bad message costs only itself.
    """
    tracing = telemetry or Telemetry()

    async def traced(messages: list[Message]) -> None:
        with tracing.batch("process", stream, messages, count=len(messages), group=durable):
            await handler(messages)

    backoff = Backoff(bus, durable)
    async with open_in_flight(bus, durable, ack_wait) as in_flight:
        batches = _Batches(bus, in_flight, traced, batch, grace)
        while True:
            try:
                await ensure_durable(
                    bus, stream, durable, filters, concurrency=4 * batch, ack_wait=ack_wait, deliver=deliver
                )
                await batches.pull(stream)
            except (LostError, CrucibleError) as error:
                await backoff.after(error)


class _Workers:
    """A task for each message in flight."""

    def __init__(self, in_flight: InFlight, handler: Handler, concurrency: int, grace: float) -> None:
        self._in_flight = in_flight
        self._handler = handler
        self._concurrency = concurrency
        self._grace = grace
        self._closing = False
        self._late: list[Message] = []
        self._pull: Pull | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def pull(self, bus: Bus, stream: str) -> None:
        async with open_pull(bus, stream, self._in_flight.durable, self._begin) as pull:
            self._pull = pull
            try:
                while True:
                    free = self._concurrency - len(self._in_flight) - pull.outstanding
                    # Not for each free slot: every open request has heartbeats of its own.
                    if free > 0 and pull.outstanding <= self._concurrency // 2 and not self._in_flight.full:
                        await pull.ask(free)
                    await pull.wait()
            except asyncio.CancelledError:
                self._closing = True
                raise

    async def finish(self) -> None:
        self._closing = True
        for message in self._late:
            await self._in_flight.answer(message, subjects.NAK)
        await finish(self._tasks, self._grace)

    def _begin(self, message: Message) -> None:
        if not self._in_flight.take(message):
            return
        if self._closing:
            self._late.append(message)
            return
        task = asyncio.create_task(self._in_flight.handle(self._handler, message))
        self._tasks.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._pull is not None:
            self._pull.wake()


class _Batches:
    """The messages in flight, in order, of which the first ones are being handled."""

    def __init__(self, bus: Bus, in_flight: InFlight, handler: BatchHandler, most: int, grace: float) -> None:
        self._bus = bus
        self._in_flight = in_flight
        self._handler = handler
        self._most = most
        self._grace = grace
        self._waiting: list[Message] = []
        self._pausing = False

    async def pull(self, stream: str) -> None:
        async with open_pull(self._bus, stream, self._in_flight.durable, self._take) as pull:
            while True:
                # Before it runs dry, so that the server never waits for the handler's round trip.
                if pull.outstanding + len(self._waiting) <= self._most // 2:
                    await pull.ask(self._most)
                if not self._waiting:
                    await pull.wait()
                messages = self._waiting[: self._most]
                del self._waiting[: self._most]
                if messages:
                    await self._handle_shielded(messages)

    def _take(self, message: Message) -> None:
        if self._in_flight.take(message):
            self._waiting.append(message)

    async def _handle_shielded(self, messages: list[Message]) -> None:
        """A batch that was begun finishes, though the work is cancelled."""
        handling = asyncio.create_task(self._handle(messages))
        try:
            await asyncio.shield(handling)
        except asyncio.CancelledError:
            if self._pausing:
                handling.cancel()
            await finish({handling}, self._grace)
            raise

    async def _handle(self, messages: list[Message]) -> None:
        suspects = [message for message in messages if self._in_flight.suspects(message)]
        messages = [message for message in messages if not self._in_flight.suspects(message)]
        for message in suspects:
            await self._in_flight.handle(lambda one: self._handler([one]), message)
        if not messages:
            return
        for _ in range(PARK_AFTER):
            try:
                await self._handler(messages)
            except UnavailableError as error:
                log.warning("%s: a batch of %d waits: %s", self._in_flight.durable, len(messages), error)
                await self._pause()
            except Exception as error:
                log.warning("%s: a batch of %d failed: %s", self._in_flight.durable, len(messages), error)
                break
            else:
                for message in messages:
                    await self._in_flight.answer(message, subjects.ACK)
                return
        for message in messages:
            await self._in_flight.handle(lambda one: self._handler([one]), message)

    async def _pause(self) -> None:
        self._pausing = True
        await asyncio.sleep(_PAUSE_S)
        await self._bus.wait_connected()
        self._pausing = False
