"""Stamping: a requested event becomes the event to commit, its names and payload checked, its metadata filled in."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from crucible_core.access import service_principal
from crucible_core.attributes import Extensions, is_kept, mistake
from crucible_core.envelope import Data, Event, Metadata, Source, SourceKind, encode
from crucible_core.errors import FieldError, ForbiddenError, InvalidError, TooLargeError
from crucible_core.ids import is_after, is_id
from crucible_core.limits import (
    ENTITY_CHARS,
    EVENT_BYTES,
    EXTENSIONS,
    HOPS,
    MEMORY_PATHS,
    NAME_CHARS,
    SOURCE_CHARS,
    TIME_AHEAD_S,
)
from crucible_core.protocol.events import NewEvent
from crucible_core.redaction import checked_empty
from crucible_core.subjects import KEY, MSG_ID, VERSIONED
from crucible_core.times import format_time, parse_time
from crucible_core.types.kinds import BUILT_IN
from crucible_core.types.payloads import CATEGORIES, OURS
from crucible_events.append.validation import Payloads
from crucible_kit.telemetry.spans import parse_traceparent

SYSTEM = Source("system", "crucible")
EVENTS = service_principal("events")
"""The principal of this service's own requests."""

# By category, the payload fields that may name the entity; the first one with a text counts.
ENTITY_FIELDS = {
    "Memory": ("id", "from", "summary_id"),
    "Graph": ("id",),
    "File": ("path", "to"),
    "Agent": ("agent_id", "id"),
    "Flow": ("id", "name"),
    "Hook": ("hook",),
    "Webhook": ("id",),
    "Approval": ("id",),
    "Artifact": ("id",),
    "Session": ("session_id", "id"),
    "Task": ("id",),
    "Kb": ("kb", "id"),
    "Custom": ("id",),
}
_NAMING: dict[str, msgspec.json.Decoder[msgspec.Struct]] = {
    category: msgspec.json.Decoder(
        msgspec.defstruct("Naming", [(f"{name}_", Any, None) for name in fields], rename=lambda name: name[:-1])
    )
    for category, fields in ENTITY_FIELDS.items()
}
"""They skip over all other fields of a payload."""

_SOURCE_KINDS: tuple[SourceKind, ...] = ("user", "agent", "system", "external")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_VERSION = re.compile(r"\d{1,9}\.\d{1,9}\.\d{1,9}(?:[-+][0-9A-Za-z.+-]{1,64})?", re.ASCII)


class _Moments(msgspec.Struct):
    """The times that a built-in type's payload may have: RFC 3339 or Unix seconds."""

    at: Any = None
    started_at: Any = None
    since: Any = None


_moments = msgspec.json.Decoder(_Moments)
_MOMENT_NAMES = tuple(f'"{name}"'.encode() for name in _Moments.__struct_fields__)


class Defaults(msgspec.Struct, frozen=True):
    """Values for the metadata that an event comes without."""

    id: str
    timestamp: str
    correlation_id: str
    traceparent: str | None = None


class Stamped(msgspec.Struct, frozen=True):
    """An event, its stored form, and its `message_id` in JetStream: the id from the client, else `key`, the hash of its
    idempotency key (see `key_of`), else a fresh id. With `may_repeat`, the log may have it already. The event's payload
    is `msgspec.Raw`."""

    event: Event
    raw: bytes
    message_id: str
    may_repeat: bool
    key: str | None = None
    expected_sequence: int | None = None
    forever: bool = False


class HopsError(InvalidError):
    """The chain of effects is too deep."""


def stamp(new: NewEvent, defaults: Defaults, payloads: Payloads, most: int = EVENT_BYTES) -> Stamped:
    """The event to commit; `most` is the limit of its stored bytes.

    Raises InvalidError with every mistake in the envelope, or the payload's; MalformedError and TooLargeError; and
    UnknownTypeError for a type or version that `payloads` does not have; ForbiddenError for one that only Crucible
    writes.
    """
    if len(new.payload) > most:
        raise _too_large(most)
    dotted = payloads.resolve(new)
    if new.outside and new.react:
        _check_writer(dotted)
    if mistakes := _field_errors(new) + _future_times(new, defaults):
        raise _invalid(mistakes)
    if new.hop > HOPS:
        message = f"{new.hop} effects deep; chains end at {HOPS}"
        raise HopsError.field("hop", message)
    payload, value = bytes(new.payload), None
    if new.redacted is None:
        version, payload, value = payloads.check(dotted, new.version, payload)
        _check_moments(dotted, payload, defaults)
    else:
        checked_empty(payload)
        version = new.version or BUILT_IN
    category, _, name = dotted.partition(".")
    named = _entity_texts(category, payload, value)
    usable = [text for _, text in named if _is_name(text, ENTITY_CHARS)]
    metadata = _metadata(new, defaults, version, usable[0] if usable else None)
    data = Data(name, msgspec.Raw(one_line(payload)))
    event = Event(category, data, metadata, redacted=new.redacted or msgspec.UNSET)
    if category in VERSIONED and named:
        _check_entity(event, *named[0], defaults)
    _check_expectation(new, event)
    raw = encode(event)
    if len(raw) > most:
        raise _too_large(most)
    key = key_of(new, event)
    return Stamped(
        event=event,
        raw=raw,
        message_id=event.metadata.id if new.id is not None or key is None else key,
        may_repeat=new.id is not None or key is not None,
        key=key,
        expected_sequence=new.expected_sequence,
        forever=new.retention == "forever",
    )


