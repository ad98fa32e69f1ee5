"""The hooks service and the events service in this process, a memory to speak to, and a folder of hook files."""

import asyncio
import contextlib
import socket
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from crucible_core.access import OPERATOR
from crucible_core.envelope import Event, decode
from crucible_core.errors import UnavailableError, from_problem
from crucible_core.protocol.events import Appended, AppendReply, AppendRequest, NewEvent, QueryReply, QueryRequest
from crucible_core.protocol.hooks import HookView, RegisterHook, RunList, RunRecord, RunsRequest
from crucible_core.protocol.memory import MemoryList, MemoryQuery, ScoredMemory, WriteMemory, WrittenMemory
from crucible_core.protocol.parts import GetRequest
from crucible_core.subjects import Names
from crucible_events.app import create_app as create_events
from crucible_events.settings import Settings as EventsSettings
from crucible_hooks.app import create_app
from crucible_hooks.settings import Settings
from crucible_kit.eventlog import log_end
from crucible_kit.http.egress import LOOPBACK
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import Context, Endpoint, call, serve
from crucible_kit.telemetry.spans import Telemetry


class Memories:
    """Stands at memory's place on the bus: remembers what it was asked, once for each key, as memory itself does."""

    def __init__(self) -> None:
        self.written: dict[str, tuple[str, WriteMemory]] = {}
        self.away = 0
        """How many requests from now on it is away."""

    def endpoints(self) -> dict[str, Endpoint]:
        writes = {name: Endpoint(WriteMemory, self._writing(name)) for name in ("link", "tag")}
        return {**writes, "query": Endpoint(MemoryQuery, self._query)}

    def effects(self) -> list[tuple[str, WriteMemory]]:
        return list(self.written.values())

    def _writing(self, operation: str) -> Any:
        async def write(request: WriteMemory, context: Context) -> WrittenMemory:
            if self.away > 0:
                self.away -= 1
                raise UnavailableError("memory is away", retry_after=1)
            new = request.cause.key not in self.written
            self.written.setdefault(request.cause.key or "", (operation, request))
            return WrittenMemory(id=request.id or "", sequence=1, changed=new, duplicate=not new)

        return write

    async def _query(self, request: MemoryQuery, context: Context) -> MemoryList:
        found = ScoredMemory(
            id="mem_other",
            content=request.text or "",
            tags=request.tags,
            entities=[],
            links=[],
            metadata={},
            world_id="default",
            room_id="main",
            created_at="",
            updated_at="",
            sequence=1,
            score=0.9,
        )
        return MemoryList(memories=[found])


Answer = Callable[[Request, bytes], Awaitable[Response]]


