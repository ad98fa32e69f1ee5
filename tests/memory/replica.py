"""A process that reads File events as the memory service does, and that some notes end: `python replica.py URL PREFIX
DIRECTORY`. A note with the word `deadly` in it is one of those."""

import asyncio
import os
import signal
import sys
from functools import partial
from pathlib import Path

from crucible_core.protocol.events import NewEvent
from crucible_core.subjects import Names
from crucible_kit.buckets import open_bucket
from crucible_kit.index.index import open_index
from crucible_kit.nats.bus import open_bus
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.telemetry.spans import Telemetry
from crucible_memory import store
from crucible_memory.notes.feed import FileFeed
from crucible_memory.writer import Writer


class Mortal(Writer):
    async def append_whole(self, events: list[NewEvent]) -> None:
        if any(b"deadly" in bytes(event.payload) for event in events):
            os.kill(os.getpid(), signal.SIGKILL)
        await super().append_whole(events)


async def main(url: str, prefix: str, directory: str) -> None:
    async with open_bus(url, Names(prefix)) as bus:
        path = Path(directory) / "memory.sqlite"
        async with open_index(path, bus, bus.names.log_streams, store.VERSION, store.SCHEMA) as index:
            apply = partial(store.apply, lambda: None)
            following = asyncio.create_task(index.follow(bus, apply, [bus.names.events_of("Memory")]))
            bucket = await open_bucket(bus, "shards")
            await FileFeed(bus, bucket, Mortal(bus, index), Telemetry(), Metrics("memory")).run()
            following.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
