"""An HTTP/1.1 connection: uvicorn's, with limits on the size and duration of requests and answers, and the parts of
HTTP that uvicorn lacks."""

import asyncio
import contextlib
import fcntl
import logging
import termios
from collections.abc import Iterable
from typing import Any, ClassVar

import httptools
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from crucible_core.limits import HEAD_BYTES, REQUEST_HEADERS, STALL_S, UNSENT_BYTES
from crucible_kit.http.asgi import STATUS, status_problem

log = logging.getLogger(__name__)

_BUFFER_BYTES = 64 * 1024
"""Bytes that wait for the end of a turn of the event loop, and that a transport holds before its writer must wait."""
_INT = b"\0\0\0\0"


class BufferedTransport:
    """A transport that writes once for each turn of the event loop, since a write is a system call, and that closes
    within a time limit, whether or not the client reads the rest. In all else it is the transport that it wraps.

    `connections` are the protocols of its server, this one's among them. Where their clients leave too much unread, the
    connection that has been behind for longest is closed: slow clients cost a bounded amount of memory, and do not hold
    up the others.
    """

    def __init__(
        self, transport: Any, connections: Iterable[Any], linger_s: float, stall_s: float, max_unsent: int
    ) -> None:
        self.behind_since = 0.0
        """Start of the period in which the client reads more slowly than the app writes; by the event loop's clock."""
        self._transport = transport
        self._connections = connections
        self._linger_s = linger_s
        self._stall_s = stall_s
        self._max_unsent = max_unsent
        self._loop = asyncio.get_running_loop()
        self._waiting: list[bytes] = []
        self._size = 0
        self._left = 0
        """The bytes that wait now if the client has read none since the last check."""
        self._check_timer: asyncio.TimerHandle | None = None
        self._dropped = False

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self.flush)
        self._waiting.append(data)
        self._size += len(data)
        if self._size > _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        waiting, size = self._waiting, self._size
        self._waiting, self._size = [], 0
        if waiting and not self._transport.is_closing():
            self._transport.write(waiting[0] if len(waiting) == 1 else b"".join(waiting))
            if self.is_behind:
                self._watch(size)
            elif self._check_timer is not None:
                self._check_timer.cancel()
                self._check_timer = None

    def write_eof(self) -> None:
        self.flush()
        self._transport.write_eof()

    def close(self) -> None:
        self.flush()
        self._transport.close()
        if self.unsent:
            self._loop.call_later(self._linger_s, self._transport.abort)

    def drop(self, why: str) -> None:
        self._dropped = True
        log.warning("the connection of %s is closed: %s", self._transport.get_extra_info("peername"), why)
        self._transport.abort()

    @property
    def is_behind(self) -> bool:
        """True while written bytes wait for the client."""
        return not self._dropped and self.unsent > _BUFFER_BYTES

    @property
    def unsent(self) -> int:
        size: int = self._transport.get_write_buffer_size()
        return size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    # ---- slow clients

    def _watch(self, written: int) -> None:
        if self._check_timer is None:
            self.behind_since = self._loop.time()
            self._schedule_check()
        else:
            self._left += written
        transports = [connection.transport for connection in self._connections]
        behind = [one for one in transports if isinstance(one, BufferedTransport) and one.is_behind]
        if sum(one.unsent for one in behind) > self._max_unsent:
            slowest = min(behind, key=lambda one: one.behind_since)
            slowest.drop(f"clients leave more than {self._max_unsent} bytes untaken, and this one for longest")

    def _schedule_check(self) -> None:
        self._left = self.unsent + self._in_kernel()
        self._check_timer = self._loop.call_later(self._stall_s, self._check_progress)

    def _check_progress(self) -> None:
        self._check_timer = None
        if not self.is_behind:
            return
        if self.unsent + self._in_kernel() >= self._left:
            self.drop(f"its client has taken nothing for {self._stall_s:g} s, and {self.unsent} bytes wait")
        else:
            self._schedule_check()

    def _in_kernel(self) -> int:
        """Bytes that the kernel holds for the client; it takes more from us only once a good part of them has gone."""
        with contextlib.suppress(OSError, AttributeError):
            queue = fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, _INT)
            return int.from_bytes(queue, "little")
        return 0


