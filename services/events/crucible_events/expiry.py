"""Keeps the index as the stream is: what has expired there goes here, by the server's clock; and what is kept longer
than the stream's limit is removed from both when its time has come."""

import asyncio
import logging

from crucible_core.errors import CrucibleError
from crucible_kit.bus import Bus
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
        self._looked_to = 0
        """Below it, nothing is left that the stream's limit reaches."""

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
        state = await self._bus.stream_state(self._index.stream)
        gone = 0
        if state.max_age_ms:
            before_ms = state.now_ms - state.max_age_ms
            end = await store.first_since(self._index, before_ms, self._looked_to - 1)
            gone += await store.forget_range(self._index, self._looked_to, end)
            self._looked_to = end
            gone += await store.forget_redacted(self._index, before_ms)
        while due := await store.overdue(self._index, state.now_ms, _AT_ONCE):
            await asyncio.gather(*(self._remove(sequence, state.now_ms) for sequence in due))
            gone += await store.forget_sequences(self._index, due)
        return gone + await store.forget_expired(self._index, state.now_ms)

    async def _remove(self, sequence: int, now_ms: int) -> None:
        message = await self._bus.get(self._index.stream, sequence)
        if message is None:
            return
        # The stream's own word counts: a server that lost its end has used sequences again.
        forever, expires_ms = expiry_of(message.headers, message.time_ms)
        if forever and expires_ms is not None and expires_ms <= now_ms:
            await self._bus.remove(self._index.stream, sequence)
