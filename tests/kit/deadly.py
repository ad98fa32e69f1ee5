"""A process that works on a queue, or fills an index, and that some messages end: `python deadly.py URL PREFIX STREAM
KIND PATH`."""

import asyncio
import os
import signal
import sqlite3
import sys
from pathlib import Path

from crucible_core.subjects import Names
from crucible_kit.index.index import open_index
from crucible_kit.nats.bus import Message, open_bus
from crucible_kit.nats.consumer import work, work_batches

ACK_WAIT_S = 1.0


def write(connection: sqlite3.Connection, messages: list[Message]) -> None:
    for message in messages:
        if message.data.startswith(b"deadly"):
            os.kill(os.getpid(), signal.SIGKILL)
        connection.execute("INSERT INTO seen VALUES (?)", (message.data.decode(),))
        print(message.data.decode(), flush=True)


async def main(url: str, prefix: str, stream: str, kind: str, path: str) -> None:
    async with open_bus(url, Names(prefix)) as bus:
        if kind == "index":
            async with open_index(
                Path(path), bus, (stream,), 1, "CREATE TABLE IF NOT EXISTS seen (data TEXT)"
            ) as index:
                await index.follow(bus, write)

        async def handle(message: Message) -> None:
            if message.data.startswith(b"deadly"):
                await asyncio.sleep(0.2)  # so that others are in hand too
                os.kill(os.getpid(), signal.SIGKILL)
            print(message.data.decode(), flush=True)

        async def handle_all(messages: list[Message]) -> None:
            for message in messages:
                await handle(message)

        filters = [f"{prefix}.w.>"]
        if kind == "batches":
            await work_batches(bus, stream, "d", handle_all, filters=filters, ack_wait=ACK_WAIT_S)
        else:
            await work(bus, stream, "d", handle, filters=filters, concurrency=8, ack_wait=ACK_WAIT_S)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
