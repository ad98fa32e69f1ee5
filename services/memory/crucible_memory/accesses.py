"""Memory.Accessed: background writer of a sample of the reads, which no read waits for."""

import asyncio
import logging
import time
from collections import OrderedDict, deque
from typing import Any

import msgspec

from crucible_core.envelope import Source
from crucible_core.errors import CrucibleError
from crucible_core.protocol.events import NewEvent
from crucible_core.protocol.memory import MemoryView, ScoredMemory
from crucible_kit.clock import timestamp
from crucible_kit.events import append
from crucible_kit.nats.bus import Bus
from crucible_memory.state import MEMORY

log = logging.getLogger(__name__)

MOST_HITS = 10
"""Memories of one answer that count as read: few look further."""
_MOST_WAITING = 1000
_MOST_REMEMBERED = 10_000
_BATCH = 200
_QUERY_CHARS = 1000
_SOURCE = Source("system", "memory")


class Accesses:
    """Records one read of each memory in `every_s` seconds; none at all where that is 0. Reads that wait for their
    append are lost with the process."""

    def __init__(self, bus: Bus, every_s: float) -> None:
        self._bus = bus
        self._every_s = every_s
        self._recorded_at: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._waiting: deque[NewEvent] = deque(maxlen=_MOST_WAITING)
        self._news = asyncio.Event()

    def record(self, found: list[ScoredMemory] | list[MemoryView], query: str | None, traceparent: str) -> None:
        """Records the memories of an answer: `query` is its text, None for a memory by its id."""
        if self._every_s <= 0:
            return
        now = time.monotonic()
        for memory in found[:MOST_HITS]:
            key = (memory.world_id, memory.id)
            if now < self._recorded_at.get(key, float("-inf")) + self._every_s:
                continue
            self._recorded_at[key] = now
            self._recorded_at.move_to_end(key)
            if len(self._recorded_at) > _MOST_REMEMBERED:
                self._recorded_at.popitem(last=False)
            self._waiting.append(_event(memory, query, traceparent))
            self._news.set()

    async def run(self) -> None:
        """Appends the recorded reads, until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                part = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                try:
                    await append(self._bus, MEMORY, part)
                except CrucibleError as error:
                    log.info("%d reads are not recorded: %s", len(part), error)


def _event(memory: ScoredMemory | MemoryView, query: str | None, traceparent: str) -> NewEvent:
    payload: dict[str, Any] = {"id": memory.id}
    if query is not None:
        payload["query"] = query[:_QUERY_CHARS]
    if isinstance(memory, ScoredMemory):
        payload["relevance"] = memory.score
    return NewEvent(
        type="Memory.Accessed",
        payload=msgspec.Raw(msgspec.json.encode(payload)),
        timestamp=timestamp(),
        source=_SOURCE,
        actor="system:memory",
        world_id=memory.world_id,
        room_id=memory.room_id,
        traceparent=traceparent or None,
    )
