"""A nats-server of a test's own, that it may kill and start again on the same store."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from crucible_cli import nats_server


class Server:
    """`url` stays the same over all its lives."""

    def __init__(self, directory: Path) -> None:
        self._prepared = nats_server.prepare(directory, nats_server.free_port(), sync="2m")
        self._log = directory / "log"
        self._process: asyncio.subprocess.Process | None = None
        self.url = self._prepared.url

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

    async def restart(self) -> None:
        await self.kill()
        await self.start()


@contextlib.asynccontextmanager
async def private_server(directory: Path) -> AsyncIterator[Server]:
    server = Server(directory)
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
