"""Damage of the other streams: waiting work, history and configuration have no second copy to compare with. But
JetStream reports the messages that it could not read, and a last sequence that is smaller than before shows a lost
end."""

import contextlib
import sqlite3
from collections.abc import Mapping, Sequence

from crucible_core.errors import NotFoundError
from crucible_core.protocol.losses import Loss
from crucible_core.subjects import Names, kv_stream
from crucible_kit.clock import timestamp
from crucible_kit.index.index import Index
from crucible_kit.losses import Losses
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.jetstream import StreamState, Unreadable
from crucible_kit.nats.streams import BUCKETS

_MOST_GAPS = 50_000
"""With more of them the server's answer would be too large. Work queues have many, for a while, under load."""


def other_streams(names: Names) -> list[str]:
    """The streams beside the log, with those of the buckets."""
    return [names.hook_runs, names.deliveries, names.attempts, *(kv_stream(names.bucket(name)) for name in BUCKETS)]


class Damage:
    """Asks JetStream for unreadable messages once for each connection: it finds them when it opens its files, and
    reports them until it starts again. The index keeps the last sequences of each look."""

    def __init__(self, bus: Bus, index: Index, losses: Losses) -> None:
        self._bus = bus
        self._index = index
        self._losses = losses
        self._unchecked: set[str] = set()
        self._connection = -1

    async def look(self) -> None:
        """Records the new losses."""
        if self._connection != self._bus.connections:
            self._connection = self._bus.connections
            self._unchecked = set(other_streams(self._bus.names))
        states: dict[str, StreamState] = {}
        for stream in other_streams(self._bus.names):
            with contextlib.suppress(NotFoundError):
                states[stream] = await self._bus.stream_state(stream)
        found = await self._lost_ends(states)
        for stream, state in states.items():
            if stream in self._unchecked and state.removed <= _MOST_GAPS:
                found += _losses(stream, state.created, await self._bus.unreadable(stream))
                self._unchecked.discard(stream)
        if found:
            await self._losses.record(found)
        await self._store(states)

    async def _lost_ends(self, states: Mapping[str, StreamState]) -> list[Loss]:
        rows = await self._index.reader.execute_fetchall("SELECT name, created, last FROM streams")
        return [
            _end(stream, created, last, states[stream])
            for stream, created, last in rows
            if stream in states and states[stream].last_sequence < last
        ]

    async def _store(self, states: Mapping[str, StreamState]) -> None:
        rows = [(stream, state.created, state.last_sequence) for stream, state in states.items()]

        def write(writer: sqlite3.Connection) -> None:
            writer.executemany("INSERT OR REPLACE INTO streams VALUES (?, ?, ?)", rows)

        with contextlib.suppress(sqlite3.Error):  # of a full disk, the index reports
            await self._index.writer.run(write)


def _end(stream: str, created: str, last: int, now: StreamState) -> Loss:
    """Of a stream that is another one now, all messages are lost."""
    same = created == now.created
    return Loss(
        kind="end" if same else "log",
        log=created,
        first=now.last_sequence + 1 if same else 1,
        last=last,
        count=last - now.last_sequence if same else last,
        found_at=timestamp(),
        stream=stream,
    )


def _losses(stream: str, created: str, unreadable: Unreadable) -> list[Loss]:
    def loss(first: int, last: int, count: int, size: int) -> Loss:
        return Loss(
            kind="unreadable",
            log=created,
            first=first,
            last=last,
            count=count,
            found_at=timestamp(),
            stream=stream,
            bytes=size,
        )

    if unreadable.sequences:
        return [loss(first, last, last - first + 1, 0) for first, last in _ranges(unreadable.sequences)]
    return [loss(0, 0, 0, unreadable.bytes)] if unreadable.bytes else []


def _ranges(sequences: Sequence[int]) -> list[tuple[int, int]]:
    """The runs of neighbours, as (first, last)."""
    found: list[tuple[int, int]] = []
    for sequence in sorted(sequences):
        if found and found[-1][1] == sequence - 1:
            found[-1] = (found[-1][0], sequence)
        else:
            found.append((sequence, sequence))
    return found
