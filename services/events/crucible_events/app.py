"""The wiring of events: what is opened, what runs, and when it is ready."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from starlette.applications import Starlette

from crucible_kit.asgi import ops_app
from crucible_kit.backlog import ParkedMessages
from crucible_kit.buckets import open_bucket
from crucible_kit.bus import Bus
from crucible_kit.index import Index, open_index
from crucible_kit.lifecycle import announced
from crucible_kit.losses import BUCKET as LOSSES
from crucible_kit.losses import Losses
from crucible_kit.metrics import Metrics
from crucible_kit.purging import Purging
from crucible_kit.rpc import serve
from crucible_kit.service import open_service
from crucible_kit.settings import load
from crucible_kit.streams import DAY_S
from crucible_kit.telemetry import Telemetry
from crucible_kit.types import open_types

from . import retention, store, worlds
from .api import endpoints, room_for
from .appending import Appender
from .audit import Audit, lost_end
from .committer import Committer
from .copies import Copies
from .erasing import Eraser
from .expiry import Expiry
from .guards import Guards
from .places import Places
from .redacting import Redacting
from .replaying import Replaying
from .replays import Replays
from .settings import Settings

SERVICE = "events"
_START_S = 30.0
_MIB = 1024 * 1024


def create_app(settings: Settings | None = None) -> Starlette:
    settings = settings or load(Settings)
    metrics = Metrics(SERVICE)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            bus, telemetry = await stack.enter_async_context(open_service(SERVICE, settings, metrics))
            path = Path(settings.data_dir) / "events.sqlite"
            losses = Losses(await open_bucket(bus, LOSSES, settings.stream_replicas))
            if (lost := await lost_end(path, bus)) is not None:
                await losses.note([lost])
            opening = open_index(path, bus, bus.names.events, store.VERSION, store.SCHEMA)
            index = await stack.enter_async_context(opening)
            index.telemetry = telemetry
            index.measure(metrics)
            copies = await _copies(settings, bus, index, metrics)
            app.state.replays = copies.replays
            app.state.ready = lambda: waiting_for(bus, copies, index)
            app.state.troubles = lambda: [*bus.storage.troubles(), *index.troubles(), *losses.troubles()]
            audit = app.state.audit = Audit(bus, index, await index.open_reader(), copies.places, losses)
            await stack.enter_async_context(_running(settings, bus, copies, index, losses, audit, telemetry, metrics))
            async with announced(app, bus, SERVICE):
                yield

    return ops_app(SERVICE, lifespan, metrics)


async def _copies(settings: Settings, bus: Bus, index: Index, metrics: Metrics) -> Copies:
    hooks, atlas, rules, replays = [
        await open_bucket(bus, name, settings.stream_replicas)
        for name in ("hooks", worlds.BUCKET, retention.BUCKET, "replays")
    ]
    await worlds.ensure_default(atlas)
    types = await open_types(bus, settings.stream_replicas)
    purging = Purging(index, partial(store.forget_world, index))
    places = Places(atlas, purging.note)
    max_age_s = settings.retention_days * DAY_S
    return Copies(
        types=types,
        guards=Guards(bus, hooks, types, metrics),
        places=places,
        retention=retention.Retention(bus, rules, places, types, max_age_s),
        replays=Replays(replays),
        purging=purging,
        atlas=atlas,
    )


@contextlib.asynccontextmanager
async def _running(
    settings: Settings,
    bus: Bus,
    copies: Copies,
    index: Index,
    losses: Losses,
    audit: Audit,
    telemetry: Telemetry,
    metrics: Metrics,
) -> AsyncIterator[None]:
    committer = Committer(bus, telemetry, metrics, settings.events_queue, settings.events_queue_mib * _MIB)
    appender = Appender(bus, index, copies, committer, metrics, settings.duplicate_window_s)
    registry = worlds.Worlds(
        bus, copies.atlas, copies.places, appender.append, appender.append_making_room, room_for(bus)
    )
    replaying = Replaying(bus, copies.replays, copies.types, copies.places, metrics)
    eraser = Eraser(bus, index)
    redacting = Redacting(bus, index, appender, eraser)
    projection = store.Projection(metrics)
    expiry = Expiry(bus, index)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(copies.types.view.follow())]
        await copies.types.view.reach(0, _START_S)  # what the others hold is said in types
        running += [
            *(tasks.create_task(view.follow()) for view in copies.views),
            tasks.create_task(index.follow(bus, projection.apply)),
            tasks.create_task(losses.view.follow()),
            tasks.create_task(expiry.run()),
            tasks.create_task(audit.run()),
            tasks.create_task(ParkedMessages(bus, metrics).watch()),
            tasks.create_task(copies.purging.run()),
            tasks.create_task(committer.run()),
            tasks.create_task(registry.resume()),
            tasks.create_task(replaying.run()),
            tasks.create_task(eraser.run()),
        ]
        answers = {
            **endpoints(bus, index, appender, copies, replaying),
            **registry.endpoints(),
            **copies.retention.endpoints(),
            **redacting.endpoints(),
            **audit.endpoints(),
        }
        async with serve(bus, SERVICE, answers, telemetry):
            yield
        for task in running:
            task.cancel()


def waiting_for(bus: Bus, copies: Copies, index: Index) -> list[str]:
    """What is not there yet; empty when ready."""
    held = {
        "nats": bus.connected,
        "hooks": copies.guards.view.ready,
        "event types": copies.types.view.ready,
        "worlds": copies.places.view.ready,
        "retention": copies.retention.view.ready,
        "replays": copies.replays.view.ready,
        index.place: index.caught_up,
    }
    return [name for name, ready in held.items() if not ready]
