"""Server-sent events (html.spec.whatwg.org, "Server-sent events"): the frames of a followed subscription."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator

import msgspec

from crucible_core.errors import CrucibleError

from .problems import document
from .subscriptions import CaughtUp, Gap, Item, Record, Start

log = logging.getLogger(__name__)

MEDIA_TYPE = "text/event-stream"
_RETRY_MS = 1000


async def frames(
    items: AsyncGenerator[Item, None], start: Start, heartbeat_s: float, stopping: asyncio.Event, correlation_id: str
) -> AsyncIterator[bytes]:
    """Until the client has gone or the server stops; a comment shows every `heartbeat_s` seconds that it lives."""
    yield b"retry: %d\n\n" % _RETRY_MS
    if not start.past:
        # Its id lets a client that loses the connection before the first event miss none all the same.
        yield b'id: %d\nevent: subscribed\ndata: {"type":"subscribed","sequence":%d}\n\n' % (start.after, start.after)
    try:
        async with contextlib.aclosing(_beating(items, heartbeat_s, stopping)) as beats:
            async for item in beats:
                yield b": heartbeat\n\n" if item is None else frame(item)
    except CrucibleError as error:
        yield b"event: error\ndata: %b\n\n" % bytes(document(error, correlation_id))
    except Exception:
        log.exception("an event stream failed")
        failed = document(CrucibleError("the stream failed"), correlation_id)
        yield b"event: error\ndata: %b\n\n" % bytes(failed)


def frame(item: Item) -> bytes:
    """`id` is the sequence after which a client that reconnects goes on."""
    match item:
        case Record():
            return b"id: %d\nevent: event\ndata: %b\n\n" % (item.sequence, _one_line(item.public))
        case CaughtUp(sequence):
            return b'id: %d\nevent: caught_up\ndata: {"type":"caught_up","sequence":%d}\n\n' % (sequence, sequence)
        case Gap(dropped):
            return b'event: gap\ndata: {"type":"gap","dropped":%d}\n\n' % dropped


def _one_line(raw: bytes) -> bytes:
    """A line break would end the field."""
    return msgspec.json.format(raw, indent=-1) if b"\n" in raw or b"\r" in raw else raw


async def _next(items: AsyncGenerator[Item, None]) -> Item:
    return await anext(items)


async def _beating(
    items: AsyncGenerator[Item, None], every_s: float, stopping: asyncio.Event
) -> AsyncGenerator[Item | None, None]:
    """The items, and None whenever there was none for so long."""
    stop = asyncio.create_task(stopping.wait())
    coming: asyncio.Task[Item] | None = None
    try:
        while not stopping.is_set():
            coming = coming or asyncio.create_task(_next(items))
            await asyncio.wait((coming, stop), timeout=every_s, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                try:
                    item = coming.result()
                except StopAsyncIteration:
                    return
                coming = None
                yield item
            elif not stopping.is_set():
                yield None
    finally:
        stop.cancel()
        if coming is not None:
            coming.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, CrucibleError):
                await coming
        await items.aclose()
