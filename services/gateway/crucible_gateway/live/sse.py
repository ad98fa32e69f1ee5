"""Server-sent events (html.spec.whatwg.org, "Server-sent events"): the frames of a followed subscription."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from crucible_core.errors import CrucibleError
from crucible_core.position import Position
from crucible_gateway.live.feed import Feed
from crucible_gateway.live.subscription import CaughtUp, Gap, Item, Record, Start, position_fields
from crucible_gateway.problems import document

log = logging.getLogger(__name__)

MEDIA_TYPE = "text/event-stream"
_RETRY_MS = 1000


async def frames(
    opening: contextlib.AbstractAsyncContextManager[Feed],
    start: Start,
    heartbeat_s: float,
    stopping: asyncio.Event,
    correlation_id: str,
    named: bool = True,
    warning: str | None = None,
) -> AsyncIterator[bytes]:
    """Until the client has gone or the server stops; a comment shows every `heartbeat_s` seconds that it lives. Where
    they are not `named`, events come as what a browser's `onmessage` takes. A `warning` says why none may come."""
    yield b"retry: %d\n\n" % _RETRY_MS
    if warning or not start.past:
        yield _subscribed(start, warning)
    try:
        async with opening as feed, _wake_on(stopping, feed):
            while not stopping.is_set():
                if not await _ready(feed, heartbeat_s):
                    yield b": heartbeat\n\n"
                    continue
                yield b""  # which waits until the client takes more: only then is there a frame to hold
                if (written := await _next(feed, named)) is not None:
                    yield written
                    del written
                await asyncio.sleep(0)  # a client that takes everything at once must not keep the others waiting
    except CrucibleError as error:
        yield b"event: error\ndata: %b\n\n" % bytes(document(error, correlation_id))
    except Exception:
        log.exception("an event stream failed")
        failed = document(CrucibleError("the stream failed"), correlation_id)
        yield b"event: error\ndata: %b\n\n" % bytes(failed)


def _subscribed(start: Start, warning: str | None) -> bytes:
    """The frame's id lets a client that begins at the end, and loses the connection before the first event, miss
    none."""
    warnings: dict[str, Any] = {"warnings": [warning]} if warning else {}
    if start.past:
        return b"event: subscribed\ndata: %b\n\n" % msgspec.json.encode({"type": "subscribed", **warnings})
    data = msgspec.json.encode({"type": "subscribed", **position_fields(start.after), **warnings})
    return b"id: %b\nevent: subscribed\ndata: %b\n\n" % (start.after.text.encode(), data)


def frame(item: Item, named: bool, position: Position) -> bytes:
    """`id` is the sequence, or the position of several streams, after which a client that reconnects goes on."""
    id = position.text if position.several and not isinstance(item, Gap) else ""
    match item:
        case Record():
            name = b"event: event\n" if named else b""
            id_field = id.encode() or b"%d" % item.sequence
            return b"id: %b\n%bdata: %b\n\n" % (id_field, name, _one_line(item.public))
        case CaughtUp():
            data = msgspec.json.encode({"type": "caught_up", **position_fields(item.position)})
            return b"id: %b\nevent: caught_up\ndata: %b\n\n" % (item.position.text.encode(), data)
        case Gap(dropped):
            return b'event: gap\ndata: {"type":"gap","dropped":%d}\n\n' % dropped


def _one_line(raw: bytes) -> bytes:
    """A line break would end the field."""
    return msgspec.json.format(raw, indent=-1) if b"\n" in raw or b"\r" in raw else raw


async def _next(feed: Feed, named: bool) -> bytes | None:
    item = await feed.next()
    return None if item is None else frame(item, named, feed.position)


async def _ready(feed: Feed, within_s: float) -> bool:
    """True if there may be something to send; False where nothing came for so long."""
    try:
        async with asyncio.timeout(within_s):
            await feed.ready()
    except TimeoutError:
        return False
    return True


@contextlib.asynccontextmanager
async def _wake_on(stopping: asyncio.Event, feed: Feed) -> AsyncIterator[None]:
    async def wake() -> None:
        await stopping.wait()
        feed.wake()

    waking = asyncio.create_task(wake())
    try:
        yield
    finally:
        waking.cancel()
