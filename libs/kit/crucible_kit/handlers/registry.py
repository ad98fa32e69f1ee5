"""The registry of a service's handlers: a compiled copy of their bucket, and the types and rights that it needs."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence, Set
from typing import Generic, Self, TypeVar

from crucible_core.access import Principal
from crucible_core.envelope import Event
from crucible_core.errors import InvalidError
from crucible_core.filters.matcher import CompiledFilters, Matcher
from crucible_core.position import Position
from crucible_core.protocol.parts import FormerTypes, Owned, TypeFilter
from crucible_core.protocol.worlds import PlaceRequest
from crucible_core.types.catalogue import Catalogue
from crucible_kit.buckets import Bucket, Change, View, open_bucket
from crucible_kit.nats.bus import Bus
from crucible_kit.principals import Principals, open_principals
from crucible_kit.rpc import call
from crucible_kit.types import Types, open_types
from crucible_kit.worlds import Worlds, open_worlds

_START_S = 30.0
_MOST_FORMER = 32
"""Changes of a handler's filters that are kept: events from before the first of them count as if it were the first."""
EVERY = ("*",)
"""The types of a filter that names every type."""


class HandlerEntry(Owned, kw_only=True):
    """A handler of the copy: 100,000 idle ones cost hardly more than their records' JSON, `value`. `filters` is None
    for one that cannot be matched."""

    id: str
    name: str
    value: bytes
    former: Sequence[FormerTypes] = ()
    filters: CompiledFilters | None = None


def named_types(filters: Iterable[TypeFilter], catalogue: Catalogue) -> frozenset[str] | None:
    """The types that filters name, without those that are not there; None stands for every type."""
    found: set[str] = set()
    for one in filters:
        with contextlib.suppress(InvalidError):
            types = catalogue.expand(one.event_type)
            if types is None:
                return None
            found |= types
    return frozenset(found)


def remember_types(
    former: Sequence[FormerTypes], old: Set[str] | None, new: Set[str] | None, until: Position
) -> list[FormerTypes]:
    """The former types of a handler whose filters change at a position. None stands for every type."""
    if old == new:
        return list(former)
    return [*former, FormerTypes(sorted(EVERY if old is None else old), until.encoded)][-_MOST_FORMER:]


E = TypeVar("E", bound=HandlerEntry)


class HandlerRegistry(Generic[E]):
    """Follows the bucket. A service says how it loads a change (`_take`), and compiles an entry anew (`_recompile`)."""

    def __init__(self, bus: Bus, bucket: Bucket, types: Types, principals: Principals, worlds: Worlds) -> None:
        self._bus = bus
        self._bucket = bucket
        self.types = types
        self.principals = principals
        self.worlds = worlds
        self.view = View(bucket, self._take)
        self.entries: dict[str, E] = {}
        self.inert: dict[str, str] = {}
        """By the entry's key, the reason for which it cannot be matched."""
        self._owned: set[str] = set()
        """The keys of others than the operator."""
        self._matcher: Matcher[str] = Matcher()
        self._revisions: dict[str, int] = {}
        self.stored: Callable[[int], Awaitable[None]]
        """Awaited with the revision of each change of this process: returns once all replicas have it."""
        types.changed.append(self._recompile_category)

    @classmethod
    async def open(cls, bus: Bus, name: str, replicas: int) -> Self:
        """The registry of the bucket `name`, with the copies that it needs; `follow` fills them."""
        types, principals = await open_types(bus, replicas), await open_principals(bus, replicas)
        return cls(bus, await open_bucket(bus, name, replicas), types, principals, await open_worlds(bus, replicas))

    @property
    def wanted_types(self) -> Set[str] | None:
        return self._matcher.types

    def may_want(self, category: str, event: str) -> bool:
        """True where a handler may want an event of a type, whatever is in it."""
        return self._matcher.may_want(category, event)

    def may_receive(self, record: Owned, event: Event) -> bool:
        """True where the owner sees the event, and the event is of the handler's world."""
        return self.principals.may_receive(record, event)

    def was_wanted(self, entry: E, event: Event) -> bool:
        """True where the handler's filters named the event's type when it was committed: a change of filters is for
        later events, also where a replica reads the log again from before it."""
        position, sequence = self._bus.names.position, event.sequence or 0
        then = next((one.types for one in entry.former if position(one.until).covers(sequence)), EVERY)
        return not {f"{event.type}.{event.data.event}", f"{event.type}.*", *EVERY}.isdisjoint(then)

    def home_of(self, record: Owned) -> str:
        """The world into which changes of a handler are recorded."""
        return record.world_id or self.principals.of(record.owner).home

    def visible_to(self, principal: Principal) -> list[E]:
        return [entry for entry in self.entries.values() if principal.may_see(entry)]

    def owned_by(self, principal: Principal) -> list[E]:
        return [entry for entry in self.entries.values() if principal.owns(entry)]

    async def follow(self) -> None:
        """Runs until cancelled. Filters name types, and records owners, so that these are read first."""
        async with asyncio.TaskGroup() as tasks:
            for view in (self.types.view, self.principals.view, self.worlds.view):
                tasks.create_task(view.follow())
            await self.types.view.reach(0, _START_S)
            await self.principals.view.reach(0, _START_S)
            await self.view.follow()

    async def catch_up(self, events: Iterable[Event]) -> None:
        """Returns once the copy is as new as some committed events: each was committed after the handlers that wait for
        it, and after its type was registered."""
        await self.view.refresh()
        if self.inert:
            await self.types.view.refresh()
        await self.types.ensure_known(event.dotted for event in events)
        if self._owned:
            await self.principals.view.refresh()

    async def check_world(self, world_id: str | None, principal: Principal) -> None:
        """Raises InvalidError where there is no such world, or the principal may not see it."""
        await self.principals.view.refresh()
        if world_id is not None:
            await call(self._bus, principal, "events", "place", PlaceRequest(world_id=world_id), bytes)
            await self.worlds.view.refresh()

    def _warnings(self, record: Owned, types: Iterable[str]) -> list[str]:
        """The reasons for which an active handler may wait for ever."""
        return [one for one in (self.types.catalogue.warning(types), self.worlds.warning(record)) if one]

    def _recompile_category(self, type: str) -> None:
        """Compiles the handlers anew that name a type of its category: some work now, others have become inert."""
        category = type.partition(".")[0]
        for key, entry in list(self.entries.items()):
            if key in self.inert if entry.filters is None else entry.filters.names_category(category):
                self._recompile(key, entry, type)

    def _take(self, change: Change) -> None:
        raise NotImplementedError

    def _recompile(self, key: str, entry: E, type: str) -> None:
        raise NotImplementedError
