"""Requests about what the log has lost."""

from litestar import Response, get, post

from crucible_core.protocol.losses import LossesRequest, LossList
from crucible_gateway import examples
from crucible_gateway.bodies import Http
from crucible_gateway.context import ask
from crucible_gateway.openapi import Operation, described
from crucible_gateway.params import NoParams, read_params

from .replies import passed

TAG = "Operations"


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
