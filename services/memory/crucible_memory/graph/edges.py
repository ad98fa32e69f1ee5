"""Graph events: what each Memory event does to the graph whose nodes are memories, told to the log."""

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
"""By the sequence of a Memory event, what it does to the graph: every replica's index comes to the same."""

DURABLE = "memory-graph"
KEPT = 1_000_000
"""Sequences behind the index for which steps are kept: as far as telling them may lag."""
_BATCH = 200
_SOURCE = Source("system", "memory")

Step = tuple[str, dict[str, Any]]
"""The name of a Graph event, and its payload."""


def steps(before: Memory | None, after: Memory | None) -> list[Step]:
    """What makes the graph with `before` in it into the one with `after`. A link leads to an id, or to a name that
    nothing has yet."""
    old, new = _edges(before), _edges(after)
    found: list[Step] = []
    if after is not None and before is None:
        # Without the title: a memory whose event is redacted must not live on here.
        found.append(("NodeAdded", {"id": after.id, "type": "memory"}))
    found += [("EdgeRemoved", _ends(before, link)) for place, link in old.items() if before and place not in new]
    for place, link in new.items():
        if after is not None and place not in old:
            strength = {} if link.weight is None else {"strength": link.weight}
            found.append(("EdgeCreated", _ends(after, link) | strength))
    if before is not None and after is None:
        found.append(("NodeRemoved", {"id": before.id}))
    return found


def keep(writer: sqlite3.Connection, found: Iterable[tuple[int, list[Step]]]) -> None:
    """Notes what some events do, and forgets what nobody asks for any more."""
    rows = [(sequence, msgspec.json.encode(made)) for sequence, made in found if made]
    if rows:
        writer.executemany("INSERT OR REPLACE INTO graph_steps VALUES (?, ?)", rows)
        last = rows[-1][0]
        old = (base_of(stream_number(last)), last - KEPT)
        writer.execute("DELETE FROM graph_steps WHERE sequence >= ? AND sequence < ?", old)


class Graph:
    """The durable consumer of Memory events, in each stream of the log, that tells what follows from them, one batch
    at a time."""

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
        """Returns once all that follows is in the log. May be repeated: the ids come from the event and the step."""
        await self._index.reach(messages[-1].sequence)
        wanted = {message.sequence: message for message in messages if NO_REACTION not in message.headers}
        query = "SELECT sequence, steps FROM graph_steps WHERE sequence BETWEEN ? AND ? ORDER BY sequence"
        rows = await self._index.reader.execute_fetchall(query, (messages[0].sequence, messages[-1].sequence))
        told = [event for sequence, raw in rows if sequence in wanted for event in _following(wanted[sequence], raw)]
        for start in range(0, len(told), _BATCH):
            await self._append(told[start : start + _BATCH])

    async def _append(self, events: list[NewEvent]) -> None:
        for event, result in zip(events, await append(self._bus, MEMORY, events), strict=True):
            if result.error is not None and result.error.code == UnavailableError.code:
                raise UnavailableError(result.error.detail)
            if result.error is not None:
                log.warning("%s after %s is not recorded: %s", event.type, event.causation_id, result.error.detail)


def _following(message: Message, raw: bytes) -> list[NewEvent]:
    made = msgspec.json.decode(raw, type=list[Step])
    return events_of(decode(message.data, message.sequence), message.time_ms, made)


def events_of(cause: Event, at_ms: int, made: list[Step]) -> list[NewEvent]:
    """The steps as events that follow from the Memory event, which was stored at `at_ms`; none at the end of a chain of
    effects."""
    about = cause.metadata
    if about.hop >= HOPS:
        return []
    return [
        NewEvent(
            type=f"Graph.{name}",
            payload=msgspec.Raw(msgspec.json.encode(payload)),
            id=derive_id("evt", at_ms, "graph", about.id, str(place)),
            source=_SOURCE,
            actor=about.actor,
            correlation_id=about.correlation_id,
            causation_id=about.id,
            hop=about.hop + 1,
            world_id=about.world_id,
            room_id=about.room_id,
            traceparent=about.traceparent or None,
        )
        for place, (name, payload) in enumerate(made)
    ]


def _edges(memory: Memory | None) -> dict[tuple[str, str], Link]:
    return {(link.target, link.type): link for link in memory.links} if memory else {}


def _ends(memory: Memory, link: Link) -> dict[str, Any]:
    return {"from": memory.id, "to": link.target, "type": link.type}
