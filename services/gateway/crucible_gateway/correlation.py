"""The chain of a request: its correlation id, which every answer has, and its depth."""

import re
from collections.abc import Mapping, MutableMapping
from typing import Any
from urllib.parse import unquote

from litestar.datastructures import MutableScopeHeaders
from litestar.types import Message, Scope

from crucible_core.errors import InvalidError
from crucible_core.limits import NAME_CHARS
from crucible_core.subjects import CORRELATION_ID, HOP
from crucible_kit.clock import fresh_id

HEADER = "X-Correlation-Id"
_SENT, _CONTINUED = HEADER.lower(), CORRELATION_ID.lower()
_NAMES = {name.encode(): name for name in (_SENT, _CONTINUED)}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DEPTH = re.compile(r"[0-9]{1,9}", re.ASCII)
_VALID = re.compile(r"[A-Za-z0-9_.:/+=-]{1,128}", re.ASCII)
_KEY = "crucible_correlation_id"
_ANSWERS = frozenset({"http.response.start", "websocket.accept"})


CHAIN = {
    HEADER: "The correlation id of events that bring none",
    CORRELATION_ID: "The same, as a delivery or a hook's request has it: who calls back continues its chain",
    HOP: "As a delivery or a hook's request has it: what is brought about is one effect deeper, and chains end at 8",
}
"""The headers of requests that bring events about."""


def read_correlation(headers: Mapping[str, str]) -> str | None:
    """The client's own id, if it is safe to repeat; else that of the delivery, or hook's request, which it answers."""
    sent = headers.get(_SENT)
    if sent and _VALID.fullmatch(sent):
        return sent
    if (continued := headers.get(_CONTINUED)) is None:
        return None
    continued = unquote(continued[: 9 * NAME_CHARS])
    return continued if 0 < len(continued) <= NAME_CHARS and not _CONTROL.search(continued) else None


def read_hop(headers: Mapping[str, str]) -> int:
    """The depth, in a chain of effects, of the request's effects; 0 where it begins a chain. Raises InvalidError."""
    sent = headers.get(HOP.lower())
    if sent is None:
        return 0
    if not _DEPTH.fullmatch(sent.strip()):
        message = "must be a whole number, as a delivery or a hook's request had it"
        raise InvalidError.field(HOP, message)
    return int(sent) + 1


def correlation_of(scope: Scope) -> str:
    """The request's correlation id, the same whenever it is asked."""
    kept: MutableMapping[str, Any] = scope["state"]
    if _KEY not in kept:
        headers = {_NAMES[name]: raw.decode("latin-1") for name, raw in scope["headers"] if name in _NAMES}
        sent = read_correlation(headers)
        kept[_KEY] = sent if sent and _VALID.fullmatch(sent) else fresh_id("cor")
    return str(kept[_KEY])


async def write_correlation(message: Message, scope: Scope) -> None:
    """A `before_send` hook: writes the id into the answer's headers."""
    if message["type"] in _ANSWERS:
        MutableScopeHeaders.from_message(message)[HEADER] = correlation_of(scope)
