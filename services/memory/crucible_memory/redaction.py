"""Redaction of Memory events: a memory with a redacted event is rebuilt from the remaining events."""

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


class MemoryRebuilder:
    """Rebuilds the memories that the index has marked, so that after a crash none of them stays as it was."""

    def __init__(self, bus: Bus, index: Index, skipped: Callable[[], None]) -> None:
        self._bus = bus
        self._index = index
        self._skipped = skipped
        self.ready = asyncio.Event()
        """Set once the index has all events of the start, and no memory of them waits to be rebuilt."""

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            before, idle = self._index.position, False
            try:
                if not self.ready.is_set():
                    await self._index.reach(await last_change(self._bus), _REBUILD_S)
                idle = await self._once()
            except CrucibleError as error:
                log.warning("memories with redacted events stay as they are for now: %s", error)
            await (self._index.wait_for_change(before) if idle else asyncio.sleep(_PAUSE_S))

    async def _once(self) -> bool:
        """True where no memory was marked."""
        due = list(await self._index.reader.execute_fetchall("SELECT id, world FROM refolds"))
        if not due:
            self.ready.set()
            return True
        try:
            rebuilt = [(id, world, await self._rebuild(id, world)) for id, world in due]
            await self._index.writer.run(store.optimize_texts)
            if not await self._index.writer.empty_log():
                return False
            for done in rebuilt:
                await self._index.writer.run(partial(_unmark, done))
            return False
        except sqlite3.OperationalError as error:
            raise unwritable(error) from error

    async def _rebuild(self, id: str, world: str) -> int:
        """Returns the sequence of the memory's last event; 0 where more came meanwhile, and the memory stays as it is
        until the next time."""
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
        """The events of a memory in the log, in order, with the remains of redacted ones at their sequences."""
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
        except (msgspec.DecodeError, UnicodeError):  # the index logged it when it skipped it
            self._skipped()


def _unmark(done: tuple[str, str, int], writer: sqlite3.Connection) -> None:
    store.unmark_rebuilt(writer, *done)
