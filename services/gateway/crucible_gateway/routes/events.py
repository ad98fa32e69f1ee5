"""Requests about events: append, query, count, get, trace and the types."""

import functools
from collections.abc import Iterable

from litestar import Response, get, post

from crucible_core.envelope import MAX_EVENT_BYTES, Event
from crucible_core.errors import CrucibleError, UnsupportedError
from crucible_core.protocol.events import (
    AppendReply,
    AppendRequest,
    CountReply,
    CountRequest,
    NewEvent,
    QueryReply,
    QueryRequest,
    TraceReply,
    TraceRequest,
    TypesReply,
)
from crucible_core.protocol.shared import GetRequest
from crucible_gateway import cloudevents, examples
from crucible_gateway.auth import principal_of
from crucible_gateway.batches import Committed, Result, append_all, append_each, outcome
from crucible_gateway.bodies import JSON, MAX_REQUEST_BYTES, Http, anything, media_type, pieces, whole
from crucible_gateway.context import Nothing, ask
from crucible_gateway.correlation import correlation_of, sent_correlation
from crucible_gateway.intake import (
    Origin,
    SentEvent,
    Taken,
    elements,
    idempotency_key,
    is_array,
    lines,
    read_event,
    taken,
)
from crucible_gateway.observing import traceparent_of
from crucible_gateway.openapi import Body, Operation, described
from crucible_gateway.params import (
    AppendParams,
    CountParams,
    EventParams,
    NoParams,
    TraceParams,
    read_params,
    wanted_fields,
)

from .replies import encoded, passed

TAG = "Events"
NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl")


@post(
    "/api/v1/events",
    opt=described(
        Operation(
            summary="Append one event, or a batch",
            description=(
                "One event, in the short form or the long one, is answered with 201 and its place in the log, or with "
                '200 and `"duplicate": true` if its id or Idempotency-Key was there. An array or NDJSON is a batch, '
                "answered with 200, `committed` and a result for each event. CloudEvents are read in structured, batch "
                "and binary mode. Limits: 1 MiB an event, 64 MiB a request."
            ),
            tag=TAG,
            status=201,
            instead="A batch, or an event that was there already",
            params=AppendParams,
            headers={
                "Idempotency-Key": "The same key again is answered with the first event",
                "X-Correlation-Id": "The correlation id of events that bring none",
            },
            bodies={
                JSON: Body((SentEvent, list[SentEvent]), examples.SHORT_EVENT),
                NDJSON[0]: Body({"type": "string", "description": "One event a line"}, examples.NDJSON),
                cloudevents.STRUCTURED: Body(cloudevents.CloudEvent, examples.CLOUD_EVENT),
                cloudevents.BATCH: Body(list[cloudevents.CloudEvent], [examples.CLOUD_EVENT]),
            },
            reply=(Result, Committed),
            example=examples.APPENDED,
            refusals=("malformed", "conflict", "too_large", "unsupported", "invalid"),
        )
    ),
)
async def append_events(request: Http) -> Response[bytes]:
    params = read_params(request.scope["query_string"], AppendParams)
    origin = Origin(
        principal=principal_of(request),
        traceparent=traceparent_of(request.scope),
        correlation_id=sent_correlation(request.headers),
        idempotency_key=idempotency_key(request.headers.get("idempotency-key")),
        request_id=correlation_of(request.scope),
        react=params.react,
    )
    kind = media_type(request)
    if cloudevents.is_binary(request.headers):
        return await _one(request, origin, cloudevents.from_binary(dict(request.headers), await anything(request)))
    if kind in NDJSON:
        sent = lines(pieces(request))
        append = functools.partial(_append, request)
        events = (taken(line) async for line in sent)
        return passed(await (append_all if params.atomic else append_each)(append, origin, events))
    if kind == cloudevents.BATCH:
        return await _many(request, origin, map(cloudevents.taken, elements(await _body(request))), params)
    if kind == cloudevents.STRUCTURED:
        return await _one(request, origin, cloudevents.from_structured(await _body(request)))
    if kind != JSON:
        raise UnsupportedError(
            f"{kind[:100]} is not read here; send {JSON}, {NDJSON[0]}, {cloudevents.STRUCTURED} or {cloudevents.BATCH}"
        )
    raw = await _body(request)
    if is_array(raw):
        return await _many(request, origin, map(taken, elements(raw)), params)
    return await _one(request, origin, read_event(raw))


