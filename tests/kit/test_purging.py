"""What is purged is forgotten by the index, once, and after everything that was read before."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from crucible_core.errors import UnavailableError
from crucible_core.protocol.worlds import WorldRecord
from crucible_kit.buckets import Change
from crucible_kit.index.erasure import Purger, record_purge
from crucible_kit.nats.bus import Bus
from tests.kit.outage import until
from tests.kit.test_index import fill, followed, make, subject


@contextlib.asynccontextmanager
async def running(purging: Purger) -> AsyncIterator[None]:
    task = asyncio.create_task(purging.run())
    try:
        yield
    finally:
        task.cancel()


async def test_what_is_noted_is_forgotten_once(bus: Bus, tmp_path: Path) -> None:
    stream = await make(bus)
    await fill(bus, *range(5))
    told: list[tuple[str, int]] = []
    troubles = [UnavailableError("busy")]

    async def forget(world: str, through: int) -> None:
        if troubles:
            raise troubles.pop()
        told.append((world, through))

    async with followed(tmp_path / "i.sqlite", bus, stream) as index:
        purging = Purger(index, forget)
        for world, through in (("a", 3), ("b", 5), ("a", 3)):
            purging.note(world, through)
        async with running(purging):
            await asyncio.wait_for(purging.wait_done(), 10)
            purging.note("a", 3)
            purging.note("a", 2)
            await asyncio.wait_for(purging.wait_done(), 10)
            purging.note("a", 4)
            await asyncio.wait_for(purging.wait_done(), 10)
    assert sorted(told) == [("a", 3), ("a", 4), ("b", 5)]


async def test_an_end_that_is_gone_is_not_waited_for(bus: Bus, tmp_path: Path) -> None:
    stream = await make(bus)
    await fill(bus, *range(5))
    await bus.purge(stream, subject(bus, "a"), through=3)
    found = await bus.next(stream, 1, subject(bus, "a"))
    assert found is not None
    assert found.sequence == 4
    await bus.remove(stream, 4)
    await bus.remove(stream, 4)
    await bus.remove(stream, 400)
    async with followed(tmp_path / "i.sqlite", bus, stream) as index:
        await fill(bus, 5, 6)
        await until(lambda: index.position.count == 7)
        await bus.purge(stream, subject(bus, "a"))
        assert await bus.last_sequence(stream) == 7
        await index.reach(7)
        with pytest.raises(UnavailableError):
            await index.reach(8, timeout=0.3)


async def test_the_bucket_tells_what_is_purged(bus: Bus, tmp_path: Path) -> None:
    noted: list[tuple[str, int]] = []

    async def forget(world: str, through: int) -> None:
        noted.append((world, through))

    stream = await make(bus)
    await fill(bus, *range(9))
    async with followed(tmp_path / "i.sqlite", bus, stream) as index:
        purging = Purger(index, forget)
        for value in (
            None,
            b"{nonsense",
            msgspec.json.encode(WorldRecord(id="kept", created_at="")),
            msgspec.json.encode(WorldRecord(id="gone", created_at="", purge_through=9)),
        ):
            record_purge(purging, Change("key", value, 1))
        async with running(purging):
            await asyncio.wait_for(purging.wait_done(), 10)
    assert noted == [("gone", 9)]
