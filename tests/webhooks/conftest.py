"""The webhooks service in this process, a log that it reads, and an endpoint that it delivers to."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from crucible_core import subjects
from crucible_core.access import OPERATOR
from crucible_core.envelope import Data, Event, Metadata, Source, decode, encode, with_sequence
from crucible_core.errors import NotFoundError, UnavailableError
from crucible_core.protocol.events import Appended, AppendReply, AppendRequest
from crucible_core.protocol.parts import GetRequest
from crucible_core.protocol.webhooks import AttemptList, AttemptsRequest, WebhookView
from crucible_core.subjects import DLV, Names
from crucible_kit.buckets import open_bucket
from crucible_kit.clock import fresh_id, timestamp
from crucible_kit.eventlog import read_log
from crucible_kit.http.egress import LOOPBACK
from crucible_kit.nats.bus import Bus, Message
from crucible_kit.nats.consumer import work as run_work
from crucible_kit.nats.frames import Outgoing
from crucible_kit.rpc import Context, Endpoint, call, serve
from crucible_kit.telemetry.spans import Telemetry
from crucible_webhooks.app import create_app
from crucible_webhooks.settings import Settings

Answer = Callable[[Request, bytes], Awaitable[Response]]

WHO = {subjects.PRINCIPAL: OPERATOR.header}


class Receiver:
    """An endpoint: remembers what it was sent, and answers what the test says (200)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.answer: Answer = self._accept

    @staticmethod
    async def _accept(request: Request, body: bytes) -> Response:
        return Response(status_code=200)

    async def take(self, request: Request) -> Response:
        body = await request.body()
        self.requests.append((dict(request.headers), body))
        return await self.answer(request, body)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    listener = socket.create_server(("127.0.0.1", 0))
    found = Receiver(f"http://127.0.0.1:{listener.getsockname()[1]}/hook")
    app = Starlette(routes=[Route("/{path:path}", found.take, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve([listener]))
    yield found
    server.should_exit = True
    await serving


@pytest.fixture
async def told(bus: Bus) -> AsyncIterator[list[str]]:
    """Stands for the events service: the types that it was asked to append. It finds what the log has, by id."""
    asked: list[str] = []

    async def get(request: GetRequest, context: Context) -> bytes:
        async with contextlib.aclosing(read_log(bus, after=bus.names.start)) as batches:
            async for messages in batches:
                for found in messages:
                    if decode(found.data).metadata.id == request.id:
                        return with_sequence(found.data, found.sequence)
                if not messages:
                    break
        raise NotFoundError(f"no event {request.id}")

    async def append(request: AppendRequest, context: Context) -> AppendReply:
        asked.extend(event.type for event in request.events)
        return AppendReply(results=[Appended(id="evt_1", sequence=1) for _ in request.events])

    endpoints = {"append": Endpoint(AppendRequest, append), "get": Endpoint(GetRequest, get)}
    async with serve(bus, "events", endpoints, Telemetry()):
        yield asked


class Service:
    """The running service and the ways to it."""

    def __init__(self, bus: Bus, settings: Settings) -> None:
        self.bus = bus
        self.settings = settings
        self._made = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.app = app = create_app(self.settings)
        async with app.router.lifespan_context(app):
            await until(lambda: not app.state.ready())
            yield

    async def metric(self, name: str) -> float:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://webhooks") as client:
            lines = (await client.get("/metrics")).text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    async def ask(self, operation: str, request: Any, reply: Any) -> Any:
        return await call(self.bus, OPERATOR, "webhooks", operation, request, reply)

    async def create(self, url: str, **fields: Any) -> WebhookView:
        """Each with a name of its own if none is given."""
        self._made += 1
        wanted = {"name": f"ci-{self._made}", "url": url, "event_filters": [{"event_type": "*"}], **fields}
        reply = await self.bus.request(
            self.bus.names.rpc("webhooks", "create"), msgspec.json.encode(wanted), headers=WHO
        )
        return msgspec.json.decode(reply.data, type=WebhookView)

    async def append(
        self, event_type: str = "Custom.Ping", headers: dict[str, str] | None = None, **payload: Any
    ) -> Event:
        category, _, name = event_type.partition(".")
        metadata = Metadata(
            id=fresh_id("evt"),
            timestamp=timestamp(),
            source=Source("user", "alice"),
            actor="user:alice",
            correlation_id=fresh_id("cor"),
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
        event = Event(category, Data(name, payload), metadata)
        subject = self.bus.names.event("default", "main", category, name, None)
        await self.bus.store(Outgoing(subject, encode(event), headers or {}))
        return event

    async def killed_over(self, work: Outgoing) -> None:
        """Leaves all as a replica does that was killed while it had some work in hand. No replica may be running."""
        names, consumer = self.bus.names, self.bus.names.durable("webhooks-work-dead")
        await self.bus.store(work)
        taken = asyncio.Event()

        async def take(message: Message) -> None:
            taken.set()
            raise UnavailableError("given back")

        filters = [names.all_work(DLV)]
        taking = asyncio.create_task(run_work(self.bus, names.deliveries, consumer, take, filters=filters))
        await taken.wait()
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        shards = await open_bucket(self.bus, "shards")
        for entry in (await shards.entries()).values():
            record = msgspec.json.decode(entry.value) | {"owner": "dead", "released": False}
            await shards.update(entry.key, msgspec.json.encode(record), entry.revision)

    async def attempts(self, webhook: WebhookView) -> list[Any]:
        found: AttemptList = await self.ask("attempts", AttemptsRequest(id=webhook.id), AttemptList)
        return found.attempts


@pytest.fixture
def settings(nats_url: str, names: Names, tmp_path: Path) -> Settings:
    return Settings(nats_url=nats_url, bus_prefix=names.prefix, data_dir=str(tmp_path / "data"), egress_allow=LOOPBACK)


@pytest.fixture
async def service(bus: Bus, settings: Settings, told: list[str]) -> AsyncIterator[Service]:
    found = Service(bus, settings)
    async with found.running():
        yield found


async def until(condition: Callable[[], Any], seconds: float = 15.0) -> None:
    """Returns once `condition()` (or the awaitable that it gives) holds."""
    async with asyncio.timeout(seconds):
        while True:
            held = condition()
            if asyncio.iscoroutine(held):
                held = await held
            if held:
                return
            await asyncio.sleep(0.01)