_BROKEN, _SLOW, _LARGE, _NO_METHOD = STATUS["malformed"], STATUS["too_slow"], 431, 405
_PHRASES = {
    _BROKEN: b"Bad Request",
    _SLOW: b"Request Timeout",
    _LARGE: b"Request Header Fields Too Large",
    _NO_METHOD: b"Method Not Allowed",
}
_NO_HTTP = "this is not HTTP/1.1"
_TOO_LARGE = f"a request may have {REQUEST_HEADERS} headers, and {HEAD_BYTES} bytes before its body"
_HANDSHAKE = "a WebSocket handshake is a GET that has no body"


class Connection(HttpToolsProtocol):
    """Refuses with a problem document where uvicorn itself would with plain text.

    An offer to upgrade that is no WebSocket handshake is ignored (RFC 9110, 7.8). HEAD is answered as GET without
    a body. HTTP/1.0 gets no chunks. A connection has a time limit for each wait; the app has one for a body.
    """

    head_s: ClassVar[float] = 10.0
    """Time limit of a head from its first byte on, and of a connection until the first byte."""
    linger_s: ClassVar[float] = 5.0
    """Time in which a refused client may go on sending: closed at once, it might not see the reason."""
    stall_s: ClassVar[float] = STALL_S
    """Time in which a client may read nothing at all of an answer that waits for it."""
    unsent_bytes: ClassVar[int] = UNSENT_BYTES
    """Bytes that all clients of a server together may leave unread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_body = False
        self._framing = 0
        """Bytes since the last message, or the last piece of its body."""
        self._one_large_piece = False
        self._offered: tuple[bytes, str] | None = None
        """Method and version of a head that offers an upgrade: the parser pauses after it."""
        self._running: RequestResponseCycle | None = None
        """The request that is being answered."""
        self._refusal: tuple[int, str] | None = None
        """The reason why nothing more is read."""
        self._lingers = False
        self._error = (_BROKEN, _NO_HTTP)
        self._timer: asyncio.TimerHandle | None = None

    # ---- what comes --------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        buffered: Any = BufferedTransport(transport, self.connections, self.linger_s, self.stall_s, self.unsent_bytes)
        super().connection_made(buffered)
        self._timer = self.loop.call_later(self.head_s, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refusal:
            return
        self._unset_keepalive_if_required()
        self._one_large_piece = len(data) > HEAD_BYTES
        self._framing += len(data)
        self._parse(data)
        if self._framing > HEAD_BYTES:
            self._refuse(_LARGE, _TOO_LARGE)
        elif self._framing and not self._in_body and self._timer is None and not self._refusal:
            self._timer = self.loop.call_later(self.head_s, self._too_slow)

    def _parse(self, data: bytes) -> None:
        left: list[bytes | memoryview] = [memoryview(data)]
        while left and not self._refusal:
            piece = left.pop()
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as pause:
                left += self._take_offer(memoryview(piece)[pause.args[0] :])
            except httptools.HttpParserError:
                self._refuse(*self._error)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            return  # a trailer, which nobody here waits for
        super().on_header(name, value)
        if len(self.headers) > REQUEST_HEADERS:
            self._fail(_LARGE, _TOO_LARGE)

    def on_headers_complete(self) -> None:
        self._in_body, self._framing = True, 0
        self._stop_timer()
        if self._one_large_piece and self._size() > HEAD_BYTES:
            self._fail(_LARGE, _TOO_LARGE)
        version = self.parser.get_http_version()
        if version != "1.1":
            self._check_version(version)
        if self.parser.should_upgrade():
            self._offered = self.parser.get_method(), version
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._framing = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body, self._framing = False, 0
        if self._offered is None:
            super().on_message_complete()

    def _check_version(self, version: str) -> None:
        chunked = any(name == b"transfer-encoding" for name, _ in self.headers)
        if version != "1.0" or chunked:
            self._fail(_BROKEN, "HTTP/1.0 has no Transfer-Encoding" if chunked else _NO_HTTP)

    def _fail(self, status: int, why: str) -> None:
        """Ends the parser from within one of its callbacks."""
        self._error = status, why
        raise ValueError(why)

    def _size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    # ---- upgrades ----------------------------------------------------------------------------------------------------

    def _take_offer(self, rest: memoryview) -> list[bytes | memoryview]:
        """Continues after a head that offers an upgrade. Returns the pieces still to be parsed, the last first.

        The parser takes the bytes after such a head for another protocol's, a body too. So where the offer is ignored
        it reads the head once more, without the offer.
        """
        assert self._offered is not None
        method, version = self._offered
        self._offered = None
        websocket = version == "1.1" and b"websocket" in self._tokens(b"upgrade")
        if method == b"CONNECT":
            self._refuse(_NO_METHOD, "this server is no proxy")
        elif websocket and (method != b"GET" or self._has_body()):
            self._refuse(_BROKEN, _HANDSHAKE)
        elif websocket and self.ws_protocol_class is not None and self._running is None:
            self._open_websocket(bytes(rest))
        else:
            # This parser may have come to its end with a head that also says "close".
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            return [rest, self._head_without_offer(method, version)]
        return []

    def _head_without_offer(self, method: bytes, version: str) -> bytes:
        lines = [b"%b %b HTTP/%b" % (method, self.url, version.encode())]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _open_websocket(self, rest: bytes) -> None:
        """Hands the connection over to a WebSocket; `rest` are frames that came with the handshake."""
        self._stop_timer()
        self.connections.discard(self)
        make: Any = self.ws_protocol_class
        protocol = make(config=self.config, server_state=self.server_state, app_state=self.app_state)
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        protocol.open(self.url, self.headers, rest)

    def _tokens(self, header: bytes) -> set[bytes]:
        return {token.strip().lower() for name, value in self.headers if name == header for token in value.split(b",")}

    def _has_body(self) -> bool:
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0") != b"")
            for name, value in self.headers
        )

    # ---- what goes ---------------------------------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        if not cycle.keep_alive or cycle.waiting_for_100_continue or cycle.scope["method"] == "HEAD":
            app = self._adapt(app, cycle)
        super()._start_asgi_task(cycle, app)

    def _adapt(self, app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
        """Wraps `app` so that its answer has no body (HEAD), no chunks (HTTP/1.0), or ends its connection."""
        head, old = cycle.scope["method"] == "HEAD", cycle.scope["http_version"] == "1.0"
        cycle.waiting_for_100_continue = cycle.waiting_for_100_continue and not old
        unframed = False

        async def send(message: Any) -> None:
            nonlocal unframed
            if message["type"] == "http.response.start":
                # A client that waits for a 100 may send its body all the same, or another request in its place.
                cycle.keep_alive = cycle.keep_alive and not cycle.waiting_for_100_continue
                unframed = old and not any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
                cycle.chunked_encoding = False if unframed else None
            elif head and cycle.response_complete:
                return
            elif head:
                message = {"type": message["type"], "body": b""}
            elif unframed:
                cycle.expected_content_length = len(message.get("body", b""))
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self._let_linger(cycle)
            await cycle.send(message)

        async def adapted(scope: Scope, receive: Receive, _: Send) -> None:
            await app({**scope, "method": "GET"} if head else scope, receive, send)

        return adapted

    def _let_linger(self, cycle: RequestResponseCycle) -> None:
        """Closes the connection a while after its last answer, where the client may still be sending: closed at once,
        it would be reset, and the answer lost."""
        if not cycle.keep_alive and cycle.more_body:
            cycle.keep_alive = True
            self._lingers = True

    def on_response_complete(self) -> None:
        cycle, self._running = self._running, None
        super().on_response_complete()
        if self._lingers:
            self._refusal = _BROKEN, ""
            self._end()
        elif self._refusal and self._running is None:
            self._answer_refusal()
        elif cycle is self.cycle and self.cycle.more_body:
            self.loop.call_later(self.linger_s, self._close_unless_read, cycle)

    # ---- refusals ----------------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        self._refuse(*self._error)

    def _too_slow(self) -> None:
        self._timer = None
        if self._framing:
            self._refuse(_SLOW, f"the head of a request may take {self.head_s:g} s to arrive")
        else:
            self.transport.close()

    def _refuse(self, status: int, why: str) -> None:
        """Reads no more, and refuses after the answers to earlier requests."""
        self._refusal = status, why
        self._stop_timer()
        cycle = self.cycle
        if self._in_body and cycle is not None and cycle.more_body:
            if cycle.response_started:
                self.transport.close()  # a second answer cannot follow
                return
            self._abandon(cycle)
        if self._running is None:
            self._answer_refusal()

    def _abandon(self, cycle: RequestResponseCycle) -> None:
        """Ends a request whose body is refused."""
        if self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()
            return
        self._running = None
        cycle.disconnected = True
        cycle.message_event.set()

    def _answer_refusal(self) -> None:
        assert self._refusal is not None
        self.transport.write(_answer(*self._refusal))
        self._end()

    def _end(self) -> None:
        """Closes once the client has had time to read what was sent, and to stop sending."""
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        self.transport.write_eof()
        self.loop.call_later(self.linger_s, self.transport.close)

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
