"""An HTTP/1.1 connection: uvicorn's, which bounds neither a request's head nor the time that one may take to come."""

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .asgi import STATUS, status_problem
from .corking import Corked

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers."""
MAX_HEADERS = 200

_BROKEN, _SLOW, _LARGE = STATUS["malformed"], STATUS["too_slow"], 431
_PHRASES = {_BROKEN: b"Bad Request", _SLOW: b"Request Timeout", _LARGE: b"Request Header Fields Too Large"}


class Connection(HttpToolsProtocol):
    """What uvicorn itself would refuse in plain text is a problem document here."""

    head_s: ClassVar[float] = 10.0
    """How long a head may take from its first byte on, and a connection until the first byte."""
    linger_s: ClassVar[float] = 5.0
    """How long a client may go on sending what is not read: closed at once, it might not see why."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head: int | None = 0
        """Bytes of the head that is being read; None while a body is."""
        self._one_large_piece = False
        self._refused = False
        self._timer: asyncio.TimerHandle | None = None
        self._status = _BROKEN

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Corked(transport))  # type: ignore[arg-type]
        self._timer = self.loop.call_later(self.head_s, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._one_large_piece = len(data) > MAX_HEAD_BYTES
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        if self._head and not self._refused:
            if self._head > MAX_HEAD_BYTES:
                self._refuse(_LARGE)
            elif self._timer is None:
                self._timer = self.loop.call_later(self.head_s, self._too_slow)

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self._status = _LARGE
            raise ValueError("too many headers")

    def on_headers_complete(self) -> None:
        self._head = None
        self._stop_timer()
        if self._one_large_piece and self._size() > MAX_HEAD_BYTES:
            self._status = _LARGE
            raise ValueError("too large a head")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._head = 0

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.more_body:
            self.loop.call_later(self.linger_s, self._close_unless_read, self.cycle)

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP, and to an error that a callback above raised."""
        self._refuse(self._status)

    def _size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _too_slow(self) -> None:
        self._timer = None
        if self._head:
            self._refuse(_SLOW)
        else:
            self.transport.close()

    def _refuse(self, status: int) -> None:
        self._refused = True
        self._stop_timer()
        if self.transport.is_closing():
            return
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()  # an answer here would stand in the middle of another
            return
        self.transport.write(_answer(status, self._why(status)))
        self.transport.write_eof()
        self.loop.call_later(self.linger_s, self.transport.close)

    def _why(self, status: int) -> str:
        if status == _LARGE:
            return f"a request may have {MAX_HEADERS} headers, and {MAX_HEAD_BYTES} bytes before its body"
        if status == _SLOW:
            return f"the head of a request may take {self.head_s:g} s to arrive"
        return "this is not HTTP/1.1"

    def _close_unless_read(self, cycle: Any) -> None:
        if self.cycle is cycle and cycle.more_body:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _answer(status: int, detail: str) -> bytes:
    _, headers, body = status_problem(status, detail)
    lines = [
        b"HTTP/1.1 %d %b" % (status, _PHRASES[status]),
        b"content-type: " + headers["Content-Type"].encode(),
        b"content-length: %d" % len(body),
        b"connection: close",
    ]
    return b"\r\n".join([*lines, b"", body])
