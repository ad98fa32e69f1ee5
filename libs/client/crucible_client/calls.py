"""Every request to the gateway: method, path, parameters, body and how its answer reads. Both clients send these."""

import os
import time
from collections.abc import Sequence
from typing import Literal

import msgspec

from crucible_core.envelope import Event
from crucible_core.ids import make_id
from crucible_core.protocol.events import Appended, EventType, TraceReply, TypesReply
from crucible_core.protocol.hooks import HookList, HookView, RunList, RunRecord
from crucible_core.protocol.memory import MemoryList, MemoryView, ScoredMemory
from crucible_core.protocol.shared import Check
from crucible_core.protocol.webhooks import AttemptList, AttemptRecord, WebhookList, WebhookView

from .answers import read_as
from .request import (
    JSON,
    Call,
    Json,
    delete,
    get,
    if_match,
    json_text,
    keyed,
    params_of,
    post,
    present,
    reads,
    segment,
    types_of,
)
from .results import Batch, Page, Written

# ---- events ----------------------------------------------------------------------------------------------------------


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


# ---- hooks -----------------------------------------------------------------------------------------------------------


def list_hooks() -> Call[list[HookView]]:
    """All hooks with their states and counters."""
    return get("/api/v1/hooks", lambda raw: read_as(raw, HookList).hooks)


def add_hook(definition: Json | None = None, *, markdown: str | None = None) -> Call[HookView]:
    """Registers a hook, or a new version of it: the hook object, or the text of a hook file. Raises InvalidError."""
    if markdown is None:
        return post("/api/v1/hooks", definition or {}, reads(HookView))
    headers = {"content-type": "text/markdown; charset=utf-8"}
    return Call("POST", "/api/v1/hooks", reads(HookView), headers=headers, content=markdown.encode())


def get_hook(name: str) -> Call[HookView]:
    """One hook. Raises NotFoundError."""
    return get(_hook(name), reads(HookView))


def delete_hook(name: str) -> Call[None]:
    """Removes a hook."""
    return delete(_hook(name))


def enable_hook(name: str) -> Call[HookView]:
    """Lets a disabled hook fire again."""
    return post(f"{_hook(name)}/enable", None, reads(HookView))


def disable_hook(name: str) -> Call[HookView]:
    """Keeps a hook, but it does not fire."""
    return post(f"{_hook(name)}/disable", None, reads(HookView))


def hook_runs(name: str, *, page_size: int | None = None, cursor: str | None = None) -> Call[Page[RunRecord]]:
    """The attempts at a hook's runs, the latest first."""
    return get(f"{_hook(name)}/runs", _run_page, params=params_of(limit=page_size, cursor=cursor))


def check_hook(name: str, *, dry_run: bool = True, payload: Json | None = None) -> Call[Check]:
    """Fires one synthetic event (with `payload`, if given) through a hook; a dry run changes nothing."""
    body = present(dry_run=dry_run, payload=payload)
    return post(f"{_hook(name)}/test", body, reads(Check), repeatable=dry_run)


# ---- webhooks --------------------------------------------------------------------------------------------------------


def create_webhook(
    name: str,
    url: str,
    event_filters: Sequence[Json | str],
    *,
    auth: Json | None = None,
    options: Json | None = None,
) -> Call[WebhookView]:
    """Registers an endpoint. An entry of `event_filters` is a type or `{"event_type": …, "filter": {…}}`.

    The answer holds the `secret` that signs the deliveries, this once.
    """
    filters = [{"event_type": entry} if isinstance(entry, str) else entry for entry in event_filters]
    body = present(name=name, url=url, event_filters=filters, auth=auth, options=options)
    return post("/api/v1/webhooks", body, reads(WebhookView), repeatable=False)


def list_webhooks() -> Call[list[WebhookView]]:
    """All webhooks with their states and counters."""
    return get("/api/v1/webhooks", lambda raw: read_as(raw, WebhookList).webhooks)


def get_webhook(id: str) -> Call[WebhookView]:
    """One webhook. Raises NotFoundError."""
    return get(_webhook(id), reads(WebhookView))


def delete_webhook(id: str) -> Call[None]:
    """Removes a webhook."""
    return delete(_webhook(id))


