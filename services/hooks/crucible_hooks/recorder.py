"""Background writer of run records and Hook events: a bounded queue whose items share their writes, drained at the
end."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from crucible_core.errors import CrucibleError, InvalidError, LimitedError, UnavailableError
from crucible_core.protocol.events import AppendReply, AppendRequest, NewEvent
from crucible_core.protocol.hooks import HookRecord, RunRecord
from crucible_core.times import parse_time
from crucible_kit.bus import Bus
from crucible_kit.frames import Outgoing
from crucible_kit.rpc import call

from .records import registry_event, stored
from .registry import HOOKS

log = logging.getLogger(__name__)


class Told(NamedTuple):
    """An event of a run, and the run's `record` where nothing else holds that: it goes into the history while the
    event cannot be in the log."""

    event: NewEvent
    record: RunRecord | None = None


Item = Outgoing | Told | asyncio.Future[None]
"""The future of whoever waits until everything before it is stored."""
MAX_WAITING = 10_000
_BATCH = 200
_GATHER_S = 0.01
"""What comes within this time shares one write, unless somebody waits for it: who asks a Pre hook does not."""
_PAUSE_S = 0.5
_DRAIN_S = 5.0


class Recorder:
    """Stores what it is told, in order, and keeps trying while something is away. At the end it drains."""

    def __init__(self, bus: Bus, home_of: Callable[[HookRecord], str]) -> None:
        """`home_of` names the world that hears of a hook."""
        self._bus = bus
        self._home_of = home_of
        self._waiting: asyncio.Queue[Item] = asyncio.Queue(MAX_WAITING)
        self._wanted = asyncio.Event()
        """Set once somebody waits for what is gathered."""

    async def tell(self, item: Outgoing | Told) -> None:
        """Waits only while the queue is full: then telling is as slow as storing."""
        await self._waiting.put(item)

    async def store(self, *events: NewEvent) -> None:
        """Returns once the events are in the log, or refused for good."""
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for event in events:
            await self.tell(Told(event))
        await self._waiting.put(stored)
        self._wanted.set()
        await stored

    def registry_changed(self, name: str, before: HookRecord | None, after: HookRecord | None, revision: int) -> None:
        """Tells of a hook that was added, replaced or removed."""
        record = after or before
        if record is None:
            return
        name, at_ms, world = "Registered" if after else "Unregistered", _ms(record.updated_at), self._home_of(record)
        event = registry_event(name, record, revision, at_ms, world)
        try:
            self._waiting.put_nowait(Told(event))
        except asyncio.QueueFull:
            log.warning("the change of hook %s is not told: too much waits", name)

    async def run(self) -> None:
        """Runs until cancelled; then what waits is stored, if that takes only a moment."""
        held: list[Item] = []
        try:
            while True:
                held.append(await self._waiting.get())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_GATHER_S):
                        await self._wanted.wait()
                self._wanted.clear()
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
        records = [item for item in held if isinstance(item, Outgoing)]
        told = [item for item in held if isinstance(item, Told)]
        while records or told:
            try:
                if records:
                    await self._bus.store_all(records)
                    records = []
                if told:
                    records, told = self._records_of(await append(self._bus, told)), []
            except (LimitedError, UnavailableError) as error:
                log.info("records wait: %s", error)
                if not records and (records := self._records_of(told)):  # the log will have them a second time
                    told = [Told(one.event) for one in told]
                else:
                    await asyncio.sleep(_PAUSE_S)
            except CrucibleError as error:
                log.warning("%d records are refused: %s", len(held), error)
                records, told = ([], told) if records else (self._records_of(told), [])
        for item in held:
            if isinstance(item, asyncio.Future) and not item.done():
                item.set_result(None)

    def _records_of(self, told: Sequence[Told]) -> list[Outgoing]:
        return [stored(self._bus.names, one.record) for one in told if one.record is not None]

    async def _drain(self, held: Sequence[Item]) -> None:
        try:
            async with asyncio.timeout(_DRAIN_S):
                await self._store(held)
        except TimeoutError:
            log.warning("%d records were not stored before the end", len(held))


async def append(bus: Bus, told: Sequence[Told], timeout_s: float = 10.0) -> list[Told]:
    """Appends events that have ids of their own, so that it may be repeated. Returns those that are refused for good.
    Raises UnavailableError."""
    request, trace = AppendRequest(events=[one.event for one in told]), told[0].event.traceparent
    reply = await call(bus, HOOKS, "events", "append", request, AppendReply, timeout=timeout_s, traceparent=trace)
    refused = []
    for one, result in zip(told, reply.results, strict=False):
        if result.error is None:
            continue
        if result.error.code == UnavailableError.code:
            raise UnavailableError(result.error.detail)
        log.warning("%s of %s is not in the log: %s", one.event.type, one.event.entity, result.error.detail)
        refused.append(one)
    return refused


def _ms(timestamp: str) -> int:
    try:
        return parse_time(timestamp, "updated_at") // 1000
    except InvalidError:
        return 0
