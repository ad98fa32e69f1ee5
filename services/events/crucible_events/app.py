"""The wiring of events: what is opened, what runs, and when it is ready."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette

from crucible_core.errors import UnavailableError
from crucible_kit.asgi import ops_app
from crucible_kit.buckets import open_bucket
from crucible_kit.bus import Bus
from crucible_kit.clock import now_ms
from crucible_kit.index import Index, open_index
from crucible_kit.metrics import Metrics
from crucible_kit.rpc import serve
from crucible_kit.service import open_service
from crucible_kit.settings import load
from crucible_kit.streams import DAY_S
from crucible_kit.telemetry import Telemetry

from . import store
from .api import endpoints
from .appending import Appender
from .committer import Committer
from .guards import Guards
from .replaying import Replaying
from .replays import Replays
from .settings import Settings

log = logging.getLogger(__name__)

SERVICE = "events"
_EXPIRE_EVERY_S = 60.0
_MIB = 1024 * 1024


def create_app(settings: Settings | None = None) -> Starlette:
    settings = settings or load(Settings)
    metrics = Metrics(SERVICE)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            bus, telemetry = await stack.enter_async_context(open_service(SERVICE, settings, metrics))
            guards = Guards(bus, await open_bucket(bus, "hooks", settings.stream_replicas), metrics)
            path = Path(settings.data_dir) / "events.sqlite"
            opening = open_index(path, bus, bus.names.events, store.VERSION, store.SCHEMA)
            index = await stack.enter_async_context(opening)
            replays = Replays(await open_bucket(bus, "replays", settings.stream_replicas))
            app.state.replays = replays
            app.state.ready = lambda: waiting_for(bus, guards, index, replays)
            await stack.enter_async_context(_running(settings, bus, guards, index, replays, telemetry, metrics))
            yield

    return ops_app(SERVICE, lifespan, metrics)


@contextlib.asynccontextmanager
async def _running(
    settings: Settings,
    bus: Bus,
    guards: Guards,
    index: Index,
    replays: Replays,
    telemetry: Telemetry,
    metrics: Metrics,
) -> AsyncIterator[None]:
    committer = Committer(bus, metrics, settings.events_queue, settings.events_queue_mib * _MIB)
    appender = Appender(bus, index, guards, committer, metrics)
    replaying = Replaying(bus, replays, metrics)
    projection = store.Projection(metrics)
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(guards.view.follow()),
            tasks.create_task(index.follow(bus, projection.apply)),
            tasks.create_task(_expire(index, settings.retention_days)),
            tasks.create_task(committer.run()),
            tasks.create_task(replays.view.follow()),
            tasks.create_task(replaying.run()),
        ]
        async with serve(bus, SERVICE, endpoints(bus, index, appender, guards, replaying), telemetry):
            yield
        for task in running:
            task.cancel()


async def _expire(index: Index, retention_days: float) -> None:
    while True:
        try:
            await store.expire(index, now_ms() - int(retention_days * DAY_S * 1000))
        except UnavailableError as error:
            log.warning("expired events stay in the index for now: %s", error)
        await asyncio.sleep(_EXPIRE_EVERY_S)


def waiting_for(bus: Bus, guards: Guards, index: Index, replays: Replays) -> list[str]:
    """What is not there yet; empty when ready."""
    held = {"nats": bus.connected, "hooks": guards.view.ready, "index": index.caught_up, "replays": replays.view.ready}
    return [name for name, ready in held.items() if not ready]
