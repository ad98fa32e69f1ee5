"""The export of the log: its request, and its lines, page by page."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import msgspec
from litestar import Response, get
from litestar.response import Stream

from crucible_core.errors import CrucibleError, LimitedError, UnavailableError
from crucible_core.protocol.events import QueryReply, QueryRequest
from crucible_gateway import examples
from crucible_gateway.body.json import Http
from crucible_gateway.context import ask, gateway_of
from crucible_gateway.openapi import Operation
from crucible_gateway.params import SelectionParams, read_params, selection_fields
from crucible_gateway.routes.events import NDJSON, TAG

log = logging.getLogger(__name__)

Ask = Callable[[QueryRequest], Awaitable[QueryReply]]

PAGE = 1000
END = b"\n"
"""The empty line at the end of a complete export. Who reads NDJSON skips it; an export without it was cut off."""
NOTHING_YET = b" "
"""Sent for a page without a match, so that a long search does not look dead: white space before a line."""
_TRIES = 6
_FIRST_WAIT_S = 0.25


@get(
    "/api/v1/events/export",
    operation=Operation(
        summary="Export events",
        description=(
            "The events that a query finds among all that were committed before the request, in its order, an event a "
            'line, with `"retention": "forever"` where it is kept for ever. `POST /api/v1/events` takes the lines '
            "back: the same ids, times and places. A complete export ends with an empty line; one that fails on "
            "the way breaks the connection. `after` the last sequence received goes on with it."
        ),
        tag=TAG,
        params=SelectionParams,
        reply={"type": "string", "description": "One event a line, and an empty line"},
        reply_type=NDJSON[0],
        example=examples.EXPORT,
        errors=("malformed",),
    ),
)
async def export_events(request: Http) -> Response[Any]:
    selection = selection_fields(read_params(request, SelectionParams))
    gateway = gateway_of(request)
    head = await gateway.hub.head()
    # What was committed before the request is in the export, and what comes meanwhile does not prolong it.
    until = selection["min_sequence"] = head.after(selection["min_sequence"] or 0).encoded
    query = QueryRequest(**selection, until=until, limit=PAGE, with_retention=True)

    async def page(query: QueryRequest) -> QueryReply:
        return await ask(request, "events", "query", query, QueryReply)

    lines = export_lines(page, query, await page(query), request.app.state.stopping)
    headers = {
        "Content-Disposition": f'attachment; filename="crucible-events-{head.text}.ndjson"',
        "Cache-Control": "no-store",
        "X-Accel-Buffering": "no",
    }
    return Stream(lines, media_type=NDJSON[0], headers=headers)


async def export_lines(
    ask: Ask, query: QueryRequest, page: QueryReply, stopping: asyncio.Event
) -> AsyncGenerator[bytes, None]:
    """The lines of all pages from the first one on, each page asked for when the client has taken the one before.

    A failure that lasts is raised: the connection then breaks without the end that the client waits for.
    """
    while True:
        written, cursor = _page_lines(page), page.next_cursor
        del page
        yield written
        del written
        if cursor is None:
            yield END
            return
        yield b""  # which waits until the client has taken most of it: only then is there another page to hold
        if stopping.is_set():
            raise UnavailableError("the gateway is stopping")
        page = await _ask_with_retries(ask, msgspec.structs.replace(query, cursor=cursor, min_sequence=None))


def _page_lines(page: QueryReply) -> bytes:
    return b"".join(b"%b\n" % bytes(event) for event in page.events) or NOTHING_YET


async def _ask_with_retries(ask: Ask, query: QueryRequest) -> QueryReply:
    """A page, also where events is away for a moment: who has got half of an export would lose it all."""
    for attempt in range(_TRIES):
        try:
            return await ask(query)
        except (UnavailableError, LimitedError) as error:
            log.info("an export waits: %s", error)
            await asyncio.sleep(_FIRST_WAIT_S * 2**attempt)
        except CrucibleError as error:
            log.warning("an export was cut off: %s", error)
            raise
    return await ask(query)


HANDLERS = (export_events,)
