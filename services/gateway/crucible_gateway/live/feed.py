"""Feeds of the log: the past, page by page, then live, with no hole and no repeat, at the client's own pace."""

import contextlib
from collections import deque
from collections.abc import AsyncIterator

from crucible_core.position import Position
from crucible_gateway.live.hub import Hub
from crucible_gateway.live.past import Page
from crucible_gateway.live.subscription import CaughtUp, Gap, Item, Reader, Record, Selection, Start


class Feed:
    """One subscription's way through the log: every matching event after its start, once each and in order, for ever.

    The client's pace is the subscription's: who does not come back for the next event in time falls behind (`Gap`), and
    is served from the stream again from there.
    """

    def __init__(self, hub: Hub, selection: Selection, start: Start, queue: int) -> None:
        self._hub = hub
        self._pages = hub.pages
        self._selection = selection
        self._reader = Reader(selection, queue)
        self._page = Page(deque(), start.after)
        self._position = start.after
        self._since_ms = start.since_ms
        self._until = start.head
        self._announce = start.past
        self._live = False
        self._caught_up: Position | None = None
        """The position that it has reached, until the client hears of it."""

    @property
    def position(self) -> Position:
        """The position after the last item."""
        return self._position

    async def ready(self) -> None:
        """Returns when it is worth asking for the next item, and when it is woken."""
        if self._live and self._caught_up is None:
            await self._reader.wait_for_event()

    def wake(self) -> None:
        self._reader.wake()

    async def next(self) -> Item | None:
        """The next item. None: not yet; ask again once it is ready."""
        if not self._live and not self._page.records and not self._join():
            self._page = await self._pages.read(self._selection, self._position, self._since_ms)
            self._since_ms = None
            if not self._page.records:
                self._position = self._position.most(self._page.upto)
        if self._page.records:
            return self._next_past()
        return self._next_live() if self._live else None

    def close(self) -> None:
        self._hub.leave(self._reader)
        self._reader.clear()
        for record in self._page.records:
            self._pages.release(record)
        self._page.records.clear()

    def _join(self) -> bool:
        if self._since_ms is not None or not self._hub.join(self._reader, self._position, self._until):
            return False
        self._live = True
        if self._announce:
            self._caught_up = self._position.most(self._hub.reached)
        return True

    def _next_past(self) -> Record:
        record = self._page.records.popleft()
        self._pages.release(record)
        self._position = self._position.after(record.sequence)
        if not self._page.records:
            self._position = self._position.most(self._page.upto)
        return record

    def _next_live(self) -> Item | None:
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
async def follow(hub: Hub, selection: Selection, start: Start, queue: int) -> AsyncIterator[Feed]:
    """Raises UnavailableError where it cannot begin."""
    async with hub.following():
        feed = Feed(hub, selection, start, queue)
        try:
            yield feed
        finally:
            feed.close()
