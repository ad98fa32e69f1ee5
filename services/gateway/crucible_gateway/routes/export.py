"""The request for an export of the log."""

from typing import Any

from litestar import Response, get
from litestar.response import Stream

from crucible_core.protocol.events import QueryReply, QueryRequest
from crucible_gateway import examples
from crucible_gateway.bodies import Http
from crucible_gateway.context import ask, gateway_of
from crucible_gateway.exporting import PAGE, exported
from crucible_gateway.openapi import Operation, described
from crucible_gateway.params import WantedParams, read_params, wanted_fields

TAG = "Events"
NDJSON = "application/x-ndjson"


@get(
    "/api/v1/events/export",
    opt=described(
        Operation(
            summary="Export events",
            description=(
                "What a query finds of all that was committed before the request, in its order, an event a "
                'line, with `"retention": "forever"` where it is kept for ever. `POST /api/v1/events` takes the lines '
                "back: the same ids, times and places. A complete export ends with an empty line; one that fails on "
                "the way breaks the connection. `after` the last sequence received goes on with it."
            ),
            tag=TAG,
            params=WantedParams,
            reply={"type": "string", "description": "One event a line, and an empty line"},
            reply_type=NDJSON,
            example=examples.EXPORT,
            refusals=("malformed", "invalid"),
        )
    ),
)
async def export_events(request: Http) -> Response[Any]:
    wanted = wanted_fields(read_params(request.scope["query_string"], WantedParams))
    gateway = gateway_of(request)
    head = await gateway.hub.head()
    # What was committed before the request is in the export, and what comes meanwhile does not prolong it.
    until = wanted["min_sequence"] = head.after(wanted["min_sequence"] or 0).encoded
    query = QueryRequest(**wanted, until=until, limit=PAGE, with_retention=True)

    async def page(query: QueryRequest) -> QueryReply:
        return await ask(request, "events", "query", query, QueryReply)

    lines = exported(page, query, await page(query), request.app.state.stopping)
    headers = {
        "Content-Disposition": f'attachment; filename="crucible-events-{head.text}.ndjson"',
        "Cache-Control": "no-store",
        "X-Accel-Buffering": "no",
    }
    return Stream(lines, media_type=NDJSON, headers=headers)
