"""What an append asks the index: whether the log has an event already, of which chain a cause is, and an entity's last
event. It is asked in this process, or any replica that has one."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from crucible_core.access import Scope
from crucible_core.envelope import decode, with_sequence
from crucible_core.errors import ConflictError, NotFoundError, UnavailableError, UnknownOutcomeError
from crucible_core.ids import is_id
from crucible_core.protocol.events import (
    Chain,
    ChainsReply,
    ChainsRequest,
    FindRequest,
    Known,
    KnownReply,
    KnownRequest,
    LastReply,
    LastRequest,
    NewEvent,
)
from crucible_core.protocol.parts import Message
from crucible_events import store
from crucible_events.append.committer import Committer
from crucible_events.append.entries import Candidate, continues, entities_of
from crucible_events.append.stamp import EVENTS
from crucible_kit import deadline
from crucible_kit.eventlog import log_end
from crucible_kit.index.index import Index
from crucible_kit.nats.bus import Bus, Stored
from crucible_kit.rpc import Context, Endpoint, call

Reply = TypeVar("Reply")

_AT_ONCE = 2_000
"""Ids of one request."""


class Lookup(Protocol):
    """Every method raises UnavailableError where no index can be asked."""

    async def known(self, ids: Sequence[str], settled: bool = False) -> Mapping[str, Known]:
        """By id and by what stands for a key, the events that the log has already; those that JetStream knows by that
        name need not be among them, unless the answer must be `settled`."""
        ...

    async def chains(self, ids: Sequence[str]) -> Mapping[str, Chain]:
        """The places of causes, by their ids; those that the log does not have are not there."""
        ...

    async def last_of(self, world_id: str, category: str, entity: str, through: int) -> int:
        """The sequence of an entity's last event among those up to a sequence at least; 0 if there is none."""
        ...

    async def find(self, id: str, through: int = 0) -> bytes:
        """An event in its public form. Raises NotFoundError."""
        ...


async def chains_of(lookup: Lookup, events: Sequence[NewEvent], scope: Scope) -> dict[str, Chain]:
    """The places of the causes that events name; those of causes that the log does not have are not there."""
    wanted = {new.causation_id for new in events if continues(new) and new.causation_id}
    found = dict(await lookup.chains(list(wanted)))
    if scope.everything:
        return found
    return {id: chain for id, chain in found.items() if scope.sees(decode(await lookup.find(id)))}


class Indexed:
    """Answers from this process's index."""

    def __init__(self, bus: Bus, index: Index, remembered_s: float) -> None:
        """`remembered_s` is how long JetStream remembers message ids."""
        self._bus = bus
        self._index = index
        self._remembered_s = remembered_s

    async def known(self, ids: Sequence[str], settled: bool = False) -> Mapping[str, Known]:
        if settled:
            await self._settle()
        else:  # what JetStream has forgotten must be in the index
            await self._index.current(self._bus, self._remembered_s / 2)
        return await store.known(self._index, ids)

    async def chains(self, ids: Sequence[str]) -> Mapping[str, Chain]:
        found = await store.chains(self._index, ids)
        if any(id not in found and is_id("evt", id) for id in ids):  # it may have been committed just now
            await self._settle()
            found = await store.chains(self._index, ids)
        return found

    async def last_of(self, world_id: str, category: str, entity: str, through: int) -> int:
        await self._index.reach(through)
        return await store.last_of(self._index, world_id, category, entity)

    async def find(self, id: str, through: int = 0) -> bytes:
        if self._index.caught_up:
            await self._index.reach(through)
        else:  # one that is being built would answer with less than there is
            await self._settle()
        found = await store.by_id(self._index, id)
        if found is None:  # it may be so new that the index does not have it yet
            await self._settle()
            found = await store.by_id(self._index, id)
        if found is None:
            raise missing(id)
        return with_sequence(found[1], found[0])

    def endpoints(self) -> Mapping[str, Endpoint]:
        async def known(request: KnownRequest, context: Context) -> KnownReply:
            return KnownReply(found=dict(await self.known(request.ids, request.settled)))

        async def chains(request: ChainsRequest, context: Context) -> ChainsReply:
            return ChainsReply(found=dict(await self.chains(request.ids)))

        async def last_of(request: LastRequest, context: Context) -> LastReply:
            about = request.world_id, request.category, request.entity
            return LastReply(sequence=await self.last_of(*about, request.through))

        async def find(request: FindRequest, context: Context) -> bytes:
            return await self.find(request.id, request.through)

        return {
            "known": Endpoint(KnownRequest, known),
            "chains": Endpoint(ChainsRequest, chains),
            "last_of": Endpoint(LastRequest, last_of),
            "find": Endpoint(FindRequest, find),
        }

    async def _settle(self) -> None:
        await self._index.reach(await log_end(self._bus))


