"""Routes that are answered without Litestar's way from a request to a response, which costs more than an append does.

They are Litestar's all the same: found by its router, behind its middleware and exception handlers, and described by
their handlers. Only what it would do for a handler that asks for nothing but the request is left out.
"""

from litestar import Request, Response
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send


class Plain(ASGIMiddleware):
    """The last middleware of a handler that takes the request alone and gives a response of bytes."""

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        response: Response[bytes] = await scope["route_handler"].fn(Request(scope, receive, send))
        body = response.content
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in response.headers.items()]
        headers += [(b"content-type", str(response.media_type).encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": response.status_code or 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})
