"""Requests about webhooks and their deliveries."""

from collections.abc import Sequence

from crucible_client.answers import read_as
from crucible_client.request import (
    Call,
    Json,
    delete,
    get,
    params_of,
    post,
    present,
    reads,
    segment,
)
from crucible_client.results import Page
from crucible_core.protocol.shared import Check
from crucible_core.protocol.webhooks import AttemptList, AttemptRecord, WebhookList, WebhookView


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


def _attempt_page(raw: bytes) -> Page[AttemptRecord]:
    found = read_as(raw, AttemptList)
    return Page(found.attempts, found.next_cursor)


def _webhook(id: str) -> str:
    return f"/api/v1/webhooks/{segment(id)}"
