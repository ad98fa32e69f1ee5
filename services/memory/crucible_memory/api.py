"""What memory answers on the bus: requests in, answers out."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import msgspec
from msgspec import UNSET

from crucible_core.access import Principal, Scope, forbidden
from crucible_core.errors import InvalidError, UnavailableError
from crucible_core.limits import PAGE_BYTES
from crucible_core.protocol.memory import (
    Cause,
    MemoryList,
    MemoryQuery,
    MemoryStatus,
    MemoryView,
    WriteMemory,
    WrittenMemory,
)
from crucible_core.protocol.parts import GetRequest
from crucible_kit.index.connections import Reader
from crucible_kit.index.index import Index
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import Context, Endpoint
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.telemetry.spans import parse_traceparent
from crucible_memory import changes
from crucible_memory.accesses import Uses
from crucible_memory.changes import Change, existing
from crucible_memory.freshness import last_anywhere, settle
from crucible_memory.notes.note import IN_PLACE, NO_MARKS, Marks, read_marks
from crucible_memory.search.search import prepare, search
from crucible_memory.search.visibility import sight_of
from crucible_memory.state import Memory, new_id
from crucible_memory.store import count, find_anywhere, ids_of, status, views
from crucible_memory.writer import Outcome, Use, Writer, fingerprint

_SEEN_S = 1.0
_GET_S = 2.0

_SKIPPED_SHOWN = 20

Given = TypeVar("Given")

_Write = Callable[[WriteMemory, Principal], Awaitable[WrittenMemory]]
_EVENTS = {"create": "Created", "update": "Updated", "delete": "Deleted", "link": "Linked", "tag": "Tagged"}
"""What an operation writes."""


class StatusRequest(msgspec.Struct):
    """Asks for all there is."""


class Api:
    def __init__(self, bus: Bus, index: Index, searcher: Reader, writer: Writer, uses: Uses, metrics: Metrics) -> None:
        self._bus = bus
        self._index = index
        self._searcher = searcher
        self._writer = writer
        self._uses = uses
        self._room = min(PAGE_BYTES, bus.max_payload * 3 // 4)
        self._writes = metrics.counter("memory_writes", "Changes asked for", ("operation", "outcome"))
        self._query_seconds = metrics.histogram("memory_query_seconds", "How long queries take")

    def endpoints(self) -> Mapping[str, Endpoint]:
        writes = {
            "create": self._create,
            "update": self._update,
            "delete": self._delete,
            "link": self._link,
            "tag": self._tag,
        }
        reads: dict[str, Endpoint] = {
            "get": Endpoint(GetRequest, self._get),
            "query": Endpoint(MemoryQuery, self._query),
            "status": Endpoint(StatusRequest, self._status),
        }
        return reads | {name: Endpoint(WriteMemory, self._writing(name, write)) for name, write in writes.items()}

    # ---- reading

    async def _get(self, request: GetRequest, context: Context) -> MemoryView:
        await self._index.reach(await last_anywhere(self._bus, request.id), _GET_S)
        sight = sight_of(context.scope)
        memory = await find_anywhere(self._index.reader, request.id, sight)
        [view] = await views(self._index.reader, [existing(memory, request.id)])
        if not sight.holds(view):
            existing(None, request.id)
        self._uses.note([view], None, context.traceparent)
        return view

    async def _query(self, request: MemoryQuery, context: Context) -> MemoryList:
        wanted = prepare(request, context.scope)
        with self._query_seconds.time():
            if request.min_sequence is not None:
                await settle(self._bus, self._index, request.min_sequence)
            else:
                await self._index.flush_gathered()
            found = await search(self._searcher, wanted, self._room)
        self._uses.note(found.memories, request.text, context.traceparent)
        return found

    async def _status(self, request: StatusRequest, context: Context) -> MemoryStatus:
        if not context.scope.everything:  # what cannot be read is of no world
            seen = await count(self._index.reader, sight_of(context.scope))
            return MemoryStatus(sequence=self._index.position.count, memories=seen, skipped=0, latest=[])
        memories, skipped, latest = await status(self._index.reader, _SKIPPED_SHOWN)
        return MemoryStatus(sequence=self._index.position.count, memories=memories, skipped=skipped, latest=latest)

    # ---- writing

    def _writing(self, operation: str, write: _Write) -> Callable[[WriteMemory, Context], Awaitable[WrittenMemory]]:
        async def handler(request: WriteMemory, context: Context) -> WrittenMemory:
            cause = msgspec.structs.replace(request.cause, traceparent=_traceparent(request.cause, context))
            outcome = "error"
            try:
                if request.anywhere and request.id is not None:
                    cause.world_id = await self._world_of(request.id, context.scope)
                asked = msgspec.structs.replace(request, cause=cause)
                _check_allowed(asked, operation, context.scope)
                written = await write(asked, context.principal)
                outcome = "changed" if written.changed else "unchanged"
            finally:
                self._writes.labels(operation, outcome).inc()
            # Whoever asked reads what it wrote; where this replica is slow, the answer does not wait for it.
            with contextlib.suppress(UnavailableError):
                await self._index.reach(written.sequence, _SEEN_S)
            return written

        return handler

    async def _world_of(self, id: str, scope: Scope) -> str:
        """The world of the memory that a reader of that id is shown; a memory never leaves it. Raises NotFoundError."""
        sight = sight_of(scope)
        memory = await find_anywhere(self._index.reader, id, sight)
        if memory is None:
            await self._index.reach(await last_anywhere(self._bus, id), _GET_S)
            memory = await find_anywhere(self._index.reader, id, sight)
        return existing(memory, id).world_id

    async def _create(self, request: WriteMemory, principal: Principal) -> WrittenMemory:
        wanted = _given(request.create, "create")
        id = new_id(request.id)

        marks = await _marks(wanted.content) if wanted.extract else NO_MARKS

        async def decide(memory: Memory | None) -> Change | None:
            return changes.create(memory, id, wanted, marks)

        # A key names the first request that had it, whose memory has the id that was made then.
        use = Use("create", request.id or "", fingerprint(request.cause, wanted))
        outcome = await self._writer.change(id, request.cause, decide, request.expected_sequence, use, principal)
        written = _written(id, outcome)
        if written.duplicate and outcome.appended is not None:
            written.id = await self._writer.entity_of(outcome.appended)
        return written

    async def _update(self, request: WriteMemory, principal: Principal) -> WrittenMemory:
        wanted = _given(request.update, "update")

        async def decide(memory: Memory) -> Change | None:
            # The tags and links of a note are those of its file.
            if wanted.content is UNSET or wanted.content == memory.content or not wanted.extract or memory.path:
                return changes.update(memory, wanted)
            return changes.update(memory, wanted, await _marks(memory.content), await _marks(wanted.content))

        return await self._change(request, principal, "update", decide, fingerprint(request.cause, wanted))

    async def _delete(self, request: WriteMemory, principal: Principal) -> WrittenMemory:
        async def decide(memory: Memory) -> Change | None:
            return changes.delete(memory)

        return await self._change(request, principal, "delete", decide)

    async def _tag(self, request: WriteMemory, principal: Principal) -> WrittenMemory:
        wanted = _given(request.tag, "tag")

        async def decide(memory: Memory) -> Change | None:
            return changes.tag(memory, wanted)

        return await self._change(request, principal, "tag", decide)

    async def _link(self, request: WriteMemory, principal: Principal) -> WrittenMemory:
        wanted = _given(request.link, "link")

        async def decide(memory: Memory) -> Change | None:
            names = [wanted.target.strip(), *(link.target for link in memory.links)]
            ids = await ids_of(self._index.reader, memory.world_id, names)
            return changes.link(memory, wanted, ids)

        return await self._change(request, principal, "link", decide)

    async def _change(
        self,
        request: WriteMemory,
        principal: Principal,
        operation: str,
        decide: Callable[[Memory], Awaitable[Change | None]],
        fingerprint: str | None = None,
    ) -> WrittenMemory:
        id = _given(request.id, "id")

        async def decide_existing(memory: Memory | None) -> Change | None:
            if memory is not None and not principal.scope.has_place(memory.world_id, memory.room_id):
                memory = None
            return await decide(existing(memory, id))

        use = Use(operation, id, fingerprint)
        expected = request.expected_sequence
        return _written(id, await self._writer.change(id, request.cause, decide_existing, expected, use, principal))


def _check_allowed(request: WriteMemory, operation: str, scope: Scope) -> None:
    """Raises NotFoundError for a memory of a place that may not be seen, ForbiddenError where it may not be written."""
    world, type = request.cause.world_id, f"Memory.{_EVENTS[operation]}"
    # A memory stays in the room where it was made.
    room = request.cause.room_id if operation == "create" else None
    if request.id is not None and operation != "create" and not scope.has_place(world):
        existing(None, request.id)
    if not any(view.has_place(world, room) and view.has_type(type) for view in scope.views):
        raise forbidden("memory:write", f"nothing may be written there: {type} in the world {world}")


def _written(id: str, outcome: Outcome) -> WrittenMemory:
    if outcome.appended is not None:
        sequence = outcome.appended.sequence or 0
        return WrittenMemory(id=id, sequence=sequence, duplicate=outcome.appended.duplicate)
    return WrittenMemory(id=id, sequence=outcome.before.sequence if outcome.before else 0, changed=False)


async def _marks(text: str) -> Marks:
    if "#" not in text and "[[" not in text:
        return NO_MARKS
    return read_marks(text) if len(text) <= IN_PLACE else await asyncio.to_thread(read_marks, text)


def _given(value: Given | None, name: str) -> Given:
    if value is None:
        raise InvalidError.field(name, "required, but missing")
    return value


def _traceparent(cause: Cause, context: Context) -> str:
    """The span that answers the request, or the caller's word where the request came without its trace."""
    told, here = parse_traceparent(cause.traceparent), parse_traceparent(context.traceparent)
    return str(told) if told and here and told.trace_id != here.trace_id else context.traceparent
