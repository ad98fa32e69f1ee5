"""The correlation id of a request: what the client sent in `X-Correlation-Id`, or a fresh one; every answer has it."""

import re
from collections.abc import Mapping, MutableMapping
from typing import Any

from litestar.datastructures import MutableScopeHeaders
from litestar.types import Message, Scope

from crucible_kit.clock import fresh_id

HEADER = "X-Correlation-Id"
_VALID = re.compile(r"[A-Za-z0-9_.:/+=-]{1,128}", re.ASCII)
_KEY = "crucible_correlation_id"
_ANSWERS = frozenset({"http.response.start", "websocket.accept"})


def sent_correlation(headers: Mapping[str, str]) -> str | None:
    """What the client sent, if it is safe to repeat."""
    sent = headers.get(HEADER.lower())
    return sent if sent and _VALID.fullmatch(sent) else None


def correlation_of(scope: Scope) -> str:
    """The request's correlation id, the same whenever it is asked."""
    kept: MutableMapping[str, Any] = scope["state"]
    if _KEY not in kept:
        raw = next((value for name, value in scope["headers"] if name == HEADER.lower().encode()), b"")
        kept[_KEY] = sent_correlation({HEADER.lower(): raw.decode("latin-1")}) or fresh_id("cor")
    return str(kept[_KEY])


async def show_correlation(message: Message, scope: Scope) -> None:
    """A `before_send` hook: writes the id into the answer's headers."""
    if message["type"] in _ANSWERS:
        MutableScopeHeaders.from_message(message)[HEADER] = correlation_of(scope)
