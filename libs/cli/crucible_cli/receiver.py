"""A receiver of webhooks, an ASGI app for `listen` and the demo: verifies, reports and answers each delivery."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from crucible_client import SignatureError, check_signature
from crucible_core.envelope import Event
from crucible_core.limits import RECEIVED_BYTES


class Delivery(msgspec.Struct, frozen=True):
    """One request as it came. `verified` is None where there is no secret to verify with; `status` is our answer."""

    at: str
    path: str
    delivery_id: str | None
    event_id: str | None
    event_type: str | None
    traceparent: str | None
    verified: bool | None
    problem: str | None
    status: int
    event: Event | None
    body: Any


class _Body(msgspec.Struct):
    event: Event


def receiver(secret: str | None, report: Callable[[Delivery], None], fail: int = 0) -> Starlette:
    """An app that takes POSTs on every path, answers 500 to the first `fail` good ones and 401 to a bad signature."""
    left = fail

    async def receive(request: Request) -> Response:
        nonlocal left
        body = await _body(request)
        if body is None:
            return Response(status_code=413)
        problem = _problem(secret, request, body)
        status = 401 if problem else 500 if left > 0 else 200
        left -= status == 500
        report(_delivery(request, body, None if secret is None else problem is None, problem, status))
        return Response(status_code=status)

    return Starlette(routes=[Route("/{path:path}", receive, methods=["POST"])])


async def _body(request: Request) -> bytes | None:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > RECEIVED_BYTES:
            return None
    return body


def _problem(secret: str | None, request: Request, body: bytes) -> str | None:
    try:
        if secret is not None:
            check_signature(secret, request.headers, body)
    except SignatureError as error:
        return error.detail
    return None


def _delivery(request: Request, body: bytes, verified: bool | None, problem: str | None, status: int) -> Delivery:
    headers = request.headers
    return Delivery(
        at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        path=request.url.path,
        delivery_id=headers.get("x-crucible-delivery"),
        event_id=headers.get("x-crucible-event-id"),
        event_type=headers.get("x-crucible-event-type"),
        traceparent=headers.get("traceparent"),
        verified=verified,
        problem=problem,
        status=status,
        event=_event(body),
        body=_json(body),
    )


def _event(body: bytes) -> Event | None:
    try:
        return msgspec.json.decode(body, type=_Body).event
    except msgspec.DecodeError:
        return None


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body.decode("utf-8", "replace")
