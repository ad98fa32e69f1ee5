"""Reading a stream in order from a position, for indexes, replays and late subscribers: no hole, no repeat, no end."""

import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

from crucible_core.errors import CrucibleError, NotFoundError
from crucible_core.position import in_stream
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.message import Message
from crucible_kit.nats.pull import Backoff, LostError, open_pull


async def read(
    bus: Bus,
    stream: str,
    *,
    after: int = 0,
    filters: Sequence[str] = (),
    batch: int = 500,
    since_ms: int | None = None,
    last_per_subject: bool = False,
    headers_only: bool = False,
) -> AsyncGenerator[list[Message], None]:
    """Yields batches of messages in the stream's order, from just after a sequence, for ever.

    It yields an empty list once, after all messages that were there at the beginning. With `headers_only` messages come
    without their data. `since_ms` (Unix ms) begins at a time instead; `last_per_subject`
    begins with each subject's last message. Lost connections and consumers are replaced, at the position reached. A
    message is handed on at most once; what the stream has dropped by its limits is skipped. Whoever breaks off a loop
    over it closes it (`contextlib.aclosing`).

    Raises NotFoundError when there is no such stream, or when it is no longer the one that was read: it was made anew,
    or lost its end. Nothing that is derived from it holds then.
    """
    position = _ReadPosition(after, since_ms, last_per_subject)
    backoff = Backoff(bus, f"reading {stream}")
    caught_up = False
    while True:
        try:
            start = await position.start(bus, stream) | ({"headers_only": True} if headers_only else {})
            async with (
                _consumer(bus, stream, start, filters) as (name, waiting),
                contextlib.aclosing(_batches(bus, stream, name, batch)) as batches,
            ):
                if not waiting and not caught_up:
                    caught_up = True
                    position.reached_floor()
                    yield []
                async for messages in batches:
                    if messages:
                        position.reached(messages[-1])
                        yield messages
                    if not caught_up and (not messages or _last_of(waiting, messages[-1])):
                        caught_up = True
                        position.reached_floor()
                        yield []
        except NotFoundError:
            raise
        except (LostError, CrucibleError) as error:
            await backoff.after(error)


def _last_of(waiting: int, message: Message) -> bool:
    """Returns True if this was the last of the messages that waited; a busy stream always has another one pending."""
    return message.pending == 0 or message.consumer_sequence >= waiting


class _ReadPosition:
    """The position of a reader, and the check that the stream is still the same."""

    def __init__(self, after: int, since_ms: int | None, last_per_subject: bool) -> None:
        self._after = after
        self._since_ms = since_ms
        self._last_per_subject = last_per_subject
        self._created: str | None = None
        self._floor = 0
        self._last: Message | None = None

    async def start(self, bus: Bus, stream: str) -> dict[str, Any]:
        """The consumer options that begin here."""
        state = await bus.stream_state(stream)
        if self._created is not None:
            await self._check(bus, stream, state.created, state.last_sequence)
        self._created = state.created
        self._floor = state.last_sequence
        if self._last_per_subject:
            return {"deliver_policy": "last_per_subject", "filter_subjects": [">"]}  # it must have one
        if self._since_ms is not None:
            moment = datetime.fromtimestamp(self._since_ms / 1000, UTC)
            return {"deliver_policy": "by_start_time", "opt_start_time": moment}
        if after := in_stream(self._after):
            return {"deliver_policy": "by_start_sequence", "opt_start_seq": after + 1}
        return {"deliver_policy": "all"}

    def reached(self, message: Message) -> None:
        self._last = message
        self._go_on_after(message.sequence)

    def reached_floor(self) -> None:
        """All that was there has been handed on: if it was nothing, this is where to go on after."""
        if self._last_per_subject:
            self._go_on_after(self._floor)

    def _go_on_after(self, sequence: int) -> None:
        self._after, self._since_ms, self._last_per_subject = sequence, None, False

    async def _check(self, bus: Bus, stream: str, created: str, end: int) -> None:
        last = self._last
        same = created == self._created
        if same and last is not None:
            # A server that crashed without syncing may have lost messages, and used their sequences again.
            kept = await bus.get(stream, last.sequence) if last.sequence <= end else None
            same = last.sequence <= end and (kept is None or kept.time_ms == last.time_ms)
        if not same:
            raise NotFoundError(f"the stream {stream} that was read until sequence {self._after} is gone")


@contextlib.asynccontextmanager
async def _consumer(
    bus: Bus, stream: str, start: dict[str, Any], filters: Sequence[str]
) -> AsyncIterator[tuple[str, int]]:
    name = f"read-{secrets.token_hex(8)}"
    waiting = await bus.ensure_consumer(
        stream,
        name,
        description=f"Crucible: a process of {bus.service} that reads {stream} in order",
        ack_policy="none",
        inactive_threshold=30.0,
        mem_storage=True,
        num_replicas=1,
        max_deliver=1,
        **start | ({"filter_subjects": list(filters)} if filters else {}),
    )
    try:
        yield name, waiting
    finally:
        with contextlib.suppress(CrucibleError):
            await bus.delete_consumer(stream, name)


async def _batches(bus: Bus, stream: str, consumer: str, batch: int) -> AsyncGenerator[list[Message], None]:
    """Yields the messages that have arrived, and an empty list when the server says that nothing waits."""
    arrived: list[Message] = []
    seen = 0
    async with open_pull(bus, stream, consumer, arrived.append) as pull:
        while True:
            # Ahead, so that one batch arrives while its reader is at work on the one before.
            if pull.outstanding + len(arrived) <= batch:
                await pull.ask(batch)
            if not arrived:
                await pull.wait()
            messages = arrived[:batch]
            del arrived[:batch]
            for message in messages:
                if message.consumer_sequence != seen + 1:
                    raise LostError(f"message {seen + 1} of the consumer is missing")
                seen += 1
            if messages or pull.idle_at == seen:
                yield messages
            elif pull.idle_at is not None and pull.idle_at > seen:
                raise LostError(f"message {seen + 1} of the consumer did not arrive")
