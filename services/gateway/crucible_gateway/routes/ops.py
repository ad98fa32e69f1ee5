"""What operators and newcomers ask: health, readiness, metrics, and where everything is."""

from litestar import Response, get

from crucible_gateway.bodies import Http
from crucible_gateway.context import gateway_of
from crucible_gateway.openapi import Operation, described
from crucible_kit.asgi import STATUS
from crucible_kit.metrics import CONTENT_TYPE

from .replies import encoded

TAG = "Operations"
_OBJECT = {"type": "object"}


@get("/", opt=described(Operation(summary="Where everything is", tag=TAG, reply=_OBJECT, open=True)))
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
    return encoded({"name": "crucible", "links": links})


@get("/healthz", opt=described(Operation(summary="Whether the process answers", tag=TAG, reply=_OBJECT, open=True)))
async def healthz(request: Http) -> Response[bytes]:
    return encoded({"status": "ok", "service": "gateway"})


@get("/readyz", opt=described(Operation(summary="Whether it can serve", tag=TAG, reply=_OBJECT, open=True)))
async def readyz(request: Http) -> Response[bytes]:
    waiting = gateway_of(request).waiting_for()
    if waiting:
        return encoded({"ready": False, "waiting_for": waiting}, STATUS["unavailable"])
    return encoded({"ready": True})


@get(
    "/metrics",
    opt=described(
        Operation(summary="Prometheus metrics", tag=TAG, reply={"type": "string"}, reply_type=CONTENT_TYPE, open=True)
    ),
)
async def metrics(request: Http) -> Response[bytes]:
    # As a header: Litestar would add a second charset to a media type, which Prometheus does not read.
    return Response(gateway_of(request).metrics.render(), headers={"Content-Type": CONTENT_TYPE})