async def _body(request: Http) -> bytes:
    """An array may be as large as a request, anything else only as an event."""
    return await whole(request, lambda begun: MAX_REQUEST_BYTES if begun[:1] == b"[" else MAX_EVENT_BYTES)


async def _one(request: Http, origin: Origin, event: NewEvent) -> Response[bytes]:
    reply = await _append(request, AppendRequest(events=[origin.apply(event)]))
    result = outcome(reply.results[0])
    if isinstance(result, CrucibleError):
        raise result
    return encoded(result, 200 if result.duplicate else 201)


async def _many(request: Http, origin: Origin, events: Iterable[Taken], params: AppendParams) -> Response[bytes]:
    append = functools.partial(_append, request)
    return passed(await (append_all if params.atomic else append_each)(append, origin, events))


async def _append(request: Http, events: AppendRequest) -> AppendReply:
    return await ask(request, "events", "append", events, AppendReply)


@get(
    "/api/v1/events",
    opt=described(
        Operation(
            summary="Query the log",
            description="`min_sequence` is the sequence of an append: the answer then has that event.",
            tag=TAG,
            params=EventParams,
            reply=QueryReply,
            example=examples.EVENT_PAGE,
            refusals=("malformed", "invalid"),
        )
    ),
)
async def query_events(request: Http) -> Response[bytes]:
    params = read_params(request.scope["query_string"], EventParams)
    wanted = wanted_fields(params)
    query = QueryRequest(**wanted, order=params.order, limit=params.limit, cursor=params.cursor)
    return passed(await ask(request, "events", "query", query, bytes))


@get(
    "/api/v1/events/count",
    opt=described(
        Operation(
            summary="Count events",
            description=(
                "By the parameters of a query. A log too long for one answer is counted in parts: where `complete` is "
                "false, ask again with `after` set to `counted_to`, and add up."
            ),
            tag=TAG,
            params=CountParams,
            reply=CountReply,
            example=examples.COUNTED,
            refusals=("malformed", "invalid"),
        )
    ),
)
async def count_events(request: Http) -> Response[bytes]:
    params = read_params(request.scope["query_string"], CountParams)
    count = CountRequest(**wanted_fields(params), by=params.by)
    return passed(await ask(request, "events", "count", count, bytes))


@get(
    "/api/v1/events/{id:str}",
    opt=described(
        Operation(
            summary="One event",
            tag=TAG,
            reply=Event,
            example=examples.EVENT,
            refusals=("not_found",),
        )
    ),
)
async def get_event(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    return passed(await ask(request, "events", "get", GetRequest(request.path_params["id"]), bytes))


@get(
    "/api/v1/events/trace/{correlation_id:str}",
    opt=described(
        Operation(
            summary="Everything with one cause, as a tree",
            tag=TAG,
            params=TraceParams,
            reply=TraceReply,
            example=examples.TRACE,
            refusals=("not_found", "invalid"),
        )
    ),
)
async def trace_events(request: Http) -> Response[bytes]:
    params = read_params(request.scope["query_string"], TraceParams)
    trace = TraceRequest(correlation_id=request.path_params["correlation_id"], min_sequence=params.min_sequence)
    return passed(await ask(request, "events", "trace", trace, bytes))


@get(
    "/api/v1/event-types",
    opt=described(
        Operation(summary="The catalogue of event types", tag=TAG, reply=TypesReply, example=examples.EVENT_TYPES)
    ),
)
async def list_event_types(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    return passed(await ask(request, "events", "types", Nothing(), bytes))
