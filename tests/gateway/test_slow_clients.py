"""Clients that do not read, on a log of large events: appends are answered as ever, the gateway keeps its connection to
NATS, and its memory is bounded and comes back."""

import asyncio
import base64
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest
import pytest_asyncio

from crucible_cli.up import nats_server
from crucible_core.subjects import Names
from crucible_kit.nats.bus import Bus, open_bus
from tests.kit.outage import Server, private_server, until

from .conftest import KEY, commit

pytestmark = pytest.mark.asyncio(loop_scope="module")
HEADERS = {"X-API-Key": KEY}
STREAM = "/api/v1/events/stream"
COUNT = 60
TEXT = "x" * 1_000_000
MIB = 1024 * 1024
MOST_GROWTH = 180 * MIB
"""What the bounds of the gateway come to, with what the interpreter adds. Without them it was several times that."""


class Installation(msgspec.Struct):
    """A log of large events, and the processes of gateway and events on it."""

    server: Server
    bus: Bus
    port: int
    process: psutil.Process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def memory(self) -> int:
        return int(self.process.memory_info().rss)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installation(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Installation]:
    directory = tmp_path_factory.mktemp("slow")
    async with (
        private_server(directory / "nats") as server,
        open_bus(server.url, Names("")) as bus,
        service("events", server.url, directory),
        service("gateway", server.url, directory) as (process, port),
    ):
        for number in range(COUNT):
            await commit(bus, number, text=TEXT)
        yield Installation(server, bus, port, process)


@contextlib.asynccontextmanager
async def service(name: str, nats_url: str, directory: Path) -> AsyncIterator[tuple[psutil.Process, int]]:
    port = nats_server.free_port()
    settings = {"NATS_URL": nats_url, "ADMIN_KEY": KEY, "PORT": str(port), "DATA_DIR": str(directory)}
    environ = {**os.environ, **{f"CRUCIBLE_{key}": value for key, value in settings.items()}}
    with (directory / f"{name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", f"crucible_{name}", env=environ, stdout=log, stderr=log
        )
    try:
        await until(lambda: ready(port), 30)
        yield psutil.Process(process.pid), port
    finally:
        process.terminate()
        await process.wait()


async def ready(port: int) -> bool:
    async with httpx.AsyncClient() as client:
        with contextlib.suppress(httpx.HTTPError):
            return (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
    return False


@contextlib.asynccontextmanager
async def idle(port: int, kind: str, start: str) -> AsyncIterator[asyncio.StreamReader]:
    """A client that asks, and then reads nothing by itself."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    key = f"Host: x\r\nX-API-Key: {KEY}\r\n"
    if kind == "sse":
        writer.write(f"GET {STREAM}?from={start} HTTP/1.1\r\n{key}Accept: text/event-stream\r\n\r\n".encode())
    elif kind == "websocket":
        nonce = base64.b64encode(os.urandom(16)).decode()
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        writer.write(f"GET {STREAM} HTTP/1.1\r\n{key}{upgrade}Sec-WebSocket-Key: {nonce}\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        said = json.dumps({"action": "subscribe", "from": start}).encode()
        for _ in range(3):
            writer.write(bytes([0x81, 0x80 | len(said)]) + bytes(4) + said)
    else:
        writer.write(f"GET /api/v1/events{kind} HTTP/1.1\r\n{key}\r\n".encode())
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    try:
        yield reader
    finally:
        writer.transport.abort()


async def append(client: httpx.AsyncClient, number: int, text: str = "") -> int:
    event = {"type": "Custom.Small", "payload": {"n": number, "text": text}}
    return (await client.post("/api/v1/events", json=event)).status_code


@pytest.mark.parametrize(
    ("kind", "start"),
    [
        ("sse", "start"),
        ("websocket", "start"),
        ("sse", "now"),
        ("websocket", "now"),
        ("/export", ""),
        ("?limit=1000", ""),
    ],
)
async def test_clients_that_do_not_read_hold_nobody_up(installation: Installation, kind: str, start: str) -> None:
    before = installation.memory
    peak = 0
    async with httpx.AsyncClient(base_url=installation.url, headers=HEADERS, timeout=20) as client:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(25):
                await stack.enter_async_context(idle(installation.port, kind, start))
            answers = []
            for number in range(40):
                answers.append(await append(client, number, TEXT if start == "now" else ""))
                peak = max(peak, installation.memory)
                await asyncio.sleep(0.02)
            assert answers == [201] * 40
        await until(lambda: installation.memory < before + 50 * MIB)
    assert peak < before + MOST_GROWTH
    assert installation.server.cut_off() == 0


async def test_who_reads_late_gets_everything(installation: Installation) -> None:
    """Slowly, beside many who do not read at all."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(10):
            await stack.enter_async_context(idle(installation.port, "sse", "start"))
        client = httpx.AsyncClient(base_url=installation.url, headers=HEADERS, timeout=20)
        await stack.enter_async_context(client)
        accept = {"Accept": "text/event-stream"}
        answer = await stack.enter_async_context(
            client.stream("GET", STREAM, params={"from": "start", "type": "Custom.Tick"}, headers=accept)
        )
        found = []
        async for line in answer.aiter_lines():
            if line.startswith("data: {") and '"metadata"' in line:
                found.append(json.loads(line[6:])["data"]["payload"]["n"])
            if len(found) == COUNT:
                break
        assert found == list(range(COUNT))
    assert installation.server.cut_off() == 0


@pytest.mark.parametrize("size", [20_000, 1_000_000])
async def test_many_large_appends_at_once_are_all_answered(installation: Installation, size: int) -> None:
    async with httpx.AsyncClient(
        base_url=installation.url, headers=HEADERS, timeout=60, limits=httpx.Limits(max_connections=None)
    ) as client:
        answers = await asyncio.gather(*(append(client, number, "x" * size) for number in range(80)))
    assert answers == [201] * 80
    assert installation.server.cut_off() == 0
