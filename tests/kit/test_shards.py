"""Which replica owns a shard, and how it learns that it does not any more."""

import asyncio
import time

import msgspec

from crucible_core.position import Position
from crucible_kit.buckets import open_bucket
from crucible_kit.handlers.shards import DEAD_S, Ownership, Shard, ShardRecord
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.streams import declare_streams
from crucible_kit.settings import KitSettings


def stand_still() -> None:
    """As on a machine that has too much to do."""
    time.sleep(DEAD_S + 0.1)


async def test_replica_that_stood_still_while_it_wrote_keeps_its_shards(bus: Bus) -> None:
    await declare_streams(bus, KitSettings())
    dropped: list[Shard] = []

    async def take(shards: list[Shard]) -> None:
        pass

    async def drop(shards: list[Shard]) -> None:
        dropped.extend(shards)

    async def first(shard: int) -> Position:
        return bus.names.start

    def tell(shard: Shard) -> ShardRecord:
        return msgspec.structs.replace(shard.record, began_ms=shard.record.began_ms + 1)

    async def write() -> None:
        while True:
            await ownership.checkpoint()
            await asyncio.sleep(0.001)

    ownership = Ownership(bus, await open_bucket(bus, "shards"), "test", take, drop, tell, first)
    running = [asyncio.create_task(ownership.run())]
    await ownership.begun.wait()
    running.append(asyncio.create_task(write()))
    for _ in range(3):
        await asyncio.sleep(0.1)
        stand_still()
        async with asyncio.timeout(10):
            await ownership.wait_alive()
    lost = list(dropped)  # what it gives up at its end comes after
    for task in reversed(running):
        task.cancel()
        await asyncio.wait([task])
    assert not lost
