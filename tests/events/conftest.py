"""A running events service for each test that asks for one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette

from crucible_core.access import OPERATOR
from crucible_core.envelope import Event, decode
from crucible_core.protocol.events import Appended, AppendReply, AppendRequest, NewEvent, QueryReply, QueryRequest
from crucible_core.protocol.parts import GetRequest
from crucible_core.subjects import Names
from crucible_events.app import create_app
from crucible_events.settings import Settings
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import call

Running = Callable[[], contextlib.AbstractAsyncContextManager[Starlette]]
Replicas = Callable[[int], contextlib.AbstractAsyncContextManager[None]]


@pytest.fixture
def settings(nats_url: str, names: Names, tmp_path: Path) -> Settings:
    return Settings(nats_url=nats_url, bus_prefix=names.prefix, data_dir=str(tmp_path / "data"))


@pytest.fixture
def running(settings: Settings) -> Running:
    """Starts the service; again, after it was stopped."""
    return starter(settings)


def starter(settings: Settings) -> Running:
    @contextlib.asynccontextmanager
    async def start() -> AsyncIterator[Starlette]:
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            await until(lambda: not app.state.ready())
            yield app

    return start


@pytest.fixture
def replicas(settings: Settings) -> Replicas:
    """Starts the service so many times; each has an index of its own, and requests go to any of them."""

    @contextlib.asynccontextmanager
    async def start(count: int) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for number in range(count):
                one = msgspec.structs.replace(settings, data_dir=f"{settings.data_dir}{number}")
                await stack.enter_async_context(starter(one)())
            yield

    return start


@pytest.fixture
async def service(running: Running) -> AsyncIterator[Starlette]:
    async with running() as app:
        yield app


async def eventually(holds: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not await holds():  # noqa: ASYNC110 - it is about another process, or not told by an event
            await asyncio.sleep(0.01)


async def until(holds: Callable[[], bool]) -> None:
    async def held() -> bool:
        return holds()

    await eventually(held)


def delete_index(settings: Settings) -> None:
    for file in index_files(settings):
        file.unlink()


def index_files(settings: Settings) -> list[Path]:
    return sorted(Path(settings.data_dir).glob("events.sqlite*"))


class Asker:
    """Asks events as the gateway does."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

    async def append(self, *events: NewEvent, atomic: bool = False) -> list[Appended]:
        request = AppendRequest(events=list(events), atomic=atomic)
        return (await call(self.bus, OPERATOR, "events", "append", request, AppendReply)).results

    async def one(self, event: NewEvent) -> Appended:
        return (await self.append(event))[0]

    async def get(self, event_id: str) -> Event:
        return decode(await call(self.bus, OPERATOR, "events", "get", GetRequest(id=event_id), bytes))

    async def query(self, **asked: Any) -> QueryReply:
        return await call(self.bus, OPERATOR, "events", "query", QueryRequest(**asked), QueryReply)

    async def found(self, **asked: Any) -> list[Event]:
        return [decode(bytes(raw)) for raw in (await self.query(**asked)).events]

    async def last(self) -> int:
        return await self.bus.last_sequence(self.bus.names.events)


@pytest.fixture
def ask(bus: Bus) -> Asker:
    return Asker(bus)


def new(type: str = "Custom.note", payload: Any = None, **fields: Any) -> NewEvent:
    return NewEvent(type=type, payload=msgspec.Raw(msgspec.json.encode(payload or {})), **fields)
