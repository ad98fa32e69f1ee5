"""The API's documentation: the OpenAPI document, and a page that shows it without any other server."""

import base64
import hashlib
import re
from importlib.metadata import version
from importlib.resources import files

import msgspec
from litestar import Litestar, Response, get

from crucible_gateway.bodies import JSON, Http
from crucible_gateway.openapi import Operation, described, openapi

TAG = "Operations"
_TITLE = "Crucible"
_DESCRIPTION = (
    "Memory and automation for agents and knowledge bases, on one durable event log. Errors are problem documents "
    "(RFC 9457); answers carry X-Correlation-Id."
)
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@get(
    "/openapi.json",
    opt=described(Operation(summary="This document", tag=TAG, reply={"type": "object"}, open=True)),
)
async def openapi_json(request: Http) -> Response[bytes]:
    state = request.app.state
    if "openapi" not in state:
        state.openapi = openapi_bytes(request.app)  # which takes long, and is always the same
    return Response(state.openapi, media_type=JSON)


def openapi_bytes(app: Litestar) -> bytes:
    return msgspec.json.encode(openapi(app, _TITLE, version("crucible-gateway"), _DESCRIPTION))


@get(
    "/docs",
    opt=described(
        Operation(
            summary="This document, to read", tag=TAG, reply={"type": "string"}, reply_type="text/html", open=True
        )
    ),
)
async def docs_page(request: Http) -> Response[str]:
    page = files("crucible_gateway").joinpath("reference.html").read_text("utf-8")
    return Response(page, media_type="text/html", headers={"Content-Security-Policy": content_policy(page)})


def content_policy(page: str) -> str:
    """Nothing but the page's own style and script, by their hashes, and requests to this server."""
    hashes = {kind: base64.b64encode(hashlib.sha256(text.encode()).digest()) for kind, text in _INLINE.findall(page)}
    return (
        "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        f"script-src 'sha256-{hashes['script'].decode()}'; style-src 'sha256-{hashes['style'].decode()}'"
    )
