"""Writer of memories: it reads, decides, and appends with the version that it read; again where another was first."""

import asyncio
import contextlib
import hashlib
import random
import re
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from functools import reduce

import msgspec

from crucible_core.access import Principal
from crucible_core.envelope import decode
from crucible_core.errors import ConflictError, TooLargeError
from crucible_core.limits import EVENT_BYTES, MEMORY_ID_CHARS
from crucible_core.position import Position
from crucible_core.protocol.events import Appended, KeyedRequest, NewEvent
from crucible_core.protocol.memory import Cause
from crucible_core.protocol.parts import GetRequest
from crucible_kit.events import append, append_one
from crucible_kit.index.index import Index
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import call
from crucible_memory.changes import Change, Location
from crucible_memory.freshness import last_change, last_of
from crucible_memory.state import MEMORY, Memory
from crucible_memory.store import Key, NoteKey, find, find_all, notes_at, notes_below

_APPEND_S = 30.0
"""An append waits for the Pre hooks that it meets."""
_TRIES = 12
_TURN_S = 2.0
_PAUSE_S = 0.005
_ENVELOPE_BYTES = 2048
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
Decide = Callable[[Memory | None], Awaitable[Change | None]]


class Use(msgspec.Struct, frozen=True):
    """The use of a cause's key: an operation on a memory (`about`), which distinguishes it from others of the same key.
    With a `fingerprint` of the request, the key serves for no other request."""

    operation: str = ""
    about: str = ""
    fingerprint: str | None = None


def fingerprint(cause: Cause, wanted: msgspec.Struct) -> str | None:
    """A hash with the key: without it, nobody can guess the request from the fingerprint."""
    if cause.key is None:
        return None
    return hashlib.sha256(msgspec.json.encode([cause.key, wanted], order="sorted")).hexdigest()[:32]


_NO_USE = Use()


class Outcome(msgspec.Struct, frozen=True):
    """`before` is the memory before the change, `appended` the event's outcome; None where nothing changes."""

    before: Memory | None
    appended: Appended | None


class Writer:
    """Appends Memory events. Concurrent changes of one memory lose nothing: each is decided on the state after the one
    before it."""

    def __init__(self, bus: Bus, index: Index) -> None:
        self._bus = bus
        self._index = index
        self._turns: weakref.WeakValueDictionary[tuple[str, str], asyncio.Lock] = weakref.WeakValueDictionary()

    async def change(
        self,
        id: str,
        cause: Cause,
        decide: Decide,
        expected: int | None = None,
        use: Use = _NO_USE,
        principal: Principal = MEMORY,
    ) -> Outcome:
        """`expected` is the memory's sequence that the caller has read (0: no such memory); the event is appended on
        behalf of `principal`.

        Raises ConflictError where it is another, and the errors of `decide` and of the append: DeniedError, ….
        """
        async with self._turn((id, cause.world_id)):
            for left in range(_TRIES, 0, -1):
                sequence, memory = await self._read(id, cause.world_id)
                change = await decide(memory)
                sequence = _check_expected(memory, sequence, expected, cause)
                if change is None:
                    return Outcome(memory, await self._first_answer(cause, use))
                try:
                    event = new_event(id, change, memory, cause, sequence, use)
                    return Outcome(memory, await self._send(event, cause, principal))
                except ConflictError:
                    if expected is not None or left == 1:
                        raise
                await asyncio.sleep(random.uniform(0, _PAUSE_S * 2 ** min(_TRIES - left, 5)))
        raise AssertionError

    def stream_of(self, world: str) -> str:
        return self._bus.names.stream_of(world)

    async def _read(self, id: str, world: str) -> tuple[int, Memory | None]:
        """The sequence of the memory's last event (0 without any), and the memory, at least as new as that."""
        sequence = await last_of(self._bus, id, world)
        await self._index.reach(sequence)
        return sequence, await find(self._index.reader, id, world)

    async def load(
        self, notes: Collection[NoteKey], ids: Collection[Key]
    ) -> tuple[dict[NoteKey, list[Memory]], dict[Key, Memory]]:
        """The memories of some notes, and those with some ids, after all events that are committed by now."""
        await self._index.reach(await last_change(self._bus))
        reader = self._index.reader
        return await notes_at(reader, notes), await find_all(reader, ids)

    async def last_of_each(self, ids: Collection[Key]) -> dict[Key, int]:
        """The sequence of the last event of each id (0 without any), which the index then has."""
        keys = list(ids)
        found = await asyncio.gather(*(last_of(self._bus, id, world) for id, world in keys))
        await self._index.reach(reduce(Position.after, found, self._bus.names.start))
        return dict(zip(keys, found, strict=True))

    async def paths_below(self, world: str, folder: Location) -> list[str]:
        """The paths of the notes in a folder and in its subfolders that have memories."""
        await self._index.reach(await last_change(self._bus))
        found = await notes_below(self._index.reader, world, *folder)
        return [memory.path for memory in found if memory.path]

    async def append_whole(self, events: list[NewEvent]) -> None:
        """All or none. Raises ConflictError also where a part of them was appended before."""
        parent = events[0].traceparent
        await append(self._bus, MEMORY, events, atomic=True, timeout=_APPEND_S, traceparent=parent)

    async def is_appended(self, event: NewEvent) -> bool:
        """True where the log has an event, by its idempotency key."""
        assert event.idempotency_key is not None
        request = KeyedRequest(event.idempotency_key, event.world_id, event.source, event.actor)
        return (await call(self._bus, MEMORY, "events", "keyed", request, Appended)).id is not None

    @contextlib.asynccontextmanager
    async def _turn(self, key: tuple[str, str]) -> AsyncIterator[None]:
        """Writers of one memory take turns in this process. That only saves conflicts, so it does not wait for ever: a
        Pre hook may change the memory whose event it decides on."""
        lock = self._turns.setdefault(key, asyncio.Lock())
        held = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TURN_S):
                held = await lock.acquire()
        try:
            yield
        finally:
            if held:
                lock.release()

    async def entity_of(self, appended: Appended) -> str:
        """The memory that an event is about. Raises NotFoundError."""
        event = decode(await call(self._bus, MEMORY, "events", "get", GetRequest(appended.id or ""), bytes))
        return event.metadata.entity or ""

    async def _first_answer(self, cause: Cause, use: Use) -> Appended | None:
        """The answer of an earlier request with the same key: one that changes nothing appends no event."""
        if cause.key is None or use.fingerprint is None:
            return None
        request = KeyedRequest(
            key=_event_key(use, cause.key),
            world_id=cause.world_id,
            source=cause.source,
            actor=cause.actor,
            fingerprint=use.fingerprint,
        )
        found = await call(self._bus, MEMORY, "events", "keyed", request, Appended)
        return found if found.id is not None else None

    async def _send(self, event: NewEvent, cause: Cause, principal: Principal = MEMORY) -> Appended:
        return await append_one(self._bus, principal, event, timeout=_APPEND_S, traceparent=cause.traceparent)