def missing(event_id: str) -> NotFoundError:
    return NotFoundError(f"there is no event {event_id[:100]}")


class _Round:
    """Ids that are asked for together."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.answer: asyncio.Task[Mapping[str, Known]] | None = None


class Asked:
    """Asks a replica of the role `query`. Appends that wait at the same moment share a request, as they do a commit."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._next = _Round()
        self._turn = asyncio.Lock()

    async def known(self, ids: Sequence[str], settled: bool = False) -> Mapping[str, Known]:
        if settled or len(ids) > _AT_ONCE:
            return await self._known(ids, settled)
        if len(self._next.ids) + len(ids) > _AT_ONCE:
            self._next = _Round()
        joined = self._next
        joined.ids.update(ids)
        if joined.answer is None:
            joined.answer = asyncio.create_task(self._shared(joined))
            joined.answer.add_done_callback(_heard)
        return await asyncio.shield(joined.answer)

    async def chains(self, ids: Sequence[str]) -> Mapping[str, Chain]:
        return (await self._ask("chains", ChainsRequest(ids=list(ids)), ChainsReply)).found

    async def last_of(self, world_id: str, category: str, entity: str, through: int) -> int:
        asked = LastRequest(world_id=world_id, category=category, entity=entity, through=through)
        return (await self._ask("last_of", asked, LastReply)).sequence

    async def find(self, id: str, through: int = 0) -> bytes:
        return await self._ask("find", FindRequest(id=id, through=through), bytes)

    async def _shared(self, joined: _Round) -> Mapping[str, Known]:
        with deadline.on_behalf_of(None):  # it is for several callers
            async with self._turn:
                if self._next is joined:
                    self._next = _Round()
                return await self._known(list(joined.ids), settled=False)

    async def _known(self, ids: Sequence[str], settled: bool) -> Mapping[str, Known]:
        asked = KnownRequest(ids=list(ids), settled=settled)
        return (await self._ask("known", asked, KnownReply)).found

    async def _ask(self, operation: str, request: Message, reply: type[Reply]) -> Reply:
        try:
            return await call(self._bus, EVENTS, "events", operation, request, reply)
        except UnknownOutcomeError as error:  # nothing is done by looking
            raise UnavailableError(error.detail, retry_after=1) from error


def _heard(answer: "asyncio.Task[Mapping[str, Known]]") -> None:
    """All who asked may have gone meanwhile."""
    if not answer.cancelled():
        answer.exception()


_ATTEMPTS = 100


async def commit(
    bus: Bus, lookup: Lookup, committer: Committer, candidates: Sequence[Candidate], *, whole: bool = False
) -> list[Stored]:
    """Commits candidates together, again and again while only neighbours of their entities come between.

    Raises ConflictError where an expectation does not hold; `whole` says in it which event's.
    """
    pins = await _pins(bus, lookup, candidates, whole)
    for _ in range(_ATTEMPTS):
        left = dict(pins)
        messages = [candidate.outgoing(bus.names, left) for candidate in candidates]
        try:
            return await committer.submit(messages, entities_of(candidates))
        except ConflictError:
            before, pins = pins, await _pins(bus, lookup, candidates, whole)
            if pins == before:  # it was about something else
                raise
    raise UnavailableError("too many appends come between; try again", retry_after=1)


async def _pins(bus: Bus, lookup: Lookup, candidates: Sequence[Candidate], whole: bool) -> dict[str, int]:
    """By subject of a bucket, a sequence after which nothing may have come to it. Raises ConflictError."""
    pins: dict[str, int] = {}
    for candidate in candidates:
        if not candidate.shares:
            continue
        about, subject = candidate.stamped.event.metadata, candidate.versions(bus.names)
        if subject not in pins:
            last = await bus.last(bus.names.stream_of(about.world_id), subject)
            pins[subject] = last.sequence if last else 0
        entity = about.world_id, candidate.stamped.event.type, about.entity or ""
        current = await lookup.last_of(*entity, through=pins[subject])
        if current != candidate.stamped.expected_sequence:
            raise candidate.conflict(current, whole)
    return pins
