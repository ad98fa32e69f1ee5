"""Keeps the index as the stream is: what has expired there goes here, by the server's clock; and what is kept longer
than the stream's limit is removed from both when its time has come."""

import asyncio
import logging

from crucible_core.errors import CrucibleError
from crucible_core.subjects import first_of
from crucible_kit.bus import Bus
from crucible_kit.eventlog import event_at
from crucible_kit.index import Index

from . import store
from .keeping import expiry_of

log = logging.getLogger(__name__)

EVERY_S = 2.0
_AT_ONCE = 200


class Expiry:
    """Every replica does it for its own index, and removes from the stream what is due: twice is as good as once."""

    def __init__(self, bus: Bus, index: Index) -> None:
        self._bus = bus
        self._index = index
        self._looked_to = {stream: first_of(stream) for stream in index.streams}
        """Below it, nothing is left of a stream that its limit reaches."""

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            try:
                await self.once()
            except CrucibleError as error:
                log.warning("expired events stay in the index for now: %s", error)
            await asyncio.sleep(EVERY_S)

    async def once(self) -> int:
        """Returns how many events were forgotten."""
        gone, now_ms = 0, 0
        for stream in self._index.streams:
            state = await self._bus.stream_state(stream)
            now_ms = state.now_ms
            if state.max_age_ms:
                gone += await self._forget(stream, now_ms - state.max_age_ms)
        while due := await store.overdue(self._index, now_ms, _AT_ONCE):
            await asyncio.gather(*(self._remove(sequence, now_ms) for sequence in due))
            gone += await store.forget_sequences(self._index, due)
        return gone + await store.forget_expired(self._index, now_ms)

    async def _forget(self, stream: str, before_ms: int) -> int:
        first = self._looked_to[stream]
        end = self._looked_to[stream] = await store.first_since(self._index, before_ms, first - 1)
        gone = await store.forget_range(self._index, first, end)
        return gone + await store.forget_redacted(self._index, before_ms)

    async def _remove(self, sequence: int, now_ms: int) -> None:
        message = await event_at(self._bus, sequence)
        if message is None:
            return
        # The stream's own word counts: a server that lost its end has used sequences again.
        forever, expires_ms = expiry_of(message.headers, message.time_ms)
        if forever and expires_ms is not None and expires_ms <= now_ms:
            await self._bus.remove(self._bus.names.stream_at(sequence), sequence)
