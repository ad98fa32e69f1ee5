"""The load of the delivery bench, in a process of its own: `python -m bench.generator FILE`, which reads what to
do from stdin and writes what came of it into the file."""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psutil
import uvloop

from bench.load import connect, post


class Load(msgspec.Struct):
    """`count` events of `types` in turn to a gateway, over `connections`; `rate` a second, 0: as fast as it takes
    them. Or, with `urls`, the bare loop: `count` POSTs of the same size straight to them, `connections` at once."""

    count: int
    connections: int
    port: int = 0
    key: str = ""
    rate: float = 0.0
    types: tuple[str, ...] = ("Custom.Bench",)
    urls: tuple[str, ...] = ()


class Sent(msgspec.Struct):
    """`posted` has, by event id, when it was posted and how many seconds its answer took."""

    began: float
    ended: float
    cpu_s: float
    posted: dict[str, tuple[float, float]] = {}


class Generator:
    """The process, which has begun."""

    def __init__(self, load: Load) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._told = Path(self._folder.name) / "sent.json"
        self._process = subprocess.Popen([sys.executable, "-m", "bench.generator", self._told], stdin=-1)
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(load))
        self._process.stdin.close()

    def result(self) -> Sent:
        """What it has sent, once it is all."""
        assert self._process.wait() == 0
        with self._folder:
            return msgspec.json.decode(self._told.read_bytes(), type=Sent)


def send(load: Load) -> Sent:
    return Generator(load).result()


def _body(type: str) -> bytes:
    return json.dumps({"type": type, "payload": {"text": "x" * 480}}).encode()


async def _events(load: Load) -> dict[str, tuple[float, float]]:
    requests = [post("/api/v1/events", _body(type), key=load.key) for type in load.types]
    posted: dict[str, tuple[float, float]] = {}
    turns, began = iter(range(load.count)), time.time()

    async def client() -> None:
        connection = await connect(load.port)
        for turn in turns:
            if load.rate:
                await asyncio.sleep(max(0.0, began + turn / load.rate - time.time()))
            at = time.time()
            status, body = await connection.ask(requests[turn % len(requests)])
            assert status == 201, (status, body[:500])
            posted[json.loads(body)["id"]] = at, time.time() - at

    await asyncio.gather(*(client() for _ in range(load.connections)))
    return posted


async def _straight(load: Load) -> None:
    turns = iter(range(load.count))
    body = _body("Custom.Bench") + b" " * 500  # as long as the envelope makes it
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def client() -> None:
            for turn in turns:
                async with session.post(load.urls[turn % len(load.urls)], data=body) as answer:
                    await answer.read()

        await asyncio.gather(*(client() for _ in range(load.connections)))


def main() -> None:
    load: Any = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    uvloop.install()
    began = time.time()
    posted = {}
    if load.urls:
        asyncio.run(_straight(load))
    else:
        posted = asyncio.run(_events(load))
    sent = Sent(began, time.time(), sum(psutil.Process().cpu_times()[:2]), posted)
    Path(sys.argv[1]).write_bytes(msgspec.json.encode(sent))


if __name__ == "__main__":
    main()
