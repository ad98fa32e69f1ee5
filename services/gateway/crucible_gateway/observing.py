"""What is known of each request afterwards: its span, its count and its duration."""

import time
from typing import Any

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from crucible_kit.metrics import Metrics
from crucible_kit.telemetry import Telemetry

_KEY = "crucible_traceparent"
_UNKNOWN = "unmatched"


class Observing(ASGIMiddleware):
    """A server span and a duration for every routed request; a stream's span lasts as long as the stream."""

    def __init__(self, metrics: Metrics) -> None:
        self._durations = metrics.histogram("http_request_seconds", "How long requests took", ("method", "route"))

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        method = _method(scope)
        route = _route(scope)
        attributes = {"http.request.method": method, "http.route": route, "url.path": scope["path"]}
        started = time.perf_counter()
        parent = _header(scope, b"traceparent")
        telemetry: Telemetry = scope["litestar_app"].state.gateway.telemetry
        with telemetry.span(f"{method} {route}", parent, "server", attributes) as span:
            scope["state"][_KEY] = span.traceparent

            async def watched(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set("http.response.status_code", message["status"])
                    self._durations.labels(method, route).observe(time.perf_counter() - started)
                await send(message)

            await next_app(scope, receive, watched)


class Counting:
    """A `before_send` hook that counts the answers, those to unknown paths too."""

    def __init__(self, metrics: Metrics) -> None:
        self._requests = metrics.counter("http_requests", "Answered requests", ("method", "route", "status"))

    async def __call__(self, message: Message, scope: Scope) -> None:
        if (status := _status(message)) is not None:
            self._requests.labels(_method(scope), _route(scope), status).inc()


def _status(message: Any) -> int | None:
    match message:
        case {"type": "http.response.start", "status": int(status)}:
            return status
        case {"type": "websocket.accept"}:
            return 101
        case {"type": "websocket.close", "refusal": (int(status), _, _)}:
            return status
    return None


def traceparent_of(scope: Scope) -> str:
    """The trace context of the request's span."""
    return str(scope["state"][_KEY])


def _method(scope: Scope) -> str:
    """Only methods that exist become labels: what clients make up must not grow the metrics."""
    if scope["type"] == ScopeType.WEBSOCKET:
        return "WEBSOCKET"
    method = str(scope.get("method"))
    return method if method in ("GET", "POST", "PATCH", "DELETE", "PUT", "HEAD", "OPTIONS") else "OTHER"


def _route(scope: Scope) -> str:
    return scope.get("path_template") or _UNKNOWN


def _header(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)
