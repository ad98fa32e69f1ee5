"""The forms in which a CloudEvent travels over HTTP, and how a request shows or asks for one."""

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from crucible_core.errors import NotAcceptableError, UnsupportedError
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


def asked_for_one(accept: str | None) -> Form:
    """The form of an answer that is one event. Raises NotAcceptableError."""
    return _asked(accept, _ONE)


def asked_for_many(accept: str | None) -> Form:
    """The form of an answer with any number of events: native or a batch. Raises NotAcceptableError."""
    return _asked(accept, _MANY)


def _asked(accept: str | None, offers: tuple[tuple[str, Form], ...]) -> Form:
    found = preferred(accept, [name for name, _ in offers])
    if found is not None:
        return dict(offers)[found]
    # Other routes do not look at Accept; only who wants a CloudEvent cannot make use of our own form.
    if accept and PREFIX in accept.lower():
        raise NotAcceptableError("this can be had as " + ", ".join(name for name, _ in offers))
    return "native"
