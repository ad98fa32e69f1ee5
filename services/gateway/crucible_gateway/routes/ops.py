"""Requests of operators and newcomers: health, readiness, metrics, what the log has lost, and where everything is."""

from litestar import Response, get, post

from crucible_core.protocol.losses import LossesRequest, LossList
from crucible_core.protocol.shared import Readiness
from crucible_gateway import examples
from crucible_gateway.bodies import Http
from crucible_gateway.context import ask, gateway_of
from crucible_gateway.openapi import Operation, described
from crucible_gateway.params import NoParams, ReadyParams, read_params
from crucible_kit.asgi import readiness
from crucible_kit.metrics import CONTENT_TYPE

from .replies import encoded, passed

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


@get(
    "/readyz",
    opt=described(
        Operation(
            summary="Whether it can serve",
            description="503 also where something is wrong that does not pass by itself: no room to store more, say.",
            tag=TAG,
            params=ReadyParams,
            reply=Readiness,
            open=True,
        )
    ),
)
async def readyz(request: Http) -> Response[bytes]:
    gateway = gateway_of(request)
    status, body = readiness(gateway.waiting_for(), gateway.troubles(), request.query_params.getall("exclude", []))
    return passed(body, status)


@get(
    "/metrics",
    opt=described(
        Operation(summary="Prometheus metrics", tag=TAG, reply={"type": "string"}, reply_type=CONTENT_TYPE, open=True)
    ),
)
async def metrics(request: Http) -> Response[bytes]:
    # As a header: Litestar would add a second charset to a media type, which Prometheus does not read.
    return Response(gateway_of(request).metrics.render(), headers={"Content-Type": CONTENT_TYPE})


@get(
    "/api/v1/losses",
    opt=described(
        Operation(
            summary="What the log has lost",
            description=(
                "Acknowledged events that are not in the log any more, by their sequences: a disk that was damaged, or "
                "a store that was put back. `/readyz` says 503 as long as there are any that nobody has accepted."
            ),
            tag=TAG,
            reply=LossList,
            example=examples.LOSSES,
        )
    ),
)
async def list_losses(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    return passed(await ask(request, "events", "losses", LossesRequest(), bytes))


@post(
    "/api/v1/losses/accept",
    status_code=200,
    opt=described(
        Operation(
            summary="Accept what the log has lost",
            description=(
                "Takes it for given: `/readyz` is silent about it from then on, and queries show no more what only "
                "their index has. Export that first. Answers what was accepted."
            ),
            tag=TAG,
            reply=LossList,
            example=examples.LOSSES,
        )
    ),
)
async def accept_losses(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    return passed(await ask(request, "events", "accept_losses", LossesRequest(), bytes))
