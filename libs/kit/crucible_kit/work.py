"""Durable work: consumers that survive restarts, whose messages are acknowledged only when their effect is durable."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from crucible_core import subjects
from crucible_core.errors import CrucibleError, UnavailableError

from .bus import Bus, Handler, Message
from .frames import Outgoing
from .reading import Lost, arrivals, ended, next_arrival, pull_request

log = logging.getLogger(__name__)

BatchHandler = Callable[[list[Message]], Awaitable[None]]

PARK_AFTER = 10
"""Deliveries after which a message that makes its handler fail is put aside."""
_PLACE_FREE = Message("", b"")
_PAUSE_S = 0.25
_NAK_S = 1.0
_DRAIN_S = 10.0


class Poison(Exception):
    """This message can never be handled: park it. The text is the reason that is kept beside it."""


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
    await bus.ensure_consumer(
        stream,
        durable,
        durable_name=durable,
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
) -> None:
    """Handles each message of a durable consumer, `concurrency` at a time, until cancelled; what is begun finishes.

    The handler returns: acknowledged. It raises `Poison` or `msgspec.DecodeError`: parked. Anything else: delivered
    again, and parked after ten times unless something was away. Long handlers keep their message by heartbeats.
    """
    worker = _Worker(bus, durable, handler, concurrency, ack_wait)
    try:
        while True:
            try:
                await ensure_durable(
                    bus, stream, durable, filters, concurrency=concurrency, ack_wait=ack_wait, deliver=deliver
                )
                await worker.pull(stream)
            except (Lost, CrucibleError) as error:
                log.warning("%s: pulling again: %s", durable, error)
                await asyncio.sleep(_PAUSE_S)
                await bus.wait_connected()
    finally:
        await worker.drain()


class _Worker:
    """The messages in hand of one consumer in this process."""

    def __init__(self, bus: Bus, durable: str, handler: Handler, concurrency: int, ack_wait: float) -> None:
        self._bus = bus
        self._durable = durable
        self._handler = handler
        self._concurrency = concurrency
        self._ack_wait = ack_wait
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrived: asyncio.Queue[Message] | None = None

    async def pull(self, stream: str) -> None:
        outstanding = 0
        async with self._bus.inbox() as (reply, arrived):
            self._arrived = arrived
            try:
                while True:
                    room = self._concurrency - len(self._tasks) - outstanding
                    if room > 0:
                        await self._bus.ask(subjects.js_next(stream, self._durable), pull_request(room), reply)
                        outstanding += room
                    # With no pull open (every place taken) nothing is due, not even a heartbeat.
                    message = await next_arrival(arrived, patient=outstanding == 0)
                    if message is _PLACE_FREE:
                        continue
                    if message.status is None:
                        outstanding -= 1
                        self._begin(message)
                    else:
                        outstanding -= ended(message, outstanding)
            finally:
                self._arrived = None
                await self._give_back(arrived)

    def _begin(self, message: Message) -> None:
        task = asyncio.create_task(handle(self._bus, self._durable, self._handler, message, self._ack_wait))
        self._tasks.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._arrived is not None:
            self._arrived.put_nowait(_PLACE_FREE)

    async def _give_back(self, arrived: asyncio.Queue[Message]) -> None:
        while not arrived.empty():
            message = arrived.get_nowait()
            if message.sequence:
                await _settle(self._bus.publish(message.reply, subjects.NAK))

    async def drain(self) -> None:
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_DRAIN_S)
            for task in late:
                task.cancel()


async def handle(bus: Bus, durable: str, handler: Handler, message: Message, ack_wait: float) -> None:
    """One message through its handler, to its acknowledgement, its parking or its redelivery."""
    keeper = asyncio.create_task(_keep(bus, message, ack_wait / 3))
    try:
        await handler(message)
    except (Poison, msgspec.DecodeError, UnicodeDecodeError) as error:
        await _settle(park(bus, durable, message, str(error)))
    except Exception as error:
        away = isinstance(error, UnavailableError)
        log.warning(
            "%s: message %d failed (delivery %d): %s",
            durable,
            message.sequence,
            message.delivered,
            error,
            exc_info=not isinstance(error, CrucibleError),
        )
        if message.delivered >= PARK_AFTER and not away:
            await _settle(park(bus, durable, message, f"failed {message.delivered} times: {error}"))
        else:
            # Not a retry of an effect (those are schedules): the machinery itself failed, and may again at once.
            await _settle(bus.publish(message.reply, _nak(message.delivered)))
    else:
        await _settle(bus.publish(message.reply, subjects.ACK))
    finally:
        keeper.cancel()


async def _settle(answer: Awaitable[None]) -> None:
    # Where the answer cannot be sent, JetStream delivers the message again after ack_wait.
    try:
        await answer
    except CrucibleError as error:
        log.info("an acknowledgement was lost: %s", error)


def _nak(delivered: int) -> bytes:
    return subjects.NAK + b' {"delay": %d}' % int(min(_NAK_S * delivered, 30) * 1e9)


async def _keep(bus: Bus, message: Message, every: float) -> None:
    while True:
        await asyncio.sleep(every)
        await _settle(bus.publish(message.reply, subjects.IN_PROGRESS))


async def park(bus: Bus, durable: str, message: Message, reason: str) -> None:
    """Puts a message aside in ATTEMPTS, with its reason and origin, so that it never blocks its consumer."""
    log.error("%s: parked message %d: %s", durable, message.sequence, reason)
    headers = {subjects.REASON: reason[:500], subjects.ORIGIN: f"{message.subject} {message.sequence}"}
    await bus.store(Outgoing(bus.names.parked(durable), message.data, headers, f"{durable}:{message.sequence}"))
    await bus.publish(message.reply, subjects.ACK)


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
) -> None:
    """Like `work`, for handlers that take what is there at once, in order: dispatchers. A failed batch is retried
    message by message, so that one bad message costs only itself."""
    while True:
        try:
            await ensure_durable(
                bus, stream, durable, filters, concurrency=4 * batch, ack_wait=ack_wait, deliver=deliver
            )
            await _pull_batches(bus, stream, durable, handler, batch, ack_wait)
        except (Lost, CrucibleError) as error:
            log.warning("%s: pulling again: %s", durable, error)
            await asyncio.sleep(_PAUSE_S)
            await bus.wait_connected()


async def _pull_batches(
    bus: Bus, stream: str, durable: str, handler: BatchHandler, batch: int, ack_wait: float
) -> None:
    async with bus.inbox() as (reply, arrived):
        outstanding = 0
        while True:
            if outstanding <= batch // 2:
                await bus.ask(subjects.js_next(stream, durable), pull_request(batch), reply)
                outstanding += batch
            messages: list[Message] = []
            for message in await arrivals(arrived, batch):
                if message.status is None:
                    messages.append(message)
                else:
                    outstanding -= ended(message, outstanding)
            outstanding -= len(messages)
            if messages:
                await _handle_batch(bus, durable, handler, messages, ack_wait)


async def _handle_batch(
    bus: Bus, durable: str, handler: BatchHandler, messages: list[Message], ack_wait: float
) -> None:
    try:
        await handler(messages)
    except Exception as error:
        log.warning("%s: a batch of %d failed, trying one by one: %s", durable, len(messages), error)
        for message in messages:
            await handle(bus, durable, lambda one: handler([one]), message, ack_wait)
        return
    for message in messages:
        await bus.publish(message.reply, subjects.ACK)
