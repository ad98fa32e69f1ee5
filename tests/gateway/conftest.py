"""A gateway served for real on a free port, and services that answer it as the test says."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import uvicorn

from crucible_core.envelope import Data, Event, Metadata, Source, encode
from crucible_core.protocol.events import Appended, AppendReply, AppendRequest
from crucible_core.subjects import Names
from crucible_events import app as events_app
from crucible_events.settings import Settings as EventsSettings
from crucible_gateway.app import create_app
from crucible_gateway.settings import Settings
from crucible_kit.http.connection import Connection
from crucible_kit.http.server import WEBSOCKET
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.frames import Outgoing
from crucible_kit.rpc import Context, Endpoint, serve
from crucible_kit.telemetry.spans import Telemetry

KEY = "the-admin-key"
HEADERS = {"Authorization": f"Bearer {KEY}"}


class Served(msgspec.Struct):
    """A running gateway."""

    url: str
    app: Any
    server: uvicorn.Server

    @property
    def ws(self) -> str:
        return f"ws{self.url.removeprefix('http')}/api/v1/events/stream"


Serve = Callable[..., contextlib.AbstractAsyncContextManager[Served]]


async def until(condition: Callable[[], Awaitable[bool] | bool], within_s: float = 10.0) -> None:
    """Returns once the condition holds; fails after a while."""
    async with asyncio.timeout(within_s):
        while True:
            held = condition()
            if held if isinstance(held, bool) else await held:
                return
            await asyncio.sleep(0.01)


def launch(
    command: list[str], environ: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """A process; its output is not shown."""
    return subprocess.Popen(command, env=environ, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture
def start(nats_url: str, names: Names) -> Serve:
    @contextlib.asynccontextmanager
    async def started(connection: type[Connection] = Connection, **changes: Any) -> AsyncIterator[Served]:
        chosen = {"nats_url": nats_url, "bus_prefix": names.prefix, "admin_key": KEY, "port": 0, **changes}
        app = create_app(Settings(**chosen))
        config = uvicorn.Config(
            app, port=0, ws=WEBSOCKET, http=connection, log_config=None, access_log=False, lifespan="on"
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server._serve())
        try:
            await until(lambda: server.started or task.done())
            port = server.servers[0].sockets[0].getsockname()[1]
            await until(lambda: not app.state.gateway.waiting_for())
            yield Served(f"http://127.0.0.1:{port}", app, server)
        finally:
            app.state.stopping.set()
            server.should_exit = True
            await task

    return started


@pytest.fixture
async def gateway(start: Serve) -> AsyncIterator[Served]:
    async with start() as served:
        yield served


@pytest.fixture
async def http(gateway: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, headers=HEADERS, timeout=20) as client:
        yield client


@pytest.fixture
async def log(nats_url: str, names: Names, tmp_path: Path) -> AsyncIterator[None]:
    """A real events service on the gateway's bus."""
    app = events_app.create_app(EventsSettings(nats_url=nats_url, bus_prefix=names.prefix, data_dir=str(tmp_path)))
    async with app.router.lifespan_context(app):
        await until(lambda: not app.state.ready())
        yield


class Answers:
    """A service whose answers the test gives: a Struct, bytes, or an error to raise; it remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any, Context]] = []
        self.replies: dict[str, Any] = {}

    def endpoint(self, operation: str, kind: type[Any]) -> Endpoint:
        async def handler(request: Any, context: Context) -> Any:
            self.asked.append((operation, request, context))
            reply = self.replies[operation]
            if isinstance(reply, Exception):
                raise reply
            return reply(request) if callable(reply) else reply

        return Endpoint(kind, handler)

    @property
    def last(self) -> Any:
        return self.asked[-1][1]


@contextlib.asynccontextmanager
async def answering(bus: Bus, service: str, **kinds: type[Any]) -> AsyncIterator[Answers]:
    """`kinds` are the operations and what each takes."""
    answers = Answers()
    endpoints = {operation: answers.endpoint(operation, kind) for operation, kind in kinds.items()}
    async with serve(bus, service, endpoints, Telemetry()):
        yield answers


@pytest.fixture
async def events(bus: Bus) -> AsyncIterator[Answers]:
    """An events service that accepts everything; a second event with an id or a key is a duplicate of the first."""
    async with answering(bus, "events", append=AppendRequest) as answers:
        known: dict[str, Appended] = {}
        count = 0

        def append(request: AppendRequest) -> AppendReply:
            nonlocal count
            results = []
            for event in request.events:
                count += 1
                key = event.id or event.idempotency_key or f"evt_{count}"
                if key in known:
                    results.append(msgspec.structs.replace(known[key], duplicate=True))
                    continue
                known[key] = Appended(
                    id=event.id or f"evt_{count}", sequence=count, type=event.type, correlation_id="cor_x"
                )
                results.append(known[key])
            return AppendReply(results=results)

        answers.replies["append"] = append
        yield answers


async def commit(bus: Bus, number: int, world: str = "default", type: str = "Custom.Tick", **payload: Any) -> int:
    """Puts an event into the real stream, as the events service would; returns its sequence."""
    category, _, event = type.partition(".")
    metadata = Metadata(
        id=f"evt_{number}",
        timestamp="2026-11-21T10:00:00.000000Z",
        source=Source("user", "t"),
        actor="user:t",
        correlation_id="cor_t",
        world_id=world,
    )
    raw = encode(Event(category, Data(event, {"n": number, **payload}), metadata))
    subject = bus.names.event(world, "main", category, event, None)
    return (await bus.store(Outgoing(subject, raw))).sequence
