"""Redaction of Memory events: a memory of which one was redacted is made again from the events that are left."""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable
from functools import partial

import msgspec

from crucible_core.errors import CrucibleError
from crucible_kit.index.erasure import original_of
from crucible_kit.index.index import Index, unwritable
from crucible_kit.nats.bus import Bus, Message
from crucible_kit.nats.reader import read
from crucible_memory import store
from crucible_memory.freshness import last_change
from crucible_memory.projection import Recorded, fold, read_recorded
from crucible_memory.state import Memory

log = logging.getLogger(__name__)

_PAUSE_S = 0.25
_REBUILD_S = 86_400.0


class Refolding:
    """The index notes which memories it is about, so that a crash in between leaves none of them as it was."""

    def __init__(self, bus: Bus, index: Index, skipped: Callable[[], None]) -> None:
        self._bus = bus
        self._index = index
        self._skipped = skipped
        self.rested = asyncio.Event()
        """Set once the index holds what was there at the start, and no memory of it is left to be made again."""

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            seen, rests = self._index.position, False
            try:
                if not self.rested.is_set():
                    await self._index.reach(await last_change(self._bus), _REBUILD_S)
                rests = await self._once()
            except CrucibleError as error:
                log.warning("memories with redacted events stay as they are for now: %s", error)
            await (self._index.wait_for_change(seen) if rests else asyncio.sleep(_PAUSE_S))

    async def _once(self) -> bool:
        """Whether there was nothing to do."""
        due = list(await self._index.reader.execute_fetchall("SELECT id, world FROM refolds"))
        if not due:
            self.rested.set()
            return True
        try:
            made = [(id, world, await self._make_again(id, world)) for id, world in due]
            await self._index.writer.run(store.clean)
            if not await self._index.writer.empty_log():
                return False
            for done in made:
                await self._index.writer.run(partial(_settled, done))
            return False
        except sqlite3.OperationalError as error:
            raise unwritable(error) from error

    async def _make_again(self, id: str, world: str) -> int:
        """Returns the sequence of the last event that is in it; 0 where more came meanwhile, so that it is left as it
        is until the next time."""
        events = await self._events(id, world)
        last = max((event.sequence for event in events), default=0)
        await self._index.reach(last)
        memory: Memory | None = None
        for event in events:
            memory = fold(memory, event)

        def write(writer: sqlite3.Connection) -> bool:
            return store.replace(writer, id, world, memory, last)

        return last if await self._index.writer.run(write) else 0

    async def _events(self, id: str, world: str) -> list[Recorded]:
        """What the log has of a memory, in order, and in the place of what is redacted what is left of that."""
        names = self._bus.names
        filters = [names.versions(world, "Memory", id)]
        found: dict[int, Recorded] = {}
        redacted: dict[int, Recorded] = {}
        async with contextlib.aclosing(read(self._bus, names.stream_of(world), filters=filters)) as batches:
            async for messages in batches:
                for message in messages:
                    self._read(message, found)
                    if (original := original_of(message)) is not None:
                        self._read(original, redacted)
                if not messages:
                    break
        return [event for _, event in sorted((found | redacted).items())]

    def _read(self, message: Message, into: dict[int, Recorded]) -> None:
        try:
            into[message.sequence] = read_recorded(message.data, message.sequence)
        except (msgspec.DecodeError, UnicodeError):  # it was told when the index passed it over
            self._skipped()


def _settled(done: tuple[str, str, int], writer: sqlite3.Connection) -> None:
    store.settled(writer, *done)
