"""Requests in, answers out: the operations of memory on the bus."""

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
from crucible_kit.pages import answer_bytes
from crucible_kit.rpc import Context, Endpoint
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.telemetry.spans import parse_traceparent
from crucible_memory import changes
from crucible_memory.accesses import Accesses
from crucible_memory.changes import Change, require
from crucible_memory.freshness import last_anywhere, settle
from crucible_memory.notes.note import IN_PLACE, NO_MARKS, Marks, read_marks
from crucible_memory.search.search import prepare, search
from crucible_memory.search.visibility import visible_to
from crucible_memory.state import Memory, new_id
from crucible_memory.store import count, find_anywhere, resolve_links, status, views
from crucible_memory.writer import Outcome, Use, Writer, fingerprint

_INDEXED_S = 1.0
_GET_S = 2.0

_SKIPPED_SHOWN = 20

T = TypeVar("T")

_Write = Callable[[WriteMemory, Principal], Awaitable[WrittenMemory]]
_EVENTS = {"create": "Created", "update": "Updated", "delete": "Deleted", "link": "Linked", "tag": "Tagged"}
"""By operation, the event that it appends."""


class StatusRequest(msgspec.Struct):
    pass


class Api:
    def __init__(
        self, bus: Bus, index: Index, searcher: Reader, writer: Writer, accesses: Accesses, metrics: Metrics
    ) -> None:
        self._bus = bus
        self._index = index
        self._searcher = searcher
        self._writer = writer
        self._accesses = accesses
        self._most_bytes = min(PAGE_BYTES, answer_bytes(bus))
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
        return reads | {name: Endpoint(WriteMemory, self._handler(name, write)) for name, write in writes.items()}

    # ---- reading

    async def _get(self, request: GetRequest, context: Context) -> MemoryView:
        await self._index.reach(await last_anywhere(self._bus, request.id), _GET_S)
        visible = visible_to(context.scope)
        memory = await find_anywhere(self._index.reader, request.id, visible)
        [view] = await views(self._index.reader, [require(memory, request.id)])
        if not visible.shows(view):
            require(None, request.id)
        self._accesses.record([view], None, context.traceparent)
        return view

    async def _query(self, request: MemoryQuery, context: Context) -> MemoryList:
        wanted = prepare(request, context.scope)
        with self._query_seconds.time():
            if request.min_sequence is not None:
                await settle(self._bus, self._index, request.min_sequence)
            else:
                await self._index.flush_gathered()
            found = await search(self._searcher, wanted, self._most_bytes)
        self._accesses.record(found.memories, request.text, context.traceparent)
        return found

    async def _status(self, request: StatusRequest, context: Context) -> MemoryStatus:
        if not context.scope.everything:  # skipped events are of no world
            total = await count(self._index.reader, visible_to(context.scope))
            return MemoryStatus(sequence=self._index.position.count, memories=total, skipped=0, latest=[])
        memories, skipped, latest = await status(self._index.reader, _SKIPPED_SHOWN)
        return MemoryStatus(sequence=self._index.position.count, memories=memories, skipped=skipped, latest=latest)

    # ---- writing

    def _handler(self, operation: str, write: _Write) -> Callable[[WriteMemory, Context], Awaitable[WrittenMemory]]:
        async def handler(request: WriteMemory, context: Context) -> WrittenMemory:
            cause = msgspec.structs.replace(request.cause, traceparent=_traceparent(request.cause, context))
            outcome = "error"
            try:
                if request.anywhere and request.id is not None:
                    cause.world_id = await self._world_of(request.id, context.scope)
                caused = msgspec.structs.replace(request, cause=cause)
                _check_allowed(caused, operation, context.scope)
                written = await write(caused, context.principal)
                outcome = "changed" if written.changed else "unchanged"
            finally:
                self._writes.labels(operation, outcome).inc()
            # The client can read its own write; where this replica is slow, the answer does not wait for it.
            with contextlib.suppress(UnavailableError):
                await self._index.reach(written.sequence, _INDEXED_S)
            return written

        return handler

    async def _world_of(self, id: str, scope: Scope) -> str:
        """The world of the memory that a reader gets for that id; a memory never leaves it. Raises NotFoundError."""
        visible = visible_to(scope)
        memory = await find_anywhere(self._index.reader, id, visible)
        if memory is None:
            await self._index.reach(await last_anywhere(self._bus, id), _GET_S)
            memory = await find_anywhere(self._index.reader, id, visible)
        return require(memory, id).world_id

    async def _create(self, request: WriteMemory, principal: Principal) -> WrittenMemory:
        wanted = _require(request.create, "create")
        id = new_id(request.id)

        marks = await _marks(wanted.content) if wanted.extract else NO_MARKS

        async def decide(memory: Memory | None) -> Change | None:
            return changes.create(memory, id, wanted, marks)

        # A key belongs to the first request that had it, and to the id of its memory.
        use = Use("create", request.id or "", fingerprint(request.cause, wanted))
        outcome = await self._writer.change(id, request.cause, decide, request.expected_sequence, use, principal)
        written = _reply(id, outcome)
        if written.duplicate and outcome.appended is not None:
            written.id = await self._writer.entity_of(outcome.appended)
        return written

    async def _update(self, request: WriteMemory, principal: Principal) -> WrittenMemory:
        wanted = _require(request.update, "update")

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
        wanted = _require(request.tag, "tag")

        async def decide(memory: Memory) -> Change | None:
            return changes.tag(memory, wanted)

        return await self._change(request, principal, "tag", decide)

    async def _link(self, request: WriteMemory, principal: Principal) -> WrittenMemory:
        wanted = _require(request.link, "link")

        async def decide(memory: Memory) -> Change | None:
            names = [wanted.target.strip(), *(link.target for link in memory.links)]
            ids = await resolve_links(self._index.reader, memory.world_id, names)
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
        id = _require(request.id, "id")

        async def decide_existing(memory: Memory | None) -> Change | None:
            if memory is not None and not principal.scope.has_place(memory.world_id, memory.room_id):
                memory = None
            return await decide(require(memory, id))

        use = Use(operation, id, fingerprint)
        expected = request.expected_sequence
        return _reply(id, await self._writer.change(id, request.cause, decide_existing, expected, use, principal))


