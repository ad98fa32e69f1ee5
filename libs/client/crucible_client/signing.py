"""True if a webhook request is really ours: Standard Webhooks (standardwebhooks.com) and X-Crucible-Signature."""

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping

import msgspec

from crucible_client.errors import SignatureError, SignaturePart
from crucible_core.envelope import Event
from crucible_core.errors import MalformedError
from crucible_core.limits import SIGNATURE_TOLERANCE_S

SECRET_PREFIX = "whsec_"


def verify_webhook(
    secret: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    tolerance_s: float = SIGNATURE_TOLERANCE_S,
    now: float | None = None,
) -> Event:
    """The event of a delivery whose signatures hold.

    `body` is the request's body as it came, byte for byte; `now` is Unix time in seconds. Raises SignatureError, whose
    `part` names what failed, and MalformedError for a signed body that holds no event.
    """
    check_signature(secret, headers, body, tolerance_s=tolerance_s, now=now)
    try:
        return msgspec.json.decode(body, type=_Delivery).event
    except msgspec.DecodeError as error:
        raise MalformedError("the signature holds, but the body is not an event") from error


def check_signature(
    secret: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    tolerance_s: float = SIGNATURE_TOLERANCE_S,
    now: float | None = None,
) -> None:
    """Nothing where all signatures hold, else SignatureError. X-Crucible-Signature is checked where it was sent."""
    found = {name.lower(): value for name, value in headers.items()}
    key = key_of(secret)
    message_id = _header(found, "webhook-id")
    timestamp = _header(found, "webhook-timestamp")
    _check_time(timestamp, tolerance_s, time.time() if now is None else now)
    signed = f"{message_id}.{timestamp}.".encode() + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())
    _check_any(_header(found, "webhook-signature").split(), "v1,", expected, "webhook-signature")
    if "x-crucible-signature" in found:
        digest = hmac.new(key, body, hashlib.sha256).hexdigest().encode()
        _check_any(found["x-crucible-signature"].split(), "sha256=", digest, "x-crucible-signature")


def key_of(secret: str) -> bytes:
    """The HMAC key: the base64-decoded bytes after `whsec_`; a secret without that prefix is its UTF-8 bytes."""
    if not secret:
        raise SignatureError("secret", "is empty")
    if not secret.startswith(SECRET_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error as error:
        raise SignatureError("secret", f"is not base64 after {SECRET_PREFIX}") from error


class _Delivery(msgspec.Struct):
    event: Event


def _header(found: Mapping[str, str], name: SignaturePart) -> str:
    value = found.get(name, "").strip()
    if not value:
        raise SignatureError(name, "the header is missing")
    return value


def _check_time(timestamp: str, tolerance_s: float, now: float) -> None:
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        raise SignatureError("webhook-timestamp", "is not Unix time in seconds")
    age = now - int(timestamp)
    if abs(age) > tolerance_s:
        side = "old" if age > 0 else "in the future"
        raise SignatureError("webhook-timestamp", f"is {abs(age):.0f} s {side}; {tolerance_s:.0f} s are tolerated")


def _check_any(signatures: list[str], scheme: str, expected: bytes, part: SignaturePart) -> None:
    ours = [text.removeprefix(scheme).encode() for text in signatures if text.startswith(scheme)]
    if not ours:
        raise SignatureError(part, f"has no {scheme}… signature")
    if not any(hmac.compare_digest(signature, expected) for signature in ours):
        raise SignatureError(part, "does not match: another secret, or the body was changed on its way")
