"""Background writer of run records and Hook events: a bounded queue whose items share their writes, drained at the
end."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from crucible_core.errors import CrucibleError, InvalidError, LimitedError, UnavailableError
from crucible_core.protocol.events import AppendReply, AppendRequest, NewEvent
from crucible_core.protocol.hooks import HookRecord
from crucible_core.times import parse_time
from crucible_kit.bus import Bus
from crucible_kit.frames import Outgoing
from crucible_kit.rpc import call

from .records import registry_event
from .registry import HOOKS

log = logging.getLogger(__name__)

Item = Outgoing | NewEvent | asyncio.Future[None]
"""The future of whoever waits until everything before it is stored."""
MAX_WAITING = 10_000
_BATCH = 200
_PAUSE_S = 0.5
_DRAIN_S = 5.0


class Recorder:
    """Stores what it is told, in order, and keeps trying while something is away. At the end it drains."""

    def __init__(self, bus: Bus, home_of: Callable[[HookRecord], str]) -> None:
        """`home_of` names the world that hears of a hook."""
        self._bus = bus
        self._home_of = home_of
        self._waiting: asyncio.Queue[Item] = asyncio.Queue(MAX_WAITING)

    async def tell(self, *items: Outgoing | NewEvent | None) -> None:
        """Waits only while the queue is full: then telling is as slow as storing."""
        for item in items:
            if item is not None:
                await self._waiting.put(item)

    async def store(self, *events: NewEvent) -> None:
        """Returns once the events are in the log, or refused for good."""
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self.tell(*events)
        await self._waiting.put(stored)
        await stored

    def registry_changed(self, name: str, before: HookRecord | None, after: HookRecord | None, revision: int) -> None:
        """Tells of a hook that was added, replaced or removed."""
        record = after or before
        if record is None:
            return
        name, at_ms, world = "Registered" if after else "Unregistered", _ms(record.updated_at), self._home_of(record)
        event = registry_event(name, record, revision, at_ms, world)
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            log.warning("the change of hook %s is not told: too much waits", name)

    async def run(self) -> None:
        """Runs until cancelled; then what waits is stored, if that takes only a moment."""
        held: list[Item] = []
        try:
            while True:
                held.append(await self._waiting.get())
                self._take_more(held)
                await self._store(held)
                held.clear()
        finally:
            self._take_more(held, MAX_WAITING)
            if held:
                await self._drain(held)

    def _take_more(self, held: list[Item], most: int = _BATCH) -> None:
        while len(held) < most and not self._waiting.empty():
            held.append(self._waiting.get_nowait())

    async def _store(self, held: Sequence[Item]) -> None:
        while True:
            try:
                if records := [item for item in held if isinstance(item, Outgoing)]:
                    await self._bus.store_all(records)
                if events := [item for item in held if isinstance(item, NewEvent)]:
                    await append(self._bus, events)
            except (LimitedError, UnavailableError) as error:
                log.info("records wait: %s", error)
                await asyncio.sleep(_PAUSE_S)
            except CrucibleError as error:
                log.warning("%d records are refused: %s", len(held), error)
                break
            else:
                break
        for item in held:
            if isinstance(item, asyncio.Future) and not item.done():
                item.set_result(None)

    async def _drain(self, held: Sequence[Item]) -> None:
        try:
            async with asyncio.timeout(_DRAIN_S):
                await self._store(held)
        except TimeoutError:
            log.warning("%d records were not stored before the end", len(held))


async def append(bus: Bus, events: list[NewEvent], timeout_s: float = 10.0) -> None:
    """Appends events that have ids of their own, so that it may be repeated. Raises UnavailableError."""
    request, trace = AppendRequest(events=events), events[0].traceparent
    reply = await call(bus, HOOKS, "events", "append", request, AppendReply, timeout=timeout_s, traceparent=trace)
    for event, result in zip(events, reply.results, strict=False):
        if result.error is None:
            continue
        if result.error.code == UnavailableError.code:
            raise UnavailableError(result.error.detail)
        log.warning("%s of %s is not in the log: %s", event.type, event.entity, result.error.detail)


def _ms(timestamp: str) -> int:
    try:
        return parse_time(timestamp, "updated_at") // 1000
    except InvalidError:
        return 0
