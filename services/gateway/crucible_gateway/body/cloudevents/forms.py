"""The forms in which a CloudEvent travels over HTTP, and how a request shows or asks for one."""

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal

import msgspec

from crucible_core.errors import CrucibleError, NotAcceptableError, Problem, UnsupportedError
from crucible_core.protocol.events import AppendReply, AppendRequest
from crucible_gateway.accept import preferred

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
PREFIX = "application/cloudevents"
_BINARY = "mode=binary"
_REQUIRED = frozenset({b"ce-specversion", b"ce-id", b"ce-source", b"ce-type"})

Form = Literal["native", "structured", "batch", "binary"]

_ONE: tuple[tuple[str, Form], ...] = (
    ("application/json", "native"),
    (STRUCTURED, "structured"),
    (PREFIX, "structured"),
    (BATCH, "batch"),
    (f"{STRUCTURED};{_BINARY}", "binary"),
    (f"{PREFIX};{_BINARY}", "binary"),
)
_MANY: tuple[tuple[str, Form], ...] = (
    ("application/json", "native"),
    (BATCH, "batch"),
    (STRUCTURED, "batch"),
    (PREFIX, "batch"),
)
Append = Callable[[AppendRequest], Awaitable[AppendReply]]
_PATH = re.compile(r"(events\.\d+\.)?(.*)", re.DOTALL)
_ATTRIBUTES = {
    "payload": "data",
    "timestamp": "time",
    "version": "crucibleversion",
    "source.id": "source",
    "actor": "authid",
    "correlation_id": "correlationid",
    "causation_id": "causationid",
    "hop": "cruciblehop",
    "world_id": "worldid",
    "room_id": "roomid",
    "entity": "subject",
    "idempotency_key": "id",
    "originalid": "id",
}


class CloudEvent(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A CloudEvent in the JSON format; extension attributes stand beside these."""

    specversion: Literal["1.0"]
    id: str
    source: str
    type: str
    subject: str | None = None
    time: str | None = None
    datacontenttype: str | None = None
    dataschema: str | None = None
    data: Any = None
    data_base64: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    correlationid: str | None = None
    causationid: str | None = None
    sequence: str | None = None
    partitionkey: str | None = None
    authtype: str | None = None
    authid: str | None = None
    worldid: str | None = None
    roomid: str | None = None


def form_of(kind: str, headers: Iterable[tuple[bytes, bytes]]) -> Form:
    """The form of a request with this media type. Raises UnsupportedError for an event format that is not read here."""
    if kind == BATCH:
        return "batch"
    if kind == STRUCTURED:
        return "structured"
    if kind.startswith(PREFIX):
        raise UnsupportedError(f"{kind[:100]} is not read here; send {STRUCTURED} or {BATCH}")
    return "binary" if any(name in _REQUIRED for name, _ in headers) else "native"


def negotiate_event(accept: str | None) -> Form:
    """The form of an answer that is one event. Raises NotAcceptableError."""
    return _negotiate(accept, _ONE)


def negotiate_events(accept: str | None) -> Form:
    """The form of an answer with any number of events: native or a batch. Raises NotAcceptableError."""
    return _negotiate(accept, _MANY)


def _negotiate(accept: str | None, offers: tuple[tuple[str, Form], ...]) -> Form:
    found = preferred(accept, [name for name, _ in offers])
    if found is not None:
        return dict(offers)[found]
    # Other routes do not look at Accept; only who wants a CloudEvent cannot make use of our own form.
    if accept and PREFIX in accept.lower():
        raise NotAcceptableError("this can be had as " + ", ".join(name for name, _ in offers))
    return "native"


def name_attributes(append: Append) -> Append:
    """`append`, whose refusals name attributes."""

    async def append_renamed(request: AppendRequest) -> AppendReply:
        try:
            reply = await append(request)
        except CrucibleError as error:
            if not error.errors:
                raise
            problem = _rename_fields(error.problem())
            raise type(error)(problem.detail, errors=problem.errors, **error.extra) from None
        for result in reply.results:
            if result.error is not None:
                result.error = _rename_fields(result.error)
        return reply

    return append_renamed


def _rename_fields(problem: Problem) -> Problem:
    detail, errors = problem.detail, []
    for error in problem.errors:
        path = _attribute(error.path)
        detail = detail.replace(f"{error.path}: ", f"{path}: ")
        errors.append(msgspec.structs.replace(error, path=path))
    return msgspec.structs.replace(problem, detail=detail, errors=tuple(errors))


def _attribute(path: str) -> str:
    found = _PATH.fullmatch(path)
    assert found is not None
    index, inner = found[1] or "", found[2].removeprefix("extensions.")
    for field, attribute in _ATTRIBUTES.items():
        if inner == field or inner.startswith(f"{field}."):
            return f"{index}{attribute}{inner.removeprefix(field)}"
    return index + inner
