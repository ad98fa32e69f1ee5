"""Small real programs for the supervisor's tests, and waiting for what they do."""

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path

from crucible_cli.up.stack import look
from crucible_cli.up.supervisor import Program

SERVER = """
import signal, socket, sys, time
port, name, journal = int(sys.argv[1]), sys.argv[2], sys.argv[3]
def end(*_):
    time.sleep(0.1)
    open(journal, "a").write(name + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in name else end)
server = socket.create_server(("127.0.0.1", port))
print("2026-01-01T00:00:00Z warning " + name + " hello", flush=True)
while True:
    client, _ = server.accept()
    client.recv(4096)
    client.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: 0\\r\\n\\r\\n")
    client.close()
"""


def server(name: str, port: int, directory: Path, rank: int = 0) -> Program:
    """A program that answers 200 on `port`, and notes its end in the directory's `journal`."""
    command = (sys.executable, "-S", "-c", SERVER, str(port), name, str(directory / "journal"))
    return Program(name, command, {}, directory / f"{name}.log", lambda: look(port), rank)


async def until(true: Callable[[], object], seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while True:
            if true():
                return
            await asyncio.sleep(0.01)


def wait(true: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
