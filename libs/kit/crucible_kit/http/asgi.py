"""HTTP for every service: errors as RFC 9457 problem documents, and the ops app with /healthz, /readyz and /metrics."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from crucible_core.errors import CrucibleError
from crucible_core.limits import RETRY_AFTER_LEAST_S
from crucible_core.protocol.parts import Readiness, Trouble
from crucible_kit.telemetry.metrics import CONTENT_TYPE, Metrics

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[Any]]
Rendered = tuple[int, dict[str, str], bytes]
"""Status, headers and body of a response."""

PROBLEM_JSON = "application/problem+json"
PROBLEM_TYPES = "https://crucible.dev/problems/"
INTERNAL_DETAIL = "Something went wrong on the server's side; its log has the cause."

STATUS: Mapping[str, int] = MappingProxyType(
    {
        "malformed": 400,
        "unauthenticated": 401,
        "forbidden": 403,
        "not_found": 404,
        "not_acceptable": 406,
        "too_slow": 408,
        "conflict": 409,
        "too_large": 413,
        "unsupported": 415,
        "invalid": 422,
        "denied": 422,
        "limited": 429,
        "internal": 500,
        "unavailable": 503,
        "outcome_unknown": 503,
        "storage_full": 507,
    }
)
"""The HTTP status of each error's code."""

TITLES: Mapping[str, str] = MappingProxyType(
    {
        "malformed": "The request cannot be read",
        "unauthenticated": "A valid API key is needed",
        "forbidden": "The API key may not do this",
        "not_found": "Nothing has that name",
        "not_acceptable": "No such form of the answer",
        "too_slow": "The request took too long to arrive",
        "conflict": "Somebody was first",
        "too_large": "The request is too large",
        "unsupported": "The content type is not supported",
        "invalid": "The request is well-formed but refused",
        "denied": "A hook denied the event",
        "limited": "Too many requests",
        "internal": "Internal error",
        "unavailable": "Something needed is away",
        "storage_full": "The storage is full",
        "outcome_unknown": "It may have been done, or not",
    }
)
WAITING = frozenset({"limited", "unavailable", "outcome_unknown", "storage_full"})
"""The errors with a Retry-After."""
UNKNOWN = "it may have been done, or not: the same request again, with the same id or Idempotency-Key, does it once"
_SPECIAL = frozenset({"denied", "outcome_unknown"})
_CODES: Mapping[int, str] = MappingProxyType({status: code for code, status in STATUS.items() if code not in _SPECIAL})


def problem(error: CrucibleError, correlation_id: str | None = None) -> Rendered:
    """Renders the response for an error. `error.extra` becomes members of the document; its `retry_after` (seconds) the
    header.

    `internal` errors do not show their detail, which is for the log.
    """
    code = error.code if error.code in STATUS else "internal"
    headers = {}
    if code in WAITING or "retry_after" in error.extra:
        headers["Retry-After"] = _seconds(error.extra.get("retry_after"))
    if code == "unauthenticated":
        headers["WWW-Authenticate"] = "Bearer"
    detail = INTERNAL_DETAIL if code == "internal" else error.detail
    if code == "outcome_unknown":
        detail = f"{detail.rstrip('.')}; {UNKNOWN}"
    members = {name: value for name, value in error.extra.items() if name != "retry_after"}
    return _render(code, TITLES[code], STATUS[code], detail, correlation_id, headers, list(error.errors), members)


def status_problem(
    status: int, detail: str = "", correlation_id: str | None = None, headers: Mapping[str, str] | None = None
) -> Rendered:
    """Renders the response for a status that a framework chose, such as 405, in the same form."""
    phrase = _phrase(status)
    code = _CODES.get(status) or phrase.lower().replace(" ", "_").replace("-", "_")
    title = TITLES.get(code, phrase)
    return _render(code, title, status, detail or phrase, correlation_id, dict(headers or {}), [], {})


def respond(rendered: Rendered) -> Response:
    status, headers, body = rendered
    return Response(body, status, headers)


def ops_app(service: str, lifespan: Lifespan, metrics: Metrics) -> Starlette:
    """A service's app, to which it may add routes; its lifespan opens what it needs and runs its consumers.

    The lifespan sets `app.state.ready`, which returns the parts that are not ready, and `app.state.troubles`, which
    returns the troubles that do not pass by themselves (`service.report_readiness`). The service is ready without both.
    """

    async def metrics_page(request: Request) -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    app = Starlette(
        routes=[Route("/healthz", _healthz), Route("/readyz", _readyz), Route("/metrics", metrics_page)],
        exception_handlers={
            CrucibleError: _crucible_problem,
            HTTPException: _framework_problem,
            Exception: _internal_problem,
        },
        lifespan=lifespan,
    )
    app.state.service = service
    app.state.ready = lambda: ("startup",)
    app.state.troubles = lambda: ()
    return app


def unready(parts: Mapping[str, bool]) -> list[str]:
    """The names of the parts of a service that are not ready."""
    return [name for name, ready in parts.items() if not ready]


def readiness(waiting: Sequence[str], troubles: Sequence[Trouble], exclude: Sequence[str]) -> tuple[int, bytes]:
    """Status and body of /readyz: the parts that are not ready, and the troubles except the codes to `exclude`."""
    found = [trouble for trouble in troubles if trouble.code not in exclude]
    if not waiting and not found:
        return HTTPStatus.OK, msgspec.json.encode(Readiness(ready=True))
    report = Readiness(ready=False, waiting_for=list(waiting), errors=found)
    return STATUS["unavailable"], msgspec.json.encode(report)


async def _healthz(request: Request) -> Response:
    return _json({"status": "ok", "service": request.app.state.service})


async def _readyz(request: Request) -> Response:
    state = request.app.state
    status, body = readiness(state.ready(), state.troubles(), request.query_params.getlist("exclude"))
    return Response(body, status, media_type="application/json")


async def _crucible_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, CrucibleError)
    return respond(problem(error))


async def _framework_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = f"Nothing is at {request.url.path}" if error.status_code == STATUS["not_found"] else error.detail
    return respond(status_problem(error.status_code, detail, headers=error.headers))


async def _internal_problem(request: Request, error: Exception) -> Response:
    # Starlette raises the error again after this answer, and the server logs it: see `server`.
    return respond(problem(CrucibleError(str(error))))


def _render(
    code: str,
    title: str,
    status: int,
    detail: str,
    correlation_id: str | None,
    headers: dict[str, str],
    errors: list[Any],
    members: dict[str, Any],
) -> Rendered:
    document = {"type": PROBLEM_TYPES + code, "title": title, "status": status, "detail": detail, "errors": errors}
    if correlation_id:
        document["correlation_id"] = correlation_id
    body = msgspec.json.encode(document | {k: v for k, v in members.items() if k not in document}, enc_hook=str)
    return status, headers | {"Content-Type": PROBLEM_JSON}, body


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _seconds(value: Any) -> str:
    """Whole seconds for Retry-After, rounded up so that no client comes back too early."""
    valid = isinstance(value, int | float) and math.isfinite(value)
    return str(max(RETRY_AFTER_LEAST_S, math.ceil(value) if valid else 0))


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in set(HTTPStatus) else f"Status {status}"
