"""Pull requests: asking a consumer for messages, and noticing when it, or the connection to it, has gone."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import msgspec

from crucible_core import subjects

from .bus import Bus
from .message import Message, Receiver

log = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
EXPIRES_S = 60.0
MOST_BYTES = 16 * 1024 * 1024
"""What one pull request may bring: the bound of a reader's memory, whatever the number of its messages."""
_LOST_AFTER_S = 3 * HEARTBEAT_S
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 5.0
_WORKED_S = 10.0


class Lost(Exception):
    """The consumer has gone or skipped something: begin again after the last message that was handed on."""


class Pull:
    """The open pull requests of one consumer. `take` is called with each message as it arrives, in order."""

    def __init__(self, bus: Bus, stream: str, consumer: str, take: Receiver) -> None:
        self._bus = bus
        self._subject = subjects.js_next(stream, consumer)
        self._most_bytes = max(MOST_BYTES, 2 * bus.max_payload)
        self._take = take
        self._news = asyncio.Event()
        self._trouble: str | None = None
        self.reply = ""
        self.outstanding = 0
        """Messages that were asked for and have not come."""
        self.idle_at: int | None = None
        """The consumer sequence that the server named when it last said that nothing waits."""

    async def ask(self, count: int) -> None:
        self.outstanding += count
        await self._bus.ask(self._subject, _request(count, self._most_bytes), self.reply)

    async def news(self) -> None:
        """Returns when something has arrived or `nudge` was called. Raises Lost when not even a heartbeat comes."""
        if self._trouble is None and not self._news.is_set():
            # With no request open nothing is due, not even a heartbeat.
            try:
                async with asyncio.timeout(_LOST_AFTER_S if self.outstanding else None):
                    await self._news.wait()
            except TimeoutError as error:
                raise Lost("no heartbeat") from error
        self._news.clear()
        if self._trouble is not None:
            raise Lost(self._trouble)

    def nudge(self) -> None:
        self._news.set()

    def received(self, message: Message) -> None:
        if message.status is None:
            self.outstanding = max(0, self.outstanding - 1)
            self._take(message)
        else:
            self._told(message.status, message)
        self._news.set()

    def _told(self, status: str, message: Message) -> None:
        unsent = message.headers.get(subjects.PENDING_MESSAGES, "")
        if status == "100":
            self.idle_at = int(message.headers.get(subjects.LAST_CONSUMER, -1))
        elif status in ("404", "408", "409") and unsent.isdigit():  # this request has ended; the consumer is well
            self.outstanding = max(0, self.outstanding - int(unsent))
        else:
            self._trouble = f"status {status} {message.headers.get(subjects.DESCRIPTION, '').strip()}"


@contextlib.asynccontextmanager
async def open_pull(bus: Bus, stream: str, consumer: str, take: Receiver) -> AsyncIterator[Pull]:
    """When it ends, the server has stopped delivering; what was on its way has been taken."""
    pull = Pull(bus, stream, consumer, take)
    async with bus.receive(pull.received) as pull.reply:
        yield pull


class Resumption:
    """The pauses before going on: short after what had worked for a while, longer while nothing does."""

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


def _request(batch: int, most_bytes: int) -> bytes:
    """The body of a pull request (docs.nats.io, "JetStream wire API reference")."""
    return msgspec.json.encode(
        {
            "batch": batch,
            "max_bytes": most_bytes,
            "expires": int(EXPIRES_S * 1e9),
            "idle_heartbeat": int(HEARTBEAT_S * 1e9),
        }
    )
