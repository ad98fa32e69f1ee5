"""Requests in, answers out: the operations of both roles, but for those of worlds, replays and losses."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping

import msgspec

from crucible_core.envelope import decode
from crucible_core.errors import InvalidError, NotFoundError, UnavailableError
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
from crucible_kit.pages import answer_bytes
from crucible_kit.rpc import Context, Endpoint
from crucible_kit.types import Types

log = logging.getLogger(__name__)

_ANSWERS_BYTES = 32 * 1024 * 1024
"""The bytes of all answers of many events that are being built, or wait to be sent."""
_SOON_S = 0.25


def max_reply_bytes(bus: Bus) -> int:
    return min(PAGE_BYTES, answer_bytes(bus))


async def record_change(bus: Bus, setting: str, context: Context, id: str | None = None, **changes: object) -> None:
    """Appends System.ConfigChanged. A request that is repeated because no answer came is recorded again."""
    payload = {"setting": setting, "service": "events", "changes": changes, **({"id": id} if id else {})}
    raw = msgspec.Raw(msgspec.json.encode(payload))
    event = NewEvent(type="System.ConfigChanged", payload=raw, entity=setting, traceparent=context.traceparent)
    [appended] = await append(bus, EVENTS, [event], traceparent=context.traceparent)
    if (error := appended.error) is not None:
        log.warning("a change of %s is not recorded: %s", setting, error.detail)


def reached_endpoint(places: Places, rules: Retention | None, purging: Purger | None) -> Endpoint:
    """The operation that answers once this replica has a revision of a bucket. Raises UnavailableError."""

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


def append_endpoints(bus: Bus, appender: Appender, prehooks: PreHooks, rules: Retention) -> Mapping[str, Endpoint]:
    """The operations of the role `append`; see `crucible_core.protocol` for their requests and answers."""

    async def guarded(request: GuardedRequest, context: Context) -> GuardedRequest:
        await prehooks.reach(request.revision)
        return request

    async def put_retention(request: PutRetention, context: Context) -> RetentionView:
        context.principal.check_admin("retention")
        view = await rules.put(request, context)
        await record_change(bus, "retention", context, rules=len(view.rules), revision=view.revision)
        return view

    return {
        "append": Endpoint(AppendRequest, appender.append),
        "guarded": Endpoint(GuardedRequest, guarded, every_replica=True),
        "put_retention": Endpoint(PutRetention, put_retention),
        **rules.endpoints(),
    }


def query_endpoints(
    bus: Bus, index: Index, lookup: IndexLookup, types: Types, places: Places
) -> Mapping[str, Endpoint]:
    """The operations of the role `query`."""
    most_bytes = max_reply_bytes(bus)
    answers = Budget(_ANSWERS_BYTES)
    registry = Registry(bus, types, index)

    async def find(request: QueryRequest, context: Context) -> QueryReply:
        checked = await types.resolve(lambda catalogue: query.read_query(request, catalogue, context.scope))
        await places.check_readable(request.world_id, request.room_id, context.scope)
        await _catch_up(bus, index, request.min_sequence)
        context.held.enter_context(await answers.take(min(most_bytes, checked.limit * EVENT_BYTES)))
        return await scan.find_events(index, checked, most_bytes)

    async def count(request: CountRequest, context: Context) -> CountReply:
        as_query = QueryRequest(**{name: getattr(request, name) for name in EventsWanted.__struct_fields__})
        checked = await types.resolve(lambda catalogue: query.read_query(as_query, catalogue, context.scope))
        await places.check_readable(request.world_id, request.room_id, context.scope)
        await _catch_up(bus, index, request.min_sequence)
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
        await _catch_up(bus, index, _check_sequence(request.min_sequence))
        context.held.enter_context(await answers.take(most_bytes))
        sized = await store.find_by_correlation(index, request.correlation_id, TREE_EVENTS + 1)
        shown = tree.select_shown(sized, most_bytes)
        roots = tree.build(await store.read_raw(index, shown), context.scope)
        if not tree.is_visible(roots):
            raise NotFoundError(f"no event has the correlation id {request.correlation_id[:100]}")
        truncated = len(shown) < len(sized)
        return TraceReply(correlation_id=request.correlation_id, count=len(shown), truncated=truncated, roots=roots)

    async def list_types(request: TypesRequest, context: Context) -> TypesReply:
        await types.view.refresh()
        await _catch_up(bus, index, None)
        return await registry.page(request.after, most_bytes, context.scope)

    async def get_type(request: GetRequest, context: Context) -> DescribedType:
        await _catch_up(bus, index, None)
        return await registry.get(request.id, context.scope)

    async def register_type(request: RegisterType, context: Context) -> RegisteredType:
        context.principal.check_admin("an event type")
        await _catch_up(bus, index, None)
        done = await registry.register(request, context.principal.id)
        if done.created:
            await record_change(bus, "event_types", context, done.type.type, registered=done.type.version)
        return done

    async def delete_type(request: GetRequest, context: Context) -> DescribedType:
        context.principal.check_admin("an event type")
        await _catch_up(bus, index, None)
        deleted = await registry.delete(request.id)
        await record_change(bus, "event_types", context, deleted.type, deleted=True)
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


async def _catch_up(bus: Bus, index: Index, position: Encoded | None) -> None:
    """Returns once the index has all events up to a position; first of all, an index that is being built is
    complete."""
    if not index.caught_up:
        await index.reach(await log_end(bus))
    if position is None:
        await index.flush_gathered()
    elif isinstance(position, tuple):
        await index.reach(bus.names.position(position))
    elif not index.position.covers(position):
        await _reach_sequence(bus, index, position)


async def _reach_sequence(bus: Bus, index: Index, sequence: int) -> None:
    """Raises InvalidError for a sequence past the log's end, UnavailableError for one that the index does not have
    yet."""
    if stream_number(sequence) < bus.names.streams:
        with contextlib.suppress(UnavailableError):  # mostly the event is about to come, and the log need not be asked
            await index.reach(sequence, _SOON_S)
            return
    await wait_for_sequence(bus, sequence)
    await index.reach(sequence)


def _check_sequence(value: int | None) -> int | None:
    if value is not None and not 0 <= value <= query.MAX_SEQUENCE:
        message = f"must be 0 to {query.MAX_SEQUENCE}"
        raise InvalidError.field("min_sequence", message)
    return value
