"""CloudEvents in: what a producer sent, read leniently, as a `NewEvent`."""

import hashlib
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

import msgspec
from msgspec import Raw

from crucible_core.attributes import FIELDS, Extensions, Value, is_name, is_text, mistake
from crucible_core.decode import decode
from crucible_core.envelope import DEFAULT_ROOM, DEFAULT_WORLD, Source
from crucible_core.errors import CrucibleError, FieldError, InvalidError, MalformedError, TooLargeError
from crucible_core.ids import is_id
from crucible_core.limits import EVENT_BYTES
from crucible_core.protocol.events import NewEvent
from crucible_core.times import parse_time
from crucible_core.types.catalogue import CATALOGUE, Catalogue
from crucible_gateway.body.cloudevents import content
from crucible_gateway.body.cloudevents.content import Content, decode_headers
from crucible_kit.telemetry.spans import parse_traceparent

SENT_TYPE, SENT_TIME, SENT_WITHOUT = "crucibletype", "crucibletime", "cruciblewithout"
"""Extensions that keep how a foreign event came in, for the way out: its type, its time where that is finer than an
event's, and which attributes it did not have (`data`, `subject`) that its event has."""

OWN_SOURCE = "crucible:"
"""The beginning of a source of ours: `crucible:user:alice`."""
UNKNOWN = "unknown"
_REQUIRED = ("specversion", "id", "source", "type")
_OWN_SOURCE = re.compile(rf"{OWN_SOURCE}(user|agent|system|external):(.+)")
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]")
_FINER = re.compile(r"\.\d{6}\d*[1-9]")
"""Of a time with more than microseconds."""
_INTEGER = re.compile(r"-?(?:0|[1-9]\d{0,9})", re.ASCII)


class _Naming(msgspec.Struct):
    id: Any = None


def from_structured(raw: bytes, catalogue: Catalogue = CATALOGUE) -> NewEvent:
    """A CloudEvent in the JSON format. Raises TooLargeError, MalformedError, InvalidError."""
    if len(raw) > EVENT_BYTES:
        raise TooLargeError(f"the event has more than {EVENT_BYTES} bytes", max_bytes=EVENT_BYTES)
    members = decode(raw, dict[str, Raw], what="CloudEvent", deep=False)
    data, encoded = members.pop("data", None), members.pop("data_base64", None)
    # Only `data` may be null; an attribute or `data_base64` that is null is not there.
    attributes = {name: _value(name, value) for name, value in members.items() if bytes(value) != b"null"}
    kind = _media_type(attributes)
    if encoded is None or bytes(encoded) == b"null":
        return _event(attributes, content.from_member(kind, b"null" if data is None else bytes(data)), catalogue)
    if data is not None:
        raise InvalidError.field("data_base64", "stands in place of data, never beside it")
    return _event(attributes, content.from_base64(kind, _text_of("data_base64", encoded)), catalogue)


def from_binary(headers: Iterable[tuple[bytes, bytes]], body: bytes, catalogue: Catalogue = CATALOGUE) -> NewEvent:
    """Attributes are `ce-` headers, the body is the data, of which there may be none. Raises as `from_structured`."""
    headers = list(headers)
    attributes: dict[str, Value] = {**decode_headers(headers)}
    attributes.pop("datacontenttype", None)  # Content-Type says it
    kind = next((value.decode("latin-1").strip() for name, value in headers if name == b"content-type"), None)
    return _event(attributes, content.from_body(kind or None, body), catalogue)


def read_sized(raw: bytes, catalogue: Catalogue = CATALOGUE) -> tuple[int, NewEvent | CrucibleError]:
    """As `body.events.read_sized`, for an element of a batch."""
    try:
        return len(raw), from_structured(raw, catalogue)
    except CrucibleError as error:
        return len(raw), error.as_value()


# ---- attributes ------------------------------------------------------------------------------------------------------


def _event(attributes: dict[str, Value], data: Content, catalogue: Catalogue) -> NewEvent:
    """Takes the attributes that the envelope has a field for; the rest are the event's extensions."""
    _check(attributes)
    rest = dict(attributes)

    def take(name: str) -> str | None:
        """An attribute in its canonical string form; an empty one counts as none."""
        return canonical(rest.pop(name, "")) or None

    if take("specversion") != "1.0":
        raise InvalidError.field("specversion", "must be 1.0")
    id, source, type = (take(name) or "" for name in ("id", "source", "type"))
    subject, time, traceparent = take("subject"), take("time"), take("traceparent")
    if time is not None:
        parse_time(time, "time")
        if _FINER.search(time):
            rest[SENT_TIME] = time
    if parse_traceparent(traceparent) is None:
        traceparent = None
        rest.pop("tracestate", None)
    if rest.get("partitionkey") == subject:
        rest.pop("partitionkey", None)
    rest.pop("sequence", None)
    if take("crucibleredacted"):
        raise InvalidError.field("crucibleredacted", "a redacted event has no data; import it in Crucible's own form")
    own = is_id("evt", id)
    if not own:
        rest.setdefault("originalid", id)
    if data.kind is not None:
        rest["datacontenttype"] = data.kind
    dotted = resolve_type(type, catalogue)
    if dotted != type and is_foreign(type, dotted):
        rest[SENT_TYPE] = type
    foreign = not own or "originalid" in attributes
    if without := _absent_parts(data, subject, foreign):
        rest[SENT_WITHOUT] = without
    if data.wrapped and not dotted.startswith("Custom."):
        raise InvalidError.field(
            "data", f"must be a JSON object; only Custom.… events may hold other data, not {dotted[:100]}"
        )
    return NewEvent(
        type=dotted,
        payload=data.payload,
        id=id if own else None,
        idempotency_key=None if own else _idempotency_key(source, id),
        timestamp=time,
        version=take("crucibleversion"),
        source=_source(source),
        actor=_actor(take("authtype"), take("authid")),
        entity=subject,
        correlation_id=take("correlationid"),
        causation_id=take("causationid"),
        hop=_hop(take("cruciblehop")),
        world_id=take("worldid") or DEFAULT_WORLD,
        room_id=take("roomid") or DEFAULT_ROOM,
        traceparent=traceparent,
        extensions=_extensions(rest),
    )


