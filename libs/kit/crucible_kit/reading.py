"""Reading a stream in order from a position, for indexes, replays and late subscribers: no hole, no repeat, no end."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from crucible_core import subjects
from crucible_core.errors import CrucibleError, NotFoundError, UnavailableError

from .bus import Bus, Message

log = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
EXPIRES_S = 60.0
_LOST_AFTER_S = 3 * HEARTBEAT_S
_PAUSE_S = 0.25


class Lost(Exception):
    """The consumer has gone or skipped something: begin again after the last message that was handed on."""


async def read(
    bus: Bus,
    stream: str,
    *,
    after: int = 0,
    filters: Sequence[str] = (),
    batch: int = 500,
    since_ms: int | None = None,
    last_per_subject: bool = False,
) -> AsyncIterator[list[Message]]:
    """Batches of messages in the stream's order, from just after a sequence, for ever.

    An empty list comes once, when everything that was there at the beginning has been handed on, and never again.
    `since_ms` (Unix ms) begins at a time instead; `last_per_subject` begins with each subject's last message. Lost
    connections and consumers are replaced, at the position reached. A message is handed on at most once.
    """
    caught_up = False
    fresh = True
    while True:
        try:
            start = _start(after, since_ms if fresh else None, last_per_subject and fresh)
            async with _consumer(bus, stream, start, filters) as (name, waiting):
                if not waiting and not caught_up:
                    caught_up = True
                    yield []
                async for messages in _pull(bus, stream, name, batch):
                    after, fresh = messages[-1].sequence, False
                    yield messages
                    if not caught_up and messages[-1].pending == 0:
                        caught_up = True
                        yield []
        except NotFoundError:
            raise
        except (Lost, CrucibleError) as error:
            log.warning("reading %s again after sequence %d: %s", stream, after, error)
            await asyncio.sleep(_PAUSE_S)
            await bus.wait_connected()


def _start(after: int, since_ms: int | None, last_per_subject: bool) -> dict[str, Any]:
    if last_per_subject:
        return {"deliver_policy": "last_per_subject"}
    if since_ms is not None:
        return {"deliver_policy": "by_start_time", "opt_start_time": datetime.fromtimestamp(since_ms / 1000, UTC)}
    if after:
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": after + 1}
    return {"deliver_policy": "all"}


@contextlib.asynccontextmanager
async def _consumer(
    bus: Bus, stream: str, start: dict[str, Any], filters: Sequence[str]
) -> AsyncIterator[tuple[str, int]]:
    name = f"read-{secrets.token_hex(8)}"
    waiting = await bus.ensure_consumer(
        stream,
        name,
        ack_policy="none",
        inactive_threshold=30.0,
        mem_storage=True,
        num_replicas=1,
        max_deliver=1,
        filter_subjects=list(filters) or None,
        **start,
    )
    try:
        yield name, waiting
    finally:
        with contextlib.suppress(CrucibleError):
            await bus.delete_consumer(stream, name)


async def _pull(bus: Bus, stream: str, consumer: str, batch: int) -> AsyncIterator[list[Message]]:
    expected = 1
    async with bus.inbox() as (reply, arrived):
        outstanding = 0
        while True:
            # Asked before it runs dry, so that the server never waits for the reader's round trip.
            if outstanding <= batch // 2:
                await bus.ask(subjects.js_next(stream, consumer), pull_request(batch), reply)
                outstanding += batch
            messages: list[Message] = []
            for message in await arrivals(arrived, batch):
                if message.status is None:
                    if message.consumer_sequence != expected:
                        raise Lost(f"message {expected} of the consumer is missing")
                    expected += 1
                    messages.append(message)
                else:
                    outstanding -= ended(message, outstanding)
            outstanding -= len(messages)
            if messages:
                yield messages


def pull_request(batch: int) -> bytes:
    """The body of a pull request (docs.nats.io, "JetStream wire API reference")."""
    return msgspec.json.encode(
        {"batch": batch, "expires": int(EXPIRES_S * 1e9), "idle_heartbeat": int(HEARTBEAT_S * 1e9)}
    )


async def next_arrival(arrived: asyncio.Queue[Message], *, patient: bool = False) -> Message:
    """The next message. Raises Lost when not even a heartbeat comes, unless `patient`."""
    try:
        async with asyncio.timeout(None if patient else _LOST_AFTER_S):
            return await arrived.get()
    except TimeoutError as error:
        raise Lost("no heartbeat") from error


async def arrivals(arrived: asyncio.Queue[Message], most: int) -> list[Message]:
    """What has arrived, at least one message. Raises Lost when not even a heartbeat came."""
    messages = [await next_arrival(arrived)]
    while len(messages) < most and not arrived.empty():
        messages.append(arrived.get_nowait())
    return messages


def ended(message: Message, outstanding: int) -> int:
    """How many requested messages a status says will not come. Raises when the consumer itself has gone."""
    match message.status:
        case "100":
            return 0
        case "404" | "408":
            return int(message.headers.get(subjects.PENDING_MESSAGES, outstanding))
        case "409" if "Deleted" not in message.headers.get(subjects.DESCRIPTION, ""):
            return int(message.headers.get(subjects.PENDING_MESSAGES, outstanding))
        case _:
            raise Lost(f"status {message.status} {message.headers.get(subjects.DESCRIPTION, '')}")


async def backlog(bus: Bus, stream: str, consumer: str) -> int:
    """What waits for a durable consumer, delivered or not; 0 if it does not exist."""
    try:
        return sum(await bus.consumer_backlog(stream, consumer))
    except (NotFoundError, UnavailableError):
        return 0
