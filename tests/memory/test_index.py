import shutil
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from crucible_core.envelope import Data, Event, encode
from crucible_core.protocol.memory import Cause, MemoryView, ScoredMemory
from crucible_kit.nats.frames import Outgoing
from tests.places import make_world

from .conftest import Memories, Running, until

QUERIES: list[dict[str, Any]] = [
    {},
    {"text": "clocks order"},
    {"text": "note"},
    {"tags": ["even"]},
    {"filter": {"links.0.target": {"starts_with": "mem_"}}},
    {"world_id": "other"},
]


async def fill(memory: Memories) -> list[str]:
    """Memories with a past: changed, tagged, linked, deleted, made again."""
    ids = [await memory.create(f"note {n} about clocks", tags=["#even"] if n % 2 == 0 else []) for n in range(10)]
    for n, id in enumerate(ids[:6]):
        await memory.update(id, content=f"note {n}: order and disorder", metadata={"n": n})
        await memory.tag(id, f"#t{n}")
        await memory.link(id, ids[n + 1], weight=0.5)
    await memory.delete(ids[9])
    await memory.delete(ids[8])
    await memory.create("made again", id=ids[8])
    await make_world(memory.bus, "other")
    await memory.create("elsewhere", cause=Cause(world_id="other"))
    payload = {"path": "a.md", "content": "# Note\n[[b]] #even"}
    await memory.append("File.Created", payload)
    await memory.append("File.Created", {"path": "b.md", "content": "clocks"})

    async def has_notes() -> bool:
        return len(await memory.query("note clocks", filter={"path": {"in": ["a.md", "b.md"]}})) == 2

    await until(has_notes)
    return ids[:9]


async def answers(memory: Memories, ids: list[str]) -> tuple[list[MemoryView], list[list[ScoredMemory]]]:
    return [await memory.get(id) for id in ids], [await memory.query(**query, limit=100) for query in QUERIES]


def remove(directory: Path) -> None:
    shutil.rmtree(directory)


def damage(directory: Path) -> None:
    (directory / "memory.sqlite").write_bytes(b"this is no database" * 1000)


def cut(directory: Path) -> None:
    path = directory / "memory.sqlite"
    path.write_bytes(path.read_bytes()[:5000])


def keep(directory: Path) -> None:
    """Nothing happens to it."""


@pytest.mark.parametrize("mishap", [remove, damage, cut, keep])
async def test_index_is_what_the_log_says(
    events: None, running: Running, memory: Memories, index_dir: Path, mishap: Any
) -> None:
    async with running():
        ids = await fill(memory)
        before = await answers(memory, ids)
        assert len(before[1][0]) == 11
    mishap(index_dir)
    async with running():
        assert await answers(memory, ids) == before


async def test_index_goes_on_where_it_was(events: None, running: Running, memory: Memories) -> None:
    async with running():
        id = await memory.create("first")
    await memory.append("Memory.Tagged", {"id": id, "tag": "#meanwhile"})
    async with running():
        assert (await memory.get(id)).tags == ["#meanwhile"]


async def test_events_that_cannot_be_read_are_passed_over_and_told(
    events: None, running: Running, memory: Memories
) -> None:
    subject = memory.bus.names.event("default", "main", "Memory", "Created", "mem_bad")
    for raw in (b"{", b"\xff\xfe", b"{}", b'{"type":"Memory","data":{"event":"Created","payload":{"id":7}}}'):
        await memory.bus.store(Outgoing(subject, raw))
    async with running() as app:
        id = await memory.create("good")
        assert [one.id for one in await memory.query()] == [id]
        told = await memory.status()
        assert (told.memories, told.skipped, [one.sequence for one in told.latest]) == (1, 4, [4, 3, 2, 1])
        assert all(one.reason for one in told.latest)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://memory") as client:
            assert "crucible_memory_skipped_events_total 4.0" in (await client.get("/metrics")).text
    async with running():
        assert (await memory.status()).skipped == 4


async def test_event_filed_under_another_entity_is_passed_over(
    events: None, running: Running, memory: Memories
) -> None:
    async with running():
        id = await memory.create("good")
        event = (await memory.log())[0]
        about = msgspec.structs.replace(event.metadata, id="evt_bad", entity="mem_other")
        bad = encode(Event("Memory", Data("Deleted", {"id": id}), about))
        await memory.bus.store(
            Outgoing(memory.bus.names.event("default", "main", "Memory", "Deleted", "mem_other"), bad)
        )
        assert (await memory.get(id)).content == "good"


async def test_whole_state_revives_a_memory_whose_past_expired(
    events: None, running: Running, memory: Memories
) -> None:
    async with running():
        await memory.append("Memory.Tagged", {"id": "mem_a", "tag": "#x"})
        await memory.append("Memory.Updated", {"id": "mem_a", "content": "whole", "tags": ["#y"]})
        assert (await memory.get("mem_a")).tags == ["#y"]


async def test_many_events_at_once_are_folded_in_order(events: None, running: Running, memory: Memories) -> None:
    for number in range(300):
        kind = "Created" if number % 100 == 0 else "Deleted" if number % 100 == 99 else "Updated"
        content = {} if kind == "Deleted" else {"content": str(number)}
        await memory.append(f"Memory.{kind}", {"id": "mem_a", **content})
    await memory.append("Memory.Created", {"id": "mem_a", "content": "last", "tags": ["#only"]})
    async with running():
        assert (await memory.get("mem_a")).content == "last"
        assert [one.id for one in await memory.query("last")] == ["mem_a"]
        assert await memory.query("298") == []
