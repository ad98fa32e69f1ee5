"""A nats-server of a test's own, that it may kill and start again on the same store."""

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from crucible_cli.up import nats_server


class Server:
    """`url` stays the same over all its lives."""

    def __init__(self, directory: Path, **jetstream: Any) -> None:
        """`jetstream` are options of the configuration's part of that name."""
        self._prepared = nats_server.prepare(directory, nats_server.free_port(), sync="2m")
        file = directory / "nats.conf"
        config = json.loads(file.read_text())
        config["jetstream"] |= jetstream
        file.write_text(json.dumps(config))
        self._log = directory / "log"
        self._process: asyncio.subprocess.Process | None = None
        self.url = self._prepared.url

    def cut_off(self) -> int:
        """How many clients it has given up on because they did not read what they were sent."""
        return self._log.read_text().count("Slow Consumer")

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(*self._prepared.command, stdout=log, stderr=log)
        await until(self._prepared.ready)

    async def kill(self) -> None:
        """As `kill -9` does it."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None

    def stop(self) -> None:
        """As Ctrl-Z does it: it neither ends nor answers. Returns once each thread of it has stopped."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self._process.pid}/task")
        while threads.exists() and any(_state(thread) != "T" for thread in threads.iterdir()):
            time.sleep(0.001)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def restart(self) -> None:
        await self.kill()
        await self.start()


def _state(thread: Path) -> str:
    """The letter that /proc has for it."""
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # it has ended
        return "T"


class Proxy:
    """Stands between a client and a server that stays up, and breaks connections in the middle."""

    def __init__(self, url: str) -> None:
        self._port = urlsplit(url).port or 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._copying: set[asyncio.Task[None]] = set()
        self._stalled: set[asyncio.Task[None]] = set()
        self.turned_away = 0

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.turned_away:  # a connection that ends before the server has said a word
            self.turned_away -= 1
            writer.close()
            return
        upstream, downstream = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, downstream}
        for source, target in ((reader, downstream), (upstream, writer)):
            task = asyncio.create_task(self._copy(source, target))
            self._copying.add(task)
            task.add_done_callback(self._copying.discard)

    def drop(self) -> None:
        """Resets all connections."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def stall(self) -> None:
        """What is connected now moves nothing any more, and nobody is told: as when a machine is gone."""
        self._stalled |= self._copying

    async def end(self) -> None:
        for task in self._stalled:
            task.cancel()
        self.drop()
        if self._copying:
            await asyncio.wait(self._copying, timeout=5)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(4096):
                if asyncio.current_task() in self._stalled:
                    await asyncio.Event().wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


@contextlib.asynccontextmanager
async def proxied(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """The proxy and its URL."""
    proxy = Proxy(url)
    listener = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        yield proxy, url.replace(f":{urlsplit(url).port}", f":{port}")
    finally:
        listener.close()
        await proxy.end()


@contextlib.asynccontextmanager
async def private_server(directory: Path, **jetstream: Any) -> AsyncIterator[Server]:
    server = Server(directory, **jetstream)
    await server.start()
    try:
        yield server
    finally:
        await server.kill()


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Returns once `condition()`, or what it has one wait for, holds."""
    async with asyncio.timeout(seconds):
        while True:
            held = condition()
            if isinstance(held, Awaitable):
                held = await held
            if held:
                return
            await asyncio.sleep(0.01)
