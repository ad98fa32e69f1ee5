"""The wiring of memory: its resources, endpoints and tasks, and its readiness."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from starlette.applications import Starlette

from crucible_kit.buckets import Bucket, View, open_bucket
from crucible_kit.http.asgi import ops_app
from crucible_kit.index.connections import Reader
from crucible_kit.index.erasure import Purger, record_purge
from crucible_kit.index.index import Index, open_index
from crucible_kit.lifecycle import announce_lifecycle
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import serve
from crucible_kit.service import open_service, report_readiness
from crucible_kit.settings import load
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.telemetry.spans import Telemetry
from crucible_memory import store
from crucible_memory.accesses import Accesses
from crucible_memory.api import Api
from crucible_memory.freshness import last_change
from crucible_memory.graph.edges import GraphConsumer
from crucible_memory.notes.feed import FileFeed
from crucible_memory.redaction import MemoryRebuilder
from crucible_memory.search.search import open_searcher
from crucible_memory.settings import Settings
from crucible_memory.writer import Writer

SERVICE = "memory"
_REBUILD_S = 86_400.0


def create_app(settings: Settings | None = None) -> Starlette:
    settings = settings or load(Settings)
    metrics = Metrics(SERVICE)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            bus, telemetry = await stack.enter_async_context(open_service(SERVICE, settings, metrics))
            path = Path(settings.data_dir) / "memory.sqlite"
            opening = open_index(path, bus, bus.names.log_streams, store.VERSION, store.SCHEMA)
            index = await stack.enter_async_context(opening)
            index.telemetry = telemetry
            searcher = await open_searcher(index)
            answering = asyncio.Event()
            report_readiness(
                app, bus, lambda: {index.progress: index.caught_up, "answers": answering.is_set()}, index.troubles
            )
            skipped = metrics.counter("memory_skipped_events", "Memory events that could not be read")
            index.export_metrics(metrics)
            purging = Purger(index, partial(store.forget_world, index))
            shards = await open_bucket(bus, "shards", settings.stream_replicas)
            worlds = View(await open_bucket(bus, "worlds", settings.stream_replicas), partial(record_purge, purging))
            async with asyncio.TaskGroup() as tasks:
                apply = partial(store.apply, skipped.inc)
                following = tasks.create_task(index.follow(bus, apply, [bus.names.events_of("Memory")]))
                rebuilder = MemoryRebuilder(bus, index, skipped.inc)
                running = [tasks.create_task(run()) for run in (worlds.follow, purging.run, rebuilder.run)]
                accesses = Accesses(bus, settings.memory_accessed_every_s)
                running.append(tasks.create_task(accesses.run()))
                if settings.memory_graph_events:
                    running.append(tasks.create_task(GraphConsumer(bus, index, telemetry).run()))
                serving = tasks.create_task(
                    _serve(bus, shards, index, rebuilder, searcher, accesses, answering, telemetry, metrics)
                )
                async with announce_lifecycle(app, bus, SERVICE):
                    yield
                # Requests under way still read the index: it follows the log until they end.
                serving.cancel()
                await asyncio.wait([serving])
                for task in (following, *running):
                    task.cancel()

    return ops_app(SERVICE, lifespan, metrics)


async def _serve(
    bus: Bus,
    shards: Bucket,
    index: Index,
    rebuilder: MemoryRebuilder,
    searcher: Reader,
    accesses: Accesses,
    answering: asyncio.Event,
    telemetry: Telemetry,
    metrics: Metrics,
) -> None:
    """Answers and takes File events, once the index has all events of the start: until then other replicas do."""
    await index.reach(await last_change(bus), _REBUILD_S)
    await rebuilder.ready.wait()
    writer = Writer(bus, index)
    async with serve(bus, SERVICE, Api(bus, index, searcher, writer, accesses, metrics).endpoints(), telemetry):
        answering.set()
        await FileFeed(bus, shards, writer, telemetry, metrics).run()
