"""Answers of route handlers: a service's reply as it is, or a Struct as JSON."""

from typing import Any

import msgspec
from litestar import Response

from crucible_gateway.body.json import JSON, Http
from crucible_gateway.context import ask


async def forward(
    request: Http, service: str, operation: str, question: msgspec.Struct, status: int = 200
) -> Response[bytes]:
    """Asks a service, and answers its reply as it is. Raises as `ask`."""
    return reply_bytes(await ask(request, service, operation, question, bytes), status)


def reply_bytes(
    raw: bytes, status: int = 200, headers: dict[str, str] | None = None, media_type: str = JSON
) -> Response[bytes]:
    return Response(raw, status_code=status, headers=headers, media_type=media_type)


def reply_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response[bytes]:
    return reply_bytes(msgspec.json.encode(value), status, headers)
