"""Dotted paths of filters, checked and compiled to readers of an event or of a document."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

from msgspec import UNSET

from crucible_core.envelope import Event, Metadata, Source
from crucible_core.errors import InvalidError
from crucible_core.filters.operators import MISSING, Test
from crucible_core.limits import FILTER_PATH_CHARS
from crucible_core.suggest import nearest
from crucible_core.types.synonyms import other_names, other_paths

Getter = Callable[[Any], Any]

_SHOWN = 80


class FieldReader(NamedTuple):
    """A path made ready: `get` finds its value in a root, or `MISSING`; `bind` makes a test of it one of the root."""

    name: str
    get: Getter
    bind: Callable[[Test], Callable[[Any], bool]]


def _sequence(event: Event) -> Any:
    return MISSING if event.sequence is None else event.sequence


_EVENT_FIELDS: Mapping[str, Getter] = {
    "event.type": attrgetter("type"),
    "event.data.event": attrgetter("data.event"),
    "event.sequence": _sequence,
    **{
        f"event.metadata.{name}": attrgetter(f"metadata.{name}")
        for name in Metadata.__struct_fields__
        if name not in ("source", "extensions")
    },
    **{f"event.metadata.source.{name}": attrgetter(f"metadata.source.{name}") for name in Source.__struct_fields__},
}
_EXTENSIONS = "event.metadata.extensions."
_PAYLOAD = ("event.payload", "event.data.payload")


def event_field(check: Callable[[str], None] | None, path: str) -> FieldReader:
    """`path` in an event. Raises InvalidError, and whatever `check` raises for a path of the payload."""
    if path in _EVENT_FIELDS:
        get = _EVENT_FIELDS[path]
        return FieldReader(path, get, partial(bind, get))
    if path.startswith(_EXTENSIONS):
        get = partial(_extension, path.removeprefix(_EXTENSIONS))
        return FieldReader(path, get, partial(bind, get))
    if path in _PAYLOAD:
        return _read_payload("", ())
    inner = next((path[len(root) + 1 :] for root in _PAYLOAD if path.startswith(root + ".")), path)
    if inner is path and path.startswith("event."):
        raise _refused("an event has no such field", nearest(path, [*_EVENT_FIELDS, *_PAYLOAD]))
    segments = _segments(inner)
    if check is not None:
        check(inner)
    return _read_payload(inner, segments)


def _extension(name: str, event: Event) -> Any:
    extensions = event.metadata.extensions
    return MISSING if extensions is UNSET else extensions.get(name, MISSING)


def _read_payload(inner: str, segments: tuple[str, ...]) -> FieldReader:
    name = f"event.payload.{inner}" if segments else "event.payload"
    if any(len(other_names(segment)) > 1 for segment in segments):
        get = _under_any_name(segments)
        return FieldReader(name, get, partial(bind, get))
    if len(segments) == 1:
        return FieldReader(name, partial(_payload_field, inner), partial(_bind_payload_field, inner))
    descend = _descent(segments)

    def get_below(event: Event) -> Any:
        return descend(event.data.payload)

    return FieldReader(name, get_below, partial(bind, get_below))


def _under_any_name(segments: tuple[str, ...]) -> Getter:
    """The value at a path, or where the event's type has another name for it. Only asked of types that have one, so
    that `known` stays as small as the catalogue."""
    descend = _descent(segments)
    known: dict[str, tuple[Getter, ...]] = {}

    def get(event: Event) -> Any:
        payload = event.data.payload
        value = descend(payload)
        if value is not MISSING:
            return value
        dotted = event.dotted
        if dotted not in known:
            others = tuple(map(_descent, other_paths(dotted, segments)))
            if not others:
                return MISSING
            known[dotted] = others
        return next((value for other in known[dotted] if (value := other(payload)) is not MISSING), MISSING)

    return get


def document_field(fields: Collection[str] | None, path: str) -> FieldReader:
    """`path` in a JSON object whose members can only be `fields` (None: any). Raises InvalidError."""
    segments = _segments(path)
    if fields is not None and segments[0] not in fields:
        raise _refused(f'there is no field "{segments[0][:_SHOWN]}"', nearest(segments[0], fields))
    get = _descent(segments)
    return FieldReader(path, get, partial(_bind_field, path) if len(segments) == 1 else partial(bind, get))


def _segments(path: str) -> tuple[str, ...]:
    if len(path) > FILTER_PATH_CHARS:
        raise _refused(f"a path may have {FILTER_PATH_CHARS} characters")
    segments = tuple(path.split("."))
    if not all(segments):
        raise _refused("a path is names joined by dots, and none of them empty")
    return segments


def _descent(segments: tuple[str, ...]) -> Getter:
    steps = tuple((segment, _index(segment)) for segment in segments)

    def descend(value: Any) -> Any:
        for name, index in steps:
            if isinstance(value, dict):
                value = value.get(name, MISSING)
            elif isinstance(value, list) and 0 <= index < len(value):
                value = value[index]
            else:
                return MISSING
        return value

    return descend


def _index(segment: str) -> int:
    """The list index that a segment names, or -1."""
    return int(segment) if segment.isascii() and segment.isdecimal() and len(segment) < 10 else -1


def _payload_field(name: str, event: Event) -> Any:
    payload = event.data.payload
    return payload.get(name, MISSING) if isinstance(payload, dict) else MISSING


def bind(get: Getter, test: Test) -> Callable[[Any], bool]:
    """The test of what `get` finds in a root, as a test of the root."""
    return lambda root: test(get(root))


# The two shapes that most filters have save a call each time they are asked.


def _bind_payload_field(name: str, test: Test) -> Callable[[Event], bool]:
    def predicate(event: Event) -> bool:
        payload = event.data.payload
        return test(payload.get(name, MISSING) if isinstance(payload, dict) else MISSING)

    return predicate


def _bind_field(name: str, test: Test) -> Callable[[dict[str, Any]], bool]:
    return lambda document: test(document.get(name, MISSING))


def _refused(message: str, suggestion: str | None = None) -> InvalidError:
    return InvalidError.field("", message, suggestion, detail=message)
