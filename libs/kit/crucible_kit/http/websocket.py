"""A WebSocket: uvicorn's, whose handshake comes parsed from `connection`, and is refused as a problem document."""

from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from crucible_kit.http.asgi import STATUS, Rendered, status_problem

WRITABLE = "crucible.writable"
"""The extension of a socket's scope whose `wait()` returns once the client takes more: a sender of large messages waits
for it before it makes the next one."""
_HANDSHAKE = b"GET / HTTP/1.1\r\n\r\n"
_CLOSE_OFFSET = 4000
"""An app that closes a socket before it is open gives the HTTP status as a close code with this offset: 4404."""
_MAX_EARLY = 64 * 1024


class WebSocket(WebSocketsSansIOProtocol):
    """`open` starts it with a parsed handshake: the library's own parser has other limits than `connection`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _Handshakes(
            extensions=self.conn.available_extensions, max_size=self.config.ws_max_size, logger=self.conn.logger
        )
        self._request = Request("/", Headers())
        self._early = b""

    def open(self, target: bytes, headers: Iterable[tuple[bytes, bytes]], early: bytes) -> None:
        """Answers the handshake; `early` are frames that came with it."""
        found = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
        self._request = Request(target.decode("latin-1"), Headers(found))
        super().data_received(_HANDSHAKE)
        if early:
            self.data_received(early)

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(self._request)
        if hasattr(self, "scope"):
            self.scope["extensions"][WRITABLE] = {"wait": self.writable.wait}

    def data_received(self, data: bytes) -> None:
        """Holds back frames that come before the answer to the handshake."""
        if self.handshake_complete:
            super().data_received(data)
            return
        self._early += data
        if len(self._early) > _MAX_EARLY:
            self.transport.close()

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.close" and not self.handshake_complete:
            await self._refuse(message)
            return
        opening = not self.handshake_complete
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            # Else uvicorn would log that there was no answer.
            self.handshake_complete = not message.get("more_body", False)
        elif opening and self.handshake_complete and self._early:
            early, self._early = self._early, b""
            super().data_received(early)

    async def _refuse(self, message: Any) -> None:
        """Sends the rendered `refusal` in the app's message, or else the problem for its close code."""
        status, headers, body = message.get("refusal") or _refusal(message)
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self.send({"type": "websocket.http.response.start", "status": status, "headers": raw})
        await self.send({"type": "websocket.http.response.body", "body": body})


def _refusal(message: Any) -> Rendered:
    status = message.get("code", 0) - _CLOSE_OFFSET
    return status_problem(status if 400 <= status < 600 else STATUS["forbidden"], message.get("reason") or "")


class _Handshakes(ServerProtocol):
    """The library's handshake, with refusals as problem documents."""

    def reject(self, status: Any, text: str) -> Response:
        response = super().reject(status, "")
        lines = [line.rstrip(".") for line in text.splitlines() if line]
        _, headers, response.body = status_problem(int(status), lines[0] if lines else "")
        for name in ("Content-Type", "Content-Length"):
            del response.headers[name]
        response.headers["Content-Type"] = headers["Content-Type"]
        response.headers["Content-Length"] = str(len(response.body))
        return response
