"""Requests about events: append, list, get, trace, the types and the stream."""

import os
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, TypedDict, Unpack

import msgspec

from crucible_client.request import (
    Call,
    Json,
    delete,
    get,
    json_text,
    keyed,
    params_of,
    post,
    present,
    reads,
    segment,
    types_of,
)
from crucible_client.response import read_as
from crucible_client.results import Batch, Page
from crucible_core.envelope import Event
from crucible_core.ids import make_id
from crucible_core.protocol.events import (
    Appended,
    CountBy,
    CountReply,
    DescribedType,
    EventType,
    TraceReply,
    TypesReply,
)

NDJSON = "application/x-ndjson"


def append(
    type: str,
    payload: Json | None = None,
    *,
    entity: str | None = None,
    world_id: str | None = None,
    room_id: str | None = None,
    id: str | None = None,
    correlation_id: str | None = None,
    causation_id: str | None = None,
    expected_sequence: int | None = None,
    retention: Literal["default", "forever"] | None = None,
    idempotency_key: str | None = None,
) -> Call[Appended]:
    """Appends one event; answered once it is durable.

    `type` may be an alias. `expected_sequence` is that of the entity's last event (0: none yet), else ConflictError.
    An idempotency key is made when none is given, so that a retry never appends twice.
    Raises DeniedError (a Pre hook's veto), InvalidError with the paths that were refused.
    """
    body = present(
        type=type,
        payload=payload or {},
        entity=entity,
        world_id=world_id,
        room_id=room_id,
        id=id,
        correlation_id=correlation_id,
        causation_id=causation_id,
        expected_sequence=expected_sequence,
        retention=retention,
    )
    return post("/api/v1/events", body, reads(Appended), headers=keyed(idempotency_key))


class Wanted(TypedDict, total=False):
    """A selection of events of the log, besides their types; each as `GET /api/v1/events` has it. Times are RFC 3339,
    `source` is a kind or `kind:id`, `after` an exclusive sequence; `min_sequence` waits until that much is indexed."""

    actor: str | None
    source: str | None
    correlation_id: str | None
    causation_id: str | None
    entity: str | None
    world_id: str | None
    room_id: str | None
    from_time: str | None
    to_time: str | None
    after: int | None
    filter: Json | None
    min_sequence: int | None


def append_batch(events: Sequence[Json], *, atomic: bool = False) -> Call[Batch]:
    """Appends many events, each in the short or the full form; with `atomic` all or none (at most 1,000).

    Each gets an id when it has none, so that a retry never appends twice. An event that is refused does not raise: its
    entry in `results` has the error.
    """
    params = (("atomic", "true"),) if atomic else ()
    sent = [event if _has_id(event) else _identified(event) for event in events]
    return post("/api/v1/events", sent, reads(Batch), params=params)


def append_lines(lines: Sequence[bytes], *, atomic: bool = False, react: bool = True) -> Call[Batch]:
    """The same for events that are lines of JSON already, as `line_of` makes them. Without `react` they are only
    recorded: Post hooks, webhooks and the reader of notes pass them over."""
    params = params_of(atomic="true" if atomic else None, react=None if react else "false")
    headers = {"content-type": NDJSON}
    return Call("POST", "/api/v1/events", reads(Batch), params, headers, b"\n".join(lines))


def list_events(
    *types: str,
    order: Literal["asc", "desc"] | None = None,
    page_size: int | None = None,
    cursor: str | None = None,
    **wanted: Unpack[Wanted],
) -> Call[Page[Event]]:
    """Events by type (names, aliases, wildcards), world, room, cause, time (RFC 3339) and filter; see `Wanted`.

    `after` is an exclusive sequence; `min_sequence` waits until that much is indexed; `page_size` is at most 1000.
    """
    params = _params(types, wanted) + params_of(order=order, limit=page_size, cursor=cursor)
    return get("/api/v1/events", _event_page, params=params)


def export_events(types: Sequence[str], wanted: Wanted) -> Call[bytes]:
    """The events that are committed by now and wanted, as lines of NDJSON; the last one of a complete export is
    empty."""
    return get("/api/v1/events/export", lambda raw: raw, params=_params(types, wanted))


def count_events(types: Sequence[str], by: CountBy | None, wanted: Wanted) -> Call[CountReply]:
    """The number of events that are wanted, or of those in the first part of the log where it is long."""
    return get("/api/v1/events/count", reads(CountReply), params=_params(types, wanted) + params_of(by=by))


def get_event(id: str) -> Call[Event]:
    """One event by its id. Raises NotFoundError."""
    return get(f"/api/v1/events/{segment(id)}", reads(Event))


def redact_event(id: str, *, reason: str | None = None) -> Call[Event]:
    """Erases the payload of one event for good, and returns what is left of it; `redacted` says when and by whom. The
    reason stays in the log. Raises NotFoundError, DeniedError (a Pre hook's veto), InvalidError for a tombstone."""
    return post(f"/api/v1/events/{segment(id)}/redact", present(reason=reason), reads(Event))


