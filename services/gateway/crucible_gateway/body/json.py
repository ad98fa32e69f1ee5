"""Bodies of requests: their size, time and media type, and JSON as a Struct with no field that it does not know."""

import asyncio
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import islice
from typing import Any, TypeVar

import msgspec
from litestar import Request

from crucible_core.decode import check_encoding, decode, inspected
from crucible_core.errors import FieldError, InvalidError, MalformedError, TooLargeError, TooSlowError, UnsupportedError
from crucible_core.limits import BODY_BYTES_A_SECOND, ERRORS, EVENT_BYTES, REQUEST_BYTES
from crucible_core.suggest import nearest
from crucible_gateway.context import gateway_of

T = TypeVar("T")
Http = Request[Any, Any, Any]
_Piece = tuple[bytes, bool]
"""Bytes of a body, and whether there are more."""

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
_LONGEST_MARK = 4
_UTF8 = frozenset({"", "utf-8", "utf8", "us-ascii"})


def media_type(request: Http) -> str:
    """The body's media type, `application/json` where none is named. Raises UnsupportedError for other charsets."""
    expect_uncompressed(request)
    kind, *parameters = request.headers.get("content-type", JSON).lower().split(";")
    for name, _, value in (parameter.strip().partition("=") for parameter in parameters):
        if name == "charset" and value.strip('" ') not in _UTF8:
            raise UnsupportedError(f"the charset {value[:50]} is not read here; send UTF-8")
    return kind.strip() or JSON


def expect_uncompressed(request: Http) -> None:
    """Raises UnsupportedError for a compressed body."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedError(f"the content encoding {encoding[:50]} is not read here; send the body as it is")


def expect_type(request: Http, *kinds: str) -> str:
    """The body's media type, one of `kinds`. Raises UnsupportedError."""
    kind = media_type(request)
    if kind not in kinds:
        raise UnsupportedError(f"{kind[:100]} is not read here; send {' or '.join(kinds)}")
    return kind


async def pieces(
    request: Http,
    limit: Callable[[bytes], int] = lambda _: REQUEST_BYTES,
    *,
    text: bool = True,
    first: _Piece = (b"", True),
) -> AsyncIterator[bytes]:
    """The body as it arrives, its `first` piece where that has come already, without the byte order mark of a `text`.
    `limit` is asked once, with the first piece that is more than white space, how many bytes there may be. Raises
    TooLargeError, at once where the client announces too much, TooSlowError, and MalformedError where the connection
    ends before the body, or a `text` is not UTF-8 by its first bytes."""
    most, total = REQUEST_BYTES, 0
    announced = request.headers.get("content-length", "")
    asked = False
    sent = _receive_pieces(request, first)
    async for piece in _strip_mark(sent) if text else sent:
        if not asked and (begun := piece.lstrip()):
            asked, most = True, limit(begun)
        total += len(piece)
        if total > most or (asked and announced.isdecimal() and int(announced) > most):
            raise TooLargeError(f"the body has more than {most} bytes", max_bytes=most)
        yield piece


async def _receive_pieces(request: Http, first: _Piece = (b"", True)) -> AsyncIterator[bytes]:
    """Litestar's own `stream` would wait for ever, and calls a client that went away our fault."""
    piece, more = first
    begun, total = asyncio.get_running_loop().time(), len(piece)
    if piece:
        yield piece
    while more:
        piece, more = await _receive_piece(request, begun, total)
        total += len(piece)
        if piece:
            yield piece


async def _receive_piece(request: Http, begun: float, total: int) -> _Piece:
    """The next one of a body that began at a moment, and of which `total` bytes have come."""
    allowed_s = gateway_of(request).settings.body_timeout_s
    try:
        async with asyncio.timeout_at(begun + allowed_s + total / BODY_BYTES_A_SECOND):
            message: Any = await request.receive()
    except TimeoutError:
        raise TooSlowError(f"the body did not arrive in {allowed_s:g} s and a second for every 16 KiB") from None
    if message["type"] == "http.disconnect":
        raise MalformedError("the connection ended before the body did")
    return message.get("body", b""), message.get("more_body", False)


