"""Redaction of Memory events: what a memory forgets, and that it goes on from there."""

from pathlib import Path

import pytest
from starlette.applications import Starlette

from crucible_core.access import OPERATOR
from crucible_core.errors import NotFoundError
from crucible_core.protocol.events import RedactRequest
from crucible_core.protocol.memory import MemoryView
from crucible_kit.rpc import call

from .conftest import Memories, Running, until

SECRET = "vermilion xylophone"


async def redact(memory: Memories, *sequences: int) -> None:
    for event in await memory.log():
        if event.sequence in sequences:
            await call(memory.bus, OPERATOR, "events", "redact", RedactRequest(id=event.metadata.id), bytes)


async def seen(memory: Memories, id: str) -> MemoryView | None:
    try:
        return await memory.get(id)
    except NotFoundError:
        return None


def in_files(directory: Path, *words: str) -> list[str]:
    raw = b"".join(file.read_bytes() for file in directory.glob("memory.sqlite*"))
    return [word for word in words if word.encode() in raw]


async def test_a_memory_goes_back_to_what_is_left(service: Starlette, memory: Memories, index_dir: Path) -> None:
    id = await memory.create("plain words", tags=["#a"])
    await memory.update(id, content=f"the {SECRET} plays", tags=["#a", "#b"])
    await memory.tag(id, "#c")
    assert in_files(index_dir, SECRET, "xylophon")
    await redact(memory, 2)

    async def forgotten() -> bool:
        found = await seen(memory, id)
        return found is not None and found.content == "plain words"

    await until(forgotten)
    found = await memory.get(id)
    assert (found.tags, found.sequence) == (["#a", "#c"], 4)
    assert await memory.query("xylophone") == []
    assert [match.id for match in await memory.query("plain")] == [id]
    await until(lambda: in_files(index_dir, SECRET, "xylophon") == [])
    assert (await memory.update(id, content="new words", expected=4)).sequence == 5


async def test_a_memory_without_its_beginning_is_gone(service: Starlette, memory: Memories, index_dir: Path) -> None:
    id = await memory.create(SECRET)
    await memory.tag(id, "#c")
    await redact(memory, 1)

    async def gone() -> bool:
        return await seen(memory, id) is None

    await until(gone)
    await until(lambda: in_files(index_dir, SECRET, "xylophon") == [])
    await memory.create("made again", id=id)
    assert (await memory.get(id)).content == "made again"
    assert await memory.kinds() == ["Tagged", "Redacted", "Created"]


async def test_a_memory_lives_by_a_later_event_that_has_all_of_it(service: Starlette, memory: Memories) -> None:
    id = await memory.create(SECRET)
    await memory.update(id, content="plain words")
    await redact(memory, 1)

    async def settled() -> bool:
        found = await seen(memory, id)
        return found is not None and found.sequence == 3

    await until(settled)
    assert (await memory.get(id)).content == "plain words"


@pytest.mark.parametrize("rebuilt", [False, True])
async def test_a_deletion_stays_one(
    events: None, running: Running, memory: Memories, tmp_path: Path, rebuilt: bool
) -> None:
    async with running():
        first = await memory.create("first")
        second = await memory.create("second")
        await memory.delete(first)
        await memory.delete(second)
        await memory.create("second again", id=second)
        await redact(memory, 3, 4)
        if not rebuilt:
            await until(lambda: settled_in(memory, second, 7))
            assert await seen(memory, first) is None
    if rebuilt:
        async with running(tmp_path / "new"):
            await until(lambda: settled_in(memory, second, 7))
            assert await seen(memory, first) is None
            assert len(await memory.query()) == 1


async def settled_in(memory: Memories, id: str, sequence: int) -> bool:
    found = await seen(memory, id)
    return found is not None and found.sequence == sequence and found.content == "second again"


async def test_a_new_index_says_the_same(events: None, running: Running, memory: Memories, tmp_path: Path) -> None:
    async with running():
        ids = [await memory.create(f"{SECRET} {n}") for n in range(4)]
        for id in ids[:3]:
            await memory.update(id, content=f"plain {id}", metadata={"n": 1})
        await memory.tag(ids[3], "#c")
        await redact(memory, 1, 4, 6)

        async def settled() -> bool:
            found = [await seen(memory, id) for id in ids]
            return found[3] is None and found[1] is not None and found[1].content == f"{SECRET} 1"

        await until(settled)
        before = [await seen(memory, id) for id in ids]
    async with running(tmp_path / "new"):

        async def same() -> bool:
            return [await seen(memory, id) for id in ids] == before

        await until(same)


async def test_changes_meanwhile_are_not_lost(service: Starlette, memory: Memories) -> None:
    id = await memory.create("plain")
    await memory.update(id, content=SECRET)
    await redact(memory, 2)
    for n in range(20):
        await memory.tag(id, f"#t{n}")

    async def settled() -> bool:
        found = await seen(memory, id)
        return found is not None and len(found.tags) == 20 and found.content == "plain"

    await until(settled)
    assert (await memory.get(id)).tags == [f"#t{n}" for n in range(20)]
    assert (await memory.get(id)).content == "plain"