class HttpEndpoint:
    """Keeps what it is sent, and answers what the test says."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[tuple[Request, bytes]] = []
        self.answer: Response | Answer = Response(b"")

    async def take(self, request: Request) -> Response:
        body = await request.body()
        self.requests.append((request, body))
        return self.answer if isinstance(self.answer, Response) else await self.answer(request, body)


class System:
    """The running services and the ways to them."""

    def __init__(self, bus: Bus, settings: Settings, memories: Memories, events: Starlette) -> None:
        self.bus = bus
        self.events = events
        self.settings = settings
        self.memories = memories
        self.folder = Path(settings.hooks_dir)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        app = create_app(self.settings)
        async with app.router.lifespan_context(app):
            self.ready = app.state.ready
            await until(lambda: not app.state.ready())
            yield app

    async def ask(self, operation: str, request: Any, reply: Any) -> Any:
        return await call(self.bus, OPERATOR, "hooks", operation, request, reply, timeout=20)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(textwrap.dedent(text).lstrip())
        return path

    async def register(self, name: str, script: str | None = None, **parts: Any) -> HookView:
        wanted = RegisterHook(definition=definition(name, script, **parts))
        registered: HookView = await self.ask("register", wanted, HookView)
        return registered

    async def append(self, type: str = "Custom.note", payload: Any = None, **fields: Any) -> Appended:
        """Raises what the append was refused with."""
        event = NewEvent(type=type, payload=msgspec.Raw(msgspec.json.encode(payload or {})), **fields)
        reply = await call(
            self.bus, OPERATOR, "events", "append", AppendRequest(events=[event]), AppendReply, timeout=20
        )
        if reply.results[0].error is not None:
            raise from_problem(reply.results[0].error)
        return reply.results[0]

    async def event(self, id: str) -> Event:
        return decode(await call(self.bus, OPERATOR, "events", "get", GetRequest(id=id), bytes))

    async def log(self, *types: str) -> list[Event]:
        """The committed events of some types."""
        request = QueryRequest(type=list(types), limit=1000, min_sequence=(await log_end(self.bus)).encoded)
        found = await call(self.bus, OPERATOR, "events", "query", request, QueryReply)
        return [decode(bytes(raw)) for raw in found.events]

    async def page(self, type: str, after: int) -> list[Event]:
        """A thousand committed events of a type, after a place in the log."""
        end = (await log_end(self.bus)).encoded
        request = QueryRequest(type=[type], limit=1000, after=after, min_sequence=end)
        found = await call(self.bus, OPERATOR, "events", "query", request, QueryReply)
        return [decode(bytes(raw)) for raw in found.events]

    async def runs(self, hook: str) -> list[RunRecord]:
        """The newest first."""
        found: RunList = await self.ask("runs", RunsRequest(name=hook), RunList)
        return found.runs

    async def run_of(self, hook: str, outcome: str, seconds: float = 15.0) -> RunRecord:
        """The newest run of an outcome, once there is one."""
        found: list[RunRecord] = []

        async def there() -> bool:
            found[:] = [run for run in await self.runs(hook) if run.outcome == outcome]
            return bool(found)

        await until(there, seconds)
        return found[0]

    async def view(self, hook: str) -> HookView:
        found: HookView = await self.ask("get", GetRequest(id=hook), HookView)
        return found

    async def state(self, hook: str) -> str | None:
        """None while there is no such hook."""
        views = (await self.ask("list", RegisterHook(), Any))["hooks"]
        return next((view["state"] for view in views if view["name"] == hook), None)


@pytest.fixture
def settings(nats_url: str, names: Names, tmp_path: Path) -> Settings:
    folder = tmp_path / "hooks"
    folder.mkdir()
    return Settings(
        nats_url=nats_url,
        bus_prefix=names.prefix,
        data_dir=str(tmp_path / "data"),
        hooks_dir=str(folder),
        hooks_allow_api_shell=True,
        egress_allow=LOOPBACK,
    )


@pytest.fixture
async def stopped(bus: Bus, settings: Settings) -> AsyncIterator[System]:
    """Events and memory run, hooks does not yet."""
    memories = Memories()
    events = create_events(
        EventsSettings(nats_url=settings.nats_url, bus_prefix=settings.bus_prefix, data_dir=settings.data_dir)
    )
    async with events.router.lifespan_context(events), serve(bus, "memory", memories.endpoints(), Telemetry()):
        await until(lambda: not events.state.ready())
        yield System(bus, settings, memories, events)


@pytest.fixture
async def system(stopped: System) -> AsyncIterator[System]:
    async with stopped.running():
        yield stopped


@pytest.fixture
async def endpoint() -> AsyncIterator[HttpEndpoint]:
    listener = socket.create_server(("127.0.0.1", 0))
    found = HttpEndpoint(f"http://127.0.0.1:{listener.getsockname()[1]}")
    app = Starlette(routes=[Route("/{path:path}", found.take, methods=["GET", "POST", "PUT"])])
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve([listener]))
    yield found
    server.should_exit = True
    await serving


def definition(
    name: str,
    script: str | None = None,
    *,
    on: str = "Custom.note",
    pre: bool = False,
    priority: int = 100,
    filter: dict[str, Any] | None = None,
    **parts: Any,
) -> dict[str, Any]:
    """A hook as a user writes it; with `script`, a Script hook."""
    trigger = {
        "events": [{"type": on, "filter": filter or {}}],
        "timing": "Pre" if pre else "Post",
        "priority": priority,
    }
    action = {"action": {"type": "Script", "script": script}} if script is not None else {}
    return {"name": name, "trigger": trigger, **action, **parts}


async def until(condition: Callable[[], Any], seconds: float = 15.0) -> None:
    """Returns once `condition()` (or what it awaits) holds."""
    async with asyncio.timeout(seconds):
        while True:
            held = condition()
            if asyncio.iscoroutine(held):
                held = await held
            if held:
                return
            await asyncio.sleep(0.01)
