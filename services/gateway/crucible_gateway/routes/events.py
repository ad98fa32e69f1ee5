"""Requests about events: append, query, count, get and trace."""

import functools
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from urllib.parse import urlencode

import msgspec
from litestar import Response, get, post

from crucible_core.attributes import essence
from crucible_core.envelope import Event
from crucible_core.errors import MalformedError, UnavailableError, UnsupportedError
from crucible_core.protocol.events import (
    AppendReply,
    AppendRequest,
    CountReply,
    CountRequest,
    NewEvent,
    QueryReply,
    QueryRequest,
    TracedDelivery,
    TraceNode,
    TraceReply,
    TraceRequest,
)
from crucible_core.protocol.parts import GetRequest
from crucible_core.protocol.webhooks import TracedDeliveries, TracedRequest
from crucible_core.times import parse_time
from crucible_gateway import examples
from crucible_gateway.accept import accept_of
from crucible_gateway.auth import principal_of
from crucible_gateway.body.batches import Append, Committed, append_all, append_each, elements, result_of
from crucible_gateway.body.cloudevents import reader, writer
from crucible_gateway.body.cloudevents.forms import (
    BATCH,
    STRUCTURED,
    CloudEvent,
    Form,
    form_of,
    name_attributes,
    negotiate_event,
    negotiate_events,
)
from crucible_gateway.body.events import Origin, SentEvent, idempotency_key, lines, read_event, read_sized
from crucible_gateway.body.json import (
    JSON,
    Http,
    array_or_one,
    expect_uncompressed,
    media_type,
    pieces,
    read_body,
    read_bytes,
)
from crucible_gateway.context import ask, gateway_of
from crucible_gateway.correlation import CHAIN, correlation_of, read_correlation, read_hop
from crucible_gateway.middleware import traceparent_of
from crucible_gateway.openapi import Body, Operation
from crucible_gateway.params import AppendParams, CountParams, EventParams, TraceParams, read_params, selection_fields
from crucible_gateway.problems import to_response
from crucible_gateway.routes.headers import rest_of_path
from crucible_gateway.routes.replies import forward, reply_bytes, reply_json
from crucible_kit.http.asgi import Rendered

TAG = "Events"
_VARIES = {"Vary": "Accept"}
NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl")
_APPEND_HEADERS = {
    "Idempotency-Key": "The same request again is answered with the first event; another one is 422",
    **CHAIN,
}


class AppendedEvent(msgspec.Struct, omit_defaults=True):
    """An event's position in the log; with `duplicate`, since an earlier request."""

    id: str
    sequence: int
    type: str
    correlation_id: str
    duplicate: bool = False


@post(
    "/api/v1/events",
    operation=Operation(
        summary="Append one event, or a batch",
        description=(
            "One event, in the short form or the long one, is answered with 201 and its place in the log, or with "
            '200 and `"duplicate": true` if its id or Idempotency-Key was there. CloudEvents are read in '
            "structured and binary mode. An event may have 1 MiB. All that `append_batch` takes, an array among "
            "it, is taken here too, and answered in the same way."
        ),
        tag=TAG,
        status=201,
        instead="The event was there already",
        params=AppendParams,
        headers=_APPEND_HEADERS,
        bodies={
            JSON: Body(SentEvent, examples.SHORT_EVENT),
            STRUCTURED: Body(CloudEvent, examples.CLOUD_EVENT, open=True),
        },
        reply=AppendedEvent,
        example=examples.APPENDED,
        errors=("conflict",),
    ),
)
async def append_event(request: Http) -> Response[bytes]:
    return to_response(await append_any(request))


@post(
    "/api/v1/events/batch",
    operation=Operation(
        summary="Append a batch of events",
        description=(
            "An array or NDJSON, answered with `committed` and a result for each event, in order; likewise a "
            "CloudEvents batch (`application/cloudevents-batch+json`). At most 100,000 events and 64 MiB; "
            "if `atomic`, 1,000 events and 4 MiB."
        ),
        tag=TAG,
        params=AppendParams,
        headers=_APPEND_HEADERS,
        bodies={
            JSON: Body(list[SentEvent], [examples.SHORT_EVENT]),
            NDJSON[0]: Body({"type": "string", "description": "One event a line"}, examples.NDJSON),
        },
        reply=Committed,
        example={"committed": 1, "results": [examples.APPENDED]},
        errors=("conflict",),
    ),
)
async def append_batch(request: Http) -> Response[bytes]:
    return to_response(await append_any(request, batch=True))


