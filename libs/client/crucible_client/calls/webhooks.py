"""Requests about webhooks and their deliveries."""

from collections.abc import Sequence
from typing import Literal

from crucible_client.request import Call, Json, delete, get, params_of, patch, post, present, reads, segment
from crucible_client.response import read_as
from crucible_client.results import Page
from crucible_core.protocol.parts import Check, Checks, HandlerCheck
from crucible_core.protocol.webhooks import AttemptList, AttemptRecord, Resent, WebhookList, WebhookView


def create_webhook(
    name: str,
    url: str,
    event_filters: Sequence[Json | str],
    *,
    auth: Json | None = None,
    options: Json | None = None,
    paused: bool | None = None,
) -> Call[WebhookView]:
    """Registers an endpoint. An entry of `event_filters` is a type or `{"event_type": …, "filter": {…}}`.

    The answer holds the `secret` that signs the deliveries, this once. Raises InvalidError, and ConflictError where
    another webhook has that name.
    """
    filters = [{"event_type": entry} if isinstance(entry, str) else entry for entry in event_filters]
    body = present(name=name, url=url, event_filters=filters, auth=auth, options=options, paused=paused)
    return post("/api/v1/webhooks", body, reads(WebhookView), repeatable=False)


def list_webhooks(*, page_size: int | None = None, cursor: str | None = None) -> Call[Page[WebhookView]]:
    """The webhooks with their states and counters, in the order of their ids."""
    return get("/api/v1/webhooks", _webhook_page, params=params_of(limit=page_size, cursor=cursor))


def get_webhook(id: str) -> Call[WebhookView]:
    """One webhook, by its id or name; `waiting` counts the deliveries that wait for it. Raises NotFoundError."""
    return get(_webhook(id), reads(WebhookView))


def update_webhook(id: str, changes: Json) -> Call[WebhookView]:
    """Changes a webhook by a merge patch of what it was made of: `{"url": …, "options": {"timeout_ms": …}, "paused":
    true}`. Raises NotFoundError, InvalidError, and ConflictError where another webhook has that name."""
    return patch(_webhook(id), changes, reads(WebhookView))


def rotate_webhook_secret(id: str, *, grace_s: float | None = None, secret: str | None = None) -> Call[WebhookView]:
    """Signs with a new secret, which the answer holds, this once. The one before signs beside it for `grace_s` seconds
    (a day)."""
    body = present(grace_s=grace_s, secret=secret)
    return post(f"{_webhook(id)}/rotate-secret", body, reads(WebhookView), repeatable=False)


def enable_webhook(id: str, *, missed: Literal["deliver", "skip"] = "deliver") -> Call[WebhookView]:
    """Delivers again; what has waited meanwhile is delivered or skipped."""
    return post(f"{_webhook(id)}/enable", {"missed": missed}, reads(WebhookView))


def disable_webhook(id: str) -> Call[WebhookView]:
    """Delivers nothing for now; what the webhook wants waits for it."""
    return post(f"{_webhook(id)}/disable", None, reads(WebhookView))


def delete_webhook(id: str) -> Call[None]:
    """Removes a webhook, and what waits for it. Raises NotFoundError."""
    return delete(_webhook(id))


def webhook_attempts(id: str, *, page_size: int | None = None, cursor: str | None = None) -> Call[Page[AttemptRecord]]:
    """The attempts at a webhook's deliveries, the latest first."""
    return get(f"{_webhook(id)}/attempts", _attempt_page, params=params_of(limit=page_size, cursor=cursor))


def check_webhook(
    id: str, *, dry_run: bool = False, type: str | None = None, payload: Json | None = None
) -> Call[Check]:
    """Sends one synthetic event (of `type`, with `payload`, if given); a dry run only connects to the endpoint."""
    body = present(dry_run=dry_run, type=type, payload=payload)
    return post(f"{_webhook(id)}/test", body, reads(Check), repeatable=dry_run)


def check_webhooks(*, page_size: int | None = None, cursor: str | None = None) -> Call[Page[HandlerCheck]]:
    """Each webhook with a synthetic event, as a dry run of `test` does."""
    return post("/api/v1/webhooks/test", None, _check_page, params=params_of(limit=page_size, cursor=cursor))


def resend_event(id: str, webhook: str) -> Call[Resent]:
    """Sends one event to one webhook (its id or name) once more, whatever its filters say. Raises NotFoundError, and
    InvalidError where the webhook is not active."""
    return post(f"/api/v1/events/{segment(id)}/resend", {"webhook": webhook}, reads(Resent), repeatable=False)


def _check_page(raw: bytes) -> Page[HandlerCheck]:
    found = read_as(raw, Checks)
    return Page(found.checks, found.next_cursor)


def _webhook_page(raw: bytes) -> Page[WebhookView]:
    found = read_as(raw, WebhookList)
    return Page(found.webhooks, found.next_cursor)


def _attempt_page(raw: bytes) -> Page[AttemptRecord]:
    found = read_as(raw, AttemptList)
    return Page(found.attempts, found.next_cursor)


def _webhook(id: str) -> str:
    return f"/api/v1/webhooks/{segment(id)}"
