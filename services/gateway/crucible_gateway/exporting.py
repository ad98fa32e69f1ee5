"""The export of the log: a query's pages, one after another, as lines of NDJSON."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable

import msgspec

from crucible_core.errors import CrucibleError, LimitedError, UnavailableError
from crucible_core.protocol.events import QueryReply, QueryRequest

log = logging.getLogger(__name__)

Ask = Callable[[QueryRequest], Awaitable[QueryReply]]

PAGE = 1000
END = b"\n"
"""The empty line at the end of a complete export. Who reads NDJSON skips it; an export without it was cut off."""
NOTHING_YET = b" "
"""Sent for a page without a match, so that a long search does not look dead: white space before a line."""
_TRIES = 6
_FIRST_WAIT_S = 0.25


async def exported(
    ask: Ask, query: QueryRequest, page: QueryReply, stopping: asyncio.Event
) -> AsyncGenerator[bytes, None]:
    """The lines of all pages from the first one on, each page asked for when the client has taken the one before.

    A failure that lasts is raised: the connection then breaks without the end that the client waits for.
    """
    while True:
        written, cursor = _written(page), page.next_cursor
        del page
        yield written
        del written
        if cursor is None:
            yield END
            return
        yield b""  # which waits until the client has taken most of it: only then is there another page to hold
        if stopping.is_set():
            raise UnavailableError("the gateway is stopping")
        page = await _patiently(ask, msgspec.structs.replace(query, cursor=cursor, min_sequence=None))


def _written(page: QueryReply) -> bytes:
    return b"".join(b"%b\n" % bytes(event) for event in page.events) or NOTHING_YET


async def _patiently(ask: Ask, query: QueryRequest) -> QueryReply:
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
