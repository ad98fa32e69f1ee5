"""The wiring of the gateway: what it opens, what runs, and which handlers answer."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import cached_property, partial
from typing import Any

from litestar import Litestar, Request, Router
from litestar.datastructures import MutableScopeHeaders, State
from litestar.plugins import PluginProtocol
from litestar.plugins.core import MsgspecDIPlugin
from litestar.types import LifeSpanReceive, LifeSpanScope, LifeSpanSend, Message, Receive, Scope, Send

from crucible_gateway.appends import Appends
from crucible_gateway.auth import Authentication, Keys
from crucible_gateway.body.json import Http
from crucible_gateway.context import Gateway
from crucible_gateway.correlation import HEADER, correlation_of, write_correlation
from crucible_gateway.live.hub import Hub
from crucible_gateway.live.replays import Recipients
from crucible_gateway.middleware import RequestCounter, RequestObserver, status_of
from crucible_gateway.openapi import Operation
from crucible_gateway.params import NoParams, read_params
from crucible_gateway.problems import exception_handlers, render_error, send_refusal, store_refusal
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
from crucible_gateway.settings import Settings
from crucible_kit.buckets import open_bucket
from crucible_kit.http.asgi import Rendered
from crucible_kit.lifecycle import announce_lifecycle
from crucible_kit.losses import BUCKET as LOSSES
from crucible_kit.losses import Losses
from crucible_kit.nats.bus import open_bus
from crucible_kit.rpc import serve
from crucible_kit.service import open_service
from crucible_kit.settings import load
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.types import open_types

SERVICE = "gateway"
OPEN_HANDLERS = (*ops.OPEN_HANDLERS, *stream.OPEN_HANDLERS)
HANDLERS = (
    *events.HANDLERS,
    *export.HANDLERS,
    *types.HANDLERS,
    *redaction.HANDLERS,
    *stream.HANDLERS,
    *replays.HANDLERS,
    *hooks.HANDLERS,
    *webhooks.HANDLERS,
    *memory.HANDLERS,
    *worlds.HANDLERS,
    *retention.HANDLERS,
    *ops.HANDLERS,
)
"""The handlers that need a key."""
_NOT_ALLOWED = 405


def create_app(settings: Settings | None = None) -> Litestar:
    """`app.state.gateway` is what is open while it runs. Streams end once `app.state.stopping` is set."""
    settings = settings or load(Settings)
    metrics = Metrics(SERVICE)
    observer = RequestObserver(metrics)
    counter = RequestCounter(metrics)
    api = Router("/", route_handlers=HANDLERS, middleware=[Authentication()], before_request=refuse_params)
    app = App(
        route_handlers=[*OPEN_HANDLERS, api],
        lifespan=[_lifespan(settings, metrics)],
        middleware=[observer],
        before_send=[send_refusal, write_correlation, write_allow, counter],
        after_exception=[store_refusal],
        exception_handlers=exception_handlers(),
        state=State({"service": SERVICE, "stopping": asyncio.Event()}),
        # Bodies are limited and read in `bodies`, described in `openapi`, and errors logged in `problems`.
        request_max_body_size=None,
        openapi_config=None,
        logging_config=None,
        debug=False,
    )
    app.plain_posts = {
        "/api/v1/events": events.append_any,
        "/api/v1/events/batch": partial(events.append_any, batch=True),
    }
    app.observer, app.counter = observer, counter
    return app


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
            recipients = Recipients(bus, telemetry)
            stack.push_async_callback(recipients.close)
            lost = Losses(await open_bucket(bus, LOSSES, settings.stream_replicas))
            appends = Appends(bus, telemetry, settings.request_timeout_s)
            app.state.gateway = Gateway(settings, bus, telemetry, metrics, keys, hub, recipients, known, lost, appends)
            answers = {**recipients.endpoints(), **known.endpoints()}
            await stack.enter_async_context(serve(bus, SERVICE, answers, telemetry))
            async with asyncio.TaskGroup() as tasks:
                following = (keys.follow, hub.run, known.view.follow, lost.view.follow)
                running = [tasks.create_task(follow()) for follow in following]
                async with announce_lifecycle(app, bus, SERVICE, change):
                    yield
                for task in running:
                    task.cancel()

    return lifespan


class App(Litestar):
    """Litestar, but for POST to the hottest paths, those of `plain_posts`: they are authenticated, observed, counted
    and refused as all others are. Litestar has routes for them too, which describe them and answer other spellings."""

    plain_posts: Mapping[str, Callable[[Http], Awaitable[Rendered]]]
    observer: RequestObserver
    counter: RequestCounter

    @staticmethod
    def _get_default_plugins(plugins: list[PluginProtocol]) -> list[PluginProtocol]:
        """None for whatever else is installed: pydantic, which only the CLI needs, would cost 7 MB and a third of a
        second."""
        return [*plugins, MsgspecDIPlugin()]

    async def __call__(
        self, scope: Scope | LifeSpanScope, receive: Receive | LifeSpanReceive, send: Send | LifeSpanSend
    ) -> None:
        http: Any = scope
        handler = self.plain_posts.get(http["path"]) if http["type"] == "http" and http["method"] == "POST" else None
        if handler is None:
            await super().__call__(scope, receive, send)
        else:
            await self._answer(handler, http, receive, send)  # type: ignore[arg-type]

    async def _answer(
        self, handler: Callable[[Http], Awaitable[Rendered]], scope: Scope, receive: Receive, send: Send
    ) -> None:
        scope["app"] = scope["litestar_app"] = self
        scope["path_template"] = scope["path"]
        scope.setdefault("state", {})
        started = time.perf_counter()
        with self.observer.span(scope) as span:
            try:
                request = PlainRequest(scope, receive, send)
                keys: Keys = self.state.gateway.keys
                scope["user"] = keys.authenticate(request.headers)
                status, fields, body = await handler(request)
            except Exception as error:
                self.observer.record_answer(scope, span, status_of(error), started)
                status, fields, body = render_error(error, scope)
            else:
                self.observer.record_answer(scope, span, status, started)
        self.counter.count(scope, status)
        fields = {**fields, HEADER: correlation_of(scope), "Content-Length": str(len(body))}
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})


class PlainRequest(Request[Any, Any, Any]):
    """Its headers are a dict, made once: the first of each name."""

    @cached_property
    def headers(self) -> Mapping[str, str]:  # type: ignore[override]
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed([*self.scope["headers"]])}


async def refuse_params(request: Http) -> None:
    """A `before_request` hook: a route that describes no parameters refuses all. Raises InvalidError."""
    operation: Operation | None = request.scope["route_handler"].opt.get("operation")
    if operation is not None and operation.params is NoParams:
        read_params(request, NoParams)


async def write_allow(message: Message, scope: Scope) -> None:
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
