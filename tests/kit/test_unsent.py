"""Clients that do not read what they are sent: they cost a bounded amount of memory, and are closed in the end."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from crucible_kit.http.connection import Connection
from crucible_kit.http.server import WEBSOCKET
from tests.kit.outage import until

PIECE = b"x" * 300_000
LIMIT = 1_500_000


class Strict(Connection):
    stall_s = 30.0
    unsent_bytes = LIMIT


class Hasty(Connection):
    stall_s = 0.3


class App:
    """Writes pieces without end to whoever asks, over HTTP or a WebSocket, and knows who is still there."""

    def __init__(self) -> None:
        self.connected: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path"][1:]
        self.connected.add(name)
        writing = asyncio.create_task(self._write(scope, receive, send))
        try:
            while True:
                message = await receive()
                if message["type"].endswith("disconnect"):
                    return
        finally:
            writing.cancel()
            self.connected.discard(name)

    async def _write(self, scope: Scope, receive: Receive, send: Send) -> None:
        socket = scope["type"] == "websocket"
        if socket:
            await send({"type": "websocket.accept"})
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        text = PIECE.decode()
        with contextlib.suppress(OSError):
            while True:
                if socket:
                    await send({"type": "websocket.send", "text": text})
                else:
                    await send({"type": "http.response.body", "body": PIECE, "more_body": True})
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def serving(connection: type[Connection]) -> AsyncIterator[tuple[App, uvicorn.Server, int]]:
    app = App()
    config = uvicorn.Config(
        app, port=0, ws=WEBSOCKET, http=connection, log_config=None, access_log=False, lifespan="off", loop="uvloop"
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())
    try:
        await until(lambda: server.started)
        yield app, server, server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await task


@contextlib.asynccontextmanager
async def client(port: int, name: str, websocket: bool = False) -> AsyncIterator[asyncio.StreamReader]:
    """What it is sent; it reads as much as is asked of it, and no more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
    upgrade = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
        "dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    writer.write(f"GET /{name} HTTP/1.1\r\nHost: x\r\n{upgrade if websocket else ''}\r\n".encode())
    try:
        yield reader
    finally:
        writer.transport.abort()


def unsent(server: uvicorn.Server) -> int:
    return sum(connection.transport.unsent for connection in server.server_state.connections)  # type: ignore[union-attr]


async def read(reader: asyncio.StreamReader, forever: asyncio.Event) -> None:
    while not forever.is_set() and await reader.read(100_000):
        pass


@pytest.mark.parametrize("websocket", [False, True], ids=["http", "websocket"])
async def test_what_clients_leave_is_bounded_and_who_reads_goes_on(
    websocket: bool, caplog: pytest.LogCaptureFixture
) -> None:
    end = asyncio.Event()
    async with serving(Strict) as (app, server, port), contextlib.AsyncExitStack() as stack:
        fast = await stack.enter_async_context(client(port, "fast", websocket))
        reading = asyncio.create_task(read(fast, end))
        most = 0
        for number in range(16):
            await stack.enter_async_context(client(port, f"slow{number}", websocket))
            for _ in range(20):
                await asyncio.sleep(0.005)
                most = max(most, unsent(server))
        await until(lambda: "slow0" not in app.connected)
        assert most <= LIMIT + 2 * len(PIECE)
        assert "fast" in app.connected
        assert "slow15" in app.connected, "the one that has been behind for longest goes first"
        end.set()
        await reading
    [message] = {record.getMessage().partition(": ")[2] for record in caplog.records if "is closed" in record.message}
    assert f"more than {LIMIT} bytes untaken" in message


@pytest.mark.parametrize("websocket", [False, True], ids=["http", "websocket"])
async def test_who_takes_nothing_is_closed_and_who_takes_little_is_not(
    websocket: bool, caplog: pytest.LogCaptureFixture
) -> None:
    end = asyncio.Event()

    async def sip(reader: asyncio.StreamReader) -> None:
        while not end.is_set():
            await asyncio.sleep(0.02)
            await reader.readexactly(60_000)

    async with (
        serving(Hasty) as (app, server, port),
        client(port, "stuck", websocket) as _,
        client(port, "slow", websocket) as slow,
    ):
        sipping = asyncio.create_task(sip(slow))
        await until(lambda: app.connected == {"slow"})
        await asyncio.sleep(3 * Hasty.stall_s)
        assert app.connected == {"slow"}
        assert unsent(server) < 3 * len(PIECE)
        end.set()
        await sipping
    assert [record.levelno for record in caplog.records if "taken nothing for 0.3 s" in record.message] == [
        logging.WARNING
    ]
