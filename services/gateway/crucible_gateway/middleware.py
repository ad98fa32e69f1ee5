"""The record of each request: its span, its count and its duration."""

import functools
import time
from typing import Any

from litestar.enums import ScopeType
from litestar.exceptions import HTTPException
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from crucible_core.errors import CrucibleError
from crucible_kit.http.asgi import problem
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.telemetry.spans import Attribute, Span, Telemetry

_KEY = "crucible_traceparent"
_UNKNOWN = "unmatched"
_METHOD = "http.request.method"
_METHODS = frozenset({"GET", "POST", "PATCH", "DELETE", "PUT", "HEAD", "OPTIONS"})
_FAULT = 500
_SHOWN = 1000


class RequestObserver(ASGIMiddleware):
    """A server span and a duration for every routed request; a stream's span lasts as long as the stream."""

    def __init__(self, metrics: Metrics) -> None:
        durations = metrics.histogram(
            "http_request_seconds", "How long it took until the answer began", ("method", "route", "status")
        )
        self._durations_of = functools.cache(durations.labels)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        started, begun = time.perf_counter(), False
        with self.span(scope) as span:

            async def watched(message: Message) -> None:
                nonlocal begun
                status = _status(message)
                if status is not None and not begun:
                    begun = True
                    self.record_answer(scope, span, status, started)
                await send(message)

            try:
                await next_app(scope, receive, watched)
            except Exception as error:
                # It becomes an answer outside of here, unless one has begun.
                if not begun:
                    self.record_answer(scope, span, status_of(error), started)
                refusal = error
            else:
                return
        try:
            raise refusal
        finally:
            del refusal  # its traceback leads to this frame, and to the request

    def span(self, scope: Scope) -> Span:
        """The span of a routed request, whose trace context is `traceparent_of` from now on."""
        parent = _header(scope, b"traceparent")
        telemetry: Telemetry = scope["litestar_app"].state.gateway.telemetry
        about = attributes_of(scope) if telemetry.recording else {}
        span = telemetry.span(f"{about.get(_METHOD, _method(scope))} {_route(scope)}", parent, "server", about)
        scope["state"][_KEY] = span.traceparent
        return span

    def record_answer(self, scope: Scope, span: Span, status: int, started: float) -> None:
        """Records that the answer to a request begins that `started` (`time.perf_counter`) a while ago."""
        span.set("http.response.status_code", status)
        if status >= _FAULT:
            span.fail(str(status))
        self._durations_of(_method(scope), _route(scope), status).observe(time.perf_counter() - started)


def attributes_of(scope: Scope) -> dict[str, Attribute | None]:
    """OpenTelemetry's conventions for HTTP servers."""
    sent = "GET" if scope["type"] == ScopeType.WEBSOCKET else str(scope.get("method"))
    method = sent if sent in _METHODS else "_OTHER"
    host, _, port = (_header(scope, b"host") or "").rpartition(":")
    server = scope.get("server") or ("", None)
    client = scope.get("client") or (None, None)
    query = scope.get("query_string", b"").decode("latin-1")
    return {
        _METHOD: method,
        "http.request.method_original": None if method == sent else sent[:_SHOWN],
        "http.route": scope.get("path_template"),
        "url.scheme": scope.get("scheme"),
        "url.path": scope["path"][:_SHOWN],
        "url.query": query[:_SHOWN] or None,
        "server.address": (host if port.isdecimal() else _header(scope, b"host")) or server[0],
        "server.port": int(port[:5]) if port.isdecimal() else server[1],
        "client.address": client[0],
        "network.peer.address": client[0],
        "network.peer.port": client[1],
        "network.protocol.version": scope.get("http_version"),
        "user_agent.original": _header(scope, b"user-agent"),
    }


def status_of(error: Exception) -> int:
    if isinstance(error, CrucibleError):
        return problem(error)[0]
    return error.status_code if isinstance(error, HTTPException) else _FAULT


class RequestCounter:
    """A `before_send` hook that counts the answers, those to unknown paths too."""

    def __init__(self, metrics: Metrics) -> None:
        requests = metrics.counter("http_requests", "Answered requests", ("method", "route", "status"))
        self._requests_of = functools.cache(requests.labels)

    async def __call__(self, message: Message, scope: Scope) -> None:
        if (status := _status(message)) is not None:
            self.count(scope, status)

    def count(self, scope: Scope, status: int) -> None:
        self._requests_of(_method(scope), _route(scope), status).inc()


def _status(message: Any) -> int | None:
    match message["type"]:
        case "http.response.start":
            status: int = message["status"]
            return status
        case "websocket.accept":
            return 101
        case "websocket.close" if "refusal" in message:
            refused: int = message["refusal"][0]
            return refused
    return None


def traceparent_of(scope: Scope) -> str:
    """The trace context of the request's span."""
    return str(scope["state"][_KEY])


def _method(scope: Scope) -> str:
    """Only methods that exist become labels: what clients make up must not grow the metrics."""
    if scope["type"] == ScopeType.WEBSOCKET:
        return "WEBSOCKET"
    method = str(scope.get("method"))
    return method if method in _METHODS else "OTHER"


def _route(scope: Scope) -> str:
    return scope.get("path_template") or _UNKNOWN


def _header(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)
