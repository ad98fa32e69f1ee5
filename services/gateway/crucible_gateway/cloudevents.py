"""CloudEvents 1.0 (github.com/cloudevents/spec, HTTP protocol binding) as an adapter: theirs in, `NewEvent` out."""

import hashlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import msgspec
from msgspec import Raw

from crucible_core.catalogue import CATALOGUE
from crucible_core.decode import convert, decode
from crucible_core.envelope import DEFAULT_ROOM, DEFAULT_WORLD, MAX_EVENT_BYTES, Source
from crucible_core.errors import CrucibleError, FieldError, InvalidError, TooLargeError
from crucible_core.ids import is_id
from crucible_core.protocol.events import NewEvent
from crucible_kit.telemetry import parse_traceparent

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
_HEADER = "ce-"
_EMPTY = Raw(b"{}")


class CloudEvent(msgspec.Struct, kw_only=True):
    """The attributes that mean something here; other extensions are legal and skipped."""

    specversion: str
    id: str
    source: str
    type: str
    subject: str | None = None
    time: str | None = None
    datacontenttype: str | None = None
    data: Raw = msgspec.field(default_factory=Raw)
    data_base64: str | None = None
    traceparent: str | None = None
    correlationid: str | None = None
    causationid: str | None = None
    worldid: str | None = None
    roomid: str | None = None


def is_binary(headers: Mapping[str, str]) -> bool:
    return f"{_HEADER}specversion" in headers


def from_structured(raw: bytes) -> NewEvent:
    """Raises TooLargeError, MalformedError, InvalidError."""
    if len(raw) > MAX_EVENT_BYTES:
        raise TooLargeError(f"the event has more than {MAX_EVENT_BYTES} bytes", max_bytes=MAX_EVENT_BYTES)
    return _event(decode(raw, CloudEvent, what="CloudEvent"))


def from_binary(headers: Mapping[str, str], raw: bytes) -> NewEvent:
    """Attributes are `ce-` headers, percent-encoded; the body is the data, of which there may be none."""
    attributes: dict[str, Any] = {
        name[len(_HEADER) :]: unquote(value) for name, value in headers.items() if name.startswith(_HEADER)
    }
    attributes.pop("data", None)
    sent = convert(attributes, CloudEvent, what="CloudEvent")
    if raw.strip():
        sent.data, sent.datacontenttype = Raw(raw), headers.get("content-type")
    return _event(sent)


def taken(raw: bytes) -> tuple[int, NewEvent | CrucibleError]:
    """As `intake.taken`, for an element of a batch."""
    try:
        return len(raw), from_structured(raw)
    except CrucibleError as error:
        return len(raw), error


def _event(sent: CloudEvent) -> NewEvent:
    if sent.specversion != "1.0":
        raise _refused("specversion", "must be 1.0")
    if sent.data_base64 is not None:
        raise _refused("data_base64", "only JSON data is read here; put an object into data")
    if not _is_json(sent.datacontenttype):
        raise _refused("datacontenttype", "only JSON data is read here")
    for name in ("id", "source", "type"):
        if not getattr(sent, name):
            raise _refused(name, "must not be empty")
    own = is_id("evt", sent.id)
    return NewEvent(
        type=_type(sent.type),
        payload=sent.data if len(sent.data) else _EMPTY,
        id=sent.id if own else None,
        idempotency_key=None if own else _key(sent.source, sent.id),
        timestamp=sent.time,
        source=Source("external", sent.source),
        entity=sent.subject,
        correlation_id=sent.correlationid,
        causation_id=sent.causationid,
        world_id=sent.worldid or DEFAULT_WORLD,
        room_id=sent.roomid or DEFAULT_ROOM,
        traceparent=sent.traceparent if parse_traceparent(sent.traceparent) else None,
    )


def _type(name: str) -> str:
    """The type itself, or what is left of a reverse-DNS name such as `com.example.Memory.Created`."""
    for candidate in (name, ".".join(name.split(".")[-2:])):
        try:
            return CATALOGUE.resolve(candidate)
        except InvalidError:
            continue
    return name


def _is_json(content_type: str | None) -> bool:
    kind = (content_type or "application/json").partition(";")[0].strip().lower()
    return kind in ("application/json", "text/json") or kind.endswith("+json")


def _key(source: str, id: str) -> str:
    """Source and id together name a CloudEvent."""
    return f"ce:{hashlib.sha256(chr(31).join((source, id)).encode('utf-8', 'replace')).hexdigest()[:48]}"


def _refused(path: str, message: str) -> InvalidError:
    return InvalidError(f"{path}: {message}", errors=[FieldError(path, message)])
