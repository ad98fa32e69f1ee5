"""Headers and paths of requests: their cause and the version that they name; and the version of an answer."""

import re
from urllib.parse import unquote

from crucible_core.errors import ConflictError, InvalidError
from crucible_core.protocol.memory import Cause
from crucible_gateway.auth import principal_of
from crucible_gateway.body.json import Http
from crucible_gateway.correlation import correlation_of, read_correlation, read_hop
from crucible_gateway.middleware import traceparent_of

IF_MATCH = {"If-Match": "The ETag of the version to change; where another one is there, nothing changes (409)"}
IF_NONE_MATCH = {"If-None-Match": "The ETag of a version that is known; where it is still there, the answer is 304"}
_ETAG = re.compile(r'(?:W/)?"?(\d{1,18})"?', re.ASCII)
_QUOTED = re.compile(r'(?:W/)?"[^"]*"')


def cause_of(request: Http, key: str | None = None, *, alone: bool = False) -> Cause:
    """`alone`: what it causes is one event, which shares the correlation id of the answer."""
    principal = principal_of(request)
    return Cause(
        source=principal.source,
        actor=principal.id,
        correlation_id=correlation_of(request.scope) if alone else read_correlation(request.headers),
        hop=read_hop(request.headers),
        traceparent=traceparent_of(request.scope),
        key=key,
    )


def rest_of_path(request: Http, after: str) -> str:
    """The text behind a segment of the path, as it was sent: there may be slashes in it, escaped or not, of which
    Litestar's own parameter keeps only some."""
    raw: bytes = request.scope["raw_path"]
    return unquote(raw.partition(f"/{after}/".encode())[2].decode("latin-1").removesuffix("/"))


def etag(version: int) -> dict[str, str]:
    return {"ETag": f'"{version}"'}


def if_match(request: Http) -> int | None:
    """The version in If-Match, None where any will do. Raises ConflictError for an ETag of no version of ours, and
    InvalidError for what is no ETag."""
    sent = request.headers.get("if-match", "*").strip()
    if sent == "*":
        return None
    if found := _ETAG.fullmatch(sent):
        return int(found[1])
    if _QUOTED.fullmatch(sent):
        raise ConflictError(f"If-Match: {sent[:100]} is no version of this")
    message = 'must be one ETag that was answered, such as "42"'
    raise InvalidError.field("If-Match", message)


def matches_version(request: Http, version: int) -> bool:
    """True if If-None-Match names the current version."""
    sent = request.headers.get("if-none-match", "")
    return sent.strip() == "*" or f'"{version}"' in [tag.strip().removeprefix("W/") for tag in sent.split(",")]
