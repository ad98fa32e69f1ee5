"""The HTTP action: one request, whose answer is bounded and whose redirects are not followed."""

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from crucible_core.errors import FieldError, InvalidError
from crucible_core.hooks import HttpAction

from .failures import RunError
from .templates import Context, Render, compile_text, compile_value

MAX_ANSWER = 256 * 1024
_SHOWN = 300
_USER_AGENT = "crucible-hooks/0.1"


class Http(msgspec.Struct, frozen=True):
    method: str
    url: Callable[[Context], str]
    headers: Mapping[str, Callable[[Context], str]]
    body: Render | None


def open_client() -> httpx.AsyncClient:
    """The client that all hooks share; each run has its own time-out."""
    limits = httpx.Limits(max_connections=200, max_keepalive_connections=20)
    return httpx.AsyncClient(timeout=None, limits=limits, follow_redirects=False, headers={"User-Agent": _USER_AGENT})


def compile_http(action: HttpAction, at: str) -> Http:
    """Values inside a URL are percent-encoded, so that they stay in their place of it; a URL that is one template is
    taken as it is. Raises InvalidError."""
    where = f"{at}.url"
    if not action.url.startswith(("http://", "https://", "{{")):
        raise InvalidError(f"{where}: not an http or https URL", errors=[FieldError(where, "not an http or https URL")])
    url = compile_text(action.url, where, lambda value: quote(value, safe=""))
    headers = {name: compile_text(text, f"{at}.headers.{name}") for name, text in action.headers.items()}
    body = None if action.body is None else compile_value(action.body, f"{at}.body")
    return Http(action.method, url, headers, body)


def build_request(http: Http, context: Context, event: bytes, run_id: str, traceparent: str) -> httpx.Request:
    """The request of one run; `event` is sent where the hook gives no body. Raises RunError."""
    url = http.url(context)
    if urlsplit(url).scheme not in ("http", "https"):
        raise RunError(f"not an http or https URL: {url[:_SHOWN]}")
    headers = {"Content-Type": "application/json", "Idempotency-Key": run_id, "traceparent": traceparent}
    headers |= {"Accept-Encoding": "identity"}
    own = {name: _one_line(render(context)) for name, render in http.headers.items()}
    try:
        merged = httpx.Headers(headers)
        merged.update(own)
        return httpx.Request(http.method, url, headers=merged, content=_body(http, context, event))
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        raise RunError(f"the request cannot be built: {error}") from None


async def send(client: httpx.AsyncClient, request: httpx.Request) -> Any:
    """The answer's JSON, or its text; None where it is empty. Raises RunError for any status but 2xx."""
    try:
        response = await client.send(request, stream=True)
        try:
            body = await _bounded(response)
        finally:
            await response.aclose()
    except httpx.HTTPError as error:
        raise RunError(f"{request.method} {_place(request)}: {error or type(error).__name__}") from None
    if not response.is_success:
        hint = "; redirects are not followed" if response.is_redirect else f": {body.decode(errors='replace')[:_SHOWN]}"
        raise RunError(f"{request.method} {_place(request)} answered {response.status_code}{hint}")
    return _decoded(body)


async def _bounded(response: httpx.Response) -> bytes:
    # Raw, so that a small compressed answer cannot become a large one in memory.
    if response.headers.get("content-encoding", "identity") != "identity":
        raise RunError("the answer is compressed, which was not asked for")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_ANSWER:
            raise RunError(f"the answer is larger than {MAX_ANSWER // 1024} KiB")
    return bytes(body)


def _body(http: Http, context: Context, event: bytes) -> bytes | None:
    if http.body is None:
        return None if http.method == "GET" else event
    value = http.body(context)
    return value.encode() if isinstance(value, str) else msgspec.json.encode(value)


def _decoded(body: bytes) -> Any:
    if not body.strip():
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return body.decode(errors="replace")


def _place(request: httpx.Request) -> str:
    """The URL without what may be secret in it."""
    return str(request.url.copy_with(query=None, fragment=None, userinfo=b""))[:_SHOWN]


def _one_line(value: str) -> str:
    return value.replace("\r", " ").replace("\n", " ").strip()
