"""The data of a CloudEvent as a payload, which is a JSON object, and back; and attributes as headers, both ways.

JSON objects are the payload themselves. All else is wrapped: `{"data": <JSON or text>, "datacontenttype": "…"}`, or
`{"data_base64": "…", "datacontenttype": "…"}`, where the media type may be unknown. Which of them depends on the media
type and the bytes alone, not on the mode in which they came, so that data survives a way out and in again.
"""

import base64
import binascii
import re
from codecs import BOM_UTF8
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

import msgspec
from msgspec import UNSET, Raw, UnsetType

from crucible_core.attributes import PLAIN_JSON, essence, is_json, is_media_type
from crucible_core.decode import check_keys, decode
from crucible_core.errors import InvalidError, MalformedError

EMPTY = Raw(b"{}")
TYPE = "datacontenttype"
_NULL = b"null"
_UTF8 = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
_PREFIX = b"ce-"
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F))).replace('"', "").replace("%", "")


class Content(NamedTuple):
    """A payload; `wrapped` if the data was no JSON object, `absent` if there was none. `kind` is the media type that
    the payload does not show."""

    payload: Raw
    wrapped: bool = False
    kind: str | None = None
    absent: bool = False


class Wrapped(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    data: Raw | UnsetType = UNSET
    data_base64: str | UnsetType = UNSET
    datacontenttype: str | UnsetType = UNSET


# ---- in --------------------------------------------------------------------------------------------------------------


def from_member(kind: str | None, data: bytes) -> Content:
    """The `data` member of the JSON format; null is no data. Raises InvalidError."""
    _check_kind(kind)
    if kind is None or is_json(kind) or data == _NULL:
        return _json(kind, data)
    if data[:1] != b'"':
        raise InvalidError.field("data", f"must be a text where {TYPE} is {kind[:100]}")
    text = decode(data, str, what="data")
    if not _is_utf8(kind):
        raise InvalidError.field(TYPE, "text is read as UTF-8 here; send other bytes as data_base64")
    return _opaque(kind, text.encode())


def from_base64(kind: str | None, text: str) -> Content:
    """The `data_base64` member. Raises InvalidError, and MalformedError where it should be JSON and is not."""
    _check_kind(kind)
    try:
        body = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise InvalidError.field("data_base64", "is not Base64 (RFC 4648, section 4)") from None
    return from_bytes(kind, body) if kind is not None else _opaque(None, body)


def from_body(kind: str | None, body: bytes) -> Content:
    """The body of a binary-mode message; one that does not say what it is may be the JSON object that most are."""
    _check_kind(kind)
    if not body:
        return Content(EMPTY, absent=True)
    if kind is None:
        return from_bytes(PLAIN_JSON, body) if _is_object(body) else _opaque(None, body)
    return from_bytes(kind, body)


def from_bytes(kind: str, body: bytes) -> Content:
    if not is_json(kind):
        return _opaque(kind, body)
    if not _is_utf8(kind):
        raise InvalidError.field(TYPE, "JSON is UTF-8")
    if body := body.removeprefix(BOM_UTF8).strip():
        # Nothing else reads these bytes before they stand inside a request of ours.
        decode(body, Raw, what="data", root="data", deep=False)
    return _json(kind, body)


def _json(kind: str | None, raw: bytes) -> Content:
    """`raw` is JSON for certain, or empty. An absent value and null are no data."""
    if raw in (b"", _NULL):
        return Content(EMPTY, absent=True)
    if raw[:1] == b"{":
        return Content(Raw(raw), kind=None if kind is None or kind == PLAIN_JSON else kind)
    check_keys(raw, "data", "data")
    return _wrap(Wrapped(data=Raw(raw), datacontenttype=kind or PLAIN_JSON))


def _opaque(kind: str | None, body: bytes) -> Content:
    text = _text(kind, body)
    if text is not None and kind is not None:
        return _wrap(Wrapped(data=Raw(msgspec.json.encode(text)), datacontenttype=kind))
    return _wrap(Wrapped(data_base64=base64.b64encode(body).decode(), datacontenttype=kind or UNSET))


def _wrap(wrapped: Wrapped) -> Content:
    return Content(Raw(msgspec.json.encode(wrapped)), wrapped=True)


# ---- out -------------------------------------------------------------------------------------------------------------


def unwrap(payload: bytes) -> Wrapped | None:
    """The data that is wrapped in a payload; None where it is none that the way in makes."""
    try:
        found = msgspec.json.decode(payload, type=Wrapped)
        kind = found.datacontenttype
        if found.data is not UNSET and found.data_base64 is UNSET and kind is not UNSET:
            again = from_member(kind, bytes(found.data))
        elif found.data_base64 is not UNSET and found.data is UNSET:
            again = from_base64(kind or None, found.data_base64)
        else:
            return None
    except (msgspec.DecodeError, InvalidError, MalformedError, UnicodeError):
        return None
    same = again.wrapped and msgspec.json.decode(again.payload) == msgspec.json.decode(payload)
    return found if same else None


def body_of(found: Wrapped) -> bytes:
    """Wrapped data as it stands in a binary-mode body."""
    if found.data_base64 is not UNSET:
        return base64.b64decode(found.data_base64)
    assert found.data is not UNSET
    if is_json(found.datacontenttype or PLAIN_JSON):
        return bytes(found.data)
    return msgspec.json.decode(found.data, type=str).encode()


# ---- media types -----------------------------------------------------------------------------------------------------


def _check_kind(kind: str | None) -> None:
    if kind is not None and not is_media_type(kind):
        raise InvalidError.field(TYPE, "must be a media type such as application/json")


def _text(kind: str | None, body: bytes) -> str | None:
    """The text in `body`, if its media type is one of texts and it is UTF-8."""
    if kind is None or not _is_utf8(kind):
        return None
    name = essence(kind)
    if not (name.startswith("text/") or name.endswith(("/xml", "+xml"))):
        return None
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None


def _is_utf8(kind: str) -> bool:
    parameters = (parameter.strip().partition("=") for parameter in kind.lower().split(";")[1:])
    return all(value.strip('" ') in _UTF8 for name, _, value in parameters if name == "charset")


def _is_object(body: bytes) -> bool:
    try:
        msgspec.json.decode(body.removeprefix(BOM_UTF8), type=dict[str, Raw])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return True


def decode_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The attributes in a request's headers. Raises InvalidError for one that comes twice or is not UTF-8."""
    found: dict[str, str] = {}
    for header, value in headers:
        if header.startswith(_PREFIX):
            name = header[len(_PREFIX) :].decode("latin-1")
            if name in found:
                raise InvalidError.field(name, "may be given only once")
            found[name] = _unescaped(name, value)
    return found


def encode_header(value: str) -> str:
    """A text as a header may hold it: all but printable ASCII percent-encoded, and space, quote and percent with it."""
    return quote(value, safe=_PRINTABLE)


def _unescaped(name: str, raw: bytes) -> str:
    try:
        value = raw.decode().strip()
        if quoted := _QUOTED.fullmatch(value):
            value = _ESCAPE.sub(r"\1", quoted[1])
        return unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        raise InvalidError.field(name, "is not UTF-8, or not once its percent-encoding is undone") from None
