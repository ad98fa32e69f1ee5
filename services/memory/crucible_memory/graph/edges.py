"""Graph events: the changes of the graph of memories that follow from each Memory event, appended to the log."""

import asyncio
import logging
import sqlite3
from collections.abc import Iterable
from typing import Any

import msgspec

from crucible_core.envelope import Event, Source, decode
from crucible_core.errors import UnavailableError
from crucible_core.ids import derive_id
from crucible_core.limits import HOPS
from crucible_core.position import base_of, stream_number
from crucible_core.protocol.events import NewEvent
from crucible_core.protocol.memory import Link
from crucible_core.subjects import NO_REACTION
from crucible_kit.events import append
from crucible_kit.index.index import Index
from crucible_kit.nats.bus import Bus, Message
from crucible_kit.nats.consumer import work_batches
from crucible_kit.telemetry.spans import Telemetry
from crucible_memory.state import MEMORY, Memory

log = logging.getLogger(__name__)

SCHEMA = "CREATE TABLE IF NOT EXISTS graph_steps (sequence INTEGER PRIMARY KEY, steps BLOB NOT NULL);"
"""By the sequence of a Memory event, its changes of the graph: the same in every replica's index."""

DURABLE = "memory-graph"
KEPT = 1_000_000
"""Sequences behind the index for which changes are stored: the lag of their events at most."""
_BATCH = 200
_SOURCE = Source("system", "memory")

GraphChange = tuple[str, dict[str, Any]]
"""The name of a Graph event, and its payload."""


def graph_changes(before: Memory | None, after: Memory | None) -> list[GraphChange]:
    """The changes of the graph when a memory changes from `before` to `after`. A link leads to an id, or to a name that
    no memory has yet."""
    old, new = _edges(before), _edges(after)
    found: list[GraphChange] = []
    if after is not None and before is None:
        # Without the title: a memory whose event is redacted must not live on here.
        found.append(("NodeAdded", {"id": after.id, "type": "memory"}))
    found += [("EdgeRemoved", _ends(before, link)) for key, link in old.items() if before and key not in new]
    for key, link in new.items():
        if after is not None and key not in old:
            strength = {} if link.weight is None else {"strength": link.weight}
            found.append(("EdgeCreated", _ends(after, link) | strength))
    if before is not None and after is None:
        found.append(("NodeRemoved", {"id": before.id}))
    return found


def store_changes(writer: sqlite3.Connection, found: Iterable[tuple[int, list[GraphChange]]]) -> None:
    """Stores the changes of some events, and deletes those that are too old."""
    rows = [(sequence, msgspec.json.encode(changes)) for sequence, changes in found if changes]
    if rows:
        writer.executemany("INSERT OR REPLACE INTO graph_steps VALUES (?, ?)", rows)
        last = rows[-1][0]
        old = (base_of(stream_number(last)), last - KEPT)
        writer.execute("DELETE FROM graph_steps WHERE sequence >= ? AND sequence < ?", old)


class GraphConsumer:
    """The durable consumer of Memory events, in each stream of the log, that appends the Graph events, one batch at a
    time."""

    def __init__(self, bus: Bus, index: Index, telemetry: Telemetry) -> None:
        self._bus = bus
        self._index = index
        self._telemetry = telemetry

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for stream in self._bus.names.log_streams:
                tasks.create_task(self._run(stream))

    async def _run(self, stream: str) -> None:
        names = self._bus.names
        await work_batches(
            self._bus,
            stream,
            names.durable(DURABLE),
            self.handle,
            filters=names.subjects_in(stream, [names.events_of("Memory")]),
            batch=_BATCH,
            deliver="new",
            telemetry=self._telemetry,
        )

    async def handle(self, messages: list[Message]) -> None:
        """Returns once the Graph events are in the log. May be repeated: their ids derive from event and change."""
        await self._index.reach(messages[-1].sequence)
        wanted = {message.sequence: message for message in messages if NO_REACTION not in message.headers}
        query = "SELECT sequence, steps FROM graph_steps WHERE sequence BETWEEN ? AND ? ORDER BY sequence"
        rows = await self._index.reader.execute_fetchall(query, (messages[0].sequence, messages[-1].sequence))
        events = [event for sequence, raw in rows if sequence in wanted for event in _following(wanted[sequence], raw)]
        for start in range(0, len(events), _BATCH):
            await self._append(events[start : start + _BATCH])

    async def _append(self, events: list[NewEvent]) -> None:
        for event, result in zip(events, await append(self._bus, MEMORY, events), strict=True):
            if result.error is not None and result.error.code == UnavailableError.code:
                raise UnavailableError(result.error.detail)
            if result.error is not None:
                log.warning("%s after %s is not recorded: %s", event.type, event.causation_id, result.error.detail)


def _following(message: Message, raw: bytes) -> list[NewEvent]:
    changes = msgspec.json.decode(raw, type=list[GraphChange])
    return events_of(decode(message.data, message.sequence), message.time_ms, changes)


def events_of(cause: Event, at_ms: int, changes: list[GraphChange]) -> list[NewEvent]:
    """The events of some changes, as effects of the Memory event, which was stored at `at_ms`; none at the end of a
    chain of effects."""
    about = cause.metadata
    if about.hop >= HOPS:
        return []
    return [
        NewEvent(
            type=f"Graph.{name}",
            payload=msgspec.Raw(msgspec.json.encode(payload)),
            id=derive_id("evt", at_ms, "graph", about.id, str(index)),
            source=_SOURCE,
            actor=about.actor,
            correlation_id=about.correlation_id,
            causation_id=about.id,
            hop=about.hop + 1,
            world_id=about.world_id,
            room_id=about.room_id,
            traceparent=about.traceparent or None,
        )
        for index, (name, payload) in enumerate(changes)
    ]


def _edges(memory: Memory | None) -> dict[tuple[str, str], Link]:
    return {(link.target, link.type): link for link in memory.links} if memory else {}


def _ends(memory: Memory, link: Link) -> dict[str, Any]:
    return {"from": memory.id, "to": link.target, "type": link.type}
