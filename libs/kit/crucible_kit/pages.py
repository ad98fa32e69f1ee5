"""Pages of a registry's list, bounded in number and in bytes."""

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from crucible_core.errors import CrucibleError, InvalidError
from crucible_core.limits import PAGE
from crucible_core.protocol.parts import Check, Checks, CheckStep, HandlerCheck, ListRequest
from crucible_kit.nats.bus import Bus

R = TypeVar("R")
V = TypeVar("V")

_PAGE_S = 2.0
_AT_ONCE = 32


def answer_bytes(bus: Bus) -> int:
    """The byte limit for the entries of one answer."""
    return bus.max_payload * 3 // 4


def list_page(
    records: Iterable[R], key: Callable[[R], Any], view: Callable[[R], V], request: ListRequest, most_bytes: int
) -> tuple[list[V], str | None]:
    """Returns the views of the records after the cursor, in the order of their keys, as many as the limits allow, and
    the cursor of the next page. A key is a text, or a list of JSON values. Raises InvalidError."""
    pairs = _rest(records, key, request)
    shown: list[V] = []
    for _, record in pairs[: request.limit]:
        seen = view(record)
        most_bytes -= len(msgspec.json.encode(seen))
        if shown and most_bytes < 0:
            break
        shown.append(seen)
    return shown, _cursor(pairs, len(shown))


async def check_page(
    records: Iterable[R],
    key: Callable[[R], Any],
    id: Callable[[R], str],
    check: Callable[[R], Awaitable[Check]],
    request: ListRequest,
) -> Checks:
    """Checks the records of a page, some at once: as many as end within the time that a caller waits."""

    async def one(record: R) -> HandlerCheck:
        try:
            result = await check(record)
        except CrucibleError as error:
            step = CheckStep(step="test", ok=False, detail=error.detail)
            result = Check(name=id(record), verdict="inert", reason=error.detail, steps=[step])
        return HandlerCheck(id(record), result)

    pairs, done = _rest(records, key, request), list[HandlerCheck]()
    ends = time.monotonic() + _PAGE_S
    for batch in split(pairs[: request.limit], _AT_ONCE):
        done += await asyncio.gather(*(one(record) for _, record in batch))
        if time.monotonic() > ends:
            break
    return Checks(checks=done, next_cursor=_cursor(pairs, len(done)))


def split(items: Sequence[V], size: int) -> Iterator[Sequence[V]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _rest(records: Iterable[R], key: Callable[[R], Any], request: ListRequest) -> list[tuple[Any, R]]:
    if not 1 <= request.limit <= PAGE:
        raise InvalidError.field("limit", f"must be 1 to {PAGE}")
    pairs = [(key(record), record) for record in records]
    if request.cursor is not None:
        pairs = _after(pairs, request.cursor)
    return sorted(pairs, key=lambda pair: pair[0])


def _cursor(pairs: Sequence[tuple[Any, Any]], shown: int) -> str | None:
    if not 0 < shown < len(pairs):
        return None
    return base64.urlsafe_b64encode(msgspec.json.encode(pairs[shown - 1][0])).decode().rstrip("=")


def _after(pairs: list[tuple[Any, R]], cursor: str) -> list[tuple[Any, R]]:
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        last = msgspec.json.decode(base64.b64decode(padded, b"-_", validate=True))
        return [pair for pair in pairs if pair[0] > last]
    except (ValueError, TypeError) as error:  # TypeError: a key of another list, which cannot be compared
        raise InvalidError.field("cursor", "is not a cursor of this list") from error
