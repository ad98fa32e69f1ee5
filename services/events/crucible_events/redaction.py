"""Redaction of events: the request, which commits a tombstone and erases the payload for good, and the eraser, which
completes that in the index of each replica. The envelope stays at its sequence."""

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from msgspec import UNSET, Raw

from crucible_core.envelope import Event, decode
from crucible_core.errors import ConflictError, CrucibleError, InvalidError
from crucible_core.ids import derive_id
from crucible_core.limits import REASON_CHARS
from crucible_core.protocol.events import IndexedRequest, NewEvent, RedactRequest
from crucible_core.redaction import StoredEvent, mark, redacted_event, tombstone, type_of
from crucible_events import store
from crucible_events.append.appends import Appender
from crucible_events.append.lifetime import lifetime_in
from crucible_events.append.lookup import Lookup, no_event
from crucible_events.append.stamp import EVENTS, stored_key
from crucible_kit.eventlog import event_at
from crucible_kit.index.index import Index, unwritable
from crucible_kit.nats.bus import Bus, Message
from crucible_kit.rpc import Context, Endpoint, call_all

log = logging.getLogger(__name__)

_EVERY_S = 0.5
_AT_ONCE = 500
_TIDY = "DELETE FROM erasures WHERE done AND sequence NOT IN (SELECT sequence FROM events)"


class RedactionApi:
    """Commits the tombstone first, then erases the event: a reader of the tombstone erases as well. So a process may
    die at any moment, and the request may come again."""

    def __init__(self, bus: Bus, lookup: Lookup, appender: Appender) -> None:
        self._bus = bus
        self._lookup = lookup
        self._appender = appender

    def endpoints(self) -> Mapping[str, Endpoint]:
        return {"redact": Endpoint(RedactRequest, self.redact)}

    async def redact(self, request: RedactRequest, context: Context) -> bytes:
        """Answers once the payload is gone from the stream, and from every replica that can be reached.

        Raises NotFoundError, InvalidError for a tombstone, and a hook's DeniedError.
        """
        _check_reason(request.reason)
        found = await self._lookup.find(request.id)
        event = decode(found)
        if not context.scope.sees(event):
            raise no_event(request.id)
        sequence = event.sequence or 0
        message = await event_at(self._bus, sequence)
        if message is None:
            # Another replica erases it, or it has expired: the index shows which.
            end = await self._bus.last_sequence(self._bus.names.stream_at(sequence))
            found = await self._lookup.find(request.id, end)
            if decode(found).redacted is UNSET:
                raise no_event(request.id)
            return found
        if not is_event(message, request.id):
            raise no_event(request.id)
        if decode(message.data).redacted is not UNSET:  # an import brought it so
            return found
        tombstone_at = await self._commit_tombstone(request, message, context)
        await erase(self._bus, sequence, request.id)
        await call_all(self._bus, EVENTS, "events", "indexed", IndexedRequest(sequence=tombstone_at))
        return await self._lookup.find(request.id, tombstone_at)

    async def _commit_tombstone(self, request: RedactRequest, message: Message, context: Context) -> int:
        """The sequence of the tombstone, which is committed now or was before."""
        if redacted_event(message.headers) is not None:
            text = f"{request.id} is the tombstone of a redaction: it has nothing that could be erased"
            raise InvalidError.field("id", text, detail=text)
        event = decode(message.data, message.sequence)
        new = _tombstone(event, request, message)
        place = StoredEvent(message.sequence, message.time_ms, stored_key(message.headers) or "")
        lifetime = lifetime_in(message.headers)
        appended = await self._appender.append_own(new, mark(place), lifetime, context.traceparent)
        assert appended.sequence is not None
        if appended.duplicate:
            await self._check_first(appended.sequence, request.id, place)
        return appended.sequence

    async def _check_first(self, sequence: int, event_id: str, place: StoredEvent) -> None:
        """Any client may have appended an event with the tombstone's id."""
        first = await event_at(self._bus, sequence)
        found = redacted_event(first.headers) if first is not None else None
        if found is None or found.sequence != place.sequence:
            raise ConflictError(f"another event has the id of the tombstone of {event_id}", current_sequence=sequence)


class Eraser:
    """Every replica erases the events whose tombstones come to its index: twice is harmless."""

    def __init__(self, bus: Bus, index: Index, remove_copies: Callable[[], Awaitable[None]]) -> None:
        """`remove_copies` removes the copies of the index that hold the erased bytes."""
        self._bus = bus
        self._index = index
        self._remove_copies = remove_copies

    def endpoints(self) -> Mapping[str, Endpoint]:
        async def indexed(request: IndexedRequest, context: Context) -> IndexedRequest:
            await self._index.reach(request.sequence)
            return request

        return {"indexed": Endpoint(IndexedRequest, indexed, every_replica=True)}

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            try:
                await self.once()
            except CrucibleError as error:
                log.warning("redacted events are not erased yet: %s", error)
            await asyncio.sleep(_EVERY_S)

    async def once(self) -> int:
        """Returns how many events are erased for good."""
        due = await store.select(
            self._index, f"SELECT sequence, event_id FROM erasures WHERE NOT done LIMIT {_AT_ONCE}"
        )
        for sequence, event_id in due:
            await erase(self._bus, sequence, event_id)
        if due:
            await self._remove_copies()
        return len(due) if due and await self._settle([sequence for sequence, _ in due]) else 0

    async def _settle(self, sequences: list[int]) -> bool:
        """Removes the old bytes of the rows from the file; False where a reader was in the way."""
        settled = f"UPDATE erasures SET done = 1 WHERE sequence IN ({', '.join('?' * len(sequences))})"
        try:
            if not await self._index.writer.empty_log():
                return False
            await self._index.writer.run(lambda writer: writer.execute(settled, sequences))
            await self._index.writer.run(lambda writer: writer.execute(_TIDY))
        except sqlite3.OperationalError as error:
            raise unwritable(error) from error
        return True


async def erase(bus: Bus, sequence: int, event_id: str) -> None:
    """Erases an event from the stream, unless another one has its sequence. Idempotent."""
    message = await event_at(bus, sequence)
    if message is None:
        return
    if not is_event(message, event_id):
        log.error("%s is redacted, and sequence %d holds another event: nothing is erased", event_id, sequence)
        return
    await bus.remove(bus.names.stream_at(sequence), sequence, erase=True)


def is_event(message: Message, event_id: str) -> bool:
    try:
        return decode(message.data).metadata.id == event_id
    except msgspec.DecodeError:
        return False


def _tombstone(event: Event, request: RedactRequest, message: Message) -> NewEvent:
    """The same event always has the same tombstone: an effect in the event's own chain, with the event's lifetime."""
    about = event.metadata
    return NewEvent(
        type=type_of(event.type),
        payload=Raw(msgspec.json.encode(tombstone(event, request.reason))),
        id=derive_id("evt", message.time_ms, "redaction", about.id),
        source=request.source,
        actor=request.actor,
        correlation_id=request.correlation_id or about.correlation_id,
        causation_id=about.id,
        hop=request.hop,
        world_id=about.world_id,
        room_id=about.room_id,
        entity=about.entity,
    )


def _check_reason(reason: str | None) -> None:
    if reason is not None and not 0 < len(reason) <= REASON_CHARS:
        message = f"must have 1 to {REASON_CHARS} characters"
        raise InvalidError.field("reason", message)
