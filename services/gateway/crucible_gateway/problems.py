"""Every error as a problem document (RFC 9457): ours, Litestar's own, and the unexpected ones."""

import logging
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.types import ExceptionHandlersMap

from crucible_core.errors import CrucibleError, untried
from crucible_kit.asgi import PROBLEM_JSON, Rendered, problem, status_problem

from .correlation import correlation_of

log = logging.getLogger(__name__)

_READING = frozenset({"GET", "HEAD"})
_NOT_FOUND = 404
_NOT_ALLOWED = 405
_OWN_FAULT = 500


def exception_handlers() -> ExceptionHandlersMap:
    return {CrucibleError: _refused, HTTPException: _refused_by_framework, Exception: _failed}


def answer(rendered: Rendered) -> Response[bytes]:
    """A rendered problem as Litestar's response."""
    status, headers, body = rendered
    rest = {name: value for name, value in headers.items() if name != "Content-Type"}
    return Response(body, status_code=status, headers=rest, media_type=PROBLEM_JSON)


def document(error: CrucibleError, correlation_id: str | None = None) -> msgspec.Raw:
    """The problem document alone, to stand inside another answer."""
    return msgspec.Raw(problem(error, correlation_id)[2])


def _refused(request: Request[Any, Any, Any], error: CrucibleError) -> Response[bytes]:
    if error.code == CrucibleError.code:
        log.error("%s %s: %s", request.method, request.url.path, error.detail)
    if request.method in _READING:
        error = untried(error)
    return answer(problem(error, correlation_of(request.scope)))


def _refused_by_framework(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    status, detail = error.status_code, error.detail
    headers = dict(error.headers or {})
    if status == _NOT_FOUND:
        detail = f"Nothing is at {request.scope['path']}"
    elif status == _NOT_ALLOWED:
        detail = f"{request.scope['path']} does not answer {request.method}"
    elif status >= _OWN_FAULT:
        log.warning("%s %s: %s", request.method, request.scope["path"], detail)
        detail = ""
    return answer(status_problem(status, detail, correlation_of(request.scope), headers))


def _failed(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    log.error("%s %s failed", request.method, request.scope["path"], exc_info=error)
    return answer(problem(CrucibleError(str(error)), correlation_of(request.scope)))
