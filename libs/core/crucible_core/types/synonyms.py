"""The other names under which payload fields are accepted: put under the canonical one, and found where a filter looks.

A payload is stored under canonical names. Events of before, and filters, may have any of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any

import msgspec
from msgspec import Raw, inspect

from crucible_core.errors import InvalidError
from crucible_core.types.payloads import CATEGORIES

Path = tuple[str, ...]
_Kind = type[msgspec.Struct]

_fields = msgspec.json.Decoder(dict[str, Raw])
_items = msgspec.json.Decoder(list[Raw])


class Renamed(msgspec.Struct, frozen=True):
    """A payload under canonical names; `names` has the name that was sent for each that was not canonical."""

    payload: bytes
    names: Mapping[str, str]

    def as_sent(self, error: InvalidError) -> InvalidError:
        """The same error with the names that its reader knows."""
        errors = [msgspec.structs.replace(each, path=self._sent(each.path)) for each in error.errors]
        detail = error.detail
        for each in error.errors:
            detail = detail.replace(each.path, self._sent(each.path), 1) if each.path else detail
        return InvalidError(detail, errors=errors)

    def _sent(self, path: str) -> str:
        segments = path.split(".")
        return ".".join([*segments[:1], *(self.names.get(name, name) for name in segments[1:2]), *segments[2:]])


def renamed(kind: _Kind, payload: bytes, at: str = "payload") -> Renamed | None:
    """`payload` (a JSON object) under canonical names; None where it has no others.

    Raises InvalidError (paths under `at`) where two names of one field differ in value and the type is closed.
    """
    if not any(b'"%b"' % name.encode() in payload for name in _names(kind)):
        return None
    try:
        fields = _fields.decode(payload)
    except (msgspec.DecodeError, UnicodeError):
        return None
    names: dict[str, str] = {}
    changed = _rename(kind, fields, f"{at}." if at else "", names)
    return Renamed(msgspec.json.encode(fields), names) if changed else None


def _rename(kind: _Kind, fields: dict[str, Raw], at: str, names: dict[str, str]) -> bool:
    """Changes `fields`, in their order, and notes in `names` what was called otherwise."""
    taken: dict[str, str] = {}
    gone: set[str] = set()
    for other, stands_for in _synonyms(kind).items():
        if other not in fields:
            continue
        free = next((name for name in stands_for if name not in fields and name not in taken), None)
        if free is not None:
            taken[free] = other
        elif any(_same(fields[taken.get(name, name)], fields[other]) for name in stands_for):
            gone.add(other)
        elif kind.__struct_config__.forbid_unknown_fields:
            message = f"is another name of {' or '.join(stands_for)}, which says something else"
            raise InvalidError.field(f"{at}{other}", message)
    if taken or gone:
        canonical = {other: name for name, other in taken.items()}
        kept = [(canonical.get(name, name), value) for name, value in fields.items() if name not in gone]
        fields.clear()
        fields.update(kept)
        names.update(taken)
    changed = bool(taken or gone)
    for name, inner in _nested(kind).items():
        if name in fields and bytes(fields[name])[:1] == b"[":
            changed |= _rename_items(inner, fields, name, f"{at}{name}.")
    return changed


def _rename_items(kind: _Kind, fields: dict[str, Raw], name: str, at: str) -> bool:
    items, changed = _items.decode(fields[name]), False
    for place, item in enumerate(items):
        if bytes(item)[:1] == b"{":
            inner = _fields.decode(item)
            if _rename(kind, inner, f"{at}{place}.", {}):
                items[place], changed = Raw(msgspec.json.encode(inner)), True
    if changed:
        fields[name] = Raw(msgspec.json.encode(items))
    return changed


def _same(one: Raw, other: Raw) -> bool:
    return bool(msgspec.json.decode(one) == msgspec.json.decode(other))


# ---- where a filter looks --------------------------------------------------------------------------------------------


def other_paths(dotted: str, segments: Path) -> list[Path]:
    """The paths at which the value of a path of a type's payload may stand; the canonical one comes first."""
    kind = _KINDS.get(dotted)
    return [] if kind is None else [path for path in product(*_steps(kind, segments)) if path != segments]


def canonical_path(dotted: str, path: str) -> str:
    """A dotted path under the names that payloads of a type are stored with."""
    kind = _KINDS.get(dotted)
    return path if kind is None else ".".join(names[0] for names in _steps(kind, tuple(path.split("."))))


def other_names(segment: str) -> frozenset[str]:
    """The names that `segment` may have in a payload of any type, itself among them."""
    return _CONNECTED.get(segment, frozenset({segment}))


def _steps(kind: _Kind | None, segments: Path) -> Iterator[Sequence[str]]:
    for segment in segments:
        if kind is None or segment.isdecimal():
            yield [segment]
        else:
            names = _equivalents(kind, segment)
            yield names
            kind = next((_nested(kind)[name] for name in names if name in _nested(kind)), None)


def _equivalents(kind: _Kind, name: str) -> list[str]:
    """Every name of a field, the ones that it stands for first."""
    synonyms = _synonyms(kind)
    canonical = synonyms.get(name, (name,))
    others = [other for other, stands_for in synonyms.items() if not set(stands_for).isdisjoint(canonical)]
    return list(dict.fromkeys([*canonical, *others]))


@cache
def _synonyms(kind: _Kind) -> Mapping[str, Path]:
    own = {field.encode_name for field in msgspec.structs.fields(kind)}
    return {name: fields for name, fields in getattr(kind, "synonyms", {}).items() if name not in own}


@cache
def _nested(kind: _Kind) -> Mapping[str, _Kind]:
    """The fields that hold lists of Structs."""
    found = {field.encode_name: _items_of(inspect.type_info(field.type)) for field in msgspec.structs.fields(kind)}
    return {name: inner for name, inner in found.items() if inner is not None}


def _items_of(node: Any) -> _Kind | None:
    match node:
        case inspect.Metadata():
            return _items_of(node.type)
        case inspect.UnionType():
            return next((found for member in node.types if (found := _items_of(member))), None)
        case inspect.CollectionType():
            return _items_of(node.item_type)
        case inspect.StructType():
            return node.cls
    return None


@cache
def _names(kind: _Kind) -> frozenset[str]:
    return frozenset(_synonyms(kind)).union(*map(_names, _nested(kind).values()))


_KINDS: Mapping[str, _Kind] = {
    f"{category}.{event}": kind
    for category, events in CATEGORIES.items()
    for event, kind in events.items()
    if _names(kind)
}


def _connected() -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for kind in _KINDS.values():
        for part in (kind, *_nested(kind).values()):
            for other in _synonyms(part):
                names = _equivalents(part, other)
                for name in names:
                    found.setdefault(name, set()).update(names)
    return {name: frozenset(names) for name, names in found.items()}


_CONNECTED = _connected()
