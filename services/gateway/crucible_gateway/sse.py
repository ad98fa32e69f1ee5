"""Server-sent events (html.spec.whatwg.org, "Server-sent events"): the frames of a followed subscription."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator

import msgspec

from crucible_core.errors import CrucibleError

from .following import Following
from .problems import document
from .subscriptions import CaughtUp, Gap, Item, Record, Start

log = logging.getLogger(__name__)

MEDIA_TYPE = "text/event-stream"
_RETRY_MS = 1000
_PIECE_BYTES = 64 * 1024


async def frames(
    opening: contextlib.AbstractAsyncContextManager[Following],
    start: Start,
    heartbeat_s: float,
    stopping: asyncio.Event,
    correlation_id: str,
) -> AsyncIterator[bytes]:
    """Until the client has gone or the server stops; a comment shows every `heartbeat_s` seconds that it lives."""
    yield b"retry: %d\n\n" % _RETRY_MS
    if not start.past:
        # Its id lets a client that loses the connection before the first event miss none all the same.
        yield b'id: %d\nevent: subscribed\ndata: {"type":"subscribed","sequence":%d}\n\n' % (start.after, start.after)
    try:
        async with opening as following, contextlib.aclosing(_items(following, heartbeat_s, stopping)) as items:
            async for item in items:
                for piece in pieces(item):
                    yield piece
    except CrucibleError as error:
        yield b"event: error\ndata: %b\n\n" % bytes(document(error, correlation_id))
    except Exception:
        log.exception("an event stream failed")
        failed = document(CrucibleError("the stream failed"), correlation_id)
        yield b"event: error\ndata: %b\n\n" % bytes(failed)


def pieces(item: Item | None) -> Iterator[bytes]:
    """The frame of an item, a large one piece by piece: what a connection has not taken, it holds a copy of. `id` is
    the sequence after which a client that reconnects goes on."""
    match item:
        case None:
            yield b": heartbeat\n\n"
        case Record(sequence=sequence):
            event = _one_line(item.public)
            head = b"id: %d\nevent: event\ndata: " % sequence
            if len(event) <= _PIECE_BYTES:
                yield b"%b%b\n\n" % (head, event)
                return
            yield head
            for start in range(0, len(event), _PIECE_BYTES):
                yield event[start : start + _PIECE_BYTES]
            yield b"\n\n"
        case CaughtUp(sequence):
            yield b'id: %d\nevent: caught_up\ndata: {"type":"caught_up","sequence":%d}\n\n' % (sequence, sequence)
        case Gap(dropped):
            yield b'event: gap\ndata: {"type":"gap","dropped":%d}\n\n' % dropped


def _one_line(raw: bytes) -> bytes:
    """A line break would end the field."""
    return msgspec.json.format(raw, indent=-1) if b"\n" in raw or b"\r" in raw else raw


async def _items(following: Following, every_s: float, stopping: asyncio.Event) -> AsyncGenerator[Item | None, None]:
    """The items, and None whenever there was none for so long."""

    async def stop() -> None:
        await stopping.wait()
        following.wake()

    watching = asyncio.create_task(stop())
    try:
        while not stopping.is_set():
            try:
                async with asyncio.timeout(every_s):
                    await following.ready()
            except TimeoutError:
                yield None
            else:
                item = None if stopping.is_set() else await following.next()
                if item is not None:
                    yield item
                await asyncio.sleep(0)  # a client that takes everything at once must not keep the others waiting
    finally:
        watching.cancel()