async def _strip_mark(sent: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Without the mark, which may come in several pieces."""
    first, held, begun = b"", b"", False
    async for piece in sent:
        if len(first) < _LONGEST_MARK:
            first = (first + piece)[:_LONGEST_MARK]
            check_encoding(first, "the body")
        if begun:
            yield piece
            continue
        held += piece
        if begun := len(held) >= len(BOM_UTF8) or not BOM_UTF8.startswith(held):
            yield held.removeprefix(BOM_UTF8)
    if not begun:
        yield held


async def array_or_one(request: Http) -> tuple[AsyncIterator[bytes] | None, bytes]:
    """The pieces of an array, which may be as large as a request; or else the whole body, which may only be as large as
    an event. Raises TooLargeError, and MalformedError where there is none."""
    first, more = await _receive_piece(request, asyncio.get_running_loop().time(), 0)
    if not more and len(first) <= EVENT_BYTES:  # as most of them are
        check_encoding(first, "the body")
        body = first.removeprefix(BOM_UTF8).lstrip()
        if body:
            return (_pieces_of(body), b"") if body[:1] == b"[" else (None, body)
        raise MalformedError("the body is empty")
    sent = pieces(request, lambda begun: REQUEST_BYTES if begun[:1] == b"[" else EVENT_BYTES, first=(first, more))
    begun = bytearray()
    async for piece in sent:
        begun += piece if begun else piece.lstrip()
        if begun[:1] == b"[":
            return _pieces_of(bytes(begun), sent), b""
    if not begun:
        raise MalformedError("the body is empty")
    return None, bytes(begun)


async def _pieces_of(begun: bytes, rest: AsyncIterator[bytes] | None = None) -> AsyncIterator[bytes]:
    yield begun
    if rest is not None:
        async for piece in rest:
            yield piece


async def read_body(request: Http) -> bytes:
    """The whole body. Raises TooLargeError, and MalformedError where there is none."""
    raw = await read_bytes(request)
    if not raw.strip():
        raise MalformedError("the body is empty")
    return raw


async def read_bytes(request: Http) -> bytes:
    """The whole body as it is, which may be empty. Raises TooLargeError."""
    return b"".join([piece async for piece in pieces(request, lambda _: EVENT_BYTES, text=False)])


async def read_json(request: Http, kind: type[T], *media_types: str) -> T:
    """A JSON body as `kind`, with no other fields; sent as one of `media_types`, else as `application/json`."""
    expect_type(request, *(media_types or (JSON,)))
    return decode_strictly(await read_body(request), kind)


async def read_optional_json(request: Http, kind: type[T]) -> T:
    """The same, where an empty body is as good as `{}`."""
    if request.headers.get("content-length", "") in ("", "0") and "transfer-encoding" not in request.headers:
        return decode_strictly(b"{}", kind)
    return await read_json(request, kind)


def decode_strictly(raw: bytes, kind: type[T], *, what: str = "body") -> T:
    """`raw` as `kind`. Raises MalformedError, and InvalidError that names the fields which `kind` does not have: the
    services' Structs themselves skip unknown fields, so that services of two versions understand each other."""
    raw = raw.removeprefix(BOM_UTF8)
    value = decode(raw, kind, what=what)
    errors = list(islice(_unknown(msgspec.json.decode(raw), inspected(kind), ""), ERRORS))
    if errors:
        first = errors[0]
        asked = f' (did you mean "{first.suggestion}"?)' if first.suggestion else ""
        raise InvalidError(f"{what} is refused: {first.path}: {first.message}{asked}", errors=errors)
    return value


def _unknown(value: Any, node: msgspec.inspect.Type, path: str) -> Iterator[FieldError]:
    match node:
        case msgspec.inspect.Metadata():
            yield from _unknown(value, node.type, path)
        case msgspec.inspect.UnionType():
            for member in node.types:
                if isinstance(member, msgspec.inspect.StructType | msgspec.inspect.CollectionType):
                    yield from _unknown(value, member, path)
        case msgspec.inspect.CollectionType() if isinstance(value, list):
            for position, item in enumerate(value):
                yield from _unknown(item, node.item_type, f"{path}{position}.")
        case msgspec.inspect.StructType() if isinstance(value, dict):
            fields = {field.encode_name: field.type for field in node.fields}
            for name, inner in value.items():
                if name in fields:
                    yield from _unknown(inner, fields[name], f"{path}{name}.")
                elif name != node.tag_field:
                    yield FieldError(f"{path}{name[:200]}", "unknown field", nearest(name, fields))