def _check_writer(dotted: str) -> None:
    """Raises ForbiddenError for an event that reports an act of Crucible itself."""
    category = dotted.partition(".")[0]
    if category in OURS:
        message = f"{category} events are written by Crucible alone; an import (?react=false) may bring them back"
        raise ForbiddenError.field("type", message)


def key_of(new: NewEvent, event: Event) -> str | None:
    if new.idempotency_key is None:
        return None
    return scoped_key(new.idempotency_key, event.metadata.actor, event.metadata.world_id)


def scoped_key(key: str, actor: str, world_id: str) -> str:
    """The hash that stands for an idempotency key, of one actor in one world."""
    return f"key:{hashlib.sha256(chr(31).join([actor, world_id, key]).encode()).hexdigest()}"


def stored_key(headers: Mapping[str, str]) -> str | None:
    """The hash of a stored event's idempotency key; where it has none, its id."""
    return headers.get(KEY) or headers.get(MSG_ID)


def one_line(payload: bytes) -> bytes:
    """The payload without line breaks, so that a stored event is one line wherever lines matter (NDJSON, SSE)."""
    if b"\n" in payload or b"\r" in payload:
        return msgspec.json.format(payload, indent=-1)
    return payload


def identify(source: Source | None, actor: str | None) -> tuple[Source, str]:
    """Source and actor, each from the other where only one is known; Crucible itself where none is."""
    if source is None and actor is None:
        source = SYSTEM
    if source is None:
        assert actor is not None
        kind, _, rest = actor.partition(":")
        known = next((name for name in _SOURCE_KINDS if name == kind), None)
        source = Source(known, rest) if known and rest else Source("external", actor)
    return source, actor if actor is not None else f"{source.kind}:{source.id}"


def _metadata(new: NewEvent, defaults: Defaults, version: str, entity: str | None) -> Metadata:
    source, actor = identify(new.source, new.actor)
    timestamp = defaults.timestamp if new.timestamp is None else format_time(parse_time(new.timestamp, "timestamp"))
    return Metadata(
        id=new.id or defaults.id,
        timestamp=timestamp,
        version=version,
        source=source,
        actor=actor,
        correlation_id=new.correlation_id or defaults.correlation_id,
        causation_id=new.causation_id,
        hop=new.hop,
        world_id=new.world_id,
        room_id=new.room_id,
        entity=new.entity or entity,
        traceparent=new.traceparent if parse_traceparent(new.traceparent) else defaults.traceparent,
        extensions=new.extensions or msgspec.UNSET,
    )


def _entity_texts(category: str, payload: bytes, value: Any) -> list[tuple[str, str]]:
    """The fields that may name the event's entity, and their texts; the first valid name is the entity. `value` is the
    decoded payload, None for a redacted event."""
    known = category if category in CATEGORIES else "Custom"
    fields = ENTITY_FIELDS.get(known)
    if fields is None or value is None:
        return []
    if type(value) is dict:
        return [(field, text) for field in fields if isinstance(text := value.get(field), str)]
    # A Struct holds only the fields that its type declares.
    texts = msgspec.structs.astuple(_NAMING[known].decode(payload))
    return [(field, text) for field, text in zip(fields, texts, strict=True) if isinstance(text, str)]


