"""Notes by the hundred, whatever becomes of the processes that read them."""

import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from crucible_core.access import OPERATOR
from crucible_core.envelope import Event
from crucible_core.protocol.events import AppendReply, AppendRequest, NewEvent
from crucible_kit.buckets import open_bucket
from crucible_kit.rpc import call

from .conftest import Memories, Running, until
from .test_files import denying

REPLICA = Path(__file__).with_name("replica.py")
NOTES = 60
Start = Callable[[str], Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
async def start(events: None, memory: Memories, nats_url: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a replica with an index of its own."""
    processes: list[asyncio.subprocess.Process] = []

    async def begin(name: str) -> asyncio.subprocess.Process:
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        arguments = (str(REPLICA), nats_url, memory.bus.names.prefix, str(place))
        processes.append(await asyncio.create_subprocess_exec(sys.executable, *arguments))
        return processes[-1]

    yield begin
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def append(memory: Memories, *events: tuple[str, dict[str, Any]]) -> None:
    made = [NewEvent(type=f"File.{kind}", payload=msgspec.Raw(msgspec.json.encode(what))) for kind, what in events]
    reply = await call(memory.bus, OPERATOR, "events", "append", AppendRequest(events=made), AppendReply)
    assert all(result.error is None for result in reply.results)


async def save_all(memory: Memories, text: str, folder: str = "n") -> None:
    await append(memory, *(("Modified", {"path": f"{folder}/{n}.md", "content": f"{text} {n}"}) for n in range(NOTES)))


async def edit_all(memory: Memories) -> None:
    """A text, another one, the first one again, which would undo the second out of its turn; then every note moves."""
    for text in ("one", "two", "one"):
        await save_all(memory, text)
    await append(memory, *(("Renamed", {"from": f"n/{n}.md", "to": f"m/{n}.md"}) for n in range(NOTES)))
    await save_all(memory, "three", "m")


async def told(memory: Memories) -> list[Event]:
    return [event for event in await memory.log("File") if event.data.event == "Processed"]


async def has_told(memory: Memories, count: int) -> bool:
    return len(await told(memory)) >= count


async def check_edited(memory: Memories) -> None:
    """Each event has come to one end, and each note has been through its texts and places in order."""
    await until(lambda: has_told(memory, 5 * NOTES), 60)
    asked = [event for event in await memory.log("File") if event.data.event != "Processed"]
    assert Counter(event.metadata.causation_id for event in await told(memory)) == Counter(
        event.metadata.id for event in asked
    )
    seen: dict[str, list[tuple[str, str]]] = {}
    for event in await memory.log():
        payload = event.data.payload
        text, _, number = payload["content"].partition(" ")
        seen.setdefault(number, []).append((payload["path"].partition("/")[0], text))
    wanted = [("n", "one"), ("n", "two"), ("n", "one"), ("m", "one"), ("m", "three")]
    assert seen == {str(n): wanted for n in range(NOTES)}


async def test_many_notes_are_committed_together_and_in_order(
    memory: Memories, running_events: Running, running: Running
) -> None:
    async with running_events():
        await edit_all(memory)
        async with running():
            await check_edited(memory)
    changes = [event.sequence for event in await memory.log() if event.data.payload["path"].startswith("n/")]
    assert changes[NOTES // 2] - changes[0] == NOTES  # one batch: a change and its record, for each note


async def test_a_killed_process_neither_loses_nor_repeats_a_note(start: Start, memory: Memories) -> None:
    await edit_all(memory)
    for part in (1, 2, 3):
        process = await start("a")
        await until(lambda part=part: has_told(memory, part * NOTES), 30)
        process.kill()
        await process.wait()
    await start("a")
    await check_edited(memory)


async def test_a_stopped_process_does_no_harm_when_it_is_woken(start: Start, memory: Memories) -> None:
    first = await start("a")
    await save_all(memory, "zero", "o")
    await until(lambda: has_told(memory, 1), 30)
    os.kill(first.pid, signal.SIGSTOP)
    await edit_all(memory)
    await start("b")
    await until(lambda: has_told(memory, 2 * NOTES), 30)
    os.kill(first.pid, signal.SIGCONT)
    await until(lambda: has_told(memory, 6 * NOTES), 60)
    ids = Counter(event.metadata.causation_id for event in await told(memory))
    assert len(ids) == ids.total() == 6 * NOTES
    assert Counter(event.data.event for event in await memory.log()) == {"Created": 2 * NOTES, "Updated": 4 * NOTES}
    last = {event.metadata.entity: event.data.payload["content"] for event in await memory.log()}
    assert sum(text.startswith("three") for text in last.values()) == NOTES


async def test_a_note_that_ends_its_process_is_put_aside(start: Start, memory: Memories) -> None:
    names = memory.bus.names
    await append(memory, *(("Created", {"path": f"{word}.md", "content": word}) for word in ("good", "deadly", "last")))
    for _ in range(4):
        process = await start("a")
        await process.wait()
        assert process.returncode == -signal.SIGKILL
    await start("a")
    await until(lambda: has_told(memory, 2), 30)
    assert sorted(event.data.payload["path"] for event in await told(memory)) == ["good.md", "last.md"]
    parked = await memory.bus.last(names.attempts, names.parked(names.durable("memory-files")))
    assert parked is not None
    assert b"deadly" in parked.data


async def test_a_denied_note_holds_up_none_of_those_that_were_saved_with_it(
    memory: Memories, running_events: Running, running: Running
) -> None:
    async with running_events(), denying(memory.bus, "secret") as asked:
        texts = ["secret" if n in (3, 4, 30) else "plain" for n in range(40)]
        await append(memory, *(("Created", {"path": f"{n}.md", "content": text}) for n, text in enumerate(texts)))
        async with running():
            await until(lambda: has_told(memory, 40))
    statuses = {event.data.payload["path"]: event.data.payload["status"] for event in await told(memory)}
    assert {path for path, status in statuses.items() if status == "denied"} == {"3.md", "4.md", "30.md"}
    assert Counter(statuses.values()) == {"created": 37, "denied": 3}
    # What is denied is judged once, and what was saved with it a second time.
    assert sum(b"secret" in event for event in asked) == 3
    assert sum(b"plain" in event for event in asked) == 2 * 37


async def test_notes_that_come_back_by_the_hundred_are_made_again(
    memory: Memories, running_events: Running, running: Running
) -> None:
    async with running_events():
        await save_all(memory, "there")
        await append(memory, ("DirectoryDeleted", {"path": "n"}))
        await save_all(memory, "again")
        async with running():
            await until(lambda: has_told(memory, 3 * NOTES), 30)
    assert Counter(event.data.event for event in await memory.log()) == {"Created": 2 * NOTES, "Deleted": NOTES}
    assert len({event.metadata.entity for event in await memory.log()}) == NOTES


async def test_a_replica_that_learns_of_its_loss_by_its_own_record_goes_on(
    memory: Memories, running_events: Running, running: Running
) -> None:
    async with running_events(), running():
        await save_all(memory, "one")
        await until(lambda: has_told(memory, NOTES))
        await (await open_bucket(memory.bus, "shards")).put("memory.00", b'{"owner": "another", "position": 0}')
        await save_all(memory, "two", "m")
        await until(lambda: has_told(memory, 2 * NOTES))
        await save_all(memory, "three", "o")
        await until(lambda: has_told(memory, 3 * NOTES), 8)
    assert Counter(event.data.event for event in await memory.log()) == {"Created": 3 * NOTES}
