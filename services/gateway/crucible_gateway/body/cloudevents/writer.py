"""CloudEvents out: committed events, written strictly, so that `reader` reads the same event again."""

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Raw, UnsetType

from crucible_core.attributes import PLAIN_JSON, Value, is_text
from crucible_core.envelope import Metadata, Redaction, Source
from crucible_core.errors import InvalidError
from crucible_core.times import parse_time
from crucible_core.types.catalogue import OWN
from crucible_gateway.body.cloudevents.content import TYPE, body_of, encode_header, unwrap
from crucible_gateway.body.cloudevents.reader import (
    OWN_SOURCE,
    SENT_TIME,
    SENT_TYPE,
    SENT_WITHOUT,
    UNKNOWN,
    canonical,
    is_foreign,
)

_DIGITS = 19
"""Of the largest sequence there can be: padded so, sequences order as texts."""
_FIRST_VERSION = "1.0.0"
_AUTH_TYPES = frozenset({"app_user", "user", "service_account", "api_key", "system", "unauthenticated", "agent"})
_CHAR = r"(?:[A-Za-z0-9._~!$&'()*+,;=@-]|%[0-9A-Fa-f]{2})"
_COLON = rf"(?:{_CHAR}|:)"
_WAY = rf"(?:/{_COLON}*)*"
_HOST = rf"//(?:{_COLON}|[\[\]])*{_WAY}"
_ABSOLUTE = rf"[A-Za-z][A-Za-z0-9+.-]*:(?:{_HOST}|/?(?:{_COLON}+{_WAY})?)"
_RELATIVE = rf"(?:{_HOST}|/(?:{_COLON}+{_WAY})?|(?:{_CHAR}+{_WAY})?)"
_TAIL = rf"(?:\?(?:{_COLON}|[/?])*)?(?:\#(?:{_COLON}|[/?])*)?"
_URI_REFERENCE = re.compile(f"(?:{_ABSOLUTE}|{_RELATIVE}){_TAIL}")
"""RFC 3986, appendix A; the host is not looked into."""


class _Data(msgspec.Struct):
    event: str
    payload: Raw


class Committed(msgspec.Struct):
    """`envelope.Event` in its public form, its payload undecoded."""

    type: str
    data: _Data
    metadata: Metadata
    sequence: int
    redacted: Redaction | UnsetType = UNSET


_decoder = msgspec.json.Decoder(Committed)


def structured(raw: bytes) -> bytes:
    """An event's public form in the JSON format; the payload's bytes pass through."""
    event = _decoder.decode(raw)
    attributes: dict[str, Any] = {**_attributes(event)}
    payload = event.data.payload
    found = unwrap(bytes(payload)) if event.type == "Custom" else None
    if _lacks("data", event):
        attributes.pop(TYPE)
    elif found is None:
        attributes["data"] = payload
    else:
        attributes.pop(TYPE)
        attributes |= {name: value for name, value in msgspec.structs.asdict(found).items() if value is not UNSET}
    return msgspec.json.encode(attributes)


def batch(events: Iterable[bytes]) -> bytes:
    return b"[%b]" % b",".join(map(structured, events))


def binary(raw: bytes) -> tuple[dict[str, str], str, bytes] | None:
    """Headers, media type and body of an event in binary mode, both empty where it has no data; None where the media
    type of its data is not known."""
    event = _decoder.decode(raw)
    attributes = _attributes(event)
    kind, body = str(attributes.pop(TYPE)), bytes(event.data.payload)
    if _lacks("data", event):
        kind, body = "", b""
    elif (found := unwrap(body) if event.type == "Custom" else None) is not None:
        if found.datacontenttype is UNSET:
            return None
        kind, body = found.datacontenttype, body_of(found)
    return {f"ce-{name}": encode_header(canonical(value)) for name, value in attributes.items()}, kind, body


def _attributes(event: Committed) -> dict[str, Value]:
    """All but the data, in the order of the documented table. An optional one whose text no attribute may hold (it has
    control characters, say) is left out."""
    about = event.metadata
    extensions = dict(about.extensions or {})
    dotted = f"{event.type}.{event.data.event}"
    type, time = _original(extensions, dotted, about.timestamp)
    without = str(extensions.pop(SENT_WITHOUT, "")).split()
    authtype, authid = _auth(about.actor, about.source)
    optional = {
        "subject": None if "subject" in without else about.entity,
        "time": time,
        TYPE: extensions.get(TYPE, PLAIN_JSON),
        "correlationid": about.correlation_id,
        "causationid": about.causation_id,
        "sequence": f"{event.sequence:0{_DIGITS}d}",
        "partitionkey": None if "subject" in without else about.entity,
        "authtype": authtype,
        "authid": authid,
        "traceparent": about.traceparent,
        "worldid": about.world_id,
        "roomid": about.room_id,
        "cruciblehop": about.hop or None,
        "crucibleredacted": True if event.redacted else None,
        "crucibleversion": None if _has_one_version(event) else about.version,
        **extensions,
    }
    return {
        "specversion": "1.0",
        "id": about.id,
        "source": _source(about.source),
        "type": type,
        **{name: value for name, value in optional.items() if value is not None and _is_allowed(value)},
    }


def _original(extensions: dict[str, Value], dotted: str, timestamp: str) -> tuple[str, str]:
    """The type and time that a foreign event came with, where its extensions keep them; takes them out of those."""
    type, time = extensions.get(SENT_TYPE), extensions.get(SENT_TIME)
    if isinstance(type, str) and is_foreign(type, dotted):
        extensions.pop(SENT_TYPE)
        dotted = type
    if isinstance(time, str) and _is_same(time, timestamp):
        extensions.pop(SENT_TIME)
        timestamp = time
    return dotted, timestamp


def _is_same(time: str, timestamp: str) -> bool:
    try:
        return parse_time(time, "time") == parse_time(timestamp, "time")
    except InvalidError:
        return False


def _lacks(name: str, event: Committed) -> bool:
    """Also of data: a hook may have given the event some."""
    without = str((event.metadata.extensions or {}).get(SENT_WITHOUT, "")).split()
    return name in without and bytes(event.data.payload) == b"{}"


def _has_one_version(event: Committed) -> bool:
    """True if an event without a version comes back with the same one: for users' types that is the latest one."""
    return event.metadata.version == _FIRST_VERSION and event.type.casefold() in OWN


def _is_allowed(value: Value) -> bool:
    return not isinstance(value, str) or (value != "" and is_text(value))


def _source(source: Source) -> str:
    """A foreign source as it came; one of ours, or one that is no URI-reference, as `crucible:<kind>:<id>`."""
    if source.kind == "external" and not source.id.startswith(OWN_SOURCE) and is_uri_reference(source.id):
        return source.id
    return f"{OWN_SOURCE}{source.kind}:{quote(source.id, safe='')}"


def is_uri_reference(text: str) -> bool:
    """RFC 3986, 4.1, and not empty."""
    return text != "" and _URI_REFERENCE.fullmatch(text) is not None


def _auth(actor: str, source: Source) -> tuple[str | None, str | None]:
    """Auth Context. A source that speaks for itself has none."""
    if not is_text(actor) or (source.kind == "external" and actor == f"external:{source.id}"):
        return None, None
    kind, _, id = actor.partition(":")
    if kind in _AUTH_TYPES and id:
        return kind, id
    return UNKNOWN, actor
