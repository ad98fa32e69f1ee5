"""Audit of the log for lost events: it compares the index with the stream, message by message at the start and once a
day, and by their numbers every minute. JetStream itself skips in silence the messages that it cannot read."""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from crucible_core.errors import CrucibleError, InvalidError
from crucible_core.position import base_of, last_in
from crucible_core.protocol.losses import Loss, LossesRequest, LossList
from crucible_core.subjects import first_of
from crucible_events import store
from crucible_events.append.lifetime import expiry_of
from crucible_events.damage import Damage
from crucible_events.worlds.registry import Places
from crucible_kit.clock import timestamp
from crucible_kit.eventlog import event_at, log_end
from crucible_kit.index.connections import Reader
from crucible_kit.index.index import Index
from crucible_kit.losses import Losses
from crucible_kit.nats.bus import Bus, Message
from crucible_kit.nats.jetstream import StreamState
from crucible_kit.nats.reader import read
from crucible_kit.rpc import Context, Endpoint

log = logging.getLogger(__name__)

EVERY_S = 60.0
WHOLE_EVERY_S = 86_400.0
_BATCH = 1000
_AT_ONCE_FREE = 20_000
"""Messages that are compared without a pause; after them the audit works a fifth of the time."""
_SHARE = 4
_SAMPLES = 5
_SAMPLE_S = 1.0
_SLACK_MS = 60_000
"""The time by which an event may be gone before its end."""
_SAMPLE = 50
_MOST_GAPS = 1000
_ROWS = """
SELECT sequence, world_id, sequence IN (SELECT sequence FROM erasures)
  OR (NOT forever AND ? > 0 AND stored_ms < ?) OR (expires_ms IS NOT NULL AND expires_ms < ?)
FROM events WHERE sequence > ? AND sequence <= ? ORDER BY sequence LIMIT 5000
"""
_LATER = "(SELECT count(*) FROM events WHERE sequence > ? AND sequence <= ?)"
_ERASED = "(SELECT count(*) FROM erasures WHERE sequence >= ? AND sequence <= ?)"


class Gap(msgspec.Struct, frozen=True):
    """Neighbours among the events that are missing."""

    first: int
    last: int
    count: int


class Gaps:
    """The gaps in the log, from sequences in their order. Past a number, the last gap takes all that follow."""

    def __init__(self) -> None:
        self.all: list[Gap] = []
        self._broken = True

    @property
    def full(self) -> bool:
        return len(self.all) >= _MOST_GAPS

    def add(self, sequence: int, missing: bool) -> None:
        if missing and self._broken and not self.full:
            self.all.append(Gap(sequence, sequence, 1))
        elif missing:
            last = self.all[-1]
            self.all[-1] = Gap(last.first, sequence, last.count + 1)
        self._broken = not missing


