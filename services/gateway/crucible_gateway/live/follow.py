"""Following the log: the past, page by page, then live, with no hole and no repeat, at the client's own pace."""

import contextlib
from collections import deque
from collections.abc import AsyncIterator

from crucible_core.position import Position
from crucible_gateway.live.hub import Hub
from crucible_gateway.live.past import Page
from crucible_gateway.live.subscription import CaughtUp, Gap, Item, Reader, Record, Start, Wanted


class Following:
    """One subscription's way through the log: every matching event after its start, once each and in order, for ever.

    The client's pace is the subscription's: who does not come back for the next event in time falls behind (`Gap`), and
    is served from the stream again from there.
    """

    def __init__(self, hub: Hub, wanted: Wanted, start: Start, queue: int) -> None:
        self._hub = hub
        self._pages = hub.pages
        self._wanted = wanted
        self._reader = Reader(wanted, queue)
        self._page = Page(deque(), start.after)
        self._position = start.after
        self._since_ms = start.since_ms
        self._until = start.head
        self._announce = start.past
        self._live = False
        self._caught_up: Position | None = None
        """The place that it has reached, where the client is still to be told."""

    @property
    def position(self) -> Position:
        """The place in the log after the item that came last."""
        return self._position

    async def ready(self) -> None:
        """Returns when it is worth asking for the next item, and when it is woken."""
        if self._live and self._caught_up is None:
            await self._reader.arrived()

    def wake(self) -> None:
        self._reader.wake()

    async def next(self) -> Item | None:
        """The next item. None: not yet; ask again once it is ready."""
        if not self._live and not self._page.records and not self._joined():
            self._page = await self._pages.read(self._wanted, self._position, self._since_ms)
            self._since_ms = None
            if not self._page.records:
                self._position = self._position.most(self._page.upto)
        if self._page.records:
            return self._past()
        return self._lively() if self._live else None

    def close(self) -> None:
        self._hub.leave(self._reader)
        self._reader.clear()
        for record in self._page.records:
            self._pages.handed_on(record)
        self._page.records.clear()

    def _joined(self) -> bool:
        if self._since_ms is not None or not self._hub.join(self._reader, self._position, self._until):
            return False
        self._live = True
        if self._announce:
            self._caught_up = self._position.most(self._hub.reached)
        return True

    def _past(self) -> Record:
        record = self._page.records.popleft()
        self._pages.handed_on(record)
        self._position = self._position.after(record.sequence)
        if not self._page.records:
            self._position = self._position.most(self._page.upto)
        return record

    def _lively(self) -> Item | None:
        first, reached = self._reader.first, self._caught_up
        if reached is not None and not self._reader.dropped and not self._reader.holds_until(reached):
            self._position, self._caught_up = self._position.most(reached), None
            return CaughtUp(reached)
        if first is not None:
            self._position = self._position.after(first.sequence)
            return self._reader.take()
        if self._reader.dropped:
            self._live, self._announce, self._caught_up = False, True, None
            return Gap(self._reader.dropped)
        return None


@contextlib.asynccontextmanager
async def follow(hub: Hub, wanted: Wanted, start: Start, queue: int) -> AsyncIterator[Following]:
    """Raises UnavailableError where it cannot begin."""
    async with hub.following():
        following = Following(hub, wanted, start, queue)
        try:
            yield following
        finally:
            following.close()
