"""Requests as fast as a server answers them: prepared bytes over kept-alive connections, and what each one took."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

_LENGTH = b"content-length:"


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection; `ask` sends a prepared request and returns (status, body)."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or self._answer is None:
            return
        head = bytes(self._buffer[:end]).lower()
        at = head.index(_LENGTH) + len(_LENGTH)
        length = int(head[at:].split(b"\r\n", 1)[0])
        if len(self._buffer) < end + 4 + length:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        self._buffer.clear()
        answer, self._answer = self._answer, None
        answer.set_result((int(head[9:12]), body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("closed"))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._answer


def post(path: str, body: bytes, content_type: str = "application/json", key: str = "") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Type: {content_type}"]
    lines += [f"Authorization: Bearer {key}"] if key else []
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


async def connect(port: int) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return connection


async def hammer(port: int, request: Callable[[], bytes], connections: int, seconds: float) -> list[float]:
    """The seconds that each request took, over a number of connections for a time; all must succeed."""
    took: list[float] = []
    ends = time.perf_counter() + seconds

    async def client() -> None:
        connection = await connect(port)
        while (began := time.perf_counter()) < ends:
            status, body = await connection.ask(request())
            assert status < 300, (status, body[:500])
            took.append(time.perf_counter() - began)
        connection.transport.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    return took