class Audit:
    """Every replica compares its own index; a loss is recorded once."""

    def __init__(self, bus: Bus, index: Index, reader: Reader, places: Places, losses: Losses) -> None:
        """`reader` reads the index for the audit alone: no query waits behind a comparison."""
        self._bus = bus
        self._index = index
        self._places = places
        self._losses = losses
        self._damage = Damage(bus, index, losses)
        self._difference: int | None = None
        self._reader = reader
        self._accepted = asyncio.Event()
        losses.on_accepted = self._accepted.set

    def endpoints(self) -> Mapping[str, Endpoint]:
        return {"losses": Endpoint(LossesRequest, self.show), "accept_losses": Endpoint(LossesRequest, self.accept)}

    async def show(self, request: LossesRequest, context: Context) -> LossList:
        context.principal.check_admin("what the log has lost")
        await self._losses.view.refresh()
        return LossList(losses=self._losses.open)

    async def accept(self, request: LossesRequest, context: Context) -> LossList:
        """Accepts the losses: from then on the index forgets the events that the log does not have."""
        context.principal.check_admin("what the log has lost")
        await self._losses.view.refresh()
        return LossList(losses=await self._losses.accept())

    async def run(self) -> None:
        """Runs until cancelled."""
        clock = asyncio.get_running_loop().time
        whole_at = 0.0
        while True:
            try:
                await self._damage.look()
                await self._index.reach_recent(self._bus, EVERY_S)
                if clock() >= whole_at or self._accepted.is_set() or await self._differs():
                    self._accepted.clear()
                    began = clock()
                    await self.once()
                    # Where events expire all the time, the numbers say little.
                    whole_at = clock() + WHOLE_EVERY_S
                    await asyncio.sleep(_SHARE * (clock() - began))
            except CrucibleError as error:
                log.warning("the log is not compared with its index for now: %s", error)
                await asyncio.sleep(_SAMPLE_S)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._accepted.wait()

    async def once(self) -> list[Loss]:
        """Compares every event, and records the losses. Returns the new ones."""
        found: list[Loss] = []
        for stream in self._index.streams:
            state = await self._bus.stream_state(stream)
            await self._index.reach(state.last_sequence)
            gaps, unindexed = await self._compare_stream(stream, state)
            if unindexed and await self._is_missed(unindexed, state):
                self._index.spoil(f"it has no event at sequence {unindexed[0]}, and the log has")
                return []
            found += await self._verify(gaps, state) if gaps.all else []
        if found:
            await self._losses.record(found)
        self._difference = await self._stable_difference()
        return found

    async def _select(self, statement: str, values: Sequence[Any]) -> list[Any]:
        return await self._reader.execute_fetchall(statement, values)

    # ---- by number

    async def _differs(self) -> bool:
        """True where the difference of the numbers has changed since the last comparison, and stays so."""
        for _ in range(_SAMPLES):
            if await self._count_difference() == self._difference:
                return False
            await asyncio.sleep(_SAMPLE_S)
        return True

    async def _stable_difference(self) -> int | None:
        before: int | None = None
        for _ in range(_SAMPLES):
            now = await self._count_difference()
            if now == before:
                break
            before = now
            await asyncio.sleep(_SAMPLE_S / 10)
        return before

    async def _count_difference(self) -> int:
        """The number of events that the index has more than the log; not 0 where the log has messages that are no
        events."""
        streams = self._index.streams
        states = [await self._bus.stream_state(stream) for stream in streams]
        parts, values = ["SELECT (SELECT count(*) FROM events)"], []
        for stream, state in zip(streams, states, strict=True):
            last = state.last_sequence
            await self._index.reach(last)
            parts += [_LATER, _ERASED]
            values += [last, last_in(last), first_of(stream), last]
        [(count,)] = await self._select(" - ".join(parts), values)
        return int(count) - sum(state.messages for state in states)

    # ---- one by one

    async def _compare_stream(self, stream: str, state: StreamState) -> tuple[Gaps, list[int]]:
        """The events that only the index has, and the first sequences that only the stream has."""
        gaps = Gaps()
        unindexed: list[int] = []
        before, done, last = first_of(stream), 0, state.last_sequence
        clock = asyncio.get_running_loop().time
        reading = read(self._bus, stream, batch=_BATCH, headers_only=True)
        async with contextlib.aclosing(reading) as batches:
            began = clock()
            async for messages in batches:
                present = {message.sequence for message in messages if message.sequence <= last}
                to = max(present) if present and messages[-1].sequence <= last else last
                indexed = await self._compare(before, to, present, state, gaps)
                unindexed += sorted(present - indexed)[: _SAMPLE - len(unindexed)]
                before, done = to, done + len(messages)
                if before >= last:
                    break
                if done > _AT_ONCE_FREE:
                    await asyncio.sleep(_SHARE * (clock() - began))
                began = clock()
        return gaps, unindexed

    async def _compare(self, before: int, to: int, present: set[int], state: StreamState, gaps: Gaps) -> set[int]:
        """Adds to the gaps the events of the index between two sequences that are not `present` in the stream. Returns
        the sequences of the index."""
        indexed: set[int] = set()
        purged = {record.id: record.purge_through for record in self._places.records.values()}
        while True:
            now_ms = int(self._bus.now_ms())
            values = (state.max_age_ms, now_ms - state.max_age_ms + _SLACK_MS, now_ms + _SLACK_MS, before, to)
            rows = await self._select(_ROWS, values)
            for sequence, world_id, may_go in rows:
                indexed.add(sequence)
                missing = sequence not in present and not may_go and sequence > purged.get(world_id, 0)
                gaps.add(sequence, missing)
            if len(rows) < 5000:
                return indexed
            before = rows[-1][0]

    async def _verify(self, gaps: Gaps, state: StreamState) -> list[Loss]:
        """The new losses among the gaps: without events that were redacted or purged meanwhile."""
        await self._places.view.refresh()
        await self._losses.view.refresh()
        await self._index.reach(await log_end(self._bus))
        again = gaps.all if gaps.full else []
        for gap in gaps.all if not gaps.full else ():
            await self._compare(gap.first - 1, gap.last, set(), state, part := Gaps())
            again += [one for one in part.all if await self._is_gone(one)]
        known = [
            loss for loss in self._losses.all if (loss.stream, loss.kind, loss.log) == ("", "missing", state.created)
        ]
        lost: list[Loss] = []
        for gap in again:
            record = next((loss for loss in known if loss.first <= gap.first and gap.last <= loss.last), None)
            if record is None:
                lost.append(_loss("missing", state.created, gap.first, gap.last, gap.count))
            elif record.accepted_at is not None:
                await self._forget(gap)
        return lost

    async def _is_gone(self, gap: Gap) -> bool:
        """True where the stream has none of the first events of a gap: a message may have come late."""
        rows = await self._select(
            "SELECT sequence FROM events WHERE sequence BETWEEN ? AND ? ORDER BY sequence LIMIT ?",
            (gap.first, gap.last, _SAMPLE),
        )
        messages = await asyncio.gather(*(event_at(self._bus, row[0]) for row in rows))
        return not any(messages)

    async def _forget(self, gap: Gap) -> None:
        rows = await self._select("SELECT sequence FROM events WHERE sequence BETWEEN ? AND ?", (gap.first, gap.last))
        for start in range(0, len(rows), 500):
            await store.forget_sequences(self._index, [row[0] for row in rows[start : start + 500]])

    async def _is_missed(self, sequences: Sequence[int], state: StreamState) -> bool:
        """True where the index should have one of these events."""
        await self._places.view.refresh()
        for sequence in sequences:
            message = await event_at(self._bus, sequence)
            if message is not None and self._belongs(message, state):
                rows = await self._select("SELECT 1 FROM events WHERE sequence = ?", (sequence,))
                if not rows and self._index.caught_up:
                    return True
        return False

    def _belongs(self, message: Message, state: StreamState) -> bool:
        try:
            world_id = store.row_of(message)[9]
        except (msgspec.DecodeError, InvalidError):
            return False
        now_ms = self._bus.now_ms()
        forever, expires_ms = expiry_of(message.headers, message.time_ms)
        if expires_ms is not None and expires_ms < now_ms + _SLACK_MS:
            return False
        if not forever and state.max_age_ms and message.time_ms < now_ms - state.max_age_ms + _SLACK_MS:
            return False
        purged = {record.id: record.purge_through for record in self._places.records.values()}
        return message.sequence > purged.get(world_id, 0)


