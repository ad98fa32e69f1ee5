"""Snapshots of an index: whole or not there at all, of the right index or not used, and made only while it grows."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crucible_core.errors import CrucibleError
from crucible_core.subjects import object_stream
from crucible_kit.index.index import Index, open_index
from crucible_kit.index.snapshots import Snapshots, SnapshotStore, StoredSnapshot, restore
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.frames import Outgoing
from crucible_kit.telemetry.metrics import Metrics
from tests.kit.outage import until
from tests.kit.test_index import SCHEMA, fill, followed, insert, numbers, rows, subject


@pytest.fixture
async def stream(bus: Bus) -> str:
    name = bus.names.bucket("S")
    await bus.ensure_stream(name, subjects=[subject(bus, ">")])
    return name


@pytest.fixture
def store(bus: Bus) -> SnapshotStore:
    return SnapshotStore(bus, "i", 1, 3600, stale_s=0.5)


@contextlib.asynccontextmanager
async def making(index: Index, store: SnapshotStore, path: Path, every: int = 1) -> AsyncIterator[Snapshots]:
    snapshots = Snapshots(index, store, path.with_name("copy"), every, Metrics("t"), check_every_s=0.01)
    task = asyncio.create_task(snapshots.run())
    try:
        yield snapshots
    finally:
        task.cancel()
        await asyncio.wait({task})


async def complete(store: SnapshotStore, position: int) -> StoredSnapshot:
    async with asyncio.timeout(20):
        while True:
            found = [one for one in await store.all() if one.info and one.info.position.count >= position]
            if found:
                return found[0]
            await asyncio.sleep(0.02)


async def only(store: SnapshotStore, number: int) -> None:
    async with asyncio.timeout(20):
        while [one.number for one in await store.all()] != [number]:  # noqa: ASYNC110 - it is about the server
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def restored(path: Path, bus: Bus, stream: str, store: SnapshotStore, version: int = 1) -> AsyncIterator[Index]:
    async def from_snapshot(at: Path, identity: str) -> bool:
        return await restore(store, at, identity)

    async with open_index(path, bus, (stream,), version, SCHEMA, from_snapshot) as index:
        task = asyncio.create_task(index.follow(bus, insert))
        try:
            await until(lambda: index.caught_up or task.done())
            yield index
        finally:
            task.cancel()
            await asyncio.wait({task})


async def test_a_new_index_begins_with_the_newest(bus: Bus, stream: str, store: SnapshotStore, tmp_path: Path) -> None:
    await fill(bus, 1, 2, 3)
    async with followed(tmp_path / "a", bus, stream) as index, making(index, store, tmp_path / "a"):
        await complete(store, 3)
    await bus.purge(stream, subject(bus, "a"), 2)  # so that only the snapshot has them
    await fill(bus, 4)
    async with restored(tmp_path / "b", bus, stream, store) as index:
        assert await rows(index) == numbers(1, 2, 3, 4)
    assert not (tmp_path / "copy").exists()
    assert not (tmp_path / "b.restoring").exists()


async def test_one_is_made_when_enough_has_come_and_takes_the_place_of_the_others(
    bus: Bus, stream: str, store: SnapshotStore, tmp_path: Path
) -> None:
    async with followed(tmp_path / "a", bus, stream) as index, making(index, store, tmp_path / "a", every=3):
        await fill(bus, 1, 2)
        await index.reach(2)
        await asyncio.sleep(0.2)
        assert await store.all() == []
        await fill(bus, 3)
        first = await complete(store, 3)
        await asyncio.sleep(0.2)
        assert [one.number for one in await store.all()] == [first.number]
        await fill(bus, 4, 5, 6)
        second = await complete(store, 6)
        await only(store, second.number)


async def test_of_two_replicas_one_makes_it(bus: Bus, stream: str, store: SnapshotStore, tmp_path: Path) -> None:
    for name in "xy":
        (tmp_path / name).mkdir()
    async with followed(tmp_path / "a", bus, stream) as one, followed(tmp_path / "b", bus, stream) as two:
        await fill(bus, 1, 2, 3)
        await asyncio.gather(one.reach(3), two.reach(3))
        async with making(one, store, tmp_path / "x" / "a", 3), making(two, store, tmp_path / "y" / "b", 3):
            first = await complete(store, 3)
            await asyncio.sleep(0.3)
            assert [each.number for each in await store.all()] == [first.number]


async def test_a_broken_one_is_not_used(
    bus: Bus, stream: str, store: SnapshotStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await fill(bus, 1, 2, 3)
    async with followed(tmp_path / "a", bus, stream) as index, making(index, store, tmp_path / "a"):
        made = await complete(store, 3)
    await bus.remove(made.stream, 1)
    async with restored(tmp_path / "b", bus, stream, store) as index:
        assert await rows(index) == numbers(1, 2, 3)
    assert "is not used: it has 0 of" in caplog.text


async def test_one_of_another_version_is_not_used(
    bus: Bus, stream: str, store: SnapshotStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await fill(bus, 1)
    async with followed(tmp_path / "a", bus, stream) as index, making(index, store, tmp_path / "a"):
        await complete(store, 1)
    async with restored(tmp_path / "b", bus, stream, store, version=2) as index:
        assert await rows(index) == numbers(1)
    assert "is of another log or version (1 " in caplog.text


async def test_one_whose_maker_was_killed_is_passed_over_and_then_replaced(
    bus: Bus, stream: str, store: SnapshotStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await fill(bus, 1, 2)
    await store.begin(1)
    left = (await store.all())[0]
    await bus.store(Outgoing("$O." + left.stream.removeprefix("OBJ_") + ".C.x", b"half"))
    async with restored(tmp_path / "b", bus, stream, store) as index:
        assert await rows(index) == numbers(1, 2)
        async with making(index, store, tmp_path / "b"):
            assert (await complete(store, 2)).number == 2
            await only(store, 2)
    assert "another replica makes a snapshot" in caplog.text


async def test_what_is_removed_while_it_is_made_is_not_there(
    bus: Bus, stream: str, store: SnapshotStore, tmp_path: Path
) -> None:
    """As where an event is redacted: none must hold what it was."""
    await fill(bus, 1, 2)
    async with followed(tmp_path / "a", bus, stream) as index:
        await store.begin(1)
        await store.remove_all()
        with pytest.raises(CrucibleError):
            await store.put(1, tmp_path / "a", {})
        async with making(index, store, tmp_path / "a") as snapshots:
            first = await complete(store, 2)
            await snapshots.remove()
            await fill(bus, 3)
            assert (await complete(store, 3)).stream in await bus.stream_names()
            await only(store, first.number)


async def test_a_store_is_made_once(bus: Bus, store: SnapshotStore) -> None:
    await store.begin(1)
    with pytest.raises(CrucibleError):
        await store.begin(1)
    await store.remove(1)
    assert object_stream(bus.names.snapshots("i")) + "000001" not in await bus.stream_names()
