"""The wiring of the webhooks service: resources, tasks and readiness."""

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from starlette.applications import Starlette

from crucible_core.subjects import DLV
from crucible_kit.buckets import open_bucket
from crucible_kit.handlers.engine import Engine
from crucible_kit.handlers.requests import count_waiting, reach_all
from crucible_kit.handlers.upgrade import migrate
from crucible_kit.history import History
from crucible_kit.http.asgi import ops_app
from crucible_kit.http.egress import open_guard
from crucible_kit.http.exchange import open_exchanger
from crucible_kit.index.erasure import RedactedEvents
from crucible_kit.index.index import Index, open_index
from crucible_kit.lifecycle import announce_lifecycle
from crucible_kit.losses import BUCKET as LOSSES
from crucible_kit.losses import Losses
from crucible_kit.nats.streams import DAY_S
from crucible_kit.rpc import serve
from crucible_kit.service import open_service, report_readiness
from crucible_kit.settings import load
from crucible_kit.tasks import run_tasks
from crucible_kit.telemetry.metrics import Metrics
from crucible_webhooks import store
from crucible_webhooks.api import endpoints
from crucible_webhooks.delivery import Deliveries
from crucible_webhooks.registry import Registry
from crucible_webhooks.replays import Replayer
from crucible_webhooks.settings import Settings

SERVICE = "webhooks"


def create_app(settings: Settings | None = None) -> Starlette:
    settings = settings or load(Settings)
    metrics = Metrics(SERVICE)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            bus, telemetry = await stack.enter_async_context(open_service(SERVICE, settings, metrics))
            shards = await open_bucket(bus, "shards", settings.stream_replicas)
            registry = await Registry.open(bus, "webhooks", settings.stream_replicas)
            exchanger = await stack.enter_async_context(open_exchanger(open_guard(settings.egress_allow)))
            exchanger.telemetry = telemetry
            index: Index | None = None
            if settings.webhooks_role in ("all", "dispatch"):
                path = Path(settings.data_dir) / "webhooks.sqlite"
                opening = open_index(path, bus, (bus.names.attempts,), store.VERSION, store.SCHEMA)
                index = await stack.enter_async_context(opening)
                index.export_metrics(metrics)
            report_readiness(app, bus, lambda: ready_parts(registry, index), *([index.troubles] if index else []))
            redacted = RedactedEvents(bus, settings.retention_days * DAY_S)
            await stack.enter_async_context(run_tasks(redacted.follow))
            await redacted.wait_complete()
            engine: Engine | None = None
            if settings.webhooks_role in ("all", "deliver"):
                deliveries = Deliveries(bus, registry, redacted, exchanger, telemetry, metrics)
                engine = Engine(bus, shards, deliveries, telemetry, metrics)
                registry.changed = engine.note
            await stack.enter_async_context(run_tasks(registry.follow))
            await registry.view.reach(0, timeout=30)
            if engine is not None:
                await migrate(bus, shards, deliveries, lambda found: bus.names.old_handler_of(found.subject))
                await stack.enter_async_context(run_tasks(engine.run))
                await engine.begun()
            registry.stored = engine.reach_all if engine else partial(reach_all, bus, SERVICE)
            if index is not None:
                history_of = [bus.names.attempts_of(DLV)]
                losses = Losses(await open_bucket(bus, LOSSES, settings.stream_replicas))
                history = History(bus, index, "attempts", "started_at", history_of, losses)
                following = partial(index.follow, bus, store.apply, history_of)
                await stack.enter_async_context(run_tasks(following, history.run))
                count = partial(count_waiting, bus, shards, SERVICE, DLV, bus.names.deliveries)
                replayer = Replayer(bus, registry, metrics)
                answers = endpoints(bus, registry, index, exchanger, replayer, settings, count)
                await stack.enter_async_context(serve(bus, SERVICE, answers, telemetry))
            async with announce_lifecycle(app, bus, SERVICE):
                yield

    return ops_app(SERVICE, lifespan, metrics)


def ready_parts(registry: Registry, index: Index | None) -> dict[str, bool]:
    return {
        "webhooks": registry.view.ready,
        "event types": registry.types.view.ready,
        index.progress if index else "index": index is None or index.caught_up,
    }
