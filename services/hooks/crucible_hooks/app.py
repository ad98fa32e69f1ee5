"""The wiring of the hooks service: resources, tasks and readiness."""

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from starlette.applications import Starlette

from crucible_core.limits import EXPRESSION_CPU_MS
from crucible_core.protocol.hooks import HookRecord
from crucible_core.subjects import RUN
from crucible_hooks import store
from crucible_hooks.actions.sandbox import open_sandbox
from crucible_hooks.api import endpoints
from crucible_hooks.directory import Directory
from crucible_hooks.expressions.expression import Evaluator
from crucible_hooks.hook import handler_key
from crucible_hooks.intercept import Interceptor
from crucible_hooks.records import Recorder
from crucible_hooks.registry import Registry
from crucible_hooks.replays import Replayer
from crucible_hooks.review import Reviewer
from crucible_hooks.runner import Runner
from crucible_hooks.runs import Runs, upgrade
from crucible_hooks.settings import Settings
from crucible_hooks.test import Tester
from crucible_kit.buckets import open_bucket
from crucible_kit.handlers.engine import Engine
from crucible_kit.history import History
from crucible_kit.http.asgi import ops_app
from crucible_kit.http.egress import open_guard
from crucible_kit.http.exchange import open_exchanger
from crucible_kit.index.erasure import RedactedEvents
from crucible_kit.index.index import Index, open_index
from crucible_kit.isolation import open_worker_pool
from crucible_kit.lifecycle import announce_lifecycle
from crucible_kit.losses import BUCKET as LOSSES
from crucible_kit.losses import Losses
from crucible_kit.nats.streams import DAY_S
from crucible_kit.rpc import serve
from crucible_kit.service import open_service, report_readiness
from crucible_kit.settings import load
from crucible_kit.tasks import run_tasks
from crucible_kit.telemetry.metrics import Metrics

SERVICE = "hooks"
_START_S = 30.0


def create_app(settings: Settings | None = None) -> Starlette:
    settings = settings or load(Settings)
    metrics = Metrics(SERVICE)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            bus, telemetry = await stack.enter_async_context(open_service(SERVICE, settings, metrics))
            registry = await Registry.open(bus, "hooks", settings.stream_replicas)
            shards = await open_bucket(bus, "shards", settings.stream_replicas)
            path = Path(settings.data_dir) / "hooks.sqlite"
            streams = bus.names.attempts, *bus.names.log_streams
            indexing = open_index(path, bus, streams, store.VERSION, store.SCHEMA)
            index = await stack.enter_async_context(indexing)
            index.export_metrics(metrics)
            isolated = await stack.enter_async_context(open_worker_pool(cpu_s=EXPRESSION_CPU_MS / 1000))
            opening = open_sandbox(isolated, settings.hooks_script_workers, settings.hooks_script_memory_mb)
            sandbox = await stack.enter_async_context(opening)
            exchanger = await stack.enter_async_context(open_exchanger(open_guard(settings.egress_allow)))
            exchanger.telemetry = telemetry
            runner = Runner(bus, registry.principals, Evaluator(isolated), sandbox, exchanger, telemetry, metrics)
            reviewer = Reviewer(isolated, sandbox)
            recorder = Recorder(bus, registry.home_of)
            losses = Losses(await open_bucket(bus, LOSSES, settings.stream_replicas))
            history = History(bus, index, "runs", store.STARTED, [bus.names.attempts_of(RUN)], losses)
            redacted = RedactedEvents(bus, settings.retention_days * DAY_S)
            runs = Runs(bus, registry, redacted, runner, recorder, telemetry, metrics)
            engine = Engine(bus, shards, runs, telemetry, metrics)
            directory = Directory(Path(root), registry, reviewer) if (root := settings.root) else None
            report_readiness(app, bus, lambda: ready_parts(registry, index, directory), index.troubles)

            # All of it ends in the opposite order: requests first, then the engine, and the recorder last.
            await stack.enter_async_context(run_tasks(recorder.run))
            await stack.enter_async_context(run_tasks(redacted.follow))
            await redacted.wait_complete()
            registry.stored = engine.reach_all
            registry.changed += [partial(note_handler, engine)]
            registry.reloaded += [lambda name: note_handler(engine, name, None, registry.records[name], 0)]
            indexing_runs = partial(index.follow, bus, store.apply, store.sources(bus.names), store.wants)
            await stack.enter_async_context(run_tasks(registry.follow, indexing_runs))
            await registry.view.reach(0, timeout=_START_S)
            # Only from here on: changes before the start were recorded when they were made.
            registry.changed += [recorder.record_change, *([directory.note_change] if directory else [])]
            await upgrade(bus, shards, runs, registry)
            watching = [directory.follow] if directory else []
            await stack.enter_async_context(run_tasks(engine.run, history.run, *watching))
            answers = endpoints(
                bus,
                registry,
                index,
                Interceptor(bus, registry, runner, recorder),
                Tester(bus, registry, runner, index),
                Replayer(bus, registry, metrics),
                reviewer,
                settings,
            )
            await stack.enter_async_context(serve(bus, SERVICE, answers, telemetry))
            await engine.begun()  # after that: a writer waits for Pre hooks, and they need no shard
            async with announce_lifecycle(app, bus, SERVICE):
                yield

    return ops_app(SERVICE, lifespan, metrics)


def note_handler(engine: Engine, name: str, before: HookRecord | None, after: HookRecord | None, revision: int) -> None:
    """Notes the change of a hook's handler: a hook that takes a deleted one's name is another handler."""
    for key in {handler_key(name, record.id) for record in (before, after) if record is not None}:
        engine.note(key)


def ready_parts(registry: Registry, index: Index, directory: Directory | None) -> dict[str, bool]:
    return {
        "hooks": registry.view.ready,
        "event types": registry.types.view.ready,
        index.progress: index.caught_up,
        "hook files": directory is None or directory.synced,
    }
