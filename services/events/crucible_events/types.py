"""Event types of the installation: their registration, their deletion, and their descriptions with counts."""

import asyncio
from collections.abc import Mapping

import msgspec

from crucible_core.access import EVERYTHING, Scope
from crucible_core.errors import ConflictError, NotFoundError
from crucible_core.protocol.events import (
    DescribedType,
    EventType,
    KnowTypes,
    QueryRequest,
    RegisteredType,
    RegisterType,
    TypeRecord,
    TypesReply,
)
from crucible_core.subjects import token
from crucible_core.types.catalogue import ANY_CUSTOM, Catalogue, UnknownTypeError
from crucible_core.types.registration import check_request, registered
from crucible_events import store
from crucible_events.append.stamp import EVENTS
from crucible_events.append.validation import compile_schema
from crucible_events.query import counts, query
from crucible_kit.clock import timestamp
from crucible_kit.eventlog import log_end
from crucible_kit.index.index import Index
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import call_all
from crucible_kit.types import KNOW_TYPES, Types

SERVICES = ("events", "hooks", "webhooks", "gateway")
"""The services whose replicas have a copy of the types."""

_TRIES = 20


class Registry:
    """Each change is decided on a state of the whole bucket, and stored only while that is still its state: so no two
    types share a name, even when they are registered at the same time."""

    def __init__(self, bus: Bus, types: Types, index: Index) -> None:
        self._bus = bus
        self._types = types
        self._index = index
        self._checking = asyncio.Lock()

    async def register(self, request: RegisterType, owner: str) -> RegisteredType:
        """Returns once every replica has the type. Raises InvalidError, and ConflictError for a name or a version
        that is taken."""
        for _ in range(_TRIES):
            await self._types.view.refresh()
            catalogue, revision = self._types.catalogue, self._types.view.revision
            async with self._checking:
                record = await asyncio.to_thread(_new_record, request, catalogue, owner)
            if record is None or await self._store(record.type, record, revision):
                await self._notify()
                return RegisteredType(type=await self.get(request.type), created=record is not None)
        raise ConflictError("other event types are being registered at the moment: try again")

    async def delete(self, name: str) -> DescribedType:
        """Raises NotFoundError, and ConflictError for a type that is built in or has events."""
        for _ in range(_TRIES):
            await self._types.view.refresh()
            catalogue, revision = self._types.catalogue, self._types.view.revision
            shown = await self.get(name)
            kind = catalogue.registered.get(shown.type)
            if kind is None:
                raise ConflictError(f"{shown.type} is not a registered type: it is built in and stays")
            await self._check_unused(shown.type)
            if await self._store(shown.type, None, revision):
                await self._notify()
                await self._finish_delete(kind.record)
                return shown
        raise ConflictError("other event types are being registered at the moment: try again")

    async def get(self, name: str, scope: Scope = EVERYTHING) -> DescribedType:
        """One type by its name or an alias, with the count of its events that the scope shows. Raises NotFoundError
        with the nearest type."""
        try:
            found = await self._types.resolve(lambda catalogue: catalogue.type(name))
        except UnknownTypeError as error:
            raise NotFoundError(error.detail, errors=error.errors) from None
        kind = self._types.catalogue.registered.get(found.type)
        schemas = {name: one.schema for name, one in kind.versions.items()} if kind else {found.version: found.schema}
        counted = _with_count(found, await self._counts(scope), self._names())
        return DescribedType(**msgspec.structs.asdict(counted), schemas=schemas)

    async def page(self, after: str | None, most_bytes: int, scope: Scope) -> TypesReply:
        """The types that come after one, in the catalogue's order, within `most_bytes`."""
        counts, names = await self._counts(scope), self._names()
        everything = self._types.catalogue.types()
        start = next((index + 1 for index, one in enumerate(everything) if one.type == after), 0)
        found: list[EventType] = []
        for one in everything[start:]:
            counted = _with_count(one, counts, names)
            most_bytes -= len(msgspec.json.encode(counted))
            if most_bytes < 0 and found:
                return TypesReply(types=found, next=found[-1].type)
            found.append(counted)
        return TypesReply(types=found)

    async def _counts(self, scope: Scope) -> Mapping[str, int]:
        """The number of events of each type that the scope shows. For a limited scope they are counted one by one: in a
        long log, as many as the budget of a count allows."""
        if scope.everything:
            return await store.counts_by_type(self._index)
        checked = query.read_query(QueryRequest(), self._types.catalogue, scope)
        reply = await counts.count(self._index, checked, "type")
        return {group.key: group.count for group in reply.groups}

    # ---- the bucket

    async def _store(self, name: str, record: TypeRecord | None, revision: int) -> bool:
        """False where the bucket has changed since a revision."""
        value = None if record is None else msgspec.json.encode(record)
        try:
            await self._types.bucket.change(token(name), value, revision)
        except ConflictError:
            return False
        return True

    async def _notify(self) -> None:
        """Returns once every replica that can be reached has the stored types. A later one reads the bucket first."""
        await self._types.view.refresh()
        request = KnowTypes(revision=self._types.view.revision)
        await asyncio.gather(*(call_all(self._bus, EVENTS, service, KNOW_TYPES, request) for service in SERVICES))

    # ---- deleting

    async def _check_unused(self, name: str) -> None:
        await self._index.reach(await log_end(self._bus))
        count = (await store.counts_by_type(self._index)).get(name, 0)
        if count:
            events = "one event" if count == 1 else f"{count} events"
            raise ConflictError(f"the log has {events} of {name}: its type stays as long as they do", count=count)

    async def _finish_delete(self, record: TypeRecord) -> None:
        """No replica takes an event of the type any more. Where one came in before, the type stays."""
        try:
            await self._check_unused(record.type)
        except ConflictError:
            await self._types.view.refresh()
            await self._store(record.type, record, self._types.view.revision)
            await self._notify()
            raise

    def _names(self) -> frozenset[str]:
        return frozenset(self._types.catalogue.registered)


def _new_record(request: RegisterType, catalogue: Catalogue, owner: str) -> TypeRecord | None:
    """The record to store, or None where it is stored already. For a thread: to compare two schemas takes seconds."""
    check_request(request, catalogue)
    compile_schema(request.schema)
    return registered(request, catalogue, timestamp(), owner)


def _with_count(kind: EventType, counts: Mapping[str, int], registered: frozenset[str]) -> EventType:
    count = counts.get(kind.type, 0)
    if kind.type == ANY_CUSTOM:
        customs = (name for name in counts if name.startswith("Custom.") and name not in registered)
        count = sum(counts[name] for name in customs)
    return msgspec.structs.replace(kind, count=count)
