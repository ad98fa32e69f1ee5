"""The wiring of events: the resources, endpoints and tasks of each role, and its readiness."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette

from crucible_core.protocol.parts import Trouble
from crucible_events import api, store
from crucible_events.append.appends import Appender
from crucible_events.append.committer import Committer
from crucible_events.append.lookup import IndexLookup, Lookup, RemoteLookup
from crucible_events.append.prehooks import PreHooks
from crucible_events.audit import Audit, lost_ends
from crucible_events.redaction import Eraser, RedactionApi
from crucible_events.replay.api import ReplayApi
from crucible_events.replay.jobs import Jobs
from crucible_events.replay.registry import Replays
from crucible_events.retention import BUCKET as RETENTION
from crucible_events.retention import Expiry, Retention
from crucible_events.settings import Settings
from crucible_events.worlds.api import Worlds
from crucible_events.worlds.registry import BUCKET as WORLDS
from crucible_events.worlds.registry import Places, ensure_default
from crucible_kit.backlog import ParkedMessages
from crucible_kit.buckets import Bucket, View, open_bucket
from crucible_kit.http.asgi import ops_app
from crucible_kit.index.erasure import Purger
from crucible_kit.index.index import Index, open_index
from crucible_kit.index.snapshots import Snapshots, SnapshotStore, restore
from crucible_kit.lifecycle import announce_lifecycle
from crucible_kit.losses import BUCKET as LOSSES
from crucible_kit.losses import Losses
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.streams import DAY_S
from crucible_kit.principals import Principals, open_principals
from crucible_kit.rpc import Endpoint, serve
from crucible_kit.service import open_service, report_readiness
from crucible_kit.settings import load
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.telemetry.spans import Telemetry
from crucible_kit.types import Types, open_types

SERVICE = "events"
_START_S = 30.0
_MIB = 1024 * 1024


class _Service(msgspec.Struct, kw_only=True):
    """The parts of both roles. Each role adds its endpoints, the coroutines that run until the end, the views that
    readiness waits for, and its reports of troubles."""

    settings: Settings
    bus: Bus
    telemetry: Telemetry
    metrics: Metrics
    types: Types
    worlds_bucket: Bucket
    places: Places
    principals: Principals
    snapshots: Snapshots | None
    purging: Purger | None
    rules: Retention | None = None
    index: Index | None = None
    endpoints: dict[str, Endpoint] = {}
    running: list[Callable[[], Coroutine[Any, Any, None]]] = []
    views: dict[str, View] = {}
    troubles: list[Callable[[], Sequence[Trouble]]] = []

    async def bucket(self, name: str) -> Bucket:
        return await open_bucket(self.bus, name, self.settings.stream_replicas)

    def ready_parts(self) -> dict[str, bool]:
        parts = {"event types": self.types.view.ready} | {name: view.ready for name, view in self.views.items()}
        if self.index is not None:
            parts[self.index.progress] = self.index.caught_up
        return parts


def create_app(settings: Settings | None = None) -> Starlette:
    settings = settings or load(Settings)
    metrics = Metrics(SERVICE)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            bus, telemetry = await stack.enter_async_context(open_service(SERVICE, settings, metrics))
            losses = Losses(await open_bucket(bus, LOSSES, settings.stream_replicas))
            index: Index | None = None
            if settings.events_role != "append":
                index = await stack.enter_async_context(_open_index(settings, bus, losses))
                index.telemetry = telemetry
                index.export_metrics(metrics)
            service = await _service(settings, bus, index, telemetry, metrics)
            lookup: Lookup = RemoteLookup(bus)
            if index is not None:
                lookup = IndexLookup(bus, index, settings.duplicate_window_s)
                await _add_query(app, service, index, lookup, losses)
            if settings.events_role != "query":
                await _add_append(service, lookup)
            report_readiness(app, bus, service.ready_parts, *service.troubles)
            await stack.enter_async_context(_run(service))
            async with announce_lifecycle(app, bus, SERVICE):
                yield

    return ops_app(SERVICE, lifespan, metrics)


@contextlib.asynccontextmanager
async def _open_index(settings: Settings, bus: Bus, losses: Losses) -> AsyncIterator[Index]:
    async def from_snapshot(path: Path, identity: str) -> bool:
        restored = await restore(_snapshots(settings, bus), path, identity)
        await losses.record(await lost_ends(path, bus))  # the snapshot may have events that the log has lost
        return restored

    path = Path(settings.data_dir) / "events.sqlite"
    await losses.record(await lost_ends(path, bus))
    async with open_index(path, bus, bus.names.log_streams, store.VERSION, store.SCHEMA, from_snapshot) as index:
        yield index


def _snapshots(settings: Settings, bus: Bus) -> SnapshotStore:
    return SnapshotStore(bus, SERVICE, settings.stream_replicas, settings.retention_days * DAY_S)


async def _forget_world(index: Index, snapshots: Snapshots, world_id: str, through: int) -> None:
    if await store.has_world(index, world_id, through):  # each start asks anew
        await snapshots.remove()
        await store.forget_world(index, world_id, through)
        await snapshots.remove()  # another replica may have stored one meanwhile


async def _service(
    settings: Settings, bus: Bus, index: Index | None, telemetry: Telemetry, metrics: Metrics
) -> _Service:
    worlds_bucket = await open_bucket(bus, WORLDS, settings.stream_replicas)
    await ensure_default(worlds_bucket)
    types = await open_types(bus, settings.stream_replicas)
    principals = await open_principals(bus, settings.stream_replicas)
    snapshots = purging = None
    if index is not None:
        copy = Path(settings.data_dir) / "events.sqlite.snapshot"
        snapshots = Snapshots(index, _snapshots(settings, bus), copy, settings.events_snapshot_every, metrics)
        purging = Purger(index, partial(_forget_world, index, snapshots))
    places = Places(worlds_bucket, purging.note if purging else lambda world, through: None)
    return _Service(
        settings=settings,
        bus=bus,
        telemetry=telemetry,
        metrics=metrics,
        types=types,
        worlds_bucket=worlds_bucket,
        places=places,
        principals=principals,
        snapshots=snapshots,
        purging=purging,
        index=index,
        endpoints={**types.endpoints()},
        running=[places.view.follow, principals.view.follow],
        views={"worlds": places.view, "keys": principals.view},
    )


async def _add_append(service: _Service, lookup: Lookup) -> None:
    """Stamps, validates, asks the Pre hooks and commits. All that it holds is in memory, and there within a moment."""
    bus, types, places, metrics = service.bus, service.types, service.places, service.metrics
    settings = service.settings
    prehooks = PreHooks(bus, await service.bucket("hooks"), types, service.principals, metrics)
    rules = service.rules = Retention(
        bus, await service.bucket(RETENTION), places, types, settings.retention_days * DAY_S
    )
    committer = Committer(bus, service.telemetry, metrics, settings.events_queue, settings.events_queue_mib * _MIB)
    appender = Appender(bus, lookup, types, prehooks, places, rules, committer, metrics)
    append_deletion = partial(appender.append, spare=True)
    registry = Worlds(bus, service.worlds_bucket, places, appender.append, append_deletion, api.max_reply_bytes(bus))
    service.views |= {"hooks": prehooks.view, "retention": rules.view}
    service.troubles.append(prehooks.troubles)
    service.running += [prehooks.view.follow, rules.view.follow, committer.run, registry.resume]
    service.endpoints |= {
        **api.append_endpoints(bus, appender, prehooks, rules),
        **registry.endpoints(),
        **RedactionApi(bus, lookup, appender).endpoints(),
    }


async def _add_query(app: Starlette, service: _Service, index: Index, lookup: IndexLookup, losses: Losses) -> None:
    """Fills the index and answers from it, compares it with the log, and works on replays."""
    bus, types, places, metrics = service.bus, service.types, service.places, service.metrics
    projection = store.Projection(metrics)
    audit = app.state.audit = Audit(bus, index, await index.open_reader(), places, losses)
    assert service.purging is not None
    assert service.snapshots is not None
    eraser = Eraser(bus, index, service.snapshots.remove)
    replays = app.state.replays = Replays(await service.bucket("replays"))
    jobs = Jobs(bus, replays, types, service.principals, metrics)
    service.views |= {"replays": replays.view}
    service.running += [
        lambda: index.follow(bus, projection.apply),
        replays.view.follow,
        losses.view.follow,
        Expiry(bus, index).run,
        audit.run,
        ParkedMessages(bus, metrics).watch,
        service.purging.run,
        service.snapshots.run,
        jobs.run,
        eraser.run,
    ]
    service.troubles += [index.troubles, losses.troubles]
    service.endpoints |= {
        **api.query_endpoints(bus, index, lookup, types, places),
        **eraser.endpoints(),
        **audit.endpoints(),
        **ReplayApi(bus, replays, types, places).endpoints(),
    }


@contextlib.asynccontextmanager
async def _run(service: _Service) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(service.types.view.follow())]
        await service.types.view.reach(0, _START_S)  # the other views decode by the types
        running += [tasks.create_task(run()) for run in service.running]
        endpoints: Mapping[str, Endpoint] = {
            **service.endpoints,
            "reached": api.reached_endpoint(service.places, service.rules, service.purging),
        }
        async with serve(service.bus, SERVICE, endpoints, service.telemetry):
            yield
        for task in running:
            task.cancel()
