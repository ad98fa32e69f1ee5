"""The endpoints of the delivery bench, in a process of their own: `python -m bench.endpoints PORT`.

`POST /<name>` is noted with its time and answered at once, `POST /slow/<name>` a moment later, `POST /stuck/<name>`
never. `GET /arrivals` gives what
was noted and forgets it: `[[name, event id, seconds since 1970], …]`."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import psutil
import uvloop
from aiohttp import web

from bench.running import until

Arrival = tuple[str, str, float]
SLOW_S = 0.02


class Endpoints:
    """The process, seen from the bench."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._process = psutil.Process(process.pid)
        self._arrivals: list[Arrival] = []

    def arrivals(self) -> list[Arrival]:
        """All that have arrived since `forget`."""
        self._arrivals += [tuple(one) for one in httpx.get(f"{self.url}/arrivals", timeout=30).json()]
        return self._arrivals

    def forget(self) -> None:
        self.arrivals()
        self._arrivals = []

    def cpu(self) -> float:
        return sum(self._process.cpu_times()[:2])


@contextlib.contextmanager
def endpoints(port: int) -> Iterator[Endpoints]:
    process = subprocess.Popen([sys.executable, "-m", "bench.endpoints", str(port)])
    made = Endpoints(port, process)
    try:
        until(lambda: _answers(made.url), 20)
        yield made
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/arrivals").status_code == 200
    return False


def serve(port: int) -> None:
    noted: list[Arrival] = []

    async def take(request: web.Request) -> web.Response:
        await request.read()
        noted.append((request.match_info["name"], request.headers.get("X-Crucible-Event-Id", ""), time.time()))
        return web.Response()

    async def slow(request: web.Request) -> web.Response:
        answer = await take(request)
        await asyncio.sleep(SLOW_S)
        return answer

    async def stuck(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    async def show(request: web.Request) -> web.Response:
        shown = list(noted)
        noted.clear()
        return web.json_response(shown)

    app = web.Application()
    posts = [web.post("/stuck/{name}", stuck), web.post("/slow/{name}", slow), web.post("/{name}", take)]
    app.add_routes([*posts, web.get("/arrivals", show)])
    web.run_app(app, host="127.0.0.1", port=port, print=None, backlog=4096, loop=uvloop.new_event_loop())


if __name__ == "__main__":
    serve(int(sys.argv[1]))
