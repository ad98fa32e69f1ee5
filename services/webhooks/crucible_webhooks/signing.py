"""A delivery's request, byte for byte: body, signatures (standardwebhooks.com, and our own header) and credentials."""

import base64
import binascii
import functools
import hmac
import secrets
from collections.abc import Sequence

from crucible_core.errors import InvalidError
from crucible_core.limits import SECRET_BYTES, SECRET_KEY_BYTES, SECRET_KEY_MOST, SECRET_MOST
from crucible_core.protocol.webhooks import Auth

PREFIX = "whsec_"
USER_AGENT = "Crucible-Webhooks/1"


def new_secret() -> str:
    """A fresh signing secret: 32 random bytes after the prefix."""
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


@functools.lru_cache(maxsize=1024)  # all deliveries of a webhook have one
def signing_key(secret: str) -> bytes:
    """The HMAC key: the base64-decoded bytes after `whsec_`, else the secret's UTF-8 bytes. Raises InvalidError."""
    if not secret.startswith(PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret[len(PREFIX) :], validate=True)
    except (binascii.Error, ValueError) as error:
        reason = "is not base64 after whsec_"
        raise InvalidError.field("auth.secret", reason, detail=f"auth.secret {reason}") from error


def secret_error(secret: str) -> str | None:
    """The reason for which a secret is refused, None for a good one. One that is too short can be guessed."""
    if len(secret) > SECRET_MOST:
        return f"must have at most {SECRET_MOST} characters"
    try:
        key = signing_key(secret)
    except InvalidError as error:
        return error.errors[0].message
    if not secret.startswith(PREFIX):
        return (
            None if len(key) >= SECRET_BYTES else f"must have at least {SECRET_BYTES} bytes; leave it out for a new one"
        )
    if SECRET_KEY_BYTES <= len(key) <= SECRET_KEY_MOST:
        return None
    return f"must be base64 of {SECRET_KEY_BYTES} to {SECRET_KEY_MOST} bytes after {PREFIX}, not of {len(key)}"


def encode_body(event: bytes, replay: bool = False) -> bytes:
    """`{"event": …}` around the stored event, whose bytes are untouched; beside it `"replay": true` in a replay."""
    return b'{"event":%b,"replay":true}' % event if replay else b'{"event":%b}' % event


def sign(keys: Sequence[bytes], body: bytes, event_id: str, at_s: int) -> dict[str, str]:
    """The signature headers of one attempt: one signature for each key, with a space between them."""
    signed = b"%b.%d.%b" % (event_id.encode(), at_s, body)
    standard = [base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in keys]
    return {
        "X-Crucible-Signature": " ".join(f"sha256={hmac.digest(key, body, 'sha256').hex()}" for key in keys),
        "webhook-id": event_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in standard),
    }


def authorization(auth: Auth) -> dict[str, str]:
    """The Authorization header, for webhooks that have credentials besides the signature."""
    match auth.type:
        case "bearer":
            return {"Authorization": f"Bearer {auth.token}"}
        case "basic":
            pair = f"{auth.username}:{auth.password}".encode()
            return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
    return {}
