"""The live events of this process: heard once, decoded once, and offered to every subscription that they match."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator

import msgspec

from crucible_core.errors import CrucibleError, UnavailableError
from crucible_core.matcher import Matcher
from crucible_core.redaction import place_of
from crucible_core.subjects import STREAM_SEQUENCE
from crucible_kit.bus import Bus, Message
from crucible_kit.metrics import Metrics
from crucible_kit.reading import read

from .subscriptions import Reader, Record

log = logging.getLogger(__name__)

RECENT_EVENTS = 512
RECENT_BYTES = 4 * 1024 * 1024
"""What is remembered, so that a subscription that has read the log can join without a hole."""
_CHECK_S = 2.0
_PAUSE_S = 0.25
_OPENS_WITHIN_S = 5.0


class Hub:
    """Listens only while somebody does. The sequences of EVENTS are consecutive over all worlds, so a number left out
    is an event that core NATS lost: it is read from the stream, before anything later is offered."""

    def __init__(self, bus: Bus, metrics: Metrics) -> None:
        self.bus = bus
        self._last = 0
        self._recent: deque[Record] = deque()
        self._recent_bytes = 0
        self._readers: dict[Reader, None] = {}
        self._matcher: Matcher[Reader] | None = None
        self._followers = 0
        self._wanted = asyncio.Event()
        self._open = asyncio.Event()
        self._advancing = asyncio.Lock()
        self._filled = metrics.counter("live_filled", "Live events that were lost and read from the stream")
        self._gaps = metrics.counter("live_overflows", "Subscriptions that fell behind their queue")
        self._following = metrics.gauge("live_subscriptions", "Open live subscriptions")

    async def run(self) -> None:
        """Keeps the hub going until cancelled."""
        while True:
            await self._wanted.wait()
            try:
                await self.bus.wait_connected()
                await self._listen()
            except CrucibleError as error:
                log.warning("live events: %s", error)
                await asyncio.sleep(_PAUSE_S)

    async def head(self) -> int:
        """The last sequence of the log. Raises UnavailableError."""
        return await self.bus.last_sequence(self.bus.names.events)

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """The hub listens while this is open. Raises UnavailableError where it cannot begin."""
        self._followers += 1
        self._following.inc()
        self._wanted.set()
        try:
            async with asyncio.timeout(_OPENS_WITHIN_S):
                await self._open.wait()
        except TimeoutError:
            self._leave_following()
            raise UnavailableError("live events are away", retry_after=1) from None
        except BaseException:
            self._leave_following()
            raise
        try:
            yield
        finally:
            self._leave_following()

    def _leave_following(self) -> None:
        self._followers -= 1
        self._following.dec()

    @property
    def reached(self) -> int:
        """The last sequence that was offered."""
        return self._last

    def join(self, reader: Reader, after: int, until: int) -> bool:
        """From now on `reader` is offered everything after a sequence. False where that reaches further back than what
        is remembered, or where what was committed up to `until` has not all been heard yet: then the log must be read
        on first."""
        missed: list[Record] = []
        if after < until and self._last < until:
            return False
        if after < self._last:
            if not self._recent or self._recent[0].sequence > after + 1:
                return False
            recent = (record for record in self._recent if record.sequence > after)
            missed = [record for record in recent if reader.wanted.matches(record.event)]
            if len(missed) > reader.limit:
                return False
        reader.restart(after)
        for record in missed:
            reader.offer(record)
        self._readers[reader] = None
        self._matcher = None
        return True

    def leave(self, reader: Reader) -> None:
        if reader in self._readers:
            del self._readers[reader]
            self._matcher = None

    # ---- listening

    async def _listen(self) -> None:
        unsubscribe = await self.bus.subscribe(self.bus.names.all_live, self._received)
        try:
            # Subscribed first: what is committed after this answer is heard, and what was before is read from the log.
            head = await self.head()
            if not self._readers or head < self._last:
                self._last = head
            self._open.set()
            await self._watch()
        finally:
            self._open.clear()
            self._forget()
            await unsubscribe()

    async def _watch(self) -> None:
        """Until nobody listens. Looks for events whose loss no later event has told."""
        while self._followers:
            before = self._last
            await asyncio.sleep(_CHECK_S)
            try:
                head = await self.head()
            except CrucibleError:
                continue
            if head < before:
                log.warning("the log begins anew: it ends at %d, and did at %d", head, before)
                self._forget()
                self._last = head
            elif head > self._last == before:
                async with self._advancing:
                    if head > self._last:
                        await self._fill(head)
        self._wanted.clear()

    def _forget(self) -> None:
        self._recent.clear()
        self._recent_bytes = 0

    async def _received(self, message: Message) -> None:
        await self._open.wait()
        sequence = int(message.headers[STREAM_SEQUENCE])
        async with self._advancing:
            if sequence > self._last + 1:
                await self._fill(sequence - 1)
            if sequence > self._last:
                self._offer(message, sequence)

    async def _fill(self, until: int) -> None:
        """Offers what the stream still has after the last event, up to a sequence."""
        first = self._last + 1
        async with contextlib.aclosing(read(self.bus, self.bus.names.events, after=self._last)) as batches:
            async for messages in batches:
                for message in messages:
                    self._filled.inc()
                    self._offer(message, message.sequence)
                if not messages or self._last >= until:
                    break
        self._last = max(self._last, until)
        log.info("live events %d to %d were read from the stream", first, self._last)

    def _offer(self, message: Message, sequence: int) -> None:
        record = Record(sequence, message.data)
        self._last = sequence
        if (redacted := place_of(message.headers)) is not None:
            self._drop(redacted.sequence)
        try:
            event = record.event
        except msgspec.DecodeError as error:
            log.error("event %d cannot be read: %s", record.sequence, error)
            return
        self._remember(record)
        if self._matcher is None:
            self._matcher = Matcher((reader, reader.wanted.filters) for reader in self._readers)
        for reader in self._matcher.match(event):
            if reader.wanted.confines(event) and not reader.offer(record):
                self._gaps.inc()
                self.leave(reader)

    def _drop(self, sequence: int) -> None:
        """Whoever joins from now on does not get it any more, as it would not from the stream."""
        self._recent = deque(record for record in self._recent if record.sequence != sequence)
        self._recent_bytes = sum(len(record.raw) for record in self._recent)

    def _remember(self, record: Record) -> None:
        self._recent.append(record)
        self._recent_bytes += len(record.raw)
        while len(self._recent) > RECENT_EVENTS or self._recent_bytes > RECENT_BYTES:
            self._recent_bytes -= len(self._recent.popleft().raw)
