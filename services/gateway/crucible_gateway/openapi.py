"""The OpenAPI 3.1 document, made of the handlers: each carries an `Operation` in its `opt`, beside its path."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from litestar import Litestar
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute

from crucible_core.errors import FieldError
from crucible_gateway.params import NoParams, Params
from crucible_gateway.schemas import Schema, components, schema_of, struct_types, tidy
from crucible_kit.http.asgi import PROBLEM_JSON, PROBLEM_TYPES, STATUS, TITLES, WAITING

_KEY = "operation"
_JSON = "application/json"
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
"""In the order of the document; HEAD answers wherever GET does."""
TAGS: Mapping[str, str] = {
    "Events": "The log: append, query, follow and export events.",
    "Event types": "The catalogue of event types, and what users add to it.",
    "Replays": "Events of the log, handed to one handler again.",
    "Hooks": "They decide on events before the commit, and react to them afterwards.",
    "Webhooks": "Deliveries of events to other systems.",
    "Memory": "Memories: keep, change, find.",
    "Worlds": "Worlds and their rooms: the places of events.",
    "Retention": "The rules that say how long events are kept.",
    "Operations": "No key is needed: health, metrics, and this description.",
}
_HEADERS: Mapping[str, Schema] = {
    "Correlation": {
        "description": "The correlation id of the request; an event that is sent alone shares it",
        "schema": {"type": "string"},
    },
    "ETag": {"description": "The version, for If-Match and If-None-Match", "schema": {"type": "string"}},
    "RetryAfter": {"description": "Seconds to wait", "schema": {"type": "integer", "minimum": 1}},
}
_EVERYWHERE = ("unauthenticated", "forbidden", "invalid", "unavailable")
_OF_WRITES = ("limited", "storage_full")
_OF_BODIES = ("malformed", "too_slow", "too_large", "unsupported", "invalid")


class Body(msgspec.Struct, frozen=True):
    """A body that may be sent, or answered, as one media type. `schema` is a type or a JSON Schema; an `open` one may
    have other fields than it says."""

    schema: Any
    example: Any = None
    open: bool = False


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """The purpose of a handler's route. `reply` is as `Body.schema`; None is an answer without a body. `instead` is
    when it is answered with 200 in place of `status`. `versioned` answers carry an ETag."""

    summary: str
    tag: str
    description: str = ""
    status: int = 200
    instead: str = ""
    params: type[Params] = NoParams
    headers: Mapping[str, str] = {}
    bodies: Mapping[str, Body] = {}
    body_required: bool = True
    reply: Any = None
    reply_type: str = _JSON
    example: Any = None
    errors: Sequence[str] = ()
    versioned: bool = False
    open: bool = False


class ProblemDocument(msgspec.Struct, kw_only=True, omit_defaults=True):
    """RFC 9457; `hook` and `reason` where a hook denied an event."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError]
    correlation_id: str | None = None
    hook: str | None = None
    reason: str | None = None


def openapi(app: Litestar, title: str, version: str, description: str) -> dict[str, Any]:
    """The document of every handler that is described; the same bytes for the same handlers."""
    found = sorted(operations(app), key=lambda entry: (list(TAGS).index(entry[3].tag), entry[0], entry[1]))
    paths: dict[str, dict[str, Any]] = {}
    for path, method, handler, operation in found:
        paths.setdefault(path, {})[_METHODS[method].lower()] = _operation(path, _METHODS[method], handler, operation)
    used = {code for _, method, _, operation in found for code in _codes(_METHODS[method], operation)}
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": description},
        "servers": [{"url": "/", "description": "The gateway that this document came from"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": _schemas([operation for *_, operation in found]),
            "headers": dict(_HEADERS),
            "responses": {code: _error_response(code) for code in STATUS if code in used},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key"},
            },
        },
        "security": [{"bearer": []}, {"apiKey": []}],
    }


def operations(app: Litestar) -> Iterator[tuple[str, int, HTTPRouteHandler, Operation]]:
    """Path, method (its index in the order), handler and description of every described handler."""
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                if _KEY in handler.opt:
                    for method in handler.http_methods & set(_METHODS):
                        yield route.path_format, _METHODS.index(method), handler, handler.opt[_KEY]


