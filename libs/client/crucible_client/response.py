"""From an HTTP answer to a result or a typed error."""

import time
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from crucible_core.errors import CrucibleError, FieldError, LimitedError, Problem, UnavailableError, from_problem
from crucible_core.times import parse_retry_after

T = TypeVar("T")

_STANDARD = frozenset({"type", "title", "status", "detail", "errors", "instance"})
_GATEWAY_ERRORS = frozenset({502, 503, 504})
_TOO_MANY = 429


def read_as(raw: bytes, kind: type[T]) -> T:
    """The JSON in `raw` as `kind`. Raises CrucibleError where the other side is not speaking our contract."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as error:
        raise CrucibleError("the answer is not what this version of the client expects") from error


def raise_for(status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Nothing for a 2xx; else raises the error that the problem document names by the last segment of its `type`."""
    if 200 <= status < 300:
        return
    document = _document(body)
    if document is None or "type" not in document:
        raise _foreign(status, headers)
    wait = _wait(headers)
    raise error_from(document if wait is None else {"retry_after": wait, **document})


def error_from(document: Mapping[str, Any]) -> CrucibleError:
    """The exception for a problem document (RFC 9457); members of its own (`hook`, `reason` …) go to `extra`."""
    code = str(document.get("type", "")).rstrip("/").rsplit("/", 1)[-1]
    detail = str(document.get("detail") or document.get("title") or "refused without a reason")
    extra = {key: value for key, value in document.items() if key not in _STANDARD and key.isidentifier()}
    extra.pop("self", None)
    return from_problem(Problem(code, detail, _field_errors(document.get("errors")), extra))


def _foreign(status: int, headers: Mapping[str, str]) -> CrucibleError:
    detail = f"HTTP {status} without a problem document: is this the address of a Crucible gateway?"
    if status in _GATEWAY_ERRORS:
        return UnavailableError(detail, retry_after=_wait(headers))
    if status == _TOO_MANY:  # of a proxy before the gateway
        return LimitedError(f"HTTP {status}: too many requests", retry_after=_wait(headers))
    return CrucibleError(detail)


def _document(body: bytes) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        return None


def _field_errors(found: Any) -> tuple[FieldError, ...]:
    try:
        return msgspec.convert(found or (), tuple[FieldError, ...])
    except msgspec.ValidationError:
        return ()


def _wait(headers: Mapping[str, str]) -> float | None:
    return parse_retry_after(headers.get("retry-after"), time.time())
