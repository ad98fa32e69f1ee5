"""Following the log: the past from the stream, then live, with no hole and no repeat, at the client's own pace."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator

import msgspec

from crucible_core.errors import CrucibleError
from crucible_kit.bus import Message
from crucible_kit.reading import read

from .hub import Hub
from .subscriptions import CaughtUp, Gap, Item, Reader, Record, Start, Wanted

log = logging.getLogger(__name__)

_PAUSE_S = 0.25


async def follow(hub: Hub, wanted: Wanted, start: Start, queue: int) -> AsyncGenerator[Item, None]:
    """Every matching event after `start`, once each and in order, for ever; close it to end the subscription.

    The caller's pace is the subscription's: who does not come back for the next item in time falls behind (`Gap`), and
    is served from the stream again from there. Raises UnavailableError only before the first item.
    """
    async with hub.following():
        reader = Reader(wanted, queue)
        position, since_ms, announce = start.after, start.since_ms, start.past
        try:
            while True:
                until = start.head if announce else 0
                while since_ms is not None or not hub.join(reader, position, until):
                    async with contextlib.aclosing(_past(hub, wanted, position, since_ms)) as past:
                        async for upto, records in past:
                            for record in records:
                                yield record
                            position, since_ms = max(position, upto), None
                if announce:
                    waiting, reached = reader.waiting(), max(position, hub.reached)
                    for record in waiting:
                        yield record
                    position = reached
                    yield CaughtUp(position)
                async with contextlib.aclosing(reader.records()) as live:
                    async for record in live:
                        yield record
                        position = record.sequence
                yield Gap(reader.dropped)
                announce = True
        finally:
            hub.leave(reader)


async def _past(
    hub: Hub, wanted: Wanted, after: int, since_ms: int | None
) -> AsyncGenerator[tuple[int, list[Record]], None]:
    """Batches of matching events from the stream, each with the sequence that it reaches, until at least the sequence
    that was the last one at the beginning."""
    head = await _head(hub)
    stream, subjects = hub.bus.names.events, wanted.subjects(hub.bus.names)
    async with contextlib.aclosing(read(hub.bus, stream, after=after, filters=subjects, since_ms=since_ms)) as batches:
        async for messages in batches:
            # The empty batch: nothing more was there, whatever the subjects in between.
            upto = messages[-1].sequence if messages else head
            yield upto, [record for message in messages if (record := _matching(wanted, message))]
            if upto >= head:
                return


def _matching(wanted: Wanted, message: Message) -> Record | None:
    record = Record(message.sequence, message.data)
    try:
        return record if wanted.matches(record.event) else None
    except msgspec.DecodeError as error:
        log.error("event %d cannot be read: %s", message.sequence, error)
        return None


async def _head(hub: Hub) -> int:
    while True:
        try:
            return await hub.head()
        except CrucibleError:
            await asyncio.sleep(_PAUSE_S)
            await hub.bus.wait_connected()
