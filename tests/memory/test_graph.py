"""What follows from memories: Graph events for nodes and edges, and Memory.Accessed for what is read."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from crucible_core.errors import ConflictError
from crucible_core.protocol.memory import Cause, Link
from crucible_memory.graph.edges import graph_changes
from crucible_memory.state import Memory

from .conftest import Memories, Running, until

CAUSE = Cause(actor="user:alice", correlation_id="cor_1", hop=2)


def a_memory(*links: Link) -> Memory:
    fields: dict[str, Any] = dict.fromkeys(("world_id", "room_id", "content", "created_at", "updated_at"), "x")
    return Memory(id="mem_a", links=list(links), key=1, sequence=1, **fields)


B, C = Link("mem_b", "related", 0.5), Link("Some note", "wikilink")


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        (None, None, []),
        (None, a_memory(B), ["NodeAdded", "EdgeCreated mem_b"]),
        (a_memory(B), a_memory(B), []),
        (a_memory(B), a_memory(Link("mem_b", "related", 0.9)), []),
        (a_memory(B), a_memory(B, C), ["EdgeCreated Some note"]),
        (a_memory(B, C), a_memory(C), ["EdgeRemoved mem_b"]),
        (a_memory(B), a_memory(Link("mem_b", "cites")), ["EdgeRemoved mem_b", "EdgeCreated mem_b"]),
        (a_memory(B), None, ["EdgeRemoved mem_b", "NodeRemoved"]),
    ],
)
def test_steps_lead_from_one_state_to_the_next(before: Memory | None, after: Memory | None, found: list[str]) -> None:
    told = [f"{name} {payload.get('to', '')}".strip() for name, payload in graph_changes(before, after)]
    assert told == found


@pytest.fixture
async def service(events: None, running: Running) -> AsyncIterator[Starlette]:
    async with running(memory_graph_events=True) as app:
        yield app


async def graph(memory: Memories, count: int) -> list[tuple[str, Any, Any]]:
    """The Graph events, once there are so many."""
    await until(lambda: _has(memory, count))
    return [(e.data.event, e.data.payload.get("id") or e.data.payload["from"], e.data.payload.get("to"))
            for e in await memory.log("Graph")]  # fmt: skip


async def _has(memory: Memories, count: int) -> bool:
    return len(await memory.log("Graph")) >= count


async def test_graph_follows_from_memories_and_links(service: Starlette, memory: Memories) -> None:
    first = await memory.create("one", cause=CAUSE)
    second = await memory.create("two", links=[Link(target=first)])
    await memory.link(first, second, type="cites", weight=0.7)
    await memory.append("Memory.Unlinked", {"from": second, "to": first}, entity=second)
    await memory.update(second, content="still two")
    await memory.delete(first)
    assert await graph(memory, 7) == [
        ("NodeAdded", first, None),
        ("NodeAdded", second, None),
        ("EdgeCreated", second, first),
        ("EdgeCreated", first, second),
        ("EdgeRemoved", second, first),
        ("EdgeRemoved", first, second),
        ("NodeRemoved", first, None),
    ]
    added, *_, cited = [e for e in await memory.log("Graph") if first in e.data.payload.values()][:3]
    created = (await memory.log())[0]
    assert (added.metadata.causation_id, added.metadata.hop) == (created.metadata.id, created.metadata.hop + 1)
    assert (added.metadata.correlation_id, added.metadata.actor) == ("cor_1", "user:alice")
    assert cited.data.payload == {"from": first, "to": second, "type": "cites", "strength": 0.7}


async def test_imported_memories_bring_their_graph_with_them(service: Starlette, memory: Memories) -> None:
    await memory.append("Memory.Created", {"id": "mem_old", "content": "x"}, react=False)
    new = await memory.create("new")
    assert await graph(memory, 1) == [("NodeAdded", new, None)]


async def test_graph_is_told_once_over_two_replicas_and_a_rebuilt_index(
    events: None, running: Running, memory: Memories, tmp_path: Path
) -> None:
    async with running(memory_graph_events=True), running(tmp_path / "second", memory_graph_events=True):
        ids = [await memory.create(f"{n}") for n in range(20)]
        await graph(memory, 20)
    async with running(tmp_path / "third", memory_graph_events=True):
        ids.append(await memory.create("last"))
        told = await graph(memory, 21)
    assert sorted(id for _, id, _ in told) == sorted(ids)


async def test_what_is_read_is_told_and_changes_nothing(events: None, running: Running, memory: Memories) -> None:
    async with running(memory_accessed_every_s=3600, memory_graph_events=True):
        id = await memory.create("the quick brown fox")
        before = await memory.get(id)
        assert [found.id for found in await memory.query("fox")] == [id]
        await memory.query("fox")
        other = await memory.create("a lazy dog")
        await memory.query("dog")
        await until(lambda: _accessed(memory, 2))
        told = [event.data.payload for event in await memory.log() if event.data.event == "Accessed"]
        assert told[0] == {"id": id}
        assert (told[1]["id"], told[1]["query"], 0 < told[1]["relevance"] <= 1) == (other, "dog", True)
        after = await memory.get(id)
        assert (before.sequence, before.updated_at) == (after.sequence, after.updated_at)
        await memory.update(id, expected=before.sequence, content="a slow fox")
        with pytest.raises(ConflictError):
            await memory.update(id, expected=before.sequence, content="another")
        assert len(await memory.log("Graph")) == 2


async def _accessed(memory: Memories, count: int) -> bool:
    return (await memory.kinds()).count("Accessed") >= count


async def test_nothing_follows_where_nobody_wants_it(events: None, running: Running, memory: Memories) -> None:
    async with running():
        id = await memory.create("x")
        await memory.get(id)
        await asyncio.sleep(0.1)
        assert (await memory.kinds(), await memory.log("Graph")) == (["Created"], [])


async def test_clients_may_tell_of_reads_too(service: Starlette, memory: Memories) -> None:
    id = await memory.create("x")
    before = await memory.get(id)
    await memory.append("Memory.Accessed", {"id": id, "query": "x", "relevance": 0.5})
    await memory.tag(id, "#y")
    assert (await memory.get(id)).tags == ["#y"]
    assert before.sequence < (await memory.get(id)).sequence
    assert (await memory.status()).skipped == 0
