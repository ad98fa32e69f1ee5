"""The HTTP action: one request through the egress guard; its answer is bounded, its redirects are not followed."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from crucible_core.definition import HttpAction
from crucible_core.errors import FieldError, InvalidError
from crucible_core.limits import ANSWER_BYTES
from crucible_core.times import parse_retry_after
from crucible_hooks.errors import RunError
from crucible_hooks.expressions.templates import Template, combine, compile_text, compile_value
from crucible_kit.clock import now_ms
from crucible_kit.http.egress import Target, parse_target
from crucible_kit.http.exchange import Answer, ExchangeError, Exchanger

_SHOWN = 300
_PARTIAL = 206
_USER_AGENT = "crucible-hooks/0.1"
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_FRAMING = frozenset(
    {"connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""The headers that direct and delimit a request, which are the service's own."""


class Http(msgspec.Struct, frozen=True):
    """`values` come to an object of `url`, `headers` and, where the hook gives one, `body`."""

    method: str
    values: Template


class Request(msgspec.Struct, frozen=True):
    method: str
    target: Target
    headers: Mapping[str, str]
    body: bytes | None

    @property
    def label(self) -> str:
        """Method and URL without what may be secret in it."""
        return f"{self.method} {self.target.url.with_query(None)}"[:_SHOWN]


def compile_http(action: HttpAction, at: str) -> Http:
    """Values inside a URL are percent-encoded, so that they stay in their part of it; a URL that is one template is
    taken as it is. Raises InvalidError."""
    where = f"{at}.url"
    if "{{" not in action.url:
        parse_target(action.url, where)
    elif not action.url.startswith(("http://", "https://", "{{")):
        raise InvalidError.field(where, "not an http or https URL")
    url = compile_text(action.url, where, lambda value: quote(value, safe=""))
    headers = {name: compile_text(text, f"{at}.headers.{name}") for name, text in action.headers.items()}
    if errors := _header_errors(action.headers, f"{at}.headers"):
        raise InvalidError(f"{errors[0].path}: {errors[0].message}", errors=errors)
    body = {} if action.body is None else {"body": compile_value(action.body, f"{at}.body")}
    return Http(action.method, combine({"url": url, "headers": combine(headers), **body}))


def build_request(
    http: Http, values: Mapping[str, Any], event: bytes, run_id: str, chain: Mapping[str, str]
) -> Request:
    """The request of one run, with the values of its templates; `event` is sent where the hook gives no body, and
    `chain` are the headers that tell of its causes. Raises RunError."""
    try:
        target = parse_target(values["url"])
    except InvalidError as error:
        raise RunError(error.detail) from None
    headers = {"content-type": "application/json", "idempotency-key": run_id, "user-agent": _USER_AGENT}
    headers |= {name.lower(): _one_line(value) for name, value in values["headers"].items()}
    headers |= {name.lower(): value for name, value in chain.items()}
    return Request(http.method, target, headers, _body(http, values, event))


async def send(exchanger: Exchanger, request: Request, timeout_s: float) -> bytes:
    """The answer's body. Raises RunError for any status but 2xx, for a part of an answer and for a larger one."""
    try:
        answer = await exchanger.send(request.method, request.target, request.headers, request.body, timeout_s)
    except ExchangeError as error:
        raise RunError(f"{request.label}: {error}") from None
    if not 200 <= answer.status < 300 or answer.status == _PARTIAL:
        said = answer.body.decode(errors="replace")[:_SHOWN]
        hint = "; redirects are not followed" if 300 <= answer.status < 400 else f": {said}"
        wish = parse_retry_after(answer.headers.get("retry-after"), now_ms() / 1000)
        raise RunError(f"{request.label} answered {answer.status}{hint}", wish or 0.0)
    return _whole(answer)


def _body(http: Http, values: Mapping[str, Any], event: bytes) -> bytes | None:
    if "body" not in values:
        return None if http.method == "GET" else event
    value = values["body"]
    return value.encode() if isinstance(value, str) else msgspec.json.encode(value)


def _whole(answer: Answer) -> bytes:
    if "content-encoding" in answer.headers:
        raise RunError("the answer is compressed in a way that was not asked for")
    if not answer.complete:
        raise RunError(f"the answer is larger than {ANSWER_BYTES // 1024} KiB")
    return answer.body


def decode_answer(body: bytes) -> Any:
    """The answer's JSON, or its text; None where it is empty."""
    if not body.strip():
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return body.decode(errors="replace")


def _header_errors(headers: Mapping[str, str], at: str) -> list[FieldError]:
    errors = [error for name in headers for error in _name_errors(name, at)]
    names = [name.lower() for name in headers]
    errors += [FieldError(f"{at}.{name}", "stands twice") for name in headers if names.count(name.lower()) > 1]
    broken = [name for name, text in headers.items() if _CONTROL.search(text.strip())]
    return errors + [FieldError(f"{at}.{name[:100]}", "its value has a control character") for name in broken]


def _name_errors(name: str, at: str) -> list[FieldError]:
    if not _NAME.fullmatch(name):
        return [FieldError(f"{at}.{name[:100]}", "is not a header's name")]
    if name.lower() in _FRAMING or name.lower().startswith("proxy-"):
        return [FieldError(f"{at}.{name}", "must not be set: it is the connection's")]
    return []


def _one_line(value: str) -> str:
    """The value on one line: a value from an event must not end a header and begin another (RFC 9110, 5.5)."""
    return _CONTROL.sub(" ", value).strip()
