"""A delivery's request, byte for byte: body, signatures (standardwebhooks.com, and our own header) and credentials."""

import base64
import binascii
import hashlib
import hmac
import secrets

from crucible_core.errors import FieldError, InvalidError
from crucible_core.protocol.webhooks import Auth

PREFIX = "whsec_"
USER_AGENT = "Crucible-Webhooks/1"


def new_secret() -> str:
    """A fresh signing secret: 32 random bytes after the prefix."""
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def signing_key(secret: str) -> bytes:
    """The HMAC key: the base64-decoded bytes after `whsec_`, else the secret's UTF-8 bytes. Raises InvalidError."""
    if not secret.startswith(PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret[len(PREFIX) :], validate=True)
    except (binascii.Error, ValueError) as error:
        reason = "is not base64 after whsec_"
        raise InvalidError(f"auth.secret {reason}", errors=[FieldError("auth.secret", reason)]) from error


def body_of(event: bytes, replay: bool = False) -> bytes:
    """`{"event": …}` around the stored event, whose bytes are untouched; beside it `"replay": true` in a replay."""
    return b'{"event":%b,"replay":true}' % event if replay else b'{"event":%b}' % event


def sign(key: bytes, body: bytes, event_id: str, at_s: int) -> dict[str, str]:
    """The signature headers of one attempt."""
    own = hmac.new(key, body, hashlib.sha256).hexdigest()
    standard = hmac.new(key, b"%b.%d.%b" % (event_id.encode(), at_s, body), hashlib.sha256).digest()
    return {
        "X-Crucible-Signature": f"sha256={own}",
        "webhook-id": event_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": f"v1,{base64.b64encode(standard).decode()}",
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
