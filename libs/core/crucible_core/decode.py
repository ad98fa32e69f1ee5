"""From bytes that somebody sent to typed values, or to an error that names the field and the nearest known name."""

import codecs
import functools
import itertools
import json
import math
import re
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from .envelope import MAX_DEPTH
from .errors import CrucibleError, FieldError, InvalidError, MalformedError
from .suggest import nearest

T = TypeVar("T")

_MOST_VALUES = 20
_SHOWN = 200
"""How many characters of a sender's own text an error repeats."""

# The closing quote is optional so that the pattern never backtracks: a string that does not end is one match too.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""An opening bracket as the signed byte 1, a closing one as -1."""

_LOCATED = re.compile(r"(?P<text>.*?)(?: - at (?:`key` in )?`(?P<path>\$[^`]*)`)?", re.DOTALL)
_FIELD = re.compile(r"Object (?P<what>contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL)
_NAMED = re.compile(r"`(?P<name>\w+)`: (?P<text>.*)", re.DOTALL)
"""What a `__post_init__` says of one field."""
_VALUE = re.compile(r"Invalid (?:enum )?value '?(?P<value>.*?)'?", re.DOTALL)
_SEGMENT = re.compile(r"\.([^.\[]+)|\[([^\]]*)\]")


def decode(raw: bytes, kind: type[T], *, what: str = "body") -> T:
    """`raw`, which may begin with a byte order mark, as a `kind`.

    Raises `MalformedError` where it is no JSON in UTF-8, is nested deeper than `MAX_DEPTH`, or has an object with a
    key twice, and `InvalidError` where its shape is refused; `what` names the thing in both.
    """
    raw = raw.removeprefix(codecs.BOM_UTF8)
    check_text(raw, what)
    try:
        value = msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        check_encoding(raw, what)
        raise refused(error, kind, what) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        check_encoding(raw, what)
        raise malformed(error, what) from None
    check_keys(raw, what)
    return value


def convert(obj: Any, kind: type[T], *, what: str = "body") -> T:
    """The same for a value that is decoded already (from YAML, say). Raises `InvalidError`."""
    try:
        return msgspec.convert(obj, kind)
    except msgspec.ValidationError as error:
        raise refused(error, kind, what) from None
    except RecursionError:
        raise InvalidError(f"{what} refers to itself or is nested too deeply") from None


def check_text(raw: bytes, what: str) -> None:
    """Raises `MalformedError` unless all of `raw` is UTF-8, also where a decoder skips over it, and not too deep."""
    if not raw.isascii():
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            check_encoding(raw, what)
            raise MalformedError(f"{what} is not UTF-8 (byte {error.start})") from None
    check_depth(raw, what)


def check_encoding(begun: bytes, what: str) -> None:
    """Raises `MalformedError` where JSON that begins so is UTF-16 or UTF-32, with a byte order mark or without."""
    first = begun[:4]
    zeros = first.count(0)
    if zeros > 2 or first in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        raise MalformedError(f"{what} is UTF-32: send it as UTF-8")
    if zeros or first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise MalformedError(f"{what} is UTF-16: send it as UTF-8")


def check_depth(raw: bytes, what: str) -> None:
    """Raises `MalformedError` for JSON that is nested deeper than `MAX_DEPTH`."""
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and depth(raw) > MAX_DEPTH:
        raise MalformedError(f"{what} is nested deeper than {MAX_DEPTH} levels")


def depth(raw: bytes) -> int:
    """How deep JSON arrays and objects are nested; brackets inside strings do not count. Linear in `raw`."""
    steps = _STRING.sub(b"", raw).translate(_STEPS, _NO_BRACKET)
    return max(itertools.accumulate(memoryview(steps).cast("b")), default=0)


# ---- keys that stand twice -------------------------------------------------------------------------------------------

# A decoder keeps one member of two with the same key. So what it has read, written again, has fewer colons than `raw`:
# neither adds one, unless it stands escaped in a string.
_read, _write = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode
_ESCAPED_COLON = b"\\u003"
_MOST_DIGITS = 4300
_MOST_PATH = 400
_OUT_OF_RANGE = object()


def check_keys(raw: bytes, what: str, root: str = "") -> None:
    """Raises `MalformedError` where an object in `raw`, which is JSON, has a key twice, once unescaped; the path begins
    with `root`. Of two such members one reader takes the first and another the last."""
    try:
        again = _write(_read(raw))
    except msgspec.ValidationError as error:
        raise _first_slip(raw, what, root) or refused(error, Any, what, root) from None
    if (raw.count(b":") != again.count(b":") or _ESCAPED_COLON in raw) and (slip := _first_slip(raw, what, root)):
        raise slip


class _Members(list[tuple[str, Any]]):
    """An object with all its members."""


def _first_slip(raw: bytes, what: str, root: str) -> CrucibleError | None:
    found = json.loads(raw.decode(), object_pairs_hook=_Members, parse_float=_float, parse_int=_whole)
    return _slip(found, [root] if root else [], what)


def _float(number: str) -> Any:
    return number if math.isfinite(float(number)) else _OUT_OF_RANGE


def _whole(number: str) -> Any:
    return number if len(number) < _MOST_DIGITS else _OUT_OF_RANGE


def _slip(value: Any, path: list[str], what: str) -> CrucibleError | None:
    if value is _OUT_OF_RANGE:
        field = FieldError(".".join(path)[:_MOST_PATH], "number out of range")
        return InvalidError(f"{what} is refused: {field.path}: {field.message}", errors=[field])
    if isinstance(value, _Members):
        keys: set[str] = set()
        for key, inner in value:
            at = [*path, key[:_SHOWN]]
            if key in keys:
                field = FieldError(".".join(at)[:_MOST_PATH], "stands twice: keep one of them")
                return MalformedError(f"{what} has {field.path} twice: keep one of them", errors=[field])
            keys.add(key)
            if slip := _slip(inner, at, what):
                return slip
    elif isinstance(value, list):
        return next(
            (slip for place, item in enumerate(value) if (slip := _slip(item, [*path, str(place)], what))), None
        )
    return None


# ---- errors ----------------------------------------------------------------------------------------------------------


def malformed(error: Exception, what: str) -> MalformedError:
    """The error for bytes that msgspec could not read as JSON."""
    reason = str(error) if isinstance(error, msgspec.DecodeError) else "text that is not UTF-8, or nested too deeply"
    return MalformedError(f"{what} is not JSON: {reason.removeprefix('JSON is malformed: ')[:_SHOWN]}")


def refused(error: msgspec.ValidationError, kind: Any, what: str, root: str = "") -> InvalidError:
    """msgspec's complaint about a `kind` as ours; `root` comes before every path."""
    located = _LOCATED.fullmatch(str(error))
    text, path = (located["text"], located["path"] or "$") if located else (str(error), "$")
    segments = [name or ("*" if index == "..." else index) for name, index in _SEGMENT.findall(path)]
    field = _field_error(text, segments, kind, root)
    named = f": {field.path}" if field.path else ""
    asked = f' (did you mean "{field.suggestion}"?)' if field.suggestion else ""
    return InvalidError(f"{what} is refused{named}: {field.message}{asked}", errors=[field])


def _field_error(text: str, segments: list[str], kind: Any, root: str) -> FieldError:
    suggestion = None
    if found := _FIELD.fullmatch(text):
        unknown = found["what"] == "contains unknown"
        text = "unknown field" if unknown else "required, but missing"
        suggestion = nearest(found["name"], _names(_at(kind, segments))) if unknown else None
        segments = [*segments, found["name"][:_SHOWN]]
    elif found := _NAMED.fullmatch(text):
        text, segments = found["text"], [*segments, found["name"]]
    elif found := _VALUE.fullmatch(text):
        values = _values(_at(kind, segments))
        suggestion = nearest(found["value"], values)
        text = text[:_SHOWN] + (f": one of {', '.join(values)}" if 0 < len(values) <= _MOST_VALUES else "")
    message = text.replace("`", "")[: _SHOWN + 300]
    path = ".".join([root, *segments] if root else segments)
    return FieldError(path, message[:1].lower() + message[1:], suggestion)


# ---- what stands at a path of a type ---------------------------------------------------------------------------------


def inspected(kind: Any) -> msgspec.inspect.Type:
    """What msgspec knows of a type. Finding out takes a millisecond, which each bad event of a batch would cost."""
    return _inspected(kind)


@functools.lru_cache(maxsize=256)
def _inspected(kind: Any) -> msgspec.inspect.Type:
    return msgspec.inspect.type_info(kind)


def _at(kind: Any, segments: list[str]) -> list[msgspec.inspect.Type]:
    found = _alternatives(inspected(kind))
    for segment in segments:
        found = [deeper for node in found for child in _children(node, segment) for deeper in _alternatives(child)]
    return found


def _alternatives(node: msgspec.inspect.Type) -> list[msgspec.inspect.Type]:
    if isinstance(node, msgspec.inspect.Metadata):
        return _alternatives(node.type)
    if isinstance(node, msgspec.inspect.UnionType):
        return [deeper for member in node.types for deeper in _alternatives(member)]
    return [node]


def _children(node: msgspec.inspect.Type, segment: str) -> Iterable[msgspec.inspect.Type]:
    match node:
        case msgspec.inspect.StructType(tag_field=str(name), tag=tag) if name == segment and tag is not None:
            return [msgspec.inspect.LiteralType((tag,))]
        case msgspec.inspect.StructType():
            return [field.type for field in node.fields if field.encode_name == segment]
        case msgspec.inspect.CollectionType():
            return [node.item_type]
        case msgspec.inspect.DictType():
            return [node.value_type]
    return []


def _names(nodes: Iterable[msgspec.inspect.Type]) -> list[str]:
    structs = (node for node in nodes if isinstance(node, msgspec.inspect.StructType))
    return [
        name
        for struct in structs
        for name in (*(field.encode_name for field in struct.fields), *getattr(struct.cls, "synonyms", ()))
    ]


def _values(nodes: Iterable[msgspec.inspect.Type]) -> list[str]:
    literals = (node for node in nodes if isinstance(node, msgspec.inspect.LiteralType))
    return [str(value) for literal in literals for value in literal.values]
