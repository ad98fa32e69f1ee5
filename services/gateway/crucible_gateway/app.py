"""The wiring of the gateway: what is opened, what runs, and which handlers answer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial

from litestar import Litestar, Router
from litestar.datastructures import MutableScopeHeaders, State
from litestar.handlers import BaseRouteHandler
from litestar.types import Message, Scope

from crucible_gateway.appends import Appends
from crucible_gateway.auth import Authenticating, Keys
from crucible_gateway.context import Gateway
from crucible_gateway.correlation import show_correlation
from crucible_gateway.live.hub import Hub
from crucible_gateway.live.replays import Audience
from crucible_gateway.middleware import Counting, Observing
from crucible_gateway.problems import exception_handlers, keep_refusal, show_refusal
from crucible_gateway.routes import (
    events,
    export,
    hooks,
    memory,
    ops,
    redaction,
    replays,
    retention,
    stream,
    types,
    webhooks,
    worlds,
)
from crucible_gateway.routes.replies import Door
from crucible_gateway.settings import Settings
from crucible_kit.buckets import open_bucket
from crucible_kit.lifecycle import announce_lifecycle
from crucible_kit.losses import BUCKET as LOSSES
from crucible_kit.losses import Losses
from crucible_kit.nats.bus import open_bus
from crucible_kit.rpc import serve
from crucible_kit.service import open_service
from crucible_kit.settings import load
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.types import open_types

_NOT_ALLOWED = 405


async def show_methods(message: Message, scope: Scope) -> None:
    """A `before_send` hook."""
    if message["type"] != "http.response.start":
        return
    if scope.get("method") == "OPTIONS" or message["status"] == _NOT_ALLOWED:
        headers = MutableScopeHeaders.from_message(message)
        template = scope.get("path_template")
        routes = [route for route in scope["litestar_app"].routes if route.path_format == template]
        methods = {method for route in routes for method in getattr(route, "methods", ())}
        known = methods or {method.strip() for method in headers.get("Allow", "").split(",")}
        if "GET" in known:
            known.add("HEAD")
        if allowed := sorted(method for method in known if method.isupper()):
            headers["Allow"] = ", ".join(allowed)


SERVICE = "gateway"


def create_app(settings: Settings | None = None) -> Litestar:
    """`app.state.gateway` is what is open while it runs. Streams end once `app.state.stopping` is set."""
    settings = settings or load(Settings)
    metrics = Metrics(SERVICE)
    observing = Observing(metrics)
    counting = Counting(metrics)
    app = Door(
        route_handlers=[*_open_handlers(), _api()],
        lifespan=[_lifespan(settings, metrics)],
        middleware=[observing],
        before_send=[show_refusal, show_correlation, show_methods, counting],
        after_exception=[keep_refusal],
        exception_handlers=exception_handlers(),
        state=State({"service": SERVICE, "stopping": asyncio.Event()}),
        # Bodies are limited and read in `bodies`, described in `openapi`, and errors logged in `problems`.
        request_max_body_size=None,
        openapi_config=None,
        logging_config=None,
        debug=False,
    )
    app.plain = {
        "/api/v1/events": events.append_any,
        "/api/v1/events/batch": partial(events.append_any, batch=True),
    }
    app.observing, app.counting = observing, counting
    return app


def _open_handlers() -> list[BaseRouteHandler]:
    """Paths that need no key, or (the socket) check it themselves, since a handshake is refused in its own way."""
    return [
        ops.index,
        ops.healthz,
        ops.readyz,
        ops.metrics,
        ops.openapi_json,
        ops.docs_page,
        stream.stream_socket,
    ]


def _api() -> Router:
    handlers: list[BaseRouteHandler] = [
        events.append_event,
        events.append_batch,
        events.query_events,
        events.count_events,
        export.export_events,
        events.get_event,
        events.trace_events,
        types.list_event_types,
        types.register_event_type,
        types.get_event_type,
        types.delete_event_type,
        redaction.redact_event,
        stream.stream_events,
        replays.start_replay,
        replays.list_replays,
        replays.get_replay,
        replays.pause_replay,
        replays.resume_replay,
        replays.cancel_replay,
        hooks.list_hooks,
        hooks.check_hooks,
        hooks.register_hook,
        hooks.get_hook,
        hooks.update_hook,
        hooks.delete_hook,
        hooks.enable_hook,
        hooks.disable_hook,
        hooks.list_runs,
        hooks.get_run,
        hooks.check_hook,
        webhooks.create_webhook,
        webhooks.list_webhooks,
        webhooks.check_webhooks,
        webhooks.get_webhook,
        webhooks.update_webhook,
        webhooks.delete_webhook,
        webhooks.enable_webhook,
        webhooks.disable_webhook,
        webhooks.rotate_secret,
        webhooks.list_attempts,
        webhooks.check_webhook,
        webhooks.resend_event,
        memory.create_memory,
        memory.get_memory,
        memory.update_memory,
        memory.delete_memory,
        memory.query_memory,
        memory.memory_status,
        worlds.create_world,
        worlds.list_worlds,
        worlds.get_world,
        worlds.delete_world,
        worlds.create_room,
        worlds.list_rooms,
        worlds.delete_room,
        retention.get_retention,
        retention.put_retention,
        ops.list_losses,
        ops.accept_losses,
    ]
    return Router(path="/", route_handlers=handlers, middleware=[Authenticating()])


def _lifespan(
    settings: Settings, metrics: Metrics
) -> Callable[[Litestar], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            bus, telemetry = await stack.enter_async_context(open_service(SERVICE, settings, metrics))
            keys = Keys(await open_bucket(bus, "keys", settings.stream_replicas))
            made = await keys.ensure_admin(settings.admin_key) if settings.admin_key else None
            change = {"setting": "keys", "id": made.id, "changes": {"made": made.name}} if made else None
            reading = await stack.enter_async_context(open_bus(settings.nats_url, bus.names, f"{SERVICE} reading"))
            hub = Hub(bus, reading, metrics)
            known = await open_types(bus, settings.stream_replicas)
            audience = Audience(bus, telemetry)
            stack.push_async_callback(audience.close)
            lost = Losses(await open_bucket(bus, LOSSES, settings.stream_replicas))
            appends = Appends(bus, telemetry, settings.request_timeout_s)
            app.state.gateway = Gateway(settings, bus, telemetry, metrics, keys, hub, audience, known, lost, appends)
            answers = {**audience.endpoints(), **known.endpoints()}
            await stack.enter_async_context(serve(bus, SERVICE, answers, telemetry))
            async with asyncio.TaskGroup() as tasks:
                following = (keys.follow, hub.run, known.view.follow, lost.view.follow)
                running = [tasks.create_task(follow()) for follow in following]
                async with announce_lifecycle(app, bus, SERVICE, change):
                    yield
                for task in running:
                    task.cancel()

    return lifespan