def _check_allowed(request: WriteMemory, operation: str, scope: Scope) -> None:
    """Raises NotFoundError for a memory of a world that the scope does not show, ForbiddenError where it may not
    write."""
    world, type = request.cause.world_id, f"Memory.{_EVENTS[operation]}"
    # A memory stays in the room of its first event.
    room = request.cause.room_id if operation == "create" else None
    if request.id is not None and operation != "create" and not scope.has_place(world):
        require(None, request.id)
    if not any(view.has_place(world, room) and view.has_type(type) for view in scope.views):
        raise forbidden("memory:write", f"nothing may be written there: {type} in the world {world}")


def _reply(id: str, outcome: Outcome) -> WrittenMemory:
    if outcome.appended is not None:
        sequence = outcome.appended.sequence or 0
        return WrittenMemory(id=id, sequence=sequence, duplicate=outcome.appended.duplicate)
    return WrittenMemory(id=id, sequence=outcome.before.sequence if outcome.before else 0, changed=False)


async def _marks(text: str) -> Marks:
    if "#" not in text and "[[" not in text:
        return NO_MARKS
    return read_marks(text) if len(text) <= IN_PLACE else await asyncio.to_thread(read_marks, text)


def _require(value: T | None, name: str) -> T:
    if value is None:
        raise InvalidError.field(name, "required, but missing")
    return value


def _traceparent(cause: Cause, context: Context) -> str:
    """The span that answers the request, or the caller's own where the request came without its trace."""
    stated, here = parse_traceparent(cause.traceparent), parse_traceparent(context.traceparent)
    return str(stated) if stated and here and stated.trace_id != here.trace_id else context.traceparent
