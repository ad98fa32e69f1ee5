"""The OpenAPI 3.1 document, made of the handlers: each carries an `Operation` in its `opt`, beside its path."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from litestar import Litestar
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute

from crucible_core.envelope import Event
from crucible_core.errors import FieldError
from crucible_kit.asgi import PROBLEM_JSON, PROBLEM_TYPES, STATUS, TITLES, WAITING

from .params import NoParams, Params

_KEY = "operation"
_REF = "#/components/schemas/{name}"
_JSON = "application/json"
_EVERYWHERE = ("unauthenticated", "invalid", "unavailable")
_OF_WRITES = ("limited", "storage_full")
_OF_BODIES = ("malformed", "too_slow", "too_large", "unsupported", "invalid")


class Body(msgspec.Struct, frozen=True):
    """What may be sent as one media type. `schema` is a type, a tuple of alternatives, or a JSON Schema."""

    schema: Any
    example: Any = None


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """What a handler's route is for. `reply` is as `Body.schema`; None is an answer without a body. `instead` is when
    it is answered with 200 in place of `status`; `also` are other media types of the same answer."""

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
    also: Mapping[str, Body] = {}
    example: Any = None
    refusals: Sequence[str] = ()
    open: bool = False


class ProblemDocument(msgspec.Struct, kw_only=True):
    """RFC 9457; `hook` and `reason` where a hook denied an event."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError]
    correlation_id: str | None = None
    hook: str | None = None
    reason: str | None = None


def described(operation: Operation) -> dict[str, Any]:
    """A handler's `opt`."""
    return {_KEY: operation}


def openapi(app: Litestar, title: str, version: str, description: str) -> dict[str, Any]:
    """The document of every handler that is described."""
    found = sorted(operations(app), key=lambda entry: (entry[2].tag, entry[0]))
    schemas = _schemas([operation for *_, operation in found])
    paths: dict[str, dict[str, Any]] = {}
    for path, handler, operation in found:
        for method in handler.http_methods:
            paths.setdefault(path, {})[method.lower()] = _operation(path, handler, operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": description},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {code: _refusal(code) for code in STATUS},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
        "security": [{"bearer": []}, {"apiKey": []}],
    }


def operations(app: Litestar) -> Iterator[tuple[str, HTTPRouteHandler, Operation]]:
    """Path, handler and description of every described handler."""
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                if _KEY in handler.opt:
                    yield route.path_format, handler, handler.opt[_KEY]


def _operation(path: str, handler: HTTPRouteHandler, operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": handler.fn.__name__,
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": [*_path_parameters(path), *_query_parameters(operation.params), *_headers(operation.headers)],
        "responses": {str(operation.status): _reply(operation), **_instead(operation), **_refusals(handler, operation)},
    }
    if operation.description:
        described["description"] = operation.description
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
    schema = msgspec.json.schema_components([kind], ref_template=_REF)[1][kind.__name__]
    found = []
    for name, inner in schema["properties"].items():
        # A parameter is left out, never null.
        present = next(part for part in inner.get("anyOf", [inner]) if part.get("type") != "null")
        text = inner.pop("description", None) or present.pop("description", None)
        parameter = {"name": name, "in": "query", "required": False, "schema": present}
        found.append(parameter | ({"description": text} if text else {}))
    return found


def _headers(headers: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
        for name, text in headers.items()
    ]


def _reply(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {"description": operation.summary}
    if operation.reply is not None:
        described["content"] = {
            operation.reply_type: _content(operation.reply, operation.example),
            **{kind: _content(body.schema, body.example) for kind, body in operation.also.items()},
        }
    return described


def _instead(operation: Operation) -> dict[str, Any]:
    known = {"304": {"description": "The version in If-None-Match is still there"}}
    other = {"200": _reply(operation) | {"description": operation.instead}} if operation.instead else {}
    return other | (known if "If-None-Match" in operation.headers else {})


def _refusals(handler: HTTPRouteHandler, operation: Operation) -> dict[str, Any]:
    """What the operation says, and what its kind brings: a key, parameters that are read strictly, a body, a write."""
    codes = list(operation.refusals)
    if not operation.open:
        codes += _EVERYWHERE
        codes += () if "GET" in handler.http_methods else _OF_WRITES
    if operation.bodies:
        codes += _OF_BODIES
    found = {str(STATUS[code]): {"$ref": f"#/components/responses/{code}"} for code in codes}
    return dict(sorted(found.items()))


def _refusal(code: str) -> dict[str, Any]:
    example = {"type": PROBLEM_TYPES + code, "title": TITLES[code], "status": STATUS[code], "detail": "…", "errors": []}
    described = {"description": TITLES[code], "content": {PROBLEM_JSON: _content(ProblemDocument, example)}}
    if code not in WAITING:
        return described
    schema = {"type": "integer", "minimum": 1}
    return described | {"headers": {"Retry-After": {"description": "Seconds", "required": True, "schema": schema}}}


def _content(schema: Any, example: Any) -> dict[str, Any]:
    described = {"schema": _reference(schema)}
    return described | ({"example": example} if example is not None else {})


def _reference(kind: Any) -> dict[str, Any]:
    if isinstance(kind, dict):
        return kind
    if isinstance(kind, tuple):
        return {"anyOf": [_reference(alternative) for alternative in kind]}
    return msgspec.json.schema_components([kind], ref_template=_REF)[0][0]


def _schemas(operations: list[Operation]) -> dict[str, Any]:
    kinds = [kind for operation in operations for kind in (operation.reply, *_sent(operation)) if kind is not None]
    alternatives = [each for kind in kinds for each in (kind if isinstance(kind, tuple) else (kind,))]
    types = [kind for kind in alternatives if not isinstance(kind, dict)]
    _, found = msgspec.json.schema_components([Event, ProblemDocument, *types], ref_template=_REF)
    return _with_events(found)


def _sent(operation: Operation) -> list[Any]:
    return [body.schema for body in (*operation.bodies.values(), *operation.also.values())]


def _with_events(schemas: dict[str, Any]) -> dict[str, Any]:
    """Events pass through replies as they are stored, so that the Structs only say `Raw`."""
    event = {"$ref": _REF.format(name="Event")}
    for name, field, schema in (
        ("QueryReply", "events", {"type": "array", "items": event}),
        ("TraceNode", "event", event),
    ):
        if name in schemas:
            schemas[name]["properties"][field] = schema
    return schemas
