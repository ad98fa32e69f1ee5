"""The memory service and the events service in this process, on a real server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from starlette.applications import Starlette

import crucible_events.app
import crucible_events.settings
from crucible_core.access import OPERATOR
from crucible_core.envelope import Event, decode
from crucible_core.protocol.events import Appended, AppendReply, AppendRequest, NewEvent
from crucible_core.protocol.memory import (
    Cause,
    CreateMemory,
    Link,
    MemoryList,
    MemoryQuery,
    MemoryStatus,
    MemoryView,
    ScoredMemory,
    UpdateMemory,
    WriteMemory,
    WrittenMemory,
)
from crucible_core.protocol.parts import GetRequest
from crucible_core.subjects import Names
from crucible_kit.eventlog import read_log
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import call
from crucible_memory.api import StatusRequest
from crucible_memory.app import create_app
from crucible_memory.settings import Settings

T = TypeVar("T")
Running = Callable[..., AbstractAsyncContextManager[Starlette]]


@pytest.fixture
def running_events(nats_url: str, names: Names, tmp_path: Path) -> Running:
    """Starts the events service."""

    @contextlib.asynccontextmanager
    async def start() -> AsyncIterator[Starlette]:
        data_dir = str(tmp_path / "events")
        app = crucible_events.app.create_app(
            crucible_events.settings.Settings(nats_url=nats_url, bus_prefix=names.prefix, data_dir=data_dir)
        )
        async with app.router.lifespan_context(app):
            await until(lambda: not app.state.ready())
            yield app

    return start


@pytest.fixture
async def events(running_events: Running) -> AsyncIterator[None]:
    async with running_events():
        yield


@pytest.fixture
def index_dir(tmp_path: Path) -> Path:
    return tmp_path / "memory"


@pytest.fixture
def running(nats_url: str, names: Names, index_dir: Path) -> Running:
    """Starts the service; again, after it was stopped. It tells of memories alone, unless a test asks for more."""

    @contextlib.asynccontextmanager
    async def start(data_dir: Path = index_dir, **more: Any) -> AsyncIterator[Starlette]:
        chosen = {"memory_accessed_every_s": 0, "memory_graph_events": False, **more}
        settings = Settings(
            nats_url=nats_url,
            bus_prefix=names.prefix,
            data_dir=str(data_dir),
            **chosen,
        )
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            await until(lambda: not app.state.ready())
            yield app

    return start


@pytest.fixture
async def service(events: None, running: Running) -> AsyncIterator[Starlette]:
    async with running() as app:
        yield app


@pytest.fixture
def memory(bus: Bus) -> "Memories":
    return Memories(bus)


class Memories:
    """The requests that memory answers, and the log that it writes."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

    async def create(self, content: str, *, cause: Cause | None = None, id: str | None = None, **fields: Any) -> str:
        return (await self.write("create", id=id, create=CreateMemory(content=content, **fields), cause=cause)).id

    async def update(self, id: str, *, expected: int | None = None, **fields: Any) -> WrittenMemory:
        return await self.write("update", id=id, update=UpdateMemory(**fields), expected_sequence=expected)

    async def delete(self, id: str) -> WrittenMemory:
        return await self.write("delete", id=id)

    async def tag(self, id: str, tag: str) -> WrittenMemory:
        return await self.write("tag", id=id, tag=tag)

    async def link(self, id: str, target: str, **fields: Any) -> WrittenMemory:
        return await self.write("link", id=id, link=Link(target=target, **fields))

    async def write(self, operation: str, *, cause: Cause | None = None, **fields: Any) -> WrittenMemory:
        request = WriteMemory(cause=cause or Cause(), **fields)
        return await call(self.bus, OPERATOR, "memory", operation, request, WrittenMemory)

    async def get(self, id: str) -> MemoryView:
        return await call(self.bus, OPERATOR, "memory", "get", GetRequest(id=id), MemoryView)

    async def query(self, text: str | None = None, **fields: Any) -> list[ScoredMemory]:
        request = MemoryQuery(text=text, **fields)
        return (await call(self.bus, OPERATOR, "memory", "query", request, MemoryList)).memories

    async def status(self) -> MemoryStatus:
        return await call(self.bus, OPERATOR, "memory", "status", StatusRequest(), MemoryStatus)

    async def append(self, type: str, payload: dict[str, Any], **fields: Any) -> Appended:
        """An event of somebody else."""
        event = NewEvent(type=type, payload=msgspec.Raw(msgspec.json.encode(payload)), **fields)
        reply = await call(self.bus, OPERATOR, "events", "append", AppendRequest(events=[event]), AppendReply)
        [result] = reply.results
        assert result.error is None, result.error
        return result

    async def log(self, category: str = "Memory") -> list[Event]:
        """Every event of a category."""
        found: list[Event] = []
        names = self.bus.names
        reading = read_log(self.bus, after=names.start, filters=[names.events_of(category)])
        async with contextlib.aclosing(reading) as batches:
            async for messages in batches:
                if not messages:
                    break
                found += [decode(message.data, message.sequence) for message in messages]
        return found

    async def kinds(self) -> list[str]:
        return [event.data.event for event in await self.log()]


async def until(holds: Callable[[], Any], seconds: float = 15.0) -> None:
    """Returns once `holds()`, or what it awaits, is true."""
    async with asyncio.timeout(seconds):
        while True:
            held = holds()
            if isinstance(held, Awaitable):
                held = await held
            if held:
                return
            await asyncio.sleep(0.01)
