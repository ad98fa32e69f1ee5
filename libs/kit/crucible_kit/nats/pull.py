"""Pull requests to a consumer, and detection of a lost consumer or connection."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import msgspec

from crucible_core import subjects
from crucible_kit.nats.budget import LEAST_PULL_BYTES, Share
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.message import Message, Receiver

log = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
EXPIRES_S = 60.0
_LARGE_EXPIRES_S = 1.0
_LARGE_BYTES = 2 * 1024 * 1024
"""More than an event has with its headers. Only what a service itself writes may be larger."""
_TOO_SMALL = "MaxBytes"
"""The server's description when the next message does not fit into the rest of a request."""
_LOST_AFTER_S = 3 * HEARTBEAT_S
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 5.0
_WORKED_S = 10.0


class LostError(Exception):
    """The consumer is gone or has skipped a message: reading must resume after the last message that was handed on."""


class Pull:
    """The open pull requests of one consumer. `take` is called with each message as it arrives, in order.

    Each request is bounded in bytes, by this pull's part of what may be on its way to the connection. A message that is
    larger than that is asked for by itself, for a moment, within a budget that all pulls share.
    """

    def __init__(self, bus: Bus, stream: str, consumer: str, take: Receiver) -> None:
        self._bus = bus
        self._subject = subjects.js_next(stream, consumer)
        self._take = take
        self._large = 0
        """Upper bound for the bytes of the next message; 0 where nothing is known of it."""
        self._share: Share | None = None
        self._came = False
        self._arrived = asyncio.Event()
        self._failure: str | None = None
        self.reply = ""
        self.outstanding = 0
        """Messages that were requested and have not come."""
        self.idle_at: int | None = None
        """The consumer sequence that the server named when it last said that nothing waits."""

    async def ask(self, count: int) -> None:
        """Asks for so many messages, or for fewer where the next one is large."""
        if self._share is not None:
            return  # a large one is on its way
        if size := self._large:
            self._share = await self._bus.flow.inflow.take(size)  # meanwhile, what was on its way may have come
            self.outstanding += 1
            await self._bus.ask(self._subject, _request(1, size, _LARGE_EXPIRES_S), self.reply)
        else:
            self.outstanding += count
            request = _request(count, self._bus.flow.pull_bytes, EXPIRES_S, HEARTBEAT_S)
            await self._bus.ask(self._subject, request, self.reply)

    def close(self) -> None:
        if self._share is not None:
            self._share.release()
            self._share = None

    async def wait(self) -> None:
        """Waits until something has arrived or `wake` was called. Raises LostError when not even a heartbeat comes."""
        if self._failure is None and not self._arrived.is_set():
            # With no request open nothing is due, not even a heartbeat.
            try:
                async with asyncio.timeout(_LOST_AFTER_S if self.outstanding else None):
                    await self._arrived.wait()
            except TimeoutError as error:
                raise LostError("no heartbeat") from error
        self._arrived.clear()
        if self._failure is not None:
            raise LostError(self._failure)

    def wake(self) -> None:
        self._arrived.set()

    def received(self, message: Message) -> None:
        if message.status is None:
            if self.outstanding:
                self.outstanding -= 1
            self._came = True
            large = 2 * len(message.data) > LEAST_PULL_BYTES and message.pending > 0
            if large or self._large or self._share is not None:
                self._settle(large and 2 * len(message.data) > self._bus.flow.pull_bytes)
            self._take(message)
        else:
            self._handle_status(message.status, message)
        self._arrived.set()

    def _handle_status(self, status: str, message: Message) -> None:
        unsent = message.headers.get(subjects.PENDING_MESSAGES, "")
        if status == "100":
            self.idle_at = int(message.headers.get(subjects.LAST_CONSUMER, -1))
        elif status in ("404", "408", "409") and unsent.isdigit():  # this request has ended; the consumer is well
            self.outstanding = max(0, self.outstanding - int(unsent))
            too_small = _TOO_SMALL in message.headers.get(subjects.DESCRIPTION, "")
            # One that has brought something may have had too little left for the next message.
            self._settle(too_small and not self._came, larger=self._share is not None)
            self._came = False
        else:
            self._failure = f"status {status} {message.headers.get(subjects.DESCRIPTION, '').strip()}"

    def _settle(self, large: bool, larger: bool = False) -> None:
        """Notes that the next message is `large`, or `larger` than assumed."""
        self.close()
        if not large:
            self._large = 0
        elif larger or self._large > _LARGE_BYTES:
            self._large = 2 * self._bus.max_payload
        else:
            self._large = _LARGE_BYTES


@contextlib.asynccontextmanager
async def open_pull(bus: Bus, stream: str, consumer: str, take: Receiver) -> AsyncIterator[Pull]:
    """Opens a pull. At its end the server has stopped delivering, and the messages on their way have been taken."""
    pull = Pull(bus, stream, consumer, take)
    bus.flow.pulls += 1
    try:
        async with bus.receive(pull.received) as pull.reply:
            yield pull
    finally:
        bus.flow.pulls -= 1
        pull.close()


class Backoff:
    """Pauses before a retry: short after a period of success, longer with each failure."""

    def __init__(self, bus: Bus, what: str) -> None:
        self._bus = bus
        self._what = what
        self._pause_s = _FIRST_PAUSE_S
        self._began = asyncio.get_running_loop().time()

    async def after(self, error: Exception) -> None:
        """Raises UnavailableError when the connection will not come back."""
        clock = asyncio.get_running_loop().time
        if clock() - self._began > _WORKED_S:
            self._pause_s = _FIRST_PAUSE_S
        log.warning("%s: going on in %g s: %s", self._what, self._pause_s, error)
        await asyncio.sleep(self._pause_s)
        await self._bus.wait_connected()
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._began = clock()


def _request(batch: int, most_bytes: int, expires_s: float, heartbeat_s: float = 0.0) -> bytes:
    """The body of a pull request (docs.nats.io, "JetStream wire API reference")."""
    body = {"batch": batch, "max_bytes": most_bytes, "expires": int(expires_s * 1e9)}
    return msgspec.json.encode(body | ({"idle_heartbeat": int(heartbeat_s * 1e9)} if heartbeat_s else {}))
