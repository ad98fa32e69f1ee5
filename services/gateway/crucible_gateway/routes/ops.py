"""Requests that need no key (health, readiness, metrics, the API's description), and those about losses of the log."""

import base64
import hashlib
import re
from importlib.metadata import version
from importlib.resources import files

import msgspec
from litestar import Litestar, Response, get, post

from crucible_core.protocol.losses import LossesRequest, LossList
from crucible_core.protocol.parts import Readiness
from crucible_gateway import examples
from crucible_gateway.body.json import JSON, Http
from crucible_gateway.context import gateway_of
from crucible_gateway.openapi import Operation, openapi
from crucible_gateway.params import ReadyParams
from crucible_gateway.routes.replies import forward, reply_bytes, reply_json
from crucible_kit.http.asgi import readiness
from crucible_kit.telemetry.metrics import CONTENT_TYPE

TAG = "Operations"
_OBJECT = {"type": "object"}
_TITLE = "Crucible"
_DESCRIPTION = (
    "Memory and automation for agents and knowledge bases, on one durable event log. Errors are problem documents "
    "(RFC 9457); answers carry X-Correlation-Id."
)
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@get("/", operation=Operation(summary="Links to everything", tag=TAG, reply=_OBJECT, open=True))
async def index(request: Http) -> Response[bytes]:
    links = {
        "docs": "/docs",
        "openapi": "/openapi.json",
        "events": "/api/v1/events",
        "stream": "/api/v1/events/stream",
        "event_types": "/api/v1/event-types",
        "hooks": "/api/v1/hooks",
        "webhooks": "/api/v1/webhooks",
        "memory": "/api/v1/memory",
        "health": "/healthz",
        "ready": "/readyz",
        "metrics": "/metrics",
    }
    return reply_json({"name": "crucible", "links": links})


@get("/healthz", operation=Operation(summary="Liveness of the process", tag=TAG, reply=_OBJECT, open=True))
async def healthz(request: Http) -> Response[bytes]:
    return reply_json({"status": "ok", "service": "gateway"})


@get(
    "/readyz",
    operation=Operation(
        summary="Readiness to serve",
        description="503 also where something is wrong that does not pass by itself: no space to store more, say.",
        tag=TAG,
        params=ReadyParams,
        reply=Readiness,
        open=True,
    ),
)
async def readyz(request: Http) -> Response[bytes]:
    gateway = gateway_of(request)
    status, body = readiness(gateway.waiting_for(), gateway.troubles(), request.query_params.getall("exclude", []))
    return reply_bytes(body, status)


@get(
    "/metrics",
    operation=Operation(
        summary="Prometheus metrics", tag=TAG, reply={"type": "string"}, reply_type=CONTENT_TYPE, open=True
    ),
)
async def metrics(request: Http) -> Response[bytes]:
    # As a header: Litestar would add a second charset to a media type, which Prometheus does not read.
    return Response(gateway_of(request).metrics.render(), headers={"Content-Type": CONTENT_TYPE})


@get(
    "/api/v1/losses",
    operation=Operation(
        summary="Losses of the log",
        description=(
            "Acknowledged events that are not in the log any more, by their sequences: a disk that was damaged, or "
            "a store that was put back. `/readyz` says 503 as long as there are any that nobody has accepted."
        ),
        tag=TAG,
        reply=LossList,
        example=examples.LOSSES,
    ),
)
async def list_losses(request: Http) -> Response[bytes]:
    return await forward(request, "events", "losses", LossesRequest())


@post(
    "/api/v1/losses/accept",
    status_code=200,
    operation=Operation(
        summary="Accept losses of the log",
        description=(
            "Takes it for given: `/readyz` is silent about it from then on, and queries show no more what only "
            "their index has. Export that first. Answers what was accepted."
        ),
        tag=TAG,
        reply=LossList,
        example=examples.LOSSES,
    ),
)
async def accept_losses(request: Http) -> Response[bytes]:
    return await forward(request, "events", "accept_losses", LossesRequest())


@get(
    "/openapi.json",
    operation=Operation(summary="This document", tag=TAG, reply={"type": "object"}, open=True),
)
async def openapi_json(request: Http) -> Response[bytes]:
    state = request.app.state
    if "openapi" not in state:
        state.openapi = openapi_bytes(request.app)  # which takes long, and is always the same
    return Response(state.openapi, media_type=JSON)


def openapi_bytes(app: Litestar) -> bytes:
    return msgspec.json.encode(openapi(app, _TITLE, version("crucible-gateway"), _DESCRIPTION))


@get(
    "/docs",
    operation=Operation(
        summary="This document, to read", tag=TAG, reply={"type": "string"}, reply_type="text/html", open=True
    ),
)
async def docs_page(request: Http) -> Response[str]:
    page = files("crucible_gateway").joinpath("reference.html").read_text("utf-8")
    return Response(page, media_type="text/html", headers={"Content-Security-Policy": content_policy(page)})


def content_policy(page: str) -> str:
    """Nothing but the page's own style and script, by their hashes, and requests to this server."""
    hashes = {kind: base64.b64encode(hashlib.sha256(text.encode()).digest()) for kind, text in _INLINE.findall(page)}
    return (
        "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        f"script-src 'sha256-{hashes['script'].decode()}'; style-src 'sha256-{hashes['style'].decode()}'"
    )


OPEN_HANDLERS = (index, healthz, readyz, metrics, openapi_json, docs_page)
HANDLERS = (list_losses, accept_losses)
