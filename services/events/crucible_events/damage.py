"""Damage of the other streams: work that waits, history and configuration have no second copy to be compared with. Only
JetStream can say that it could not read some of it."""

from collections.abc import Sequence

from crucible_core.errors import NotFoundError
from crucible_core.protocol.losses import Loss
from crucible_core.subjects import Names, kv_stream
from crucible_kit.bus import Bus
from crucible_kit.clock import timestamp
from crucible_kit.jetstream import Unreadable
from crucible_kit.losses import Losses
from crucible_kit.streams import BUCKETS

_MOST_GAPS = 50_000
"""With more of them the server's answer would be too large. Work queues have many, for a while, under load."""


def other_streams(names: Names) -> list[str]:
    """Those beside the log, with the buckets'."""
    return [names.hook_runs, names.deliveries, names.attempts, *(kv_stream(names.bucket(name)) for name in BUCKETS)]


class Damage:
    """Asks once for each connection: it is when the server opens its files that it notices, and it says so until it
    starts again."""

    def __init__(self, bus: Bus, losses: Losses) -> None:
        self._bus = bus
        self._losses = losses
        self._left: set[str] = set()
        self._connection = -1

    async def look(self) -> None:
        """Keeps what is lost, of the streams that were not looked at since the server was connected to."""
        if self._connection != self._bus.connections:
            self._connection = self._bus.connections
            self._left = set(other_streams(self._bus.names))
        found: list[Loss] = []
        for stream in sorted(self._left):
            try:
                state = await self._bus.stream_state(stream)
                if state.removed > _MOST_GAPS:
                    continue
                unreadable = await self._bus.unreadable(stream)
            except NotFoundError:
                continue
            self._left.discard(stream)
            found += _losses(stream, state.created, unreadable)
        if found:
            await self._losses.note(found)


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
    """The neighbours among them, as first and last."""
    found: list[tuple[int, int]] = []
    for sequence in sorted(sequences):
        if found and found[-1][1] == sequence - 1:
            found[-1] = (found[-1][0], sequence)
        else:
            found.append((sequence, sequence))
    return found
