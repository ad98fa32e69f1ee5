"""Requests to `webhooks` about its registry and attempts, their replies, and its records in KV and in ATTEMPTS."""

from typing import Any, Literal

import msgspec

from crucible_core.limits import HISTORY_PAGE, SECRET_GRACE_DEFAULT_S, WEBHOOK_CONCURRENCY, WEBHOOK_RETRY_DELAYS_S
from crucible_core.position import Encoded
from crucible_core.protocol.events import TracedDelivery
from crucible_core.protocol.parts import Counters, FormerTypes, Message, Owned, TypeFilter
from crucible_core.protocol.replays import ReplayPolicy


class Auth(Message):
    """`hmac` uses `secret`, `bearer` needs `token`, `basic` needs `username` and `password`. All are signed."""

    type: Literal["hmac", "bearer", "basic"] = "hmac"
    secret: str | None = None
    algorithm: Literal["sha256"] = "sha256"
    token: str | None = None
    username: str | None = None
    password: str | None = None


class WebhookOptions(Message, omit_defaults=False):
    """`timeout_ms` bounds the whole exchange; `retry_delays_s` are the waits between attempts, in seconds; `replay`
    says what becomes of replayed events."""

    timeout_ms: int = 15000
    retry_delays_s: list[float] = msgspec.field(default_factory=lambda: [*WEBHOOK_RETRY_DELAYS_S])
    concurrency: int = WEBHOOK_CONCURRENCY
    replay: ReplayPolicy = "run"


class OldSecret(Message):
    """A secret from before a rotation, which signs beside the present one until then (RFC 3339)."""

    secret: str
    until: str


class WebhookRecord(Owned, kw_only=True):
    """The `webhooks` bucket holds this under a webhook's id, secrets included. It is for events after the position
    `since`. `former`: see `FormerTypes`."""

    id: str
    name: str
    url: str
    event_filters: list[TypeFilter]
    auth: Auth
    options: WebhookOptions
    paused: bool = False
    old_secrets: list[OldSecret] = []
    enabled: bool = True
    disabled_reason: str | None = None
    since: Encoded | None = None
    former: list[FormerTypes] = []
    created_at: str = ""
    updated_at: str = ""


class CreateWebhook(Message):
    """With a `world_id`, only events of that world are delivered."""

    name: str
    url: str
    event_filters: list[TypeFilter]
    auth: Auth | None = None
    options: WebhookOptions | None = None
    paused: bool = False
    world_id: str | None = None


class UpdateWebhook(Message):
    """`webhooks.update`: a merge patch (RFC 7396) of what `CreateWebhook` has."""

    id: str
    patch: dict[str, Any]


class EnableWebhook(Message):
    """`webhooks.enable`, which also disables. `missed` says what becomes of the deliveries that have waited."""

    id: str
    enabled: bool
    missed: Literal["deliver", "skip"] = "deliver"


class RotateSecret(Message):
    """`webhooks.rotate_secret`. The secret before goes on signing for `grace_s` seconds; a new one is made if none is
    given."""

    id: str
    grace_s: float = SECRET_GRACE_DEFAULT_S
    secret: str | None = None


class ResendEvent(Message):
    """`webhooks.resend`: one event once more to one webhook, by its id or name, whatever its filters."""

    event_id: str
    webhook: str


class Resent(Message):
    delivery_id: str
    webhook_id: str
    event_id: str


class WebhookView(Message, omit_defaults=False):
    """A webhook as users see it; `secret` only in the answer that made it. Credentials never come back. `waiting`
    counts the deliveries that wait, in the answer for one webhook; the secret before the last rotation signs until
    `old_secret_until`; `warnings` say why one that is active may wait for ever."""

    id: str
    name: str
    url: str
    event_filters: list[TypeFilter]
    auth_type: str
    options: WebhookOptions
    state: str
    counters: Counters
    created_at: str
    updated_at: str
    owner: str = ""
    world_id: str | None = None
    paused: bool = False
    old_secret_until: str | None = None
    warnings: list[str] = []
    waiting: int | msgspec.UnsetType = msgspec.UNSET
    secret: str | msgspec.UnsetType = msgspec.UNSET


class WebhookList(Message, omit_defaults=False):
    webhooks: list[WebhookView]
    next_cursor: str | None = None


class AttemptsRequest(Message):
    id: str
    limit: int = HISTORY_PAGE
    cursor: str | None = None


class TracedRequest(Message):
    """`webhooks.traced`: the deliveries of all events with one correlation id."""

    correlation_id: str


class TracedDeliveries(Message):
    deliveries: list[TracedDelivery]


class AttemptRecord(Message, omit_defaults=False):
    """One attempt at one delivery, as kept in ATTEMPTS. `outcome` is delivered, retrying, failed, exhausted or dry (a
    replayed event that was not sent). `replay` is the id of the replay that it belongs to. `webhook` is the name that
    the webhook had; `world_id` and `room_id` are the event's."""

    delivery_id: str
    webhook_id: str
    event_id: str
    event_type: str
    event_sequence: int
    correlation_id: str
    attempt: int
    outcome: str
    started_at: str
    duration_ms: float
    status: int | None = None
    error: str | None = None
    response: str | None = None
    next_attempt_at: str | None = None
    replay: str | None = None
    webhook: str | None = None
    world_id: str | None = None
    room_id: str | None = None


class AttemptList(Message, omit_defaults=False):
    attempts: list[AttemptRecord]
    next_cursor: str | None = None
