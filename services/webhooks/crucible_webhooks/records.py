"""Webhook records: checked and made from requests, and shown without their secrets. Pure."""

from crucible_core.catalogue import Catalogue
from crucible_core.errors import FieldError, InvalidError
from crucible_core.matcher import CompiledFilters, compile_filters
from crucible_core.protocol.shared import Counters
from crucible_core.protocol.webhooks import Auth, CreateWebhook, WebhookOptions, WebhookRecord, WebhookView
from crucible_kit.egress import Guard, parse_target

from .signing import new_secret, signing_key

MAX_FILTERS = 100
MAX_ATTEMPTS = 20
MAX_DELAY_S = 86_400.0
MAX_CONCURRENCY = 64
MAX_TIMEOUT_MS = 60_000
_CREDENTIALS = {"bearer": ("token",), "basic": ("username", "password"), "hmac": ()}


def make_record(
    wanted: CreateWebhook, webhook_id: str, now: str, default_timeout_ms: int, guard: Guard, catalogue: Catalogue
) -> WebhookRecord:
    """The record of a new webhook, with a secret made where none is given. Raises InvalidError with every mistake."""
    auth = wanted.auth or Auth()
    options = wanted.options or WebhookOptions(timeout_ms=default_timeout_ms)
    errors = [*_url_errors(wanted.url, guard), *_auth_errors(auth), *_option_errors(options)]
    if not wanted.name.strip() or len(wanted.name) > 200:
        errors.append(FieldError("name", "must have 1 to 200 characters"))
    if not 1 <= len(wanted.event_filters) <= MAX_FILTERS:
        errors.append(FieldError("event_filters", f"must have 1 to {MAX_FILTERS} filters", '[{"event_type": "*"}]'))
    try:
        compile_filters(wanted.event_filters, catalogue=catalogue)
    except InvalidError as error:
        errors += error.errors
    if errors:
        raise InvalidError(f"{errors[0].path}: {errors[0].message}", errors=errors)
    auth.secret = auth.secret or new_secret()
    return WebhookRecord(
        id=webhook_id,
        name=wanted.name,
        url=wanted.url,
        event_filters=wanted.event_filters,
        auth=auth,
        options=options,
        created_at=now,
        updated_at=now,
    )


def compiled(record: WebhookRecord, catalogue: Catalogue) -> CompiledFilters:
    return compile_filters(record.event_filters, catalogue=catalogue)


def state(record: WebhookRecord, inert: str | None = None) -> str:
    """`active`, `disabled` (with the reason where it was not the user), or `inert: <reason>`."""
    if not record.enabled:
        return "disabled" if record.disabled_reason is None else f"disabled: {record.disabled_reason}"
    return f"inert: {inert}" if inert else "active"


def view(record: WebhookRecord, counters: Counters, inert: str | None = None) -> WebhookView:
    return WebhookView(
        id=record.id,
        name=record.name,
        url=record.url,
        event_filters=record.event_filters,
        auth_type=record.auth.type,
        options=record.options,
        state=state(record, inert),
        counters=counters,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )


def told_url(url: str) -> str:
    """What the log hears of an endpoint: its origin. The rest may be a secret, as that of a chat's webhook is."""
    try:
        return parse_target(url).origin
    except InvalidError:  # of a version that read URLs otherwise
        return ""


def _url_errors(url: str, guard: Guard) -> list[FieldError]:
    try:
        guard.check(parse_target(url))
    except InvalidError as error:
        return list(error.errors)
    return []


def _auth_errors(auth: Auth) -> list[FieldError]:
    errors = [
        FieldError(f"auth.{name}", f"is required for {auth.type}")
        for name in _CREDENTIALS[auth.type]
        if not getattr(auth, name)
    ]
    for name in ("token", "username", "password"):
        value = getattr(auth, name)
        if value and any(ord(c) < 32 for c in value):
            errors.append(FieldError(f"auth.{name}", "must not hold control characters"))
    if auth.secret is not None:
        try:
            if not signing_key(auth.secret):
                errors.append(FieldError("auth.secret", "must not be empty"))
        except InvalidError as error:
            errors += error.errors
    return errors


def _option_errors(options: WebhookOptions) -> list[FieldError]:
    errors = []
    if not 100 <= options.timeout_ms <= MAX_TIMEOUT_MS:
        errors.append(FieldError("options.timeout_ms", f"must be 100 to {MAX_TIMEOUT_MS}"))
    if not 1 <= options.concurrency <= MAX_CONCURRENCY:
        errors.append(FieldError("options.concurrency", f"must be 1 to {MAX_CONCURRENCY}"))
    delays = options.retry_delays_s
    if len(delays) >= MAX_ATTEMPTS or not all(0 <= delay <= MAX_DELAY_S for delay in delays):
        message = f"must be at most {MAX_ATTEMPTS - 1} waits of 0 to {MAX_DELAY_S:.0f} s"
        errors.append(FieldError("options.retry_delays_s", message, "[2, 4, 8, 16]"))
    return errors
