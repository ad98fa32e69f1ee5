"""Answers: bytes that a service gave, or a Struct, as JSON."""

from typing import Any

import msgspec
from litestar import Response

from crucible_gateway.bodies import JSON


def passed(
    raw: bytes, status: int = 200, headers: dict[str, str] | None = None, media_type: str = JSON
) -> Response[bytes]:
    """A service's reply as it is."""
    return Response(raw, status_code=status, headers=headers, media_type=media_type)


def encoded(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response[bytes]:
    return passed(msgspec.json.encode(value), status, headers)