async def append_any(request: Http, batch: bool = False) -> Rendered:
    """Raises MalformedError where one event is sent for a batch."""
    params, headers = read_params(request, AppendParams), request.headers
    origin = Origin(
        principal=principal_of(request),
        traceparent=traceparent_of(request.scope),
        correlation_id=read_correlation(headers),
        idempotency_key=idempotency_key(headers.get("idempotency-key")),
        request_id=correlation_of(request.scope),
        react=params.react,
        hop=read_hop(headers),
    )
    append: Append = functools.partial(_append, request)
    many = append_all if params.atomic else append_each
    form = form_of(essence(headers.get("content-type", JSON)), request.scope["headers"])
    if batch and form in ("structured", "binary"):
        raise UnsupportedError(f"one CloudEvent is no batch; send {JSON}, {NDJSON[0]} or {BATCH}")
    if form != "native":
        return await _append_cloud_events(request, form, origin, name_attributes(append), many)
    kind = media_type(request)
    if kind in NDJSON:
        sent = lines(pieces(request))
        return _render_json(await many(append, origin, (read_sized(line) async for line in sent)))
    if kind != JSON:
        raise UnsupportedError(f"{kind[:100]} is not read here; send {JSON}, {NDJSON[0]}, {STRUCTURED} or {BATCH}")
    array, alone = await array_or_one(request)
    if array is not None:
        return _render_json(await many(append, origin, (read_sized(raw) async for raw in elements(array))))
    if batch:
        raise MalformedError("a batch is an array of events")
    return await _append_one(append, origin, read_event(alone))


async def _append_cloud_events(
    request: Http, form: Form, origin: Origin, append: Append, many: Callable[..., Awaitable[bytes]]
) -> Rendered:
    catalogue = gateway_of(request).types.catalogue
    if form == "binary":
        expect_uncompressed(request)
        event = reader.from_binary(request.scope["headers"], await read_bytes(request), catalogue)
        return await _append_one(append, origin, event)
    media_type(request)
    if form == "batch":
        sent = elements(pieces(request))
        return _render_json(await many(append, origin, (reader.read_sized(raw, catalogue) async for raw in sent)))
    return await _append_one(append, origin, reader.from_structured(await read_body(request), catalogue))


async def _append_one(append: Append, origin: Origin, event: NewEvent) -> Rendered:
    reply = await append(AppendRequest(events=[origin.apply(event)]))
    result = result_of(reply.results[0])
    return _render_json(msgspec.json.encode(result), 200 if result.duplicate else 201)


def _render_json(body: bytes, status: int = 200) -> Rendered:
    return status, {"Content-Type": JSON}, body


async def _append(request: Http, events: AppendRequest) -> AppendReply:
    if len(events.events) == 1 and not events.atomic:
        appends, principal = gateway_of(request).appends, principal_of(request)
        done = await appends.append(events.events[0], principal, traceparent_of(request.scope))
        if done is not None:
            return AppendReply(results=[done])
    return await ask(request, "events", "append", events, AppendReply)


@get(
    "/api/v1/events",
    operation=Operation(
        summary="Query the log",
        description=(
            "`min_sequence` is the sequence of an append: the answer then has that event. With `Accept: "
            "application/cloudevents-batch+json` it is a batch of CloudEvents, whose next page is the answer's "
            '`Link` with `rel="next"`.'
        ),
        tag=TAG,
        params=EventParams,
        reply=QueryReply,
        example=examples.EVENT_PAGE,
        errors=("malformed", "not_acceptable"),
    ),
)
async def query_events(request: Http) -> Response[bytes]:
    form = negotiate_events(accept_of(request.headers))
    params = read_params(request, EventParams)
    query = QueryRequest(**selection_fields(params), order=params.order, limit=params.limit, cursor=params.cursor)
    if form == "native":
        return reply_bytes(await ask(request, "events", "query", query, bytes), headers=_VARIES)
    reply = await ask(request, "events", "query", query, QueryReply)
    headers = _VARIES | _next_page_link(request, reply.next_cursor)
    return reply_bytes(writer.batch(map(bytes, reply.events)), headers=headers, media_type=BATCH)


