"""Webhook records: made from requests, checked, and shown without their secrets. Pure."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from crucible_core.access import OPERATOR_ID
from crucible_core.errors import FieldError, InvalidError
from crucible_core.filters.matcher import CompiledFilters, compile_filters
from crucible_core.limits import (
    CONCURRENCY,
    HANDLER_FILTERS,
    SECRET_GRACE_S,
    SECRET_MOST,
    SECRETS_KEPT,
    WEBHOOK_ATTEMPTS,
    WEBHOOK_DELAY_S,
    WEBHOOK_NAME_CHARS,
    WEBHOOK_TIMEOUT_LEAST_MS,
    WEBHOOK_TIMEOUT_MS,
)
from crucible_core.merge import merge_patch
from crucible_core.position import Position
from crucible_core.protocol.parts import Counters
from crucible_core.protocol.webhooks import Auth, CreateWebhook, OldSecret, WebhookOptions, WebhookRecord, WebhookView
from crucible_core.times import format_time, parse_time
from crucible_core.types.catalogue import Catalogue
from crucible_kit.handlers.registry import named_types, remember_types
from crucible_kit.http.egress import Guard, parse_target
from crucible_webhooks.signing import new_secret, secret_error, signing_key

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CREDENTIALS = {"bearer": ("token",), "basic": ("username", "password"), "hmac": ()}
_ALL_CREDENTIALS = ("token", "username", "password")


def make_record(
    request: CreateWebhook, webhook_id: str, now: str, default_timeout_ms: int, guard: Guard, catalogue: Catalogue
) -> WebhookRecord:
    """The record of a new webhook, with a new secret unless it brings one. Raises InvalidError with every mistake."""
    auth = request.auth or Auth()
    fields = _check_fields(request, auth, default_timeout_ms, guard, catalogue)
    auth.secret = auth.secret or new_secret()
    return WebhookRecord(id=webhook_id, created_at=now, updated_at=now, **fields)


def patch_record(
    record: WebhookRecord, patch: Mapping[str, Any], default_timeout_ms: int, guard: Guard, catalogue: Catalogue
) -> WebhookRecord:
    """The record with a merge patch applied, checked as a new one is. Raises InvalidError with every mistake."""
    before = {name: getattr(record, name) for name in CreateWebhook.__struct_fields__}
    merged = merge_patch(msgspec.to_builtins(before), patch)
    try:
        request = msgspec.convert(merged, CreateWebhook)
    except msgspec.ValidationError as error:
        raise InvalidError(f"the patch: {error}") from None
    auth = request.auth or Auth()
    if not auth.secret:
        raise InvalidError.field("auth.secret", "every webhook is signed: a secret can be rotated, not removed")
    for name in _ALL_CREDENTIALS:  # of the type before
        if name not in _CREDENTIALS[auth.type]:
            setattr(auth, name, None)
    return msgspec.structs.replace(record, **_check_fields(request, auth, default_timeout_ms, guard, catalogue))


def with_former_types(
    record: WebhookRecord, before: WebhookRecord, catalogue: Catalogue, end: Position
) -> WebhookRecord:
    """The record after a change at a position, with the types that its filters named before."""
    old, new = (named_types(one.event_filters, catalogue) for one in (before, record))
    return msgspec.structs.replace(record, former=remember_types(before.former, old, new, end))


def normalize_name(name: str) -> str:
    """The name in the form (NFC) that is stored and compared: two that look alike are one."""
    return unicodedata.normalize("NFC", name[: WEBHOOK_NAME_CHARS + 1])


def replace_secret(record: WebhookRecord, secret: str | None, grace_s: float, now_us: int) -> WebhookRecord:
    """The record with another secret, beside which the present one signs for a while. Raises InvalidError."""
    if not 0 <= grace_s <= SECRET_GRACE_S:
        raise InvalidError.field("grace_s", f"must be 0 to {SECRET_GRACE_S} seconds")
    if secret is not None and (wrong := secret_error(secret)):
        raise InvalidError.field("secret", wrong)
    old = [OldSecret(record.auth.secret or "", format_time(now_us + round(grace_s * 1_000_000)))]
    valid = [one for one in (*old, *record.old_secrets) if parse_time(one.until, "until") > now_us]
    auth = msgspec.structs.replace(record.auth, secret=secret or new_secret())
    return msgspec.structs.replace(record, auth=auth, old_secrets=valid[:SECRETS_KEPT])


def signing_keys(record: WebhookRecord, now_us: int) -> list[bytes]:
    """The keys that sign at `now_us`, the present one first."""
    old = [one.secret for one in record.old_secrets if parse_time(one.until, "until") > now_us]
    return [signing_key(secret) for secret in (record.auth.secret or "", *old)]


def _check_fields(
    request: CreateWebhook, auth: Auth, default_timeout_ms: int, guard: Guard, catalogue: Catalogue
) -> dict[str, Any]:
    """The fields of a record that a user sets. Raises InvalidError with every mistake."""
    options = request.options or WebhookOptions(timeout_ms=default_timeout_ms)
    errors = [*_url_errors(request.url, guard), *_auth_errors(auth), *_option_errors(options)]
    if len(request.name) > WEBHOOK_NAME_CHARS or not any(one.isprintable() and one != " " for one in request.name):
        errors.append(FieldError("name", f"must have 1 to {WEBHOOK_NAME_CHARS} characters, and some to be seen"))
    elif _CONTROL.search(request.name) or not request.name.strip("."):
        errors.append(FieldError("name", "must have no control characters, and not only dots"))
    elif request.name.startswith("whk_"):
        errors.append(FieldError("name", "must not begin with whk_, as ids do"))
    if not 1 <= len(request.event_filters) <= HANDLER_FILTERS:
        errors.append(FieldError("event_filters", f"must have 1 to {HANDLER_FILTERS} filters", '[{"event_type": "*"}]'))
    try:
        compile_filters(request.event_filters, catalogue=catalogue)
    except InvalidError as error:
        errors += error.errors
    if errors:
        raise InvalidError(f"{errors[0].path}: {errors[0].message}", errors=errors)
    return {
        "name": normalize_name(request.name),
        "url": request.url,
        "event_filters": request.event_filters,
        "auth": auth,
        "options": options,
        "paused": request.paused,
        "world_id": request.world_id,
    }


def compile_record_filters(record: WebhookRecord, catalogue: Catalogue) -> CompiledFilters:
    return compile_filters(record.event_filters, catalogue=catalogue)


def state(record: WebhookRecord, inert: str | None = None) -> str:
    """`active`, `paused`, `disabled` (with the reason where it was not the user), or `inert: <reason>`."""
    if not record.enabled:
        return "disabled" if record.disabled_reason is None else f"disabled: {record.disabled_reason}"
    if inert:
        return f"inert: {inert}"
    return "paused" if record.paused else "active"


def view(
    record: WebhookRecord, counters: Counters, inert: str | None = None, warnings: Sequence[str] = ()
) -> WebhookView:
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
        owner=record.owner or OPERATOR_ID,
        world_id=record.world_id,
        paused=record.paused,
        old_secret_until=max((one.until for one in record.old_secrets), default=None),
        warnings=list(warnings),
    )


def url_origin(url: str) -> str:
    """The part of an endpoint's URL that events show: the rest may be a secret, as that of a chat's webhook is."""
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
    for name in _ALL_CREDENTIALS:
        value = getattr(auth, name)
        if value and (len(value) > SECRET_MOST or any(ord(c) < 32 or ord(c) == 127 for c in value)):
            errors.append(FieldError(f"auth.{name}", f"must have 1 to {SECRET_MOST} characters, no control characters"))
    if ":" in (auth.username or ""):
        errors.append(FieldError("auth.username", "must not hold a colon: it ends the name"))
    if auth.secret is not None and (wrong := secret_error(auth.secret)):
        errors.append(FieldError("auth.secret", wrong))
    return errors


def _option_errors(options: WebhookOptions) -> list[FieldError]:
    errors = []
    if not WEBHOOK_TIMEOUT_LEAST_MS <= options.timeout_ms <= WEBHOOK_TIMEOUT_MS:
        errors.append(FieldError("options.timeout_ms", f"must be {WEBHOOK_TIMEOUT_LEAST_MS} to {WEBHOOK_TIMEOUT_MS}"))
    if not 1 <= options.concurrency <= CONCURRENCY:
        errors.append(FieldError("options.concurrency", f"must be 1 to {CONCURRENCY}"))
    delays = options.retry_delays_s
    if len(delays) >= WEBHOOK_ATTEMPTS or not all(0 <= delay <= WEBHOOK_DELAY_S for delay in delays):
        message = f"must be at most {WEBHOOK_ATTEMPTS - 1} waits of 0 to {WEBHOOK_DELAY_S:.0f} s"
        errors.append(FieldError("options.retry_delays_s", message, "[2, 4, 8, 16]"))
    return errors
