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

from crucible_core.envelope import read
from crucible_core.errors import FieldError, InvalidError, MalformedError
from crucible_core.limits import EVENT_DEPTH
from crucible_core.suggest import nearest

T = TypeVar("T")

_MOST_VALUES = 20
_SHOWN = 200
"""Characters of a sender's own text that an error repeats."""

_QUOTED = re.compile(rb'"[^"]*"?')
_NO_MARK = bytes(set(range(256)) - set(b'[]{}"'))
_STRETCH = 4096
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""An opening bracket as the signed byte 1, a closing one as -1."""

_LOCATED = re.compile(r"(?P<text>.*?)(?: - at (?:`key` in )?`(?P<path>\$[^`]*)`)?", re.DOTALL)
_FIELD = re.compile(r"Object (?P<what>contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL)
_NAMED = re.compile(r"`(?P<name>\w+)`: (?P<text>.*)", re.DOTALL)
"""The message of a `__post_init__` about one field."""
_VALUE = re.compile(r"Invalid (?:enum )?value '?(?P<value>.*?)'?", re.DOTALL)
_NO_MATCH = "Expected `str` matching regex"
_SEGMENT = re.compile(r"\.([^.\[]+)|\[([^\]]*)\]")


def decode(raw: bytes, kind: type[T], *, what: str = "body", root: str = "", deep: bool = True) -> T:
    """`raw`, which may begin with a byte order mark, as a `kind`.

    Raises `MalformedError` where it is no JSON in UTF-8, is nested deeper than `EVENT_DEPTH`, or has an object with a
    key twice, and `InvalidError` where its shape is refused; `what` names the thing in both, and `root` comes before
    every path. Without `deep`, only the object itself is looked at for keys: who reads what stands inside it does it
    there.
    """
    raw = raw.removeprefix(codecs.BOM_UTF8)
    check_text(raw, what)
    try:
        value = msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        check_encoding(raw, what)
        raise refused(error, kind, what, root) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        check_encoding(raw, what)
        raise malformed(error, what) from None
    (check_keys if deep else check_members)(raw, what, root)
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
    """Raises `MalformedError` for JSON that is nested deeper than `EVENT_DEPTH`."""
    if raw.count(b"[") + raw.count(b"{") > EVENT_DEPTH and _is_deep(_brackets(unescaped(raw))):
        raise MalformedError(f"{what} is nested deeper than {EVENT_DEPTH} levels")


def depth(raw: bytes) -> int:
    """The nesting of JSON arrays and objects; brackets inside strings do not count. Linear in `raw`."""
    return max(itertools.accumulate(steps(unescaped(raw))), default=0)


def unescaped(raw: bytes) -> bytes:
    """JSON without escaped quotes and backslashes: every quote that is left begins or ends a string."""
    return raw.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in raw else raw


def steps(text: bytes) -> memoryview:
    """The brackets outside the strings of `unescaped` JSON: 1 for one that opens, -1 for one that closes."""
    return _as_steps(_brackets(text))


def _brackets(text: bytes) -> bytes:
    # Two strings with no bracket between them become one, which is as good.
    return _QUOTED.sub(b"", text.translate(None, _NO_MARK).replace(b'""', b""))


def _as_steps(brackets: bytes) -> memoryview:
    return memoryview(brackets.translate(_STEPS)).cast("b")


def _is_deep(brackets: bytes) -> bool:
    # Most brackets are innermost ones: without the innermost levels, four at most, little is left.
    fewer = brackets
    for _ in range(2):
        fewer = fewer.replace(b"{}", b"").replace(b"[]", b"")
    return _is_deeper(fewer, EVENT_DEPTH - 4) and _is_deeper(brackets, EVENT_DEPTH)


def _is_deeper(brackets: bytes, most: int) -> bool:
    """In parts: where it is, the first of them mostly shows it."""
    level = 0
    for start in range(0, len(brackets), _STRETCH):
        *levels, level = itertools.accumulate(_as_steps(brackets[start : start + _STRETCH]), initial=level)
        if max(levels) > most or level > most:
            return True
    return False


# ---- keys that stand twice -------------------------------------------------------------------------------------------

# A decoder keeps one member of two with the same key. So what it has read, written again, has fewer colons than `raw`:
# neither adds one, unless it stands escaped in a string.
_read, _write = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode
_members_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_NO_COLON = bytes(set(range(256)) - set(b':"'))
_UNREAD = object()
_MOST_DIGITS = 4300
_MOST_PATH = 400
_LOCATED_BYTES = 64 * 1024
"""Of a larger document, only the key that stands twice is named: to look for its path takes long."""
_OUT_OF_RANGE = object()


def check_keys(raw: bytes, what: str, root: str = "", value: Any = _UNREAD) -> None:
    """Raises `MalformedError` where an object in `raw` has a key twice, once unescaped; the path begins with `root`. Of
    two such members one reader takes the first and another the last. `value` is what `raw` was decoded to, if it was.

    Raises it too where `raw` is no JSON, and `InvalidError` for a number that is out of range."""
    if type(value) is dict and raw.count(b":") == len(value):
        return  # each colon is that of another key
    try:
        again = _write(read(_read, raw) if value is _UNREAD else value)
    except msgspec.ValidationError as error:
        _check_each(raw, what, root)
        raise refused(error, Any, what, root) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise malformed(error, what) from None
    if _has_more(raw, again):
        _check_each(raw, what, root)


def check_members(raw: bytes, what: str, root: str = "") -> None:
    """The same for the object `raw` itself, and not for what stands inside it."""
    if (raw[:1] == b"{" or raw.lstrip()[:1] == b"{") and _has_more(raw, _write(_members_of(raw))):
        _check_each(raw, what, root)
        raise MalformedError(f"{what} has a key twice")


def _has_more(raw: bytes, again: bytes) -> bool:
    """True if `raw` has more members than what it was read as."""
    if b"\\u003" in raw and (b"\\u003a" in raw or b"\\u003A" in raw):
        return _members_in(raw) != _members_in(again)
    return raw.count(b":") != again.count(b":")


def _members_in(raw: bytes) -> int:
    """Of all objects together: the colons outside strings."""
    return _QUOTED.sub(b"", unescaped(raw).translate(None, _NO_COLON)).count(b":")


class _Members(list[tuple[str, Any]]):
    """An object with all its members."""


class _Twice(Exception):
    """Its argument is the key."""


def _check_each(raw: bytes, what: str, root: str) -> None:
    """Raises for the first key that stands twice or number out of range. It does not return the error: one that is in
    a variable when it is raised keeps that frame, and `raw`."""
    path = [root] if root else []
    if len(raw) <= _LOCATED_BYTES:
        found = json.loads(raw.decode(), object_pairs_hook=_Members, parse_float=_float, parse_int=_whole)
        _check_below(found, path, what)
        return
    try:
        json.loads(raw.decode(), object_pairs_hook=_look_through, parse_float=str, parse_int=str)
    except _Twice as twice:
        raise _stands_twice([*path, "*", str(twice)[:_SHOWN]], what) from None


def _look_through(members: list[tuple[str, Any]]) -> None:
    if len(dict(members)) < len(members):
        keys: set[str] = set()
        raise _Twice(next(key for key, _ in members if key in keys or keys.add(key)))  # type: ignore[func-returns-value]


def _float(number: str) -> Any:
    return number if math.isfinite(float(number)) else _OUT_OF_RANGE


def _whole(number: str) -> Any:
    return number if len(number) < _MOST_DIGITS else _OUT_OF_RANGE


def _check_below(value: Any, path: list[str], what: str) -> None:
    if value is _OUT_OF_RANGE:
        field = FieldError(".".join(path)[:_MOST_PATH], "number out of range")
        raise InvalidError(f"{what} is refused: {field.path}: {field.message}", errors=[field])
    if isinstance(value, _Members):
        keys: set[str] = set()
        for key, inner in value:
            at = [*path, key[:_SHOWN]]
            if key in keys:
                raise _stands_twice(at, what)
            keys.add(key)
            _check_below(inner, at, what)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_below(item, [*path, str(index)], what)


def _stands_twice(path: list[str], what: str) -> MalformedError:
    field = FieldError(".".join(path)[:_MOST_PATH], "the key stands twice; keep one of them")
    return MalformedError(f"{what} cannot be read: {field.path}: {field.message}", errors=[field])


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
    elif text.startswith(_NO_MATCH):
        text = _form(kind, segments) or text
    message = text.replace("`", "")[: _SHOWN + 300]
    path = ".".join([root, *segments] if root else segments)
    return FieldError(path, message[:1].lower() + message[1:], suggestion)


# ---- what stands at a path of a type ---------------------------------------------------------------------------------


def inspected(kind: Any) -> msgspec.inspect.Type:
    """The fields that msgspec reads of a type. Finding out takes a millisecond, which each bad event of a batch would
    cost."""
    return _inspected(kind)


@functools.lru_cache(maxsize=256)
def _inspected(kind: Any) -> msgspec.inspect.Type:
    return msgspec.inspect.type_info(kind)


def _at(kind: Any, segments: list[str]) -> list[msgspec.inspect.Type]:
    found = _alternatives(inspected(kind))
    for segment in segments:
        found = [deeper for node in found for child in _children(node, segment) for deeper in _alternatives(child)]
    return found


def _form(kind: Any, segments: list[str]) -> str | None:
    """The words of a type (`extra={"form": …}`) for the pattern that its strings have, which people do not read."""
    above = _at(kind, segments[:-1]) if segments else []
    found = [child for node in above for child in _children(node, segments[-1])]
    while found:
        node = found.pop()
        if isinstance(node, msgspec.inspect.UnionType):
            found += node.types
        elif isinstance(node, msgspec.inspect.Metadata) and node.extra and "form" in node.extra:
            return str(node.extra["form"])
    return None


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