def trace(correlation_id: str, *, min_sequence: int | None = None) -> Call[TraceReply]:
    """Everything with that correlation id, as trees of causes and effects."""
    path = f"/api/v1/events/trace/{segment(correlation_id)}"
    return get(path, reads(TraceReply), params=params_of(min_sequence=min_sequence))


def event_types() -> Call[list[EventType]]:
    """The catalogue, with the JSON Schema of each payload and how many events of each type the log has."""
    return get("/api/v1/event-types", lambda raw: read_as(raw, TypesReply).types)


def register_event_type(
    type: str,
    schema: Json,
    *,
    version: str = "1.0.0",
    description: str | None = None,
    aliases: Sequence[str] | None = None,
) -> Call[DescribedType]:
    """Registers a type (`Category.Event` or `Custom.name`), or a later version of one, with the JSON Schema of its
    payloads. The same again changes nothing.

    Raises InvalidError with each thing that is wrong, or that breaks with the version before; ConflictError where the
    name or the version is taken.
    """
    names = list(aliases) if aliases else None
    body = present(type=type, schema=schema, version=version, description=description, aliases=names)
    return post("/api/v1/event-types", body, reads(DescribedType))


def get_event_type(type: str) -> Call[DescribedType]:
    """One type, by its name or an alias, with the schema of each version. Raises NotFoundError."""
    return get(f"/api/v1/event-types/{segment(type)}", reads(DescribedType))


def delete_event_type(type: str) -> Call[None]:
    """Removes a registered type. Raises ConflictError while the log has events of it."""
    return delete(f"/api/v1/event-types/{segment(type)}")


def stream_events(
    types: Sequence[str],
    filter: Json | None,
    start: str | int,
    last: str | int | None,
    world_id: str | None = None,
    room_id: str | None = None,
) -> Call[bytes]:
    """The live stream as server-sent events; `last` is what to resume after."""
    scope = params_of(filter=json_text(filter), world_id=world_id, room_id=room_id)
    params = (*types_of(types), *scope, ("from", str(start if last is None else last)))
    headers = {"accept": "text/event-stream", "cache-control": "no-store"}
    if last is not None:
        headers["last-event-id"] = str(last)
    return get("/api/v1/events/stream", lambda raw: raw, params=params, headers=headers)


class _EventPage(msgspec.Struct):
    events: list[Event]
    next_cursor: str | None = None


def _event_page(raw: bytes) -> Page[Event]:
    found = read_as(raw, _EventPage)
    return Page(found.events, found.next_cursor)


def _params(types: Sequence[str], wanted: Wanted) -> tuple[tuple[str, str], ...]:
    fields: dict[str, Any] = {**wanted, "filter": json_text(wanted.get("filter"))}
    return types_of(types) + params_of(**fields)


def line_of(event: Json | bytes) -> bytes:
    """An event as one line of JSON, with an id, so that it may be sent twice. Bytes that are no JSON object stay as
    they are: the gateway says what is wrong with them."""
    if not isinstance(event, bytes):
        return msgspec.json.encode(event if _has_id(event) else _identified(event))
    line = event.strip().replace(b"\r", b" ").replace(b"\n", b" ")
    try:
        fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(fields.get("metadata", b"null"), type=dict[str, msgspec.Raw] | None)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return line
    named = {**fields, "metadata": metadata}
    return line if _has_id(named) else msgspec.json.encode(_identified(named))


def _has_id(event: Json) -> bool:
    found = event.get("id") or (event.get("metadata") or {}).get("id")
    return bool(found) and not (isinstance(found, msgspec.Raw) and bytes(found) in (b"null", b'""'))


def _identified(event: Json) -> Json:
    made = make_id("evt", time.time_ns() // 1_000_000, os.urandom(10))
    rest = {name: value for name, value in event.items() if name != "metadata" or value}
    if "data" in event:
        return {**rest, "metadata": {**(event.get("metadata") or {}), "id": made}}
    return {**rest, "id": made}


class Count(msgspec.Struct, frozen=True):
    """`groups` is empty where nothing was to be grouped by; else the largest is the first."""

    count: int
    groups: dict[str, int]


class CountSum:
    """Asks for one part after another until all is counted."""

    def __init__(self, types: Sequence[str], by: CountBy | None, wanted: Wanted) -> None:
        self._types = tuple(types)
        self._by = by
        self._wanted = wanted
        self._groups: Counter[str] = Counter()
        self._count = 0

    def call(self) -> Call[CountReply]:
        return count_events(self._types, self._by, self._wanted)

    def take(self, reply: CountReply) -> Count | None:
        """The whole count, or None while there is more to ask for."""
        self._count += reply.count
        for group in reply.groups:
            self._groups[group.key] += group.count
        if not reply.complete:
            self._wanted = {**self._wanted, "after": reply.counted_to}
            return None
        ranked = sorted(self._groups.items(), key=lambda group: (-group[1], group[0]))
        return Count(self._count, dict(ranked))