def _check(attributes: dict[str, Value]) -> None:
    """Raises InvalidError with every attribute that is missing, misnamed or holds what none may."""
    errors = [FieldError(name, "required, but missing") for name in _REQUIRED if name not in attributes]
    for name, value in attributes.items():
        if name == "data":
            errors.append(FieldError(name, "is the body, not a header"))
        elif not is_name(name):
            message = "an attribute's name is lower-case letters and digits, at most 64"
            errors.append(FieldError(name[:200], message, _NOT_IN_NAMES.sub("", name.lower())[:64] or None))
        elif value == "" and name in _REQUIRED:
            errors.append(FieldError(name, "must not be empty"))
        elif name in FIELDS:
            if isinstance(value, str) and not is_text(value):
                errors.append(FieldError(name, "must have no control characters"))
        elif wrong := mistake(name, value):
            errors.append(FieldError(name, wrong))
    if errors:
        first = errors[0]
        asked = f' (did you mean "{first.suggestion}"?)' if first.suggestion else ""
        raise InvalidError(f"the CloudEvent is refused: {first.path}: {first.message}{asked}", errors=errors)


def _value(name: str, raw: Raw) -> Value:
    try:
        found: Value = msgspec.json.decode(raw, type=bool | int | str)
    except msgspec.ValidationError:
        raise InvalidError.field(name[:200], "must be a text, a whole number, true or false") from None
    except (msgspec.DecodeError, UnicodeError):
        raise MalformedError(f"the CloudEvent is not JSON: {name[:200]} cannot be read") from None
    return found


def _text_of(name: str, raw: Raw) -> str:
    found = _value(name, raw)
    if not isinstance(found, str):
        raise InvalidError.field(name, "must be a text")
    return found


def _media_type(attributes: dict[str, Value]) -> str | None:
    """Takes `datacontenttype` out of the attributes."""
    return canonical(attributes.pop("datacontenttype", "")).strip() or None


def canonical(value: Value) -> str:
    """An attribute's string form, the same in all formats and bindings."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _extensions(rest: dict[str, Value]) -> Extensions:
    return {name: value for name, value in rest.items() if value != ""}


def resolve_type(name: str, catalogue: Catalogue = CATALOGUE) -> str:
    """The type of the catalogue, by any of its names or as the end of another's (`com.example.Memory.Created`); else a
    custom one, but for what begins as ours do. Raises InvalidError for what no custom type may be called."""
    try:
        return catalogue.resolve(name)
    except InvalidError:
        if catalogue.is_own(name):
            return name  # `events` may know it, or else the nearest to it
    tail = ".".join(name.split(".")[-2:])
    return catalogue.resolve(tail if catalogue.has(tail) else f"Custom.{name}")


def is_foreign(name: str, dotted: str) -> bool:
    """True where the log keeps a type's name as it came beside its own. One of ours never is: whoever
    gives it to an event by its extensions would have that taken for ours."""
    return name.endswith(f".{dotted}") or (dotted == f"Custom.{name}" and resolve_type(name) == dotted)


def _absent_parts(data: Content, subject: str | None, foreign: bool) -> str:
    """An event of ours always has data; of a foreign one the payload may name what it is about."""
    named = foreign and subject is None and not data.absent and not data.wrapped and _names(data.payload)
    return " ".join([*(["data"] if data.absent else []), *(["subject"] if named else [])])


def _names(payload: Raw) -> bool:
    return isinstance(msgspec.json.decode(payload, type=_Naming).id, str)


def _source(source: str) -> Source:
    """The source of ours that `writer` wrote so, or a foreign one as it is."""
    if own := _OWN_SOURCE.fullmatch(source):
        kind: Any = own[1]
        return Source(kind, unquote(own[2]))
    return Source("external", source)


def _actor(kind: str | None, id: str | None) -> str | None:
    """Auth Context: `user` and `alice` are the actor `user:alice`."""
    if kind is None or kind == UNKNOWN or id is None:
        return id or (None if kind == UNKNOWN else kind)
    return f"{kind}:{id}"


def _hop(text: str | None) -> int:
    if text is None:
        return 0
    if not _INTEGER.fullmatch(text):
        raise InvalidError.field("cruciblehop", "must be a whole number")
    return int(text)


def _idempotency_key(source: str, id: str) -> str:
    """Source and id together name a CloudEvent."""
    return f"ce:{hashlib.sha256(chr(31).join((source, id)).encode('utf-8', 'replace')).hexdigest()[:48]}"
