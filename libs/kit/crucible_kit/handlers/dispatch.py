"""The shared reader of a replica: reads the log once for all its shards, and offers events to their handlers."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

import msgspec

from crucible_core import subjects
from crucible_core.envelope import Event, decode
from crucible_core.errors import CrucibleError, NotFoundError
from crucible_core.position import Position
from crucible_kit.eventlog import LogState, log_end, log_state, position_after, read_log
from crucible_kit.handlers.service import Service, subjects_of
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.inflight import park
from crucible_kit.nats.message import Message
from crucible_kit.tasks import Turn
from crucible_kit.telemetry.spans import Telemetry

log = logging.getLogger(__name__)

_PAUSE_S = 0.5
_AT_ONCE = 16
"""Handlers that get an event before other tasks run: the first ones do not wait for the last one, and leave their
connections to the others."""
_IDLE_S = 30.0
"""Interval at which its position moves while no handler wants events."""


class Reader:
    """Calls `offer` with each event for each handler that wants it, in the order of the log, and `moved` when its
    position has moved. Calls `lost` when the log was replaced, or has lost its end: that restarts it from another
    position."""

    def __init__(
        self,
        bus: Bus,
        service: Service,
        telemetry: Telemetry,
        offer: Callable[[str, Message, Event], None],
        moved: Callable[[], None],
        lost: Callable[[LogState], None],
    ) -> None:
        self.at = bus.names.start
        self._bus = bus
        self._service = service
        self._telemetry = telemetry
        self._offer, self._moved, self._lost = offer, moved, lost
        self._filters: Sequence[str] | None = None
        self._reading: asyncio.Task[None] | None = None

    def begin(self, at: Position) -> None:
        """Restarts it from a position."""
        self.at = at
        self._begin()

    def end(self) -> None:
        if self._reading is not None:
            self._reading.cancel()

    def note(self) -> None:
        """A handler has come, gone or changed: it may be that other types are wanted."""
        if self._reading is not None and self._wanted() != self._filters:
            self._begin()

    def _begin(self) -> None:
        self.end()
        self._filters = self._wanted()
        self._reading = asyncio.create_task(self._read())

    def _wanted(self) -> Sequence[str] | None:
        """Wildcards over the events to be read, of which none is all; None where nothing is wanted."""
        types = self._service.types()
        return None if types is not None and not types else subjects_of(types, self._bus.names)

    async def _read(self) -> None:
        while True:
            try:
                await self._read_on()
            except NotFoundError as error:
                log.error("%s: the log is another one: %s", self._service.name, error)
                with contextlib.suppress(CrucibleError):  # it may not be there yet
                    self._lost(await log_state(self._bus))
            except CrucibleError as error:
                log.warning("%s: reading again in %g s: %s", self._service.name, _PAUSE_S, error)
            except Exception:
                log.exception("%s: reading broke off; it begins again", self._service.name)
            await asyncio.sleep(_PAUSE_S)

    async def _read_on(self) -> None:
        # Whoever waits for an event up to here is known after that, and `note` was told of him.
        end = await log_end(self._bus)
        await self._service.catch_up(())
        while self._filters is None:
            self._pass_to(self.at.most(end))
            await asyncio.sleep(_IDLE_S)
            end = await log_end(self._bus)
            await self._service.catch_up(())
        reading = read_log(self._bus, after=self.at, filters=self._filters)
        async with contextlib.aclosing(reading) as batches:
            async for messages in batches:
                if messages:
                    await self._feed(messages)
                else:
                    self._pass_to(self.at.most(end))

    def _pass_to(self, at: Position) -> None:
        self.at = at
        self._moved()

    async def _feed(self, messages: Sequence[Message]) -> None:
        """Offers the events of a batch to their handlers. After a cancellation at any point, it may begin again."""
        wanted = []
        for message in filter(self.may_want, messages):
            try:
                wanted.append((message, decode(message.data, message.sequence)))
            except msgspec.DecodeError as error:
                await self._park(message, f"not an event: {error}")
        if wanted:
            names, taken = self._bus.names, [message for message, _ in wanted]
            group = names.durable(self._service.name)
            with self._telemetry.batch("process", names.events, taken, count=len(taken), group=group):
                await self._service.catch_up([event for _, event in wanted])
        turn = Turn()
        for message, event in wanted:
            for count, handler in enumerate(self._service.match(event), 1):
                self._offer(handler, message, event)
                if count % _AT_ONCE == 0:
                    await asyncio.sleep(0)
            self.at = self.at.after(message.sequence)
            if turn.over:
                await turn.pass_on()
        self._pass_to(position_after(self.at, messages))

    def may_want(self, message: Message) -> bool:
        """Returns True if a handler may want a message, by its subject alone; an encoded name always passes."""
        category, event = self._bus.names.type_of(message.subject)
        wanted = "=" in event or self._service.may_want(category, event)
        return wanted and subjects.NO_REACTION not in message.headers

    async def _park(self, message: Message, reason: str) -> None:
        try:
            await park(self._bus, self._service.name, message, reason)
        except CrucibleError as error:
            log.error("%s: event %d is not parked: %s", self._service.name, message.sequence, error)
