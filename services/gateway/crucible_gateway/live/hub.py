"""The live events of this process: read once, decoded once, and offered to every subscription that they match."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator

import msgspec

from crucible_core.errors import CrucibleError, NotFoundError, UnavailableError
from crucible_core.filters.matcher import Matcher
from crucible_core.limits import LIVE_BYTES
from crucible_core.position import Position
from crucible_core.redaction import redacted_event
from crucible_gateway.live.past import Pages
from crucible_gateway.live.subscription import Reader, Record
from crucible_kit.eventlog import log_end, read_log
from crucible_kit.nats.bus import Bus, Message
from crucible_kit.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

_LINGER_S = 2.0
_PAUSE_S = 0.25
_OPENS_WITHIN_S = 5.0


class Hub:
    """Reads the end of the log while somebody follows it.

    All that waits for subscriptions is in one window of the latest events, bounded in bytes: who is so slow that what
    waits for it leaves the window reads the log instead. So slow clients cost no more, however many there are.
    """

    def __init__(self, bus: Bus, reading: Bus, metrics: Metrics) -> None:
        """`reading` is a connection of its own, so that no answer waits behind what subscriptions read."""
        self.bus = bus
        self.pages = Pages(reading)
        self._reading = reading
        self._last = self._floor = bus.names.start
        """The position up to which it has offered the log, and the one after which the window has all of that."""
        self._window: deque[Record] = deque()
        self._weight = 0
        self._readers: dict[Reader, None] = {}
        self._matcher: Matcher[Reader] = Matcher()
        self._followers = 0
        self._needed = asyncio.Event()
        self._open = asyncio.Event()
        self._gaps = metrics.counter("live_overflows", "Subscriptions that fell behind their queue")
        self._following = metrics.gauge("live_subscriptions", "Open live subscriptions")

    async def run(self) -> None:
        """Keeps the hub going until cancelled."""
        while True:
            await self._needed.wait()
            listening = asyncio.create_task(self._listen())
            try:
                while self._followers and not listening.done():
                    await asyncio.wait({listening}, timeout=_LINGER_S)
            finally:
                self._needed.clear()
                self._open.clear()
                listening.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await listening
                self._forget()

    async def head(self) -> Position:
        """The end of the log. Raises UnavailableError."""
        return await log_end(self.bus)

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """The hub listens while this is open. Raises UnavailableError where it cannot begin."""
        self._followers += 1
        self._following.inc()
        self._needed.set()
        try:
            try:
                async with asyncio.timeout(_OPENS_WITHIN_S):
                    await self._open.wait()
            except TimeoutError:
                raise UnavailableError("live events are away", retry_after=1) from None
            yield
        finally:
            self._followers -= 1
            self._following.dec()

    @property
    def reached(self) -> Position:
        """The position up to which it has offered the log."""
        return self._last

    def join(self, reader: Reader, after: Position, until: Position) -> bool:
        """From now on `reader` is offered everything after a position. False where that reaches further back
        than what is remembered, or where what was committed up to `until` has not all been heard yet: then the log must
        be read on first."""
        missed: list[Record] = []
        if not after.reaches(until) and not self._last.reaches(until):
            return False
        if not after.reaches(self._last):
            if not after.reaches(self._floor):
                return False
            recent = (record for record in self._window if not after.covers(record.sequence))
            missed = [record for record in recent if reader.selection.matches(record.event())]
            if len(missed) > reader.limit:
                return False
        reader.restart(after)
        for record in missed:
            reader.offer(record)
        self._readers[reader] = None
        self._matcher.put(reader, reader.selection.filters)
        return True

    def leave(self, reader: Reader) -> None:
        """It is offered nothing more."""
        if reader in self._readers:
            del self._readers[reader]
            self._matcher.drop(reader)

    # ---- listening

    async def _listen(self) -> None:
        anew = False
        while True:
            try:
                await self._reading.wait_connected()
                # What is committed after this answer is heard, and what was before is read from the log.
                head = await log_end(self._reading)
                if anew or not self._readers or not head.reaches(self._last):
                    self._begin(head)
                anew = False
                self._open.set()
                await self._read()
            except NotFoundError as error:
                log.warning("live events: %s", error)
                anew = True
            except CrucibleError as error:
                log.warning("live events: %s", error)
            await asyncio.sleep(_PAUSE_S)

    def _begin(self, head: Position) -> None:
        """Readers of a log that was made anew go on with what is new in it."""
        self._last = head
        self._forget()
        for reader in self._readers:
            reader.after = reader.after.least(head)

    async def _read(self) -> None:
        reading = read_log(self._reading, after=self._last)
        async with contextlib.aclosing(reading) as batches:
            async for messages in batches:
                for message in messages:
                    self._offer(message)

    def _forget(self) -> None:
        self._window.clear()
        self._weight, self._floor = 0, self._last

    def _offer(self, message: Message) -> None:
        record = Record(message.sequence, message.data)
        self._last = self._last.after(message.sequence)
        if (redacted := redacted_event(message.headers)) is not None:
            self._drop(redacted.sequence)
        try:
            event = record.event()
        except msgspec.DecodeError as error:
            log.error("event %d cannot be read: %s", record.sequence, error)
            return
        self._window.append(record)
        self._weight += record.weight
        for reader in self._matcher.match(event):
            if reader.selection.contains(event) and not reader.offer(record):
                self._gaps.inc()
                self.leave(reader)
        self._shorten()

    def _shorten(self) -> None:
        while self._weight > LIVE_BYTES:
            record = self._window.popleft()
            self._weight -= record.weight
            self._floor = self._floor.after(record.sequence)
            if record.waiting:
                self._overflow(record)

    def _overflow(self, record: Record) -> None:
        """Empties the queues in which the oldest event of the window waits."""
        slow = [reader for reader in self._readers if reader.first is record]
        for reader in slow:
            reader.overflow()
            self._gaps.inc()
            self.leave(reader)

    def _drop(self, sequence: int) -> None:
        """Whoever joins from now on does not get it any more, as it would not from the stream."""
        self._window = deque(record for record in self._window if record.sequence != sequence)
        self._weight = sum(record.weight for record in self._window)
