"""Requests about events: append, list, get, trace, the types and the stream."""

import os
import time
from collections.abc import Sequence
from typing import Literal

import msgspec

from crucible_client.answers import read_as
from crucible_client.request import (
    Call,
    Json,
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
from crucible_client.results import Batch, Page
from crucible_core.envelope import Event
from crucible_core.ids import make_id
from crucible_core.protocol.events import Appended, EventType, TraceReply, TypesReply


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


def append_batch(events: Sequence[Json], *, atomic: bool = False) -> Call[Batch]:
    """Appends many events, each in the short or the full form; with `atomic` all or none (at most 1,000).

    Each gets an id when it has none, so that a retry never appends twice. An event that is refused does not raise: its
    entry in `results` has the error.
    """
    params = (("atomic", "true"),) if atomic else ()
    return post("/api/v1/events", [_identified(event) for event in events], reads(Batch), params=params)


def list_events(
    *types: str,
    actor: str | None = None,
    correlation_id: str | None = None,
    entity: str | None = None,
    world_id: str | None = None,
    room_id: str | None = None,
    from_time: str | None = None,
    to_time: str | None = None,
    after: int | None = None,
    order: Literal["asc", "desc"] | None = None,
    filter: Json | None = None,
    min_sequence: int | None = None,
    page_size: int | None = None,
    cursor: str | None = None,
) -> Call[Page[Event]]:
    """Events by type (names, aliases, wildcards), place, cause, time (RFC 3339) and filter.

    `after` is an exclusive sequence; `min_sequence` waits until that much is indexed; `page_size` is at most 1000.
    """
    params = params_of(
        actor=actor,
        correlation_id=correlation_id,
        entity=entity,
        world_id=world_id,
        room_id=room_id,
        from_time=from_time,
        to_time=to_time,
        after=after,
        order=order,
        filter=json_text(filter),
        min_sequence=min_sequence,
        limit=page_size,
        cursor=cursor,
    )
    return get("/api/v1/events", _event_page, params=types_of(types) + params)


def get_event(id: str) -> Call[Event]:
    """One event by its id. Raises NotFoundError."""
    return get(f"/api/v1/events/{segment(id)}", reads(Event))


def trace(correlation_id: str, *, min_sequence: int | None = None) -> Call[TraceReply]:
    """Everything with that correlation id, as trees of causes and effects."""
    path = f"/api/v1/events/trace/{segment(correlation_id)}"
    return get(path, reads(TraceReply), params=params_of(min_sequence=min_sequence))


def event_types() -> Call[list[EventType]]:
    """The catalogue, with the JSON Schema of each payload."""
    return get("/api/v1/event-types", lambda raw: read_as(raw, TypesReply).types)


def stream_events(types: Sequence[str], filter: Json | None, start: str | int, last: int | None) -> Call[bytes]:
    """The live stream as server-sent events; `last` is the sequence to resume after."""
    params = (*types_of(types), *params_of(filter=json_text(filter)), ("from", str(start if last is None else last)))
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


def _identified(event: Json) -> Json:
    if event.get("id") or (event.get("metadata") or {}).get("id"):
        return event
    made = make_id("evt", time.time_ns() // 1_000_000, os.urandom(10))
    if "data" in event:
        return {**event, "metadata": {**(event.get("metadata") or {}), "id": made}}
    return {**event, "id": made}
