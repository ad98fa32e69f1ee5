"""The gateway's ASGI server: the same Litestar handler under uvicorn and under granian."""

import asyncio
import contextlib
import importlib.util
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import aiohttp

CONNECTIONS = 32
SECONDS = 5.0
BODY = b'{"type": "Custom.Bench", "payload": {"text": "' + b"x" * 400 + b'"}}'


def run() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for server, command in _commands().items():
        port = _free_port()
        with _serving([*command, str(port)], port):
            rate = asyncio.run(_load(port))
        rows.append({"server": server, "requests/s": round(rate)})
    best = max(float(str(row["requests/s"])) for row in rows)
    return [row | {"ratio": f"{float(str(row['requests/s'])) / best:.2f}"} for row in rows]


def _commands() -> dict[str, list[str]]:
    app = "bench.servers_app:app"
    python = [sys.executable, "-m"]
    found = {
        "uvicorn": [*python, "uvicorn", app, "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--port"]
    }
    if importlib.util.find_spec("granian"):
        found["granian"] = [*python, "granian", app, "--interface", "asgi", "--loop", "uvloop", "--port"]
    return found


@contextlib.contextmanager
def _serving(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert time.monotonic() < deadline, command
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(10)


async def _load(port: int) -> float:
    done = 0
    ends = time.perf_counter() + SECONDS

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal done
        while time.perf_counter() < ends:
            async with session.post(f"http://127.0.0.1:{port}/", data=BODY) as answer:
                await answer.read()
                assert answer.status == 201
            done += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session) for _ in range(CONNECTIONS)))
    return done / SECONDS


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])
