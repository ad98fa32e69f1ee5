"""Every error as a problem document (RFC 9457): ours, Litestar's own, and the unexpected ones."""

import logging
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException, WebSocketException
from litestar.types import ExceptionHandlersMap, Message, Scope

from crucible_core.errors import CrucibleError, untried, without_frames
from crucible_gateway.correlation import HEADER, correlation_of
from crucible_kit.http.asgi import Rendered, problem, status_problem

log = logging.getLogger(__name__)

_READING = frozenset({"GET", "HEAD"})
_NOT_FOUND = 404
_NOT_ALLOWED = 405
_OWN_FAULT = 500
_REFUSAL = "crucible_refusal"


def exception_handlers() -> ExceptionHandlersMap:
    return {Exception: _respond}


def to_response(rendered: Rendered) -> Response[bytes]:
    """A rendered answer as Litestar's response."""
    status, headers, body = rendered
    rest = {name: value for name, value in headers.items() if name != "Content-Type"}
    return Response(body, status_code=status, headers=rest, media_type=headers["Content-Type"])


def document(error: CrucibleError, correlation_id: str | None = None) -> msgspec.Raw:
    """The problem document alone, to stand inside another answer."""
    return msgspec.Raw(problem(error, correlation_id)[2])


async def store_refusal(error: Exception, scope: Scope) -> None:
    """An `after_exception` hook. Litestar closes a WebSocket without asking an exception handler; `send_refusal` then
    tells the server why. A client that has gone gets no answer."""
    if scope["type"] == ScopeType.WEBSOCKET and not isinstance(error, OSError | WebSocketException):
        status, headers, body = _render(error, scope)
        scope["state"][_REFUSAL] = status, {**headers, HEADER: correlation_of(scope)}, body


async def send_refusal(message: Message, scope: Scope) -> None:
    """A `before_send` hook: gives the server the whole answer to a handshake that is refused."""
    if message["type"] == "websocket.close" and _REFUSAL in scope["state"]:
        message["refusal"] = scope["state"][_REFUSAL]  # type: ignore[typeddict-unknown-key]


def _respond(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    return to_response(render_error(error, request.scope))


def render_error(error: Exception, scope: Scope) -> Rendered:
    """The answer to an error, which ends here."""
    found = _render(error, scope)
    without_frames(error)
    return found


def _render(error: Exception, scope: Scope) -> Rendered:
    if isinstance(error, HTTPException):
        return _render_framework_error(error, scope)
    if not isinstance(error, CrucibleError):
        log.error("%s failed", _request_name(scope), exc_info=error)
        error = CrucibleError(str(error))
    elif error.code == CrucibleError.code:
        log.error("%s: %s", _request_name(scope), error.detail)
    if scope.get("method", "GET") in _READING:
        error = untried(error)
    return problem(error, correlation_of(scope))


def _render_framework_error(error: HTTPException, scope: Scope) -> Rendered:
    status, detail = error.status_code, error.detail
    if scope["type"] == ScopeType.WEBSOCKET and "route_handler" not in scope:
        status, detail = _NOT_FOUND, f"No WebSocket is at {scope['path']}"
    elif status == _NOT_FOUND:
        detail = f"Nothing is at {scope['path']}"
    elif status == _NOT_ALLOWED:
        detail = f"{scope['path']} does not answer {scope.get('method')}"
    elif status >= _OWN_FAULT:
        log.warning("%s: %s", _request_name(scope), detail)
        detail = ""
    return status_problem(status, detail, correlation_of(scope), dict(error.headers or {}))


def _request_name(scope: Scope) -> str:
    return f"{scope.get('method', 'WEBSOCKET')} {scope['path']}"