def webhook_attempts(id: str, *, page_size: int | None = None, cursor: str | None = None) -> Call[Page[AttemptRecord]]:
    """The attempts at a webhook's deliveries, the latest first."""
    return get(f"{_webhook(id)}/attempts", _attempt_page, params=params_of(limit=page_size, cursor=cursor))


def check_webhook(id: str, *, dry_run: bool = True) -> Call[Check]:
    """Fires one synthetic event through a webhook; a dry run only connects to the endpoint."""
    return post(f"{_webhook(id)}/test", {"dry_run": dry_run}, reads(Check), repeatable=dry_run)


# ---- memory ----------------------------------------------------------------------------------------------------------


def create_memory(
    content: str,
    *,
    tags: Sequence[str] | None = None,
    entities: Sequence[str] | None = None,
    links: Sequence[Json] | None = None,
    metadata: Json | None = None,
    idempotency_key: str | None = None,
) -> Call[Written]:
    """Keeps a memory; a link is `{"target": …, "type": …, "weight": …}`."""
    body = present(content=content, tags=tags, entities=entities, links=links, metadata=metadata)
    return post("/api/v1/memory", body, reads(Written), headers=keyed(idempotency_key))


def get_memory(id: str) -> Call[MemoryView]:
    """One memory; its `sequence` guards an update. Raises NotFoundError."""
    return get(_memory(id), reads(MemoryView))


def update_memory(
    id: str,
    *,
    content: str | None = None,
    tags: Sequence[str] | None = None,
    entities: Sequence[str] | None = None,
    links: Sequence[Json] | None = None,
    metadata: Json | None = None,
    expected_sequence: int | None = None,
) -> Call[Written]:
    """Changes the given fields. Raises ConflictError when the memory's sequence is no longer `expected_sequence`."""
    body = present(content=content, tags=tags, entities=entities, links=links, metadata=metadata)
    headers = {**JSON, **if_match(expected_sequence)}
    content_bytes = msgspec.json.encode(body)
    return Call("PATCH", _memory(id), reads(Written), headers=headers, content=content_bytes, repeatable=False)


def delete_memory(id: str, *, expected_sequence: int | None = None) -> Call[None]:
    """Removes a memory. Raises ConflictError when its sequence is no longer `expected_sequence`."""
    return delete(_memory(id), headers=if_match(expected_sequence))


def query_memory(
    text: str | None = None,
    *,
    mode: Literal["auto", "text"] | None = None,
    tags: Sequence[str] | None = None,
    filter: Json | None = None,
    limit: int | None = None,
    min_sequence: int | None = None,
) -> Call[list[ScoredMemory]]:
    """The best matches, the best first; without `text`, those with the tags and the filter."""
    body = present(text=text, mode=mode, tags=tags, filter=filter, limit=limit, min_sequence=min_sequence)
    return post("/api/v1/memory/query", body, lambda raw: read_as(raw, MemoryList).memories)


# ---- parts -------------------------------------------------------------------------------------------------------


class _EventPage(msgspec.Struct):
    events: list[Event]
    next_cursor: str | None = None


def _event_page(raw: bytes) -> Page[Event]:
    found = read_as(raw, _EventPage)
    return Page(found.events, found.next_cursor)


def _run_page(raw: bytes) -> Page[RunRecord]:
    found = read_as(raw, RunList)
    return Page(found.runs, found.next_cursor)


def _attempt_page(raw: bytes) -> Page[AttemptRecord]:
    found = read_as(raw, AttemptList)
    return Page(found.attempts, found.next_cursor)


def _identified(event: Json) -> Json:
    if event.get("id") or (event.get("metadata") or {}).get("id"):
        return event
    made = make_id("evt", time.time_ns() // 1_000_000, os.urandom(10))
    if "data" in event:
        return {**event, "metadata": {**(event.get("metadata") or {}), "id": made}}
    return {**event, "id": made}


def _hook(name: str) -> str:
    return f"/api/v1/hooks/{segment(name)}"


def _webhook(id: str) -> str:
    return f"/api/v1/webhooks/{segment(id)}"


def _memory(id: str) -> str:
    return f"/api/v1/memory/{segment(id)}"
