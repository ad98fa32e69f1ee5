"""Answers: bytes that a service gave, or a Struct, as JSON."""

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from typing import Any

import msgspec
from litestar import Litestar, Request, Response
from litestar.plugins import PluginProtocol
from litestar.plugins.core import MsgspecDIPlugin
from litestar.types import LifeSpanReceive, LifeSpanScope, LifeSpanSend, Receive, Scope, Send

from crucible_gateway.auth import Keys
from crucible_gateway.body.body import JSON
from crucible_gateway.correlation import HEADER, correlation_of
from crucible_gateway.middleware import Counting, Observing, status_of
from crucible_gateway.problems import refusal
from crucible_kit.http.asgi import Rendered


def passed(
    raw: bytes, status: int = 200, headers: dict[str, str] | None = None, media_type: str = JSON
) -> Response[bytes]:
    """A service's reply as it is."""
    return Response(raw, status_code=status, headers=headers, media_type=media_type)


def encoded(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response[bytes]:
    return passed(msgspec.json.encode(value), status, headers)


Plain = Callable[[Request[Any, Any, Any]], Awaitable[Rendered]]


class PlainRequest(Request[Any, Any, Any]):
    """Its headers are a dict, made once: the first of each name."""

    @cached_property
    def headers(self) -> Mapping[str, str]:  # type: ignore[override]
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed([*self.scope["headers"]])}


class Door(Litestar):
    """Litestar, but for POST to the paths of `plain` handlers. Those are authenticated, observed, counted and refused
    as all others are; Litestar has routes for them too, by which it describes them, and answers what is written
    otherwise."""

    plain: Mapping[str, Plain]
    observing: Observing
    counting: Counting

    @staticmethod
    def _get_default_plugins(plugins: list[PluginProtocol]) -> list[PluginProtocol]:
        """None for whatever else is installed: pydantic, which only the CLI needs, would cost 7 MB and a third of a
        second."""
        return [*plugins, MsgspecDIPlugin()]

    async def __call__(
        self, scope: Scope | LifeSpanScope, receive: Receive | LifeSpanReceive, send: Send | LifeSpanSend
    ) -> None:
        asked: Any = scope
        plain = self.plain.get(asked["path"]) if asked["type"] == "http" and asked["method"] == "POST" else None
        if plain is None:
            await super().__call__(scope, receive, send)
        else:
            await self._answer(plain, asked, receive, send)  # type: ignore[arg-type]

    async def _answer(self, plain: Plain, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = scope["litestar_app"] = self
        scope["path_template"] = scope["path"]
        scope.setdefault("state", {})
        started = time.perf_counter()
        with self.observing.span(scope) as span:
            try:
                request = PlainRequest(scope, receive, send)
                keys: Keys = self.state.gateway.keys
                scope["user"] = keys.authenticate(request.headers)
                status, fields, body = await plain(request)
            except Exception as error:
                self.observing.answered(scope, span, status_of(error), started)
                status, fields, body = refusal(error, scope)
            else:
                self.observing.answered(scope, span, status, started)
        self.counting.count(scope, status)
        fields = {**fields, HEADER: correlation_of(scope), "Content-Length": str(len(body))}
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})
