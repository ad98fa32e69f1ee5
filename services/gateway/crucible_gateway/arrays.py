"""JSON arrays as they arrive: their elements one by one, so that no body is ever held whole."""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator

import msgspec

from crucible_core.decode import malformed, steps, unescaped
from crucible_core.errors import MalformedError

from .intake import MAX_SENT_BYTES

_SLICE = 16 * 1024
"""Bytes that are split before others have a turn: a few milliseconds, whatever is in them."""
_LEVELS = 100
"""Deeper than any event may be. An element that is deeper yet ends the request."""
_STRING = rb'"(?:[^"\\]++|\\.)*+"'


def _nested(levels: int) -> bytes:
    """The pattern of an array or object up to so many levels deep; like all here, it never backtracks."""
    pattern = b""
    for _ in range(levels):
        pattern = rb'[\[{](?:[^"\[\]{}]++|' + _STRING + (b"|" + pattern if pattern else b"") + rb")*+[\]}]"
    return pattern


_WHOLE = re.compile(rb'(?:[^"\[\]{},]++|' + _STRING + b"|" + _nested(_LEVELS) + rb")*+", re.DOTALL)
"""All that is complete up to the next comma, or to the bracket that closes what it stands in."""
_REST_OF_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+("?)', re.DOTALL)
_OPENING, _CLOSING, _QUOTE, _COMMA = ord("["), b"]}", ord('"'), ord(",")

_anything = msgspec.json.Decoder(msgspec.Raw)


async def elements(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The elements of a JSON array, undecoded. One that is too long for an event is cut just past the limit, so that it
    is refused and never held whole. Raises MalformedError where the body is no array, or ends too early."""
    splitter = Splitter()
    async for piece in pieces:
        for start in range(0, len(piece), _SLICE):
            for element in splitter.feed(piece[start : start + _SLICE]):
                yield element
            await asyncio.sleep(0)
    splitter.end()


class Splitter:
    """How far an array has been read: the depth of brackets, and the element that is begun."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._begun = bytearray()
        self._left = b""
        self._count = 0
        self._ended = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The elements that end in this piece of the body."""
        data, self._left = self._left + piece, b""
        found: list[bytes] = []
        position = start = self._begin(data) if self._depth == 0 else 0
        if self._in_string:
            position = self._end_string(data)
        if self._depth > 1 and not self._in_string and not self._stays_inside(data, position):
            position = self._leave(data, position)
        while self._depth == 1 and not self._in_string:
            position = _end_of_whole(data, position)
            if position == len(data):
                break
            kind = data[position]
            position += 1
            if kind == _COMMA or kind in _CLOSING:
                self._depth -= kind != _COMMA
                self._keep(data, start, position - 1)
                self._take(found, last=kind != _COMMA)
                start = position
            elif kind == _QUOTE:
                self._open_string(data)
            else:
                self._depth += 1
                if not self._stays_inside(data, position):
                    raise _too_deep()
        if self._ended and data[start:].strip():
            raise MalformedError("body is not JSON: trailing characters")
        self._keep(data, start, len(data) - len(self._left))
        return found

    def end(self) -> None:
        """Raises MalformedError where the array has not ended."""
        if not self._ended:
            raise MalformedError("body is not JSON: it ends too early")

    def _begin(self, data: bytes) -> int:
        """Where the array's first element begins; the end of the data where there is no array yet, or no more."""
        before = len(data) - len(data.lstrip())
        if before == len(data):
            return before
        if self._ended:
            raise MalformedError("body is not JSON: trailing characters")
        if data[before] != _OPENING:
            raise MalformedError("body is not JSON: an array was expected")
        self._depth = 1
        return before + 1

    def _stays_inside(self, data: bytes, position: int) -> bool:
        """Whether the element, in which the data goes on, does not end in it either. Then its depth is that of the
        data's end."""
        rest = unescaped(data[position:])
        walk = steps(rest)
        if self._depth + min(itertools.accumulate(walk), default=0) < 2:
            return False
        self._depth += sum(walk)
        if rest.count(b'"') % 2:
            self._open_string(data)
        return True

    def _leave(self, data: bytes, position: int) -> int:
        """Where the element that ends in the data does so."""
        while self._depth > 1:
            position = _end_of_whole(data, position)
            if data[position] in _CLOSING:
                self._depth -= 1
            elif data[position] != _COMMA:
                raise _too_deep()
            position += 1
        return position

    def _open_string(self, data: bytes) -> None:
        """The data ends inside a string. A lone backslash there belongs to what comes next."""
        self._in_string = True
        if (len(data) - len(data.rstrip(b"\\"))) % 2:
            self._left = b"\\"

    def _end_string(self, data: bytes) -> int:
        match = _REST_OF_STRING.match(data)
        assert match is not None
        self._in_string = not match[1]
        if self._in_string:
            self._left = data[match.end() :]
        return match.end()

    def _keep(self, data: bytes, start: int, end: int) -> None:
        room = MAX_SENT_BYTES + 1 - len(self._begun)
        if room > 0:
            self._begun += memoryview(data)[start : min(end, start + room)]

    def _take(self, found: list[bytes], last: bool) -> None:
        element = bytes(self._begun).strip()
        self._begun.clear()
        self._ended = last
        self._count += 1
        if last and self._count == 1 and not element:
            return
        if len(element) <= MAX_SENT_BYTES:
            try:
                _anything.decode(element)
            except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                raise malformed(error, "body") from None
        found.append(element)


def _end_of_whole(data: bytes, position: int) -> int:
    match = _WHOLE.match(data, position)
    assert match is not None
    return match.end()


def _too_deep() -> MalformedError:
    return MalformedError(f"body has an element that is nested deeper than {_LEVELS} levels")
