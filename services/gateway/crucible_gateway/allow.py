"""The Allow header: for OPTIONS, Litestar's own names the methods of a path's first handler only; for 405, it counts a
WebSocket as a method. HEAD is answered by the server wherever GET is."""

from litestar.datastructures import MutableScopeHeaders
from litestar.types import Message, Scope

_NOT_ALLOWED = 405


async def show_methods(message: Message, scope: Scope) -> None:
    """A `before_send` hook."""
    if message["type"] != "http.response.start":
        return
    if scope.get("method") == "OPTIONS" or message["status"] == _NOT_ALLOWED:
        headers = MutableScopeHeaders.from_message(message)
        template = scope.get("path_template")
        routes = [route for route in scope["litestar_app"].routes if route.path_format == template]
        methods = {method for route in routes for method in getattr(route, "methods", ())}
        known = methods or {method.strip() for method in headers.get("Allow", "").split(",")}
        if "GET" in known:
            known.add("HEAD")
        if allowed := sorted(method for method in known if method.isupper()):
            headers["Allow"] = ", ".join(allowed)