def _check_entity(event: Event, field: str, name: str, defaults: Defaults) -> None:
    """An event of a versioned entity must have the entity's subject, where its version is checked and it is found.
    `field` of the payload has its `name`. Raises InvalidError."""
    if event.data.event == "Created" and is_after(name, _latest(defaults) // 1000):
        raise _invalid([_ahead(f"payload.{field}", defaults)])
    unreadable = event.type == "Memory" and ("/" in name or name in MEMORY_PATHS)
    if not _is_name(name, ENTITY_CHARS) or not name.strip(".") or unreadable:
        message = "is a part of a URL's path: no control characters, no slash, not only dots, and not query or status"
        raise _invalid([FieldError(f"payload.{field}", message)])
    if event.metadata.entity != name:
        message = f"must be what the payload names in `{field}`"
        raise _invalid([FieldError("entity", message, name)])


# ---- checks ----------------------------------------------------------------------------------------------------------

_NAMES = (
    ("actor", NAME_CHARS),
    ("source.id", SOURCE_CHARS),
    ("correlation_id", NAME_CHARS),
    ("causation_id", NAME_CHARS),
    ("world_id", NAME_CHARS),
    ("room_id", NAME_CHARS),
    ("idempotency_key", NAME_CHARS),
    ("entity", ENTITY_CHARS),
)
"""Paths of an event, in the order of `_field_errors`, and the most characters of each."""


def _field_errors(new: NewEvent) -> list[FieldError]:
    found: list[FieldError] = []
    if new.id is not None and not is_id("evt", new.id):
        found.append(FieldError("id", "an event's id is evt_ and up to 64 letters, digits, _ or -"))
    names = (
        new.actor,
        new.source.id if new.source else None,
        new.correlation_id,
        new.causation_id,
        new.world_id,
        new.room_id,
        new.idempotency_key,
        new.entity,
    )
    present = [name for name in names if name is not None]
    together = "".join(present)
    in_order = len(together) <= NAME_CHARS and together.isprintable() and all(present)  # as nearly always
    for (path, most), value in () if in_order else zip(_NAMES, names, strict=True):
        if value is not None and not _is_name(value, most):
            found.append(FieldError(path, f"must be 1 to {most} characters, none of them a control character"))
    if new.version is not None and not _VERSION.fullmatch(new.version):
        found.append(FieldError("version", "must be a version such as 1.0.0"))
    if new.hop < 0:
        found.append(FieldError("hop", "must not be negative"))
    if new.expected_sequence is not None and not 0 <= new.expected_sequence < 2**63:
        found.append(FieldError("expected_sequence", "must be a sequence, or 0 for an entity without events"))
    if new.extensions:
        found += _extension_errors(new.extensions)
    return found


def _future_times(new: NewEvent, defaults: Defaults) -> list[FieldError]:
    """Errors for times of the envelope that are still to come; a text that is no time has its error elsewhere."""
    if new.id is None and new.timestamp is None and new.redacted is None:
        return []
    times = {"timestamp": new.timestamp, "redacted.at": new.redacted.at if new.redacted else None}
    latest = _latest(defaults)
    paths = [path for path, time in times.items() if time is not None and _is_later(time, latest)]
    if new.id is not None and is_after(new.id, latest // 1000):
        paths.append("id")
    return [_ahead(path, defaults) for path in paths]


def _check_moments(dotted: str, payload: bytes, defaults: Defaults) -> None:
    """The same for the times in the payload. Raises InvalidError."""
    if dotted.partition(".")[0] not in CATEGORIES or not any(name in payload for name in _MOMENT_NAMES):
        return
    found, latest = _moments.decode(payload), _latest(defaults)
    paths = [name for name in found.__struct_fields__ if _is_later(getattr(found, name), latest)]
    if paths:
        raise _invalid([_ahead(f"payload.{name}", defaults) for name in paths])


def _latest(defaults: Defaults) -> int:
    return parse_time(defaults.timestamp, "timestamp") + TIME_AHEAD_S * 1_000_000


def _is_later(time: Any, latest: int) -> bool:
    if isinstance(time, int | float):
        return time * 1_000_000 > latest
    try:
        return isinstance(time, str) and parse_time(time, "") > latest
    except InvalidError:
        return False


def _ahead(path: str, defaults: Defaults) -> FieldError:
    return FieldError(path, f"is more than a day ahead of the clock, which says {defaults.timestamp[:19]}Z")


def _extension_errors(extensions: Extensions) -> list[FieldError]:
    if sum(not is_kept(name) for name in extensions) > EXTENSIONS:
        return [FieldError("extensions", f"must be at most {EXTENSIONS}")]
    checked = ((name, mistake(name, value)) for name, value in extensions.items())
    return [FieldError(f"extensions.{name[:NAME_CHARS]}", wrong) for name, wrong in checked if wrong]


def _is_name(value: str, most: int) -> bool:
    # Printable text has no control characters; the opposite does not follow.
    return 0 < len(value) <= most and (value.isprintable() or not _CONTROL.search(value))


def _check_expectation(new: NewEvent, event: Event) -> None:
    if new.expected_sequence is not None and event.metadata.entity is None:
        raise _invalid([FieldError("expected_sequence", "needs an entity whose version is expected")])


def _invalid(errors: list[FieldError]) -> InvalidError:
    return InvalidError("; ".join(f"{error.path}: {error.message}" for error in errors), errors=errors)


def _too_large(most: int) -> TooLargeError:
    return TooLargeError(f"the event has more than {most} bytes", max_bytes=most)
