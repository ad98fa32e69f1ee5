"""The requests that events answers."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping

import msgspec

from crucible_core.envelope import decode
from crucible_core.errors import FieldError, InvalidError, NotFoundError, UnavailableError
from crucible_core.limits import EVENT_BYTES, PAGE_BYTES, TREE_EVENTS
from crucible_core.position import Encoded, stream_number
from crucible_core.protocol.events import (
    Appended,
    AppendRequest,
    CountReply,
    CountRequest,
    DescribedType,
    EventsWanted,
    KeyedRequest,
    NewEvent,
    QueryReply,
    QueryRequest,
    RegisteredType,
    RegisterType,
    TraceReply,
    TraceRequest,
    TypesReply,
    TypesRequest,
)
from crucible_core.protocol.hooks import GuardedRequest
from crucible_core.protocol.parts import GetRequest
from crucible_core.protocol.retention import PutRetention, ReachedRequest, RetentionView
from crucible_events import retention, store
from crucible_events.append.appends import Appender
from crucible_events.append.entries import check_repeats
from crucible_events.append.lookup import IndexLookup, no_event
from crucible_events.append.prehooks import PreHooks
from crucible_events.append.stamp import EVENTS, identify, scoped_key
from crucible_events.query import counts, query, scan, tree
from crucible_events.retention import Retention
from crucible_events.types import Registry
from crucible_events.worlds import registry as worlds
from crucible_events.worlds.registry import Places
from crucible_kit.eventlog import log_end, wait_for_sequence
from crucible_kit.events import append
from crucible_kit.index.erasure import Purger
from crucible_kit.index.index import Index
from crucible_kit.nats.budget import Budget
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import Context, Endpoint
from crucible_kit.types import Types

log = logging.getLogger(__name__)

_ANSWERS_BYTES = 32 * 1024 * 1024
"""What the answers of many events may come to that are being made, or wait to be sent."""
_SOON_S = 0.25


def room_for(bus: Bus) -> int:
    """The bytes that an answer may have."""
    return min(PAGE_BYTES, bus.max_payload * 3 // 4)


async def tell(bus: Bus, setting: str, context: Context, id: str | None = None, **changes: object) -> None:
    """Appends System.ConfigChanged. Whoever asks again because no answer came changes, and tells, again."""
    payload = {"setting": setting, "service": "events", "changes": changes, **({"id": id} if id else {})}
    raw = msgspec.Raw(msgspec.json.encode(payload))
    event = NewEvent(type="System.ConfigChanged", payload=raw, entity=setting, traceparent=context.traceparent)
    [appended] = await append(bus, EVENTS, [event], traceparent=context.traceparent)
    if (error := appended.error) is not None:
        log.warning("a change of %s is not recorded: %s", setting, error.detail)


def reached(places: Places, rules: Retention | None, purging: Purger | None) -> Endpoint:
    """Answered once this replica works by what was asked for. Raises UnavailableError."""

    async def reach(request: ReachedRequest, context: Context) -> ReachedRequest:
        if request.bucket == worlds.BUCKET:
            await places.view.reach(request.revision)
        elif request.bucket == retention.BUCKET and rules is not None:
            await rules.view.reach(request.revision)
        if request.settle:
            await places.drain(worlds.SETTLE_S)
            if purging is not None:
                with contextlib.suppress(TimeoutError):  # a large one goes on by itself
                    async with asyncio.timeout(worlds.SETTLE_S):
                        await purging.wait_done()
        return request

    return Endpoint(ReachedRequest, reach, every_replica=True)


def appends(bus: Bus, appender: Appender, prehooks: PreHooks, rules: Retention) -> Mapping[str, Endpoint]:
    """Of the role `append`, by operation; see `crucible_core.protocol` for what each takes and gives."""

    async def guarded(request: GuardedRequest, context: Context) -> GuardedRequest:
        await prehooks.reach(request.revision)
        return request

    async def put_retention(request: PutRetention, context: Context) -> RetentionView:
        context.principal.check_admin("retention")
        view = await rules.put(request, context)
        await tell(bus, "retention", context, rules=len(view.rules), revision=view.revision)
        return view

    return {
        "append": Endpoint(AppendRequest, appender.append),
        "guarded": Endpoint(GuardedRequest, guarded, every_replica=True),
        "put_retention": Endpoint(PutRetention, put_retention),
        **rules.endpoints(),
    }


def queries(bus: Bus, index: Index, lookup: IndexLookup, types: Types, places: Places) -> Mapping[str, Endpoint]:
    """The same of the role `query`."""
    room = room_for(bus)
    answers = Budget(_ANSWERS_BYTES)
    registry = Registry(bus, types, index)

    async def find(request: QueryRequest, context: Context) -> QueryReply:
        checked = await types.resolve(lambda catalogue: query.checked(request, catalogue, context.scope))
        await places.check_readable(request.world_id, request.room_id, context.scope)
        await _caught_up(bus, index, request.min_sequence)
        context.held.enter_context(await answers.take(min(room, checked.limit * EVENT_BYTES)))
        return await scan.run(index, checked, room)

    async def count(request: CountRequest, context: Context) -> CountReply:
        wanted = {name: getattr(request, name) for name in EventsWanted.__struct_fields__}
        asked = QueryRequest(**wanted)
        checked = await types.resolve(lambda catalogue: query.checked(asked, catalogue, context.scope))
        await places.check_readable(request.world_id, request.room_id, context.scope)
        await _caught_up(bus, index, request.min_sequence)
        return await counts.count(index, checked, request.by)

    async def get(request: GetRequest, context: Context) -> bytes:
        found = await lookup.find(request.id)
        if not context.scope.everything and not context.scope.sees(decode(found)):
            raise no_event(request.id)
        return found

    async def keyed(request: KeyedRequest, context: Context) -> Appended:
        key = scoped_key(request.key, identify(request.source, request.actor)[1], request.world_id)
        first = (await lookup.find_known([key], settled=True)).get(key)
        if first is None:
            return Appended()
        check_repeats(request.fingerprint, first)
        return Appended(first.id, first.sequence, first.type, first.correlation_id, duplicate=True)

    async def trace(request: TraceRequest, context: Context) -> TraceReply:
        await _caught_up(bus, index, _sequence(request.min_sequence))
        context.held.enter_context(await answers.take(room))
        sized = await store.of_correlation(index, request.correlation_id, TREE_EVENTS + 1)
        shown = tree.fitting(sized, room)
        roots = tree.grow(await store.raws(index, shown), context.scope)
        if not tree.shows(roots):
            raise NotFoundError(f"no event has the correlation id {request.correlation_id[:100]}")
        truncated = len(shown) < len(sized)
        return TraceReply(correlation_id=request.correlation_id, count=len(shown), truncated=truncated, roots=roots)

    async def list_types(request: TypesRequest, context: Context) -> TypesReply:
        await types.view.refresh()
        await _caught_up(bus, index, None)
        return await registry.page(request.after, room, context.scope)

    async def get_type(request: GetRequest, context: Context) -> DescribedType:
        await _caught_up(bus, index, None)
        return await registry.get(request.id, context.scope)

    async def register_type(request: RegisterType, context: Context) -> RegisteredType:
        context.principal.check_admin("an event type")
        await _caught_up(bus, index, None)
        done = await registry.register(request, context.principal.id)
        if done.created:
            await tell(bus, "event_types", context, done.type.type, registered=done.type.version)
        return done

    async def delete_type(request: GetRequest, context: Context) -> DescribedType:
        context.principal.check_admin("an event type")
        await _caught_up(bus, index, None)
        deleted = await registry.delete(request.id)
        await tell(bus, "event_types", context, deleted.type, deleted=True)
        return deleted

    return {
        "query": Endpoint(QueryRequest, find),
        "count": Endpoint(CountRequest, count),
        "get": Endpoint(GetRequest, get),
        "keyed": Endpoint(KeyedRequest, keyed),
        "trace": Endpoint(TraceRequest, trace),
        "types": Endpoint(TypesRequest, list_types),
        "type": Endpoint(GetRequest, get_type),
        "register_type": Endpoint(RegisterType, register_type, stores=True),
        "delete_type": Endpoint(GetRequest, delete_type),
        **lookup.endpoints(),
    }


async def _caught_up(bus: Bus, index: Index, place: Encoded | None) -> None:
    """An index that is still being built would answer with less than there is."""
    if not index.caught_up:
        await index.reach(await log_end(bus))
    if place is None:
        await index.flush_gathered()
    elif isinstance(place, tuple):
        await index.reach(bus.names.position(place))
    elif not index.position.covers(place):
        await _come_to(bus, index, place)


async def _come_to(bus: Bus, index: Index, sequence: int) -> None:
    """Raises InvalidError for a sequence that the log has not, UnavailableError for one that the index has not yet."""
    if stream_number(sequence) < bus.names.streams:
        with contextlib.suppress(UnavailableError):  # mostly it is about to come, and the log need not be asked
            await index.reach(sequence, _SOON_S)
            return
    await wait_for_sequence(bus, sequence)
    await index.reach(sequence)


def _sequence(value: int | None) -> int | None:
    if value is not None and not 0 <= value <= query.MAX_SEQUENCE:
        message = f"must be 0 to {query.MAX_SEQUENCE}"
        raise InvalidError(f"min_sequence: {message}", errors=[FieldError("min_sequence", message)])
    return value
