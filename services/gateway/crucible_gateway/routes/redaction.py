"""The request to erase one event's payload: apart from the others about events, since it changes what is stored."""

from typing import Annotated

import msgspec
from litestar import Response, post
from msgspec import Meta

from crucible_core.envelope import Event
from crucible_core.limits import REASON_CHARS
from crucible_core.protocol.events import RedactRequest
from crucible_gateway import examples
from crucible_gateway.auth import principal_of
from crucible_gateway.body.json import JSON, Http, read_optional_json
from crucible_gateway.correlation import read_correlation, read_hop
from crucible_gateway.openapi import Body, Operation
from crucible_gateway.routes.events import TAG
from crucible_gateway.routes.replies import forward


class RedactBody(msgspec.Struct):
    """Why it is erased. It stays in the log for ever: it must not repeat what is erased."""

    reason: Annotated[str, Meta(min_length=1, max_length=REASON_CHARS)] | None = None


@post(
    "/api/v1/events/{id:str}/redact",
    operation=Operation(
        summary="Erase an event's payload for good",
        description=(
            "Its envelope stays in its place, with `redacted`, and a tombstone (`Memory.Redacted`, `Graph.Redacted`"
            " or `System.Redacted`) is committed. Answered once the payload is gone from the log; the same request "
            "again is answered the same. A Pre hook on the tombstone's type may deny it."
        ),
        tag=TAG,
        bodies={JSON: Body(RedactBody, {"reason": "asked for by the author"})},
        body_required=False,
        reply=Event,
        example=examples.REDACTED,
        errors=("not_found", "conflict"),
    ),
)
async def redact_event(request: Http) -> Response[bytes]:
    body = await read_optional_json(request, RedactBody)
    principal = principal_of(request)
    question = RedactRequest(
        id=request.path_params["id"],
        reason=body.reason,
        source=principal.source,
        actor=principal.id,
        correlation_id=read_correlation(request.headers),
        hop=read_hop(request.headers),
    )
    return await forward(request, "events", "redact", question)


HANDLERS = (redact_event,)
