"""The Allow header of answers to OPTIONS: Litestar's own names the methods of a path's first handler only."""

from litestar.datastructures import MutableScopeHeaders
from litestar.types import Message, Scope

_OPTIONS = "OPTIONS"


async def show_methods(message: Message, scope: Scope) -> None:
    """A `before_send` hook."""
    if message["type"] == "http.response.start" and scope.get("method") == _OPTIONS:
        template = scope.get("path_template")
        routes = [route for route in scope["litestar_app"].routes if route.path_format == template]
        methods = sorted({method for route in routes for method in getattr(route, "methods", ())})
        MutableScopeHeaders.from_message(message)["Allow"] = ", ".join(methods)