def _operation(path: str, method: str, handler: HTTPRouteHandler, operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": handler.fn.__name__,
        "summary": operation.summary,
        "description": operation.description or f"{operation.summary}.",
        "tags": [operation.tag],
        "parameters": [*_path_parameters(path), *_query_parameters(operation.params), *_headers(operation.headers)],
        "responses": {
            str(operation.status): _reply(operation),
            **_other_statuses(operation),
            **_error_responses(method, operation),
        },
    }
    if operation.bodies:
        content = {kind: _content(body.schema, body.example) for kind, body in operation.bodies.items()}
        described["requestBody"] = {"required": operation.body_required, "content": content}
    if operation.open:
        described["security"] = []
    return described


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _query_parameters(kind: type[Params]) -> list[dict[str, Any]]:
    schema = msgspec.json.schema_components([kind])[1][kind.__name__]
    found = []
    for name, inner in schema["properties"].items():
        # A parameter is left out, never null.
        present = tidy(next(part for part in inner.get("anyOf", [inner]) if part.get("type") != "null"), name)
        text = inner.get("description") or present.pop("description", None)
        parameter = {"name": name, "in": "query", "required": False, "schema": present}
        found.append(parameter | ({"description": text} if text else {}))
    return found


def _headers(headers: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
        for name, text in headers.items()
    ]


def _reply(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {"description": operation.summary, "headers": _reply_headers(operation)}
    if operation.reply is not None:
        described["content"] = {operation.reply_type: _content(operation.reply, _complete_example(operation))}
    return described


def _complete_example(operation: Operation) -> Any:
    """The example as the answer is written: with the fields that it has by default."""
    if operation.example is None or isinstance(operation.reply, dict):
        return operation.example
    answered = msgspec.json.decode(msgspec.json.encode(operation.example), type=operation.reply)
    return msgspec.json.decode(msgspec.json.encode(answered))


def _reply_headers(operation: Operation) -> dict[str, Any]:
    found = {"X-Correlation-Id": "Correlation"} | ({"ETag": "ETag"} if operation.versioned else {})
    return {name: {"$ref": f"#/components/headers/{header}"} for name, header in found.items()}


def _other_statuses(operation: Operation) -> dict[str, Any]:
    known = {"304": {"description": "The version in If-None-Match is still there"}}
    other = {"200": _reply(operation) | {"description": operation.instead}} if operation.instead else {}
    return other | (known if "If-None-Match" in operation.headers else {})


def _codes(method: str, operation: Operation) -> list[str]:
    """The codes of an operation, and those of its kind: a key, strict parameters, a body, a write."""
    codes = [*operation.errors]
    if not operation.open:
        codes += _EVERYWHERE
        codes += () if method == "GET" else _OF_WRITES
    if operation.bodies:
        codes += _OF_BODIES
    return codes


def _error_responses(method: str, operation: Operation) -> dict[str, Any]:
    codes = _codes(method, operation)
    found = {str(STATUS[code]): {"$ref": f"#/components/responses/{code}"} for code in codes}
    return dict(sorted(found.items()))


def _error_response(code: str) -> dict[str, Any]:
    example = {"type": PROBLEM_TYPES + code, "title": TITLES[code], "status": STATUS[code], "detail": "…", "errors": []}
    headers = {"X-Correlation-Id": "Correlation"} | ({"Retry-After": "RetryAfter"} if code in WAITING else {})
    return {
        "description": TITLES[code],
        "headers": {name: {"$ref": f"#/components/headers/{header}"} for name, header in headers.items()},
        "content": {PROBLEM_JSON: _content(ProblemDocument, example)},
    }


def _content(schema: Any, example: Any) -> dict[str, Any]:
    described = {"schema": schema_of(schema)}
    return described | ({"example": example} if example is not None else {})


def _schemas(operations: list[Operation]) -> dict[str, Any]:
    bodies = [body for operation in operations for body in operation.bodies.values()]
    answered = [*(operation.reply for operation in operations), ProblemDocument]
    sent = [body.schema for body in bodies if not body.open]
    free = [body.schema for body in bodies if body.open]
    return components(*([each for kind in kinds for each in struct_types(kind)] for kinds in (answered, sent, free)))
