"""JSON arrays as they arrive: their elements one by one, so that no body is ever held whole."""

import re
from collections.abc import AsyncIterator

import msgspec

from crucible_core.decode import malformed
from crucible_core.errors import MalformedError

from .intake import MAX_SENT_BYTES

# Neither pattern backtracks; a string that does not end yet matches as far as it goes, with nothing in its group.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+("?)|[\[\]{},]', re.DOTALL)
_REST_OF_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+("?)', re.DOTALL)
_OPENING, _CLOSING, _QUOTE, _COMMA = b"[{", b"]}", ord('"'), ord(",")

_anything = msgspec.json.Decoder(msgspec.Raw)


async def elements(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The elements of a JSON array, undecoded. One that is too long for an event is cut just past the limit, so that it
    is refused and never held whole. Raises MalformedError where the body is no array, or ends too early."""
    splitter = Splitter()
    async for piece in pieces:
        for element in splitter.feed(piece):
            yield element
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
        taken = position = 0
        if self._in_string:
            position = self._string(data, _REST_OF_STRING.match(data))
        while not self._in_string and (token := _TOKEN.search(data, position)):
            position = token.end()
            kind = data[token.start()]
            if kind == _QUOTE:
                position = self._string(data, token)
            elif kind in _OPENING:
                self._depth += 1
                if self._depth == 1:
                    self._begin(data[: token.start()], kind)
                    taken = position
            elif kind in _CLOSING or self._depth == 1:
                self._depth -= kind != _COMMA
                if self._depth == 0 or kind == _COMMA:
                    self._keep(data, taken, token.start())
                    self._take(found, last=kind != _COMMA)
                    taken = position
        self._keep(data, taken, len(data) - len(self._left))
        return found

    def end(self) -> None:
        """Raises MalformedError where the array has not ended, or something comes after it."""
        if not self._ended or self._begun.strip():
            raise MalformedError("body is not JSON: " + ("trailing characters" if self._ended else "it ends too early"))

    def _begin(self, before: bytes, kind: int) -> None:
        if self._ended or kind != _OPENING[0] or (bytes(self._begun) + before).strip():
            raise MalformedError("body is not JSON: an array was expected")
        self._begun.clear()

    def _string(self, data: bytes, match: re.Match[bytes] | None) -> int:
        """Where a string ends in the data. What is cut off is at most a lone backslash."""
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
