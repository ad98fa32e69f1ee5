"""The floors that the events bench compares with: the same work by the bare libraries, on a nats-server of their own
with the same settings."""

import asyncio
import contextlib
import os
import secrets
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nats
from nats.js.api import StreamConfig

from bench.load import hammer, post
from bench.servers import _free_port, _serving
from crucible_cli.up import nats_server

SYNC = "always"
BATCH = 500


@contextlib.contextmanager
def server(sync: str = SYNC) -> Iterator[str]:
    """The URL of a nats-server on an empty store."""
    root = Path(tempfile.mkdtemp(prefix="crucible-floor-"))
    prepared = nats_server.prepare(root, _free_port(), sync=sync)
    environ = nats_server.environment(os.environ)
    with (
        (root / "log").open("wb") as log,
        subprocess.Popen(prepared.command, env=environ, stdout=log, stderr=log) as process,
    ):
        try:
            deadline = time.monotonic() + 20
            while not asyncio.run(prepared.ready()):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield prepared.url
        finally:
            process.terminate()
    shutil.rmtree(root, ignore_errors=True)


async def make_stream(client: Any) -> None:
    config = StreamConfig(name="FLOOR", subjects=["floor.>"], allow_atomic=True, allow_direct=True)
    await client.jetstream().add_stream(config)


def batches(payload: bytes, seconds: float) -> float:
    """Events a second: atomic batches of 500 with message ids, published one after another by nats-py."""

    async def run(url: str) -> float:
        client = await nats.connect(url, pending_size=64 * 1024 * 1024)
        await make_stream(client)
        inbox = await client.subscribe(reply := client.new_inbox())
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            batch = secrets.token_hex(12)
            for place in range(1, BATCH + 1):
                headers = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(place), "Nats-Msg-Id": f"{batch}{place}"}
                if place == BATCH:
                    headers["Nats-Batch-Commit"] = "1"
                await client.publish(f"floor.b{place % 64}", payload, reply if place == BATCH else "", headers=headers)
            answer = await inbox.next_msg(10)
            assert b'"error"' not in answer.data, answer.data
            done += BATCH
        rate = done / (time.perf_counter() - began)
        await client.close()
        return rate

    with server() as url:
        return asyncio.run(run(url))


def handler(body: bytes, connections: int, seconds: float, name: str = "app") -> list[float]:
    """What each request to the bare handler took, Litestar's or the one of that name in `events_app`."""

    async def prepare(url: str) -> None:
        client = await nats.connect(url)
        await make_stream(client)
        await client.close()

    with server() as url:
        asyncio.run(prepare(url))
        port = _free_port()
        app = [sys.executable, "-m", "uvicorn", f"bench.events_app:{name}", "--loop", "uvloop", "--http", "httptools"]
        os.environ["BENCH_NATS_URL"] = url
        with _serving([*app, "--no-access-log", "--port", str(port)], port):
            request = post("/", body)
            asyncio.run(hammer(port, lambda: request, connections, 1))
            return asyncio.run(hammer(port, lambda: request, connections, seconds))


def rows(schema: str, insert: str, values: Sequence[Sequence[Any]]) -> float:
    """Rows a second that SQLite takes in transactions of 1,000."""
    root = Path(tempfile.mkdtemp(prefix="crucible-floor-"))
    with contextlib.closing(sqlite3.connect(root / "floor.sqlite")) as connection:
        connection.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {schema}")
        began = time.perf_counter()
        for start in range(0, len(values), 1000):
            connection.executemany(insert, values[start : start + 1000])
            connection.commit()
        rate = len(values) / (time.perf_counter() - began)
    shutil.rmtree(root, ignore_errors=True)
    return rate


def ordered(url: str, stream: str, count: int) -> float:
    """Messages a second that an ordered consumer of nats-py reads, from the beginning of a stream."""

    async def run() -> float:
        client = await nats.connect(url)
        context = client.jetstream()
        subscription = await context.subscribe("evt.>", stream=stream, ordered_consumer=True, pending_msgs_limit=-1)
        began = time.perf_counter()
        for _ in range(count):
            await subscription.next_msg(30)
        rate = count / (time.perf_counter() - began)
        await client.close()
        return rate

    return asyncio.run(run())


def core_publish(url: str, payload: bytes, runs: int) -> float:
    """The median seconds from a publish to its arrival at a subscriber on another connection."""

    async def run() -> list[float]:
        sender, receiver = await nats.connect(url), await nats.connect(url)
        inbox = await receiver.subscribe("floor.live")
        await receiver.flush()
        took = []
        for _ in range(runs):
            began = time.perf_counter()
            await sender.publish("floor.live", payload)
            await inbox.next_msg(30)
            took.append(time.perf_counter() - began)
            await asyncio.sleep(0.005)
        await sender.close()
        await receiver.close()
        return took

    return sorted(asyncio.run(run()))[runs // 2]
