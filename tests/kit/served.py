"""A small service that test_asgi.py runs as a process; its argument says what its lifespan does."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from crucible_core.errors import UnavailableError
from crucible_kit.http.asgi import ops_app
from crucible_kit.http.server import main
from crucible_kit.settings import KitSettings
from crucible_kit.telemetry.metrics import Metrics


@contextlib.asynccontextmanager
async def good(app: Starlette) -> AsyncIterator[None]:
    yield
    sys.stderr.write("drained\n")


@contextlib.asynccontextmanager
async def away(app: Starlette) -> AsyncIterator[None]:
    raise UnavailableError("NATS is away")
    yield


@contextlib.asynccontextmanager
async def group(app: Starlette) -> AsyncIterator[None]:
    raise ExceptionGroup("tasks", [ExceptionGroup("inner", [UnavailableError("NATS is away")])])
    yield


@contextlib.asynccontextmanager
async def bug(app: Starlette) -> AsyncIterator[None]:
    raise KeyError("x")
    yield


@contextlib.asynccontextmanager
async def waits(app: Starlette) -> AsyncIterator[None]:
    sys.stderr.write("waiting\n")
    sys.stderr.flush()
    await asyncio.Event().wait()
    yield


@contextlib.asynccontextmanager
async def dies(app: Starlette) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(consume(app.state.die))
        yield


async def consume(die: asyncio.Event) -> None:
    await die.wait()
    raise UnavailableError("the consumer is gone")


async def broken(request: Request) -> Response:
    return Response(str(1 / 0))


async def die(request: Request) -> Response:
    request.app.state.die.set()
    return Response()


async def stream(request: Request) -> Response:
    async def lines() -> AsyncIterator[bytes]:
        yield b"open\n"
        await request.app.state.stopping.wait()

    return StreamingResponse(lines())


def create_app(settings: KitSettings) -> Starlette:
    lifespans = {function.__name__: function for function in (good, away, group, bug, waits, dies)}
    app = ops_app("served", lifespans[sys.argv[1]], Metrics("served"))
    app.state.die = asyncio.Event()
    app.state.stopping = asyncio.Event()
    app.routes.extend([Route("/broken", broken), Route("/stream", stream), Route("/die", die, methods=["POST"])])
    return app


if __name__ == "__main__":
    main("served", KitSettings, create_app)
