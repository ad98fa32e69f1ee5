"""The past of the log as subscriptions read it: pages that are bounded, each for itself and all together."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec

from crucible_core.errors import CrucibleError
from crucible_core.limits import CATCH_UP_BYTES, CATCH_UP_PAGES
from crucible_core.position import Position
from crucible_gateway.live.subscription import Record, Selection
from crucible_kit.eventlog import log_end, position_at, read_log
from crucible_kit.nats.bus import Bus, Message

log = logging.getLogger(__name__)

_LEAST_PAGE_BYTES = 64 * 1024
_MOST_PAGE_BYTES = 1024 * 1024
_PAGE_MESSAGES = 2000
_PAUSE_S = 0.25


class Page:
    """Matching events of the past, and the position up to which there are no others."""

    def __init__(self, records: deque[Record], upto: Position) -> None:
        self.records = records
        self.upto = upto


class Pages:
    """Reads the past for all subscriptions. The more they hold of it, the shorter the next page."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._turns = asyncio.Semaphore(CATCH_UP_PAGES)
        self._held = 0

    async def read(self, selection: Selection, after: Position, since_ms: int | None) -> Page:
        """The next events, at least one where there is any. It may take as long as NATS is away."""
        subjects = selection.subjects(self._bus.names)
        records: deque[Record] = deque()
        size = seen = 0
        async with self._turns:
            most = max(_LEAST_PAGE_BYTES, min((CATCH_UP_BYTES - self._held) // 4, _MOST_PAGE_BYTES))
            head = await self._retry(log_end)
            if since_ms is not None and self._bus.names.streams > 1:
                moment_ms, since_ms = since_ms, None
                after = await self._retry(lambda bus: position_at(bus, moment_ms))
            upto = after
            batches = read_log(self._bus, after=after, filters=subjects, since_ms=since_ms)
            async with contextlib.aclosing(batches):
                async for messages in batches:
                    # The empty batch: nothing more was there, whatever the subjects in between.
                    upto = upto if messages else upto.most(head)
                    for message in messages:
                        seen += 1
                        upto = upto.after(message.sequence)
                        if (record := _matching(selection, message)) is not None:
                            records.append(record)
                            size += len(record.raw)
                        if size >= most:
                            break
                    if size >= most or upto.reaches(head) or seen >= _PAGE_MESSAGES:
                        break
        self._held += size
        return Page(records, upto)

    def release(self, record: Record) -> None:
        self._held -= len(record.raw)

    async def _retry(self, ask: Callable[[Bus], Awaitable[Position]]) -> Position:
        while True:
            try:
                return await ask(self._bus)
            except CrucibleError:
                await asyncio.sleep(_PAUSE_S)
                await self._bus.wait_connected()


def _matching(selection: Selection, message: Message) -> Record | None:
    record = Record(message.sequence, message.data)
    try:
        return record if selection.matches(record.event()) else None
    except msgspec.DecodeError as error:
        log.error("event %d cannot be read: %s", message.sequence, error)
        return None