def _loss(kind: str, created: str, first: int, last: int, count: int) -> Loss:
    return Loss(kind=kind, log=created, first=first, last=last, count=count, found_at=timestamp())


# ---- the end of the log, and another log -----------------------------------------------------------------------------


class _Extent(NamedTuple):
    """The first and last event of a stream in the file of an index."""

    created: str
    first: int
    first_ms: int
    last: int
    last_ms: int


async def lost_ends(path: Path, bus: Bus) -> list[Loss]:
    """Losses of events that the index has, and a stream of the log does not since it lost its end, or is another one.
    Called before the index is opened, which then is rebuilt and would forget them."""
    found = [await _lost_end(path, bus, number) for number in range(bus.names.streams)]
    return [loss for loss in found if loss is not None]


async def _lost_end(path: Path, bus: Bus, number: int) -> Loss | None:
    held: _Extent | None = await asyncio.to_thread(_read_extent, path, number)
    if held is None:
        return None
    state = await bus.stream_state(bus.names.log_streams[number])
    if held.created != state.created and not await _has(bus, held.first, held.first_ms):
        count = await asyncio.to_thread(_count_from, path, held.first)
        return _loss("log", held.created, held.first, held.last, count)
    if await _agrees(bus, state, held.last, held.last_ms):
        return None
    agreeing, differing = held.first - 1, held.last
    while differing - agreeing > 1:
        middle = (agreeing + differing) // 2
        sequence, stored_ms = await asyncio.to_thread(_row_until, path, middle)
        if sequence <= agreeing or await _agrees(bus, state, sequence, stored_ms):
            agreeing = middle
        else:
            differing = sequence
    count = await asyncio.to_thread(_count_from, path, differing)
    return _loss("end", state.created, differing, held.last, count)


async def _has(bus: Bus, sequence: int, stored_ms: int) -> bool:
    message = await event_at(bus, sequence)
    return message is not None and message.time_ms == stored_ms


async def _agrees(bus: Bus, state: StreamState, sequence: int, stored_ms: int) -> bool:
    """True where the stream has the same message at a sequence, or none between others."""
    if sequence > state.last_sequence:
        return False
    message = await event_at(bus, sequence)
    return message is None or message.time_ms == stored_ms


def _read_extent(path: Path, number: int) -> Any:
    def read(connection: sqlite3.Connection) -> _Extent | None:
        meta = dict(connection.execute("SELECT name, value FROM meta"))
        within = (base_of(number), base_of(number + 1))
        ends = [f"(SELECT {end}(sequence) FROM events WHERE sequence >= ? AND sequence < ?)" for end in ("min", "max")]
        rows = connection.execute(f"SELECT {', '.join(ends)}", (*within, *within)).fetchone()
        if rows[0] is None:
            return None
        query = "SELECT stored_ms FROM events WHERE sequence = ?"
        [(first_ms,), (last_ms,)] = [connection.execute(query, (row,)).fetchone() for row in rows]
        return _Extent(meta["identity"].split(" ")[1 + number], rows[0], first_ms, rows[1], last_ms)

    return _read_file(path, read)


def _row_until(path: Path, sequence: int) -> tuple[int, int]:
    query = "SELECT sequence, stored_ms FROM events WHERE sequence <= ? ORDER BY sequence DESC LIMIT 1"
    return _read_file(path, lambda connection: connection.execute(query, (sequence,)).fetchone()) or (0, 0)


def _count_from(path: Path, sequence: int) -> int:
    query, within = "SELECT count(*) FROM events WHERE sequence >= ? AND sequence <= ?", (sequence, last_in(sequence))
    return int((_read_file(path, lambda connection: connection.execute(query, within).fetchone()) or (0,))[0])


def _read_file(path: Path, read: Callable[[sqlite3.Connection], Any]) -> Any:
    """The result of `read`; None where there is no file, or it is damaged or of another version."""
    if not path.exists():
        return None
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return read(connection)
    except (sqlite3.Error, LookupError):
        return None
