"""What a request says beside its body: who asks, and which version it has seen; and how an answer tells the version."""

import re
from urllib.parse import unquote

from crucible_core.errors import FieldError, InvalidError
from crucible_core.protocol.memory import Cause
from crucible_gateway.auth import principal_of
from crucible_gateway.bodies import Http
from crucible_gateway.correlation import correlation_of, sent_correlation
from crucible_gateway.observing import traceparent_of

IF_MATCH = {"If-Match": "The ETag of the version to change; another one there is a 409"}
_ETAG = re.compile(r'(?:W/)?"?(\d{1,19})"?', re.ASCII)


def cause_of(request: Http, key: str | None = None, *, alone: bool = False) -> Cause:
    """`alone`: what it causes is one event, which shares the correlation id of the answer."""
    principal = principal_of(request)
    return Cause(
        source=principal.source,
        actor=principal.actor,
        correlation_id=correlation_of(request.scope) if alone else sent_correlation(request.headers),
        traceparent=traceparent_of(request.scope),
        key=key,
    )


def rest_of_path(request: Http, after: str) -> str:
    """What stands behind a segment of the path, as it was sent: there may be slashes in it, escaped or not, of which
    Litestar's own parameter keeps only some."""
    raw: bytes = request.scope["raw_path"]
    return unquote(raw.partition(f"/{after}/".encode())[2].decode("latin-1").removesuffix("/"))


def etag(version: int) -> dict[str, str]:
    return {"ETag": f'"{version}"'}


def expected(request: Http) -> int | None:
    """The version in If-Match; `*` and none mean any. Raises InvalidError."""
    sent = request.headers.get("if-match", "*").strip()
    if sent == "*":
        return None
    found = _ETAG.fullmatch(sent)
    if found is None or int(found[1]) >= 2**63:
        message = 'must be an ETag that was answered, such as "42"'
        raise InvalidError(f"If-Match: {message}", errors=[FieldError("If-Match", message)])
    return int(found[1])