def _next_page_link(request: Http, cursor: str | None) -> dict[str, str]:
    if cursor is None:
        return {}
    rest = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    return {"Link": f'<{request.scope["path"]}?{urlencode([*rest, ("cursor", cursor)])}>; rel="next"'}


@get(
    "/api/v1/events/count",
    operation=Operation(
        summary="Count events",
        description=(
            "By the parameters of a query. A log too long for one answer is counted in parts: where `complete` is "
            "false, ask again with `after` set to `counted_to`, and add up."
        ),
        tag=TAG,
        params=CountParams,
        reply=CountReply,
        example=examples.COUNTED,
        errors=("malformed",),
    ),
)
async def count_events(request: Http) -> Response[bytes]:
    params = read_params(request, CountParams)
    count = CountRequest(**selection_fields(params), by=params.by)
    return await forward(request, "events", "count", count)


@get(
    "/api/v1/events/{id:str}",
    operation=Operation(
        summary="One event",
        description=(
            "With `Accept: application/cloudevents+json` it is a CloudEvent, with `;mode=binary` behind that one "
            "in binary mode."
        ),
        tag=TAG,
        reply=Event,
        example=examples.EVENT,
        errors=("not_found", "not_acceptable"),
    ),
)
async def get_event(request: Http) -> Response[bytes]:
    form = negotiate_event(accept_of(request.headers))
    raw = await ask(request, "events", "get", GetRequest(request.path_params["id"]), bytes)
    if form == "binary" and (sent := writer.binary(raw)) is not None:
        headers, kind, body = sent
        return reply_bytes(body, headers=_VARIES | headers | ({"Content-Type": kind} if kind else {}))
    if form == "batch":
        return reply_bytes(writer.batch([raw]), headers=_VARIES, media_type=BATCH)
    if form != "native":
        return reply_bytes(writer.structured(raw), headers=_VARIES, media_type=STRUCTURED)
    return reply_bytes(raw, headers=_VARIES)


@get(
    "/api/v1/events/trace/{correlation_id:path}",
    operation=Operation(
        summary="Everything with one cause, as a tree",
        tag=TAG,
        params=TraceParams,
        reply=TraceReply,
        example=examples.TRACE,
        errors=("not_found",),
    ),
)
async def trace_events(request: Http) -> Response[bytes]:
    params = read_params(request, TraceParams)
    correlation_id = rest_of_path(request, "trace")
    question = TraceRequest(correlation_id=correlation_id, min_sequence=params.min_sequence)
    trace = await ask(request, "events", "trace", question, TraceReply)
    try:
        found = await ask(request, "webhooks", "traced", TracedRequest(correlation_id), TracedDeliveries)
    except UnavailableError:
        trace.complete = False
    else:
        _attach_deliveries(trace, found.deliveries)
    return reply_json(trace)


class _Stamp(msgspec.Struct):
    id: str
    timestamp: str


class _Stamped(msgspec.Struct):
    metadata: _Stamp


def _attach_deliveries(trace: TraceReply, deliveries: list[TracedDelivery]) -> None:
    """Hangs each delivery under its event, with the time since the chain's first event."""
    if not deliveries or not trace.roots:
        return
    by_event = defaultdict(list)
    for delivery in deliveries:
        by_event[delivery.event_id].append(delivery)
    shown = [(node, _stamp(node)) for node in _nodes(trace.roots) if node.hidden is not True]
    began = parse_time(shown[0][1].timestamp, "timestamp")
    for node, stamp in shown:
        node.deliveries = by_event.get(stamp.id, [])
        for delivery in node.deliveries:
            delivery.elapsed_ms = (parse_time(delivery.ended_at, "ended_at") - began) / 1000


def _nodes(nodes: list[TraceNode]) -> Iterator[TraceNode]:
    for node in nodes:
        yield node
        yield from _nodes(node.effects)


def _stamp(node: TraceNode) -> _Stamp:
    return msgspec.json.decode(node.event, type=_Stamped).metadata


HANDLERS = (append_event, append_batch, query_events, count_events, get_event, trace_events)