def new_event(id: str, change: Change, memory: Memory | None, cause: Cause, expected: int, use: Use) -> NewEvent:
    """The event of a change. A memory stays in the room of its first event, and for ever."""
    payload = msgspec.json.encode(change.payload)
    if len(payload) > EVENT_BYTES - _ENVELOPE_BYTES:
        raise TooLargeError(f"a memory may have {EVENT_BYTES - _ENVELOPE_BYTES} bytes with all its parts")
    return msgspec.structs.replace(
        make_event(f"Memory.{change.event}", payload, cause, use),
        room_id=memory.room_id if memory else cause.room_id,
        entity=id,
        expected_sequence=expected,
        retention="forever",
    )


def make_event(type: str, payload: bytes, cause: Cause, use: Use) -> NewEvent:
    """An event that follows from a cause; `use` distinguishes it from others of the same cause."""
    return NewEvent(
        type=type,
        payload=msgspec.Raw(payload),
        source=cause.source,
        actor=cause.actor,
        correlation_id=cause.correlation_id,
        causation_id=cause.causation_id,
        hop=cause.hop,
        world_id=cause.world_id,
        room_id=cause.room_id,
        traceparent=cause.traceparent,
        idempotency_key=_event_key(use, cause.key) if cause.key else None,
        fingerprint=use.fingerprint,
    )


def _event_key(use: Use, key: str) -> str:
    """The key within one operation on one memory, so that one cause's key may serve for several. A key is short and has
    no control characters; a file's name, which may be in it, has all that its system allows."""
    text = f"memory.{use.operation}:{use.about}:{key}"
    fits = len(text) <= MEMORY_ID_CHARS and not _CONTROL.search(text)
    return text if fits else f"memory:{hashlib.sha256(text.encode()).hexdigest()}"


def _check_expected(memory: Memory | None, sequence: int, expected: int | None, cause: Cause) -> int:
    """The sequence to expect of the entity. With a wrong expectation, a request with a key may still be the repetition
    of one that succeeded, which `events` decides."""
    present = memory.sequence if memory else 0
    if expected is None or expected == present:
        return sequence
    if cause.key is not None:
        return expected
    raise ConflictError(f"the memory is at sequence {present}, not {expected}", current_sequence=present)
