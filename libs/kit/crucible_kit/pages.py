"""Pages of a registry's list, bounded in number and in bytes: what the services that keep a registry share."""

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from crucible_core.errors import CrucibleError, FieldError, InvalidError
from crucible_core.protocol.parts import Check, Checks, CheckStep, HandlerCheck, ListRequest
from crucible_kit.nats.bus import Bus

R = TypeVar("R")
V = TypeVar("V")

MAX_PAGE = 1000
_PAGE_S = 2.0
_AT_ONCE = 32


def answer_bytes(bus: Bus) -> int:
    """Bytes that the entries of one answer may have."""
    return bus.max_payload * 3 // 4


def list_page(
    records: Iterable[R], key: Callable[[R], Any], view: Callable[[R], V], request: ListRequest, most_bytes: int
) -> tuple[list[V], str | None]:
    """The views of the records after the one that the cursor names, in the order of their keys, as many as there is
    room for; and the cursor of the next page. A key is a text, or a list of what JSON has. Raises InvalidError."""
    keyed = _rest(records, key, request)
    shown: list[V] = []
    for _, record in keyed[: request.limit]:
        seen = view(record)
        most_bytes -= len(msgspec.json.encode(seen))
        if shown and most_bytes < 0:
            break
        shown.append(seen)
    return shown, _cursor(keyed, len(shown))


async def check_page(
    records: Iterable[R],
    key: Callable[[R], Any],
    id: Callable[[R], str],
    check: Callable[[R], Awaitable[Check]],
    request: ListRequest,
) -> Checks:
    """The same of checks, some at once: as many as are done in a time that a caller waits."""

    async def one(record: R) -> HandlerCheck:
        try:
            found = await check(record)
        except CrucibleError as error:
            step = CheckStep(step="test", ok=False, detail=error.detail)
            found = Check(name=id(record), verdict="inert", reason=error.detail, steps=[step])
        return HandlerCheck(id(record), found)

    keyed, done = _rest(records, key, request), list[HandlerCheck]()
    ends = time.monotonic() + _PAGE_S
    for batch in batched(keyed[: request.limit], _AT_ONCE):
        done += await asyncio.gather(*(one(record) for _, record in batch))
        if time.monotonic() > ends:
            break
    return Checks(checks=done, next_cursor=_cursor(keyed, len(done)))


def batched(items: Sequence[V], size: int) -> Iterator[Sequence[V]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _rest(records: Iterable[R], key: Callable[[R], Any], request: ListRequest) -> list[tuple[Any, R]]:
    if not 1 <= request.limit <= MAX_PAGE:
        raise _refused("limit", f"must be 1 to {MAX_PAGE}")
    keyed = [(key(record), record) for record in records]
    if request.cursor is not None:
        keyed = _after(keyed, request.cursor)
    return sorted(keyed, key=lambda pair: pair[0])


def _cursor(keyed: Sequence[tuple[Any, Any]], shown: int) -> str | None:
    if not 0 < shown < len(keyed):
        return None
    return base64.urlsafe_b64encode(msgspec.json.encode(keyed[shown - 1][0])).decode().rstrip("=")


def _after(keyed: list[tuple[Any, R]], cursor: str) -> list[tuple[Any, R]]:
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        place = msgspec.json.decode(base64.b64decode(padded, b"-_", validate=True))
        return [pair for pair in keyed if pair[0] > place]
    except (ValueError, TypeError) as error:  # TypeError: a key of another list, which cannot be compared
        raise _refused("cursor", "is not a cursor of this list") from error


def _refused(path: str, message: str) -> InvalidError:
    return InvalidError(f"{path}: {message}", errors=[FieldError(path, message)])
