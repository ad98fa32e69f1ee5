"""Parser of the NATS protocol: hands messages to their receivers at once, all else to the client library's own parser.

nats-py reads each message with a regular expression, a task and a queue, which costs more than most of our receivers.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Protocol

from crucible_core import subjects
from crucible_kit.nats.message import Receiver, message_of

log = logging.getLogger(__name__)

_MSG, _HMSG = ord("M"), ord("H")
_VERSION = len("NATS/1.0")
_STATUS = 3
_PLAIN = b"NATS/1.0\r\n"

Undirected = Callable[[int, bytes, bytes, bytes, bytes], Awaitable[None]]
"""Subscription, subject, reply, data and headers of a message that has no receiver here."""


class Rest(Protocol):
    """The library's parser, for everything but messages."""

    async def parse(self, data: bytes = b"") -> None: ...

    def reset(self) -> None: ...


class Parser:
    """The protocol of docs.nats.io/reference/reference-protocols/nats-protocol, as a client reads it."""

    def __init__(self, rest: Rest, undirected: Undirected, broken: Callable[[], None]) -> None:
        """`broken` is called when the library has given the connection up."""
        self.receivers: dict[int, Receiver] = {}
        """By the number of a subscription."""
        self._rest = rest
        self._undirected = undirected
        self._broken = broken
        self._left = bytearray()
        self._needed = 0
        self._connection = 0

    def reset(self) -> None:
        """The connection is broken, and a new one will begin."""
        self._broken()
        self._rest.reset()
        self._left.clear()
        self._needed = 0
        self._connection += 1

    async def parse(self, data: bytes = b"") -> None:
        if self._left:
            self._left += data
            if len(self._left) < self._needed:
                return
            data = bytes(self._left)
            self._left.clear()
        connection = self._connection
        position = 0
        while position < len(data):
            end = data.find(b"\r\n", position)
            if end < 0:
                self._keep(data, position, 0)
                return
            if data[position] not in (_MSG, _HMSG):
                await self._rest.parse(data[position : end + 2])
                position = end + 2
            else:
                fields = data[position:end].split()
                size, begin = int(fields[-1]), end + 2
                if begin + size + 2 > len(data):
                    self._keep(data, position, begin + size + 2 - position)
                    return
                header = int(fields[-2]) if data[position] == _HMSG else 0
                position = begin + size + 2
                body, head = data[begin + header : position - 2], data[begin : begin + header]
                subscription = int(fields[2])
                reply = fields[3] if len(fields) > (5 if header else 4) else b""
                receiver = self.receivers.get(subscription)
                if receiver is None:
                    await self._undirected(subscription, fields[1], reply, body, head)
                else:
                    self._hand(receiver, fields[1], body, head, reply)
            if connection != self._connection:
                return

    def _keep(self, data: bytes, position: int, needed: int) -> None:
        """Keeps an incomplete frame until the rest of it arrives."""
        self._left += memoryview(data)[position:]
        self._needed = needed

    def _hand(self, receiver: Receiver, subject: bytes, body: bytes, header: bytes, reply: bytes) -> None:
        try:
            receiver(message_of(subject.decode(), body, Headers(header) if header else None, reply.decode()))
        except Exception:
            log.exception("a message of %r cannot be received", subject[:100])


class Headers(Mapping[str, str]):
    """The headers of a message, parsed when somebody looks: most are never looked at."""

    __slots__ = ("_parsed", "_raw")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._parsed: dict[str, str] | None = None

    @property
    def _all(self) -> dict[str, str]:
        if self._parsed is None:
            self._parsed = headers_of(self._raw)
        return self._parsed

    def __getitem__(self, name: str) -> str:
        return self._all[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self._all.get(name, default)

    def __contains__(self, name: object) -> bool:
        plain = self._parsed is None and self._raw.startswith(_PLAIN)
        if plain and isinstance(name, str) and name.encode() not in self._raw:  # mostly it is not there
            return False
        return name in self._all

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __bool__(self) -> bool:
        return True


def headers_of(raw: bytes) -> dict[str, str]:
    """Headers by name; an inline status (`NATS/1.0 404 No Messages`) under the names that `subjects` has for it."""
    first, *lines = raw.decode("utf-8", "replace").split("\r\n")
    headers: dict[str, str] = {}
    if len(first) > _VERSION:
        status = first[_VERSION + 1 :]
        headers[subjects.STATUS] = status[:_STATUS]
        if description := status[_STATUS + 1 :]:
            headers[subjects.DESCRIPTION] = description
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            headers[name] = value.strip()
    return headers
