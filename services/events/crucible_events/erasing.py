"""What is redacted is erased: from the stream, from this replica's file, and from snapshots. The index remembers what
it still has to do, so that a crash between a tombstone and the erasure leaves nothing behind."""

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from crucible_core.envelope import decode
from crucible_core.errors import CrucibleError
from crucible_core.protocol.events import IndexedRequest
from crucible_kit.bus import Bus, Message
from crucible_kit.eventlog import event_at
from crucible_kit.index import Index, unwritable
from crucible_kit.rpc import Context, Endpoint

from . import store

log = logging.getLogger(__name__)

_EVERY_S = 0.5
_AT_ONCE = 500
_TIDY = "DELETE FROM erasures WHERE done AND sequence NOT IN (SELECT sequence FROM events)"


class Eraser:
    """Every replica erases what its index learns of: twice is as good as once."""

    def __init__(self, bus: Bus, index: Index, remove_copies: Callable[[], Awaitable[None]]) -> None:
        """`remove_copies` removes the copies of the index that hold what is erased."""
        self._bus = bus
        self._index = index
        self._remove_copies = remove_copies

    def endpoints(self) -> Mapping[str, Endpoint]:
        async def indexed(request: IndexedRequest, context: Context) -> IndexedRequest:
            await self._index.reach(request.sequence)
            return request

        return {"indexed": Endpoint(IndexedRequest, indexed, every_replica=True)}

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            try:
                await self.once()
            except CrucibleError as error:
                log.warning("redacted events are not erased yet: %s", error)
            await asyncio.sleep(_EVERY_S)

    async def once(self) -> int:
        """Returns how many events are erased for good."""
        due = await store.select(
            self._index, f"SELECT sequence, event_id FROM erasures WHERE NOT done LIMIT {_AT_ONCE}"
        )
        for sequence, event_id in due:
            await erase(self._bus, sequence, event_id)
        if due:
            await self._remove_copies()
        return len(due) if due and await self._forgotten([sequence for sequence, _ in due]) else 0

    async def _forgotten(self, sequences: list[int]) -> bool:
        """Takes what the rows held before out of the file; False where a reader was in the way."""
        settled = f"UPDATE erasures SET done = 1 WHERE sequence IN ({', '.join('?' * len(sequences))})"
        try:
            if not await self._index.writer.empty_log():
                return False
            await self._index.writer.run(lambda writer: writer.execute(settled, sequences))
            await self._index.writer.run(lambda writer: writer.execute(_TIDY))
        except sqlite3.OperationalError as error:
            raise unwritable(error) from error
        return True


async def erase(bus: Bus, sequence: int, event_id: str) -> None:
    """Erases an event from the stream, unless another one has its sequence. Idempotent."""
    message = await event_at(bus, sequence)
    if message is None:
        return
    if not holds(message, event_id):
        log.error("%s is redacted, and sequence %d holds another event: nothing is erased", event_id, sequence)
        return
    await bus.remove(bus.names.stream_at(sequence), sequence, erase=True)


def holds(message: Message, event_id: str) -> bool:
    try:
        return decode(message.data).metadata.id == event_id
    except msgspec.DecodeError:
        return False
