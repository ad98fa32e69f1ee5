"""Check of the history for losses: compares an index of ATTEMPTS with the stream, at the start and once a day. Records
leave the stream by their age alone."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence

import msgspec

from crucible_core.errors import CrucibleError
from crucible_core.protocol.losses import Loss
from crucible_kit.clock import timestamp
from crucible_kit.index.index import Index
from crucible_kit.losses import Losses
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.jetstream import StreamState
from crucible_kit.nats.reader import read

log = logging.getLogger(__name__)

EVERY_S = 86_400.0
_PAUSE_S = 5.0
_BATCH = 1000
_UNPACED = 20_000
"""Messages that are looked at without a pause; after them a fifth of the time."""
_SHARE = 4
_SLACK_MS = 60_000
_MAX_GAPS = 100


class Gap(msgspec.Struct):
    """Records of the index that the stream lacks, one after another."""

    first: int
    last: int
    count: int = 1


class History:
    """Compares an index whose first stream is the history. `table` has a column `sequence`; `started` is the SQL for
    the start of a record's work, which precedes its storage."""

    def __init__(
        self, bus: Bus, index: Index, table: str, started: str, filters: Sequence[str], losses: Losses
    ) -> None:
        self._bus = bus
        self._index = index
        self._stream = index.streams[0]
        self._rows = (
            f"SELECT sequence FROM {table} WHERE sequence > ? AND sequence <= ? ORDER BY sequence LIMIT {_BATCH}"
        )
        self._young = f"SELECT sequence FROM {table} WHERE sequence BETWEEN ? AND ? AND {started} > ? ORDER BY sequence"
        self._filters = filters
        self._losses = losses

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            try:
                await self.compare()
            except CrucibleError as error:
                log.info("the history is not compared with its index for now: %s", error)
                await asyncio.sleep(_PAUSE_S)
                continue
            await asyncio.sleep(EVERY_S)

    async def compare(self) -> list[Loss]:
        """Compares all records. Records the losses, and returns them."""
        state = await self._bus.stream_state(self._stream)
        await self._index.reach(state.last_sequence)
        found = [loss for gap in await self._find_gaps(state) for loss in await self._losses_in(gap, state)]
        if found:
            await self._losses.record(found)
        return found

    async def _find_gaps(self, state: StreamState) -> list[Gap]:
        """The records that only the index has. Of very many gaps, the last ones become one."""
        gaps: list[Gap] = []
        before = done = 0
        last, clock = state.last_sequence, asyncio.get_running_loop().time
        reading = read(self._bus, self._stream, filters=self._filters, batch=_BATCH, headers_only=True)
        async with contextlib.aclosing(reading) as batches:
            began = clock()
            async for messages in batches:
                to = messages[-1].sequence if messages and messages[-1].sequence < last else last
                await self._compare(before, to, {message.sequence for message in messages}, gaps)
                before, done = to, done + len(messages)
                if before >= last:
                    break
                if done > _UNPACED:
                    await asyncio.sleep(_SHARE * (clock() - began))
                began = clock()
        return gaps

    async def _compare(self, before: int, to: int, seen: set[int], gaps: list[Gap]) -> None:
        joins = False
        while True:
            rows = [row[0] for row in await self._index.reader.execute_fetchall(self._rows, (before, to))]
            for sequence in rows:
                missing = sequence not in seen
                if missing and (joins or len(gaps) >= _MAX_GAPS):
                    gaps[-1].last, gaps[-1].count = sequence, gaps[-1].count + 1
                elif missing:
                    gaps.append(Gap(sequence, sequence))
                joins = missing
            if len(rows) < _BATCH:
                return
            before = rows[-1]

    async def _losses_in(self, gap: Gap, state: StreamState) -> list[Loss]:
        """The part of a gap that is too young to have expired."""
        oldest_ms = int(self._bus.now_ms()) - state.max_age_ms + _SLACK_MS if state.max_age_ms else 0
        values = (gap.first, gap.last, timestamp(oldest_ms))
        young = [row[0] for row in await self._index.reader.execute_fetchall(self._young, values)]
        if not young or await self._bus.get(self._stream, young[0]) is not None:
            return []
        found = Loss(
            kind="missing",
            log=state.created,
            first=young[0],
            last=young[-1],
            count=min(len(young), gap.count),
            found_at=timestamp(),
            stream=self._stream,
        )
        return [found]
