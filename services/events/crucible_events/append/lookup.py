"""Lookups of an append in the index: events by id or key, the chains of causes, and an entity's last event; in this
process, or by a request to a replica that has an index."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from crucible_core.access import Scope
from crucible_core.envelope import decode, with_sequence
from crucible_core.errors import NotFoundError, UnavailableError, UnknownOutcomeError
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
from crucible_events.append.entries import continues
from crucible_events.append.stamp import EVENTS
from crucible_kit import deadline
from crucible_kit.eventlog import log_end
from crucible_kit.index.index import Index
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import Context, Endpoint, call

Reply = TypeVar("Reply")

_AT_ONCE = 2_000
"""Ids of one request."""


class Lookup(Protocol):
    """Every method raises UnavailableError where no index can be asked."""

    async def find_known(self, ids: Sequence[str], settled: bool = False) -> Mapping[str, Known]:
        """The events that the log has already, by id or by the hash of a key. Those that JetStream knows by that name
        may be missing, unless the answer must be `settled`."""
        ...

    async def find_chains(self, ids: Sequence[str]) -> Mapping[str, Chain]:
        """The depth and correlation of causes, by their ids, without those that the log does not have."""
        ...

    async def last_of(self, world_id: str, category: str, entity: str, through: int) -> int:
        """The sequence of an entity's last event among those up to a sequence at least; 0 if there is none."""
        ...

    async def find(self, id: str, through: int = 0) -> bytes:
        """An event in its public form. Raises NotFoundError."""
        ...


async def chains_of(lookup: Lookup, events: Sequence[NewEvent], scope: Scope) -> dict[str, Chain]:
    """The depth and correlation of the causes that events name, without those that the log does not have."""
    wanted = {new.causation_id for new in events if continues(new) and new.causation_id}
    found = dict(await lookup.find_chains(list(wanted)))
    if scope.everything:
        return found
    return {id: chain for id, chain in found.items() if scope.sees(decode(await lookup.find(id)))}


class IndexLookup:
    """Answers from this process's index."""

    def __init__(self, bus: Bus, index: Index, dedup_s: float) -> None:
        """`dedup_s` is how long JetStream remembers message ids."""
        self._bus = bus
        self._index = index
        self._dedup_s = dedup_s

    async def find_known(self, ids: Sequence[str], settled: bool = False) -> Mapping[str, Known]:
        if settled:
            await self._settle()
        else:  # the index must have all that JetStream has forgotten
            await self._index.reach_recent(self._bus, self._dedup_s / 2)
        return await store.find_known(self._index, ids)

    async def find_chains(self, ids: Sequence[str]) -> Mapping[str, Chain]:
        found = await store.find_chains(self._index, ids)
        if any(id not in found and is_id("evt", id) for id in ids):  # it may have been committed just now
            await self._settle()
            found = await store.find_chains(self._index, ids)
        return found

    async def last_of(self, world_id: str, category: str, entity: str, through: int) -> int:
        await self._index.reach(through)
        return await store.last_of(self._index, world_id, category, entity)

    async def find(self, id: str, through: int = 0) -> bytes:
        if self._index.caught_up:
            await self._index.reach(through)
        else:  # one that is being built would answer with less than there is
            await self._settle()
        found = await store.find_by_id(self._index, id)
        if found is None:  # it may be so new that the index does not have it yet
            await self._settle()
            found = await store.find_by_id(self._index, id)
        if found is None:
            raise no_event(id)
        return with_sequence(found[1], found[0])

    def endpoints(self) -> Mapping[str, Endpoint]:
        async def known(request: KnownRequest, context: Context) -> KnownReply:
            return KnownReply(found=dict(await self.find_known(request.ids, request.settled)))

        async def chains(request: ChainsRequest, context: Context) -> ChainsReply:
            return ChainsReply(found=dict(await self.find_chains(request.ids)))

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


def no_event(event_id: str) -> NotFoundError:
    return NotFoundError(f"there is no event {event_id[:100]}")


class _Round:
    """Ids of one shared request."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.answer: asyncio.Task[Mapping[str, Known]] | None = None


class RemoteLookup:
    """Asks a replica of the role `query`. Appends that wait at the same moment share a request, as they share a
    commit."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._next = _Round()
        self._turn = asyncio.Lock()

    async def find_known(self, ids: Sequence[str], settled: bool = False) -> Mapping[str, Known]:
        if settled or len(ids) > _AT_ONCE:
            return await self._ask_known(ids, settled)
        if len(self._next.ids) + len(ids) > _AT_ONCE:
            self._next = _Round()
        joined = self._next
        joined.ids.update(ids)
        if joined.answer is None:
            joined.answer = asyncio.create_task(self._ask_for_all(joined))
            joined.answer.add_done_callback(_retrieve_error)
        return await asyncio.shield(joined.answer)

    async def find_chains(self, ids: Sequence[str]) -> Mapping[str, Chain]:
        return (await self._ask("chains", ChainsRequest(ids=list(ids)), ChainsReply)).found

    async def last_of(self, world_id: str, category: str, entity: str, through: int) -> int:
        asked = LastRequest(world_id=world_id, category=category, entity=entity, through=through)
        return (await self._ask("last_of", asked, LastReply)).sequence

    async def find(self, id: str, through: int = 0) -> bytes:
        return await self._ask("find", FindRequest(id=id, through=through), bytes)

    async def _ask_for_all(self, joined: _Round) -> Mapping[str, Known]:
        with deadline.on_behalf_of(None):  # it is for several callers
            async with self._turn:
                if self._next is joined:
                    self._next = _Round()
                return await self._ask_known(list(joined.ids), settled=False)

    async def _ask_known(self, ids: Sequence[str], settled: bool) -> Mapping[str, Known]:
        asked = KnownRequest(ids=list(ids), settled=settled)
        return (await self._ask("known", asked, KnownReply)).found

    async def _ask(self, operation: str, request: Message, reply: type[Reply]) -> Reply:
        try:
            return await call(self._bus, EVENTS, "events", operation, request, reply)
        except UnknownOutcomeError as error:  # nothing is done by looking
            raise UnavailableError(error.detail, retry_after=1) from error


def _retrieve_error(answer: "asyncio.Task[Mapping[str, Known]]") -> None:
    """All callers may have gone meanwhile, and asyncio would log an error that nobody retrieved."""
    if not answer.cancelled():
        answer.exception()
