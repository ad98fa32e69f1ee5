"""Every event type: its name and aliases, what its payload may be, and how sets of types are written."""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import msgspec

from . import payloads
from .decode import check_depth, malformed, refused
from .errors import FieldError, InvalidError
from .protocol.events import EventType
from .shape import Outside, Shape, example_of, schema_of, shape_of, suggestion, walk
from .suggest import nearest

ANY_CUSTOM = "Custom.*"
"""Stands for every `Custom.<name>` where types are listed: their names are not known beforehand."""

MAX_CUSTOM_NAME = 128
_SHOWN = 100
_SEPARATORS = (".", ":", "_")
_CUSTOM = re.compile(r"custom[.:_](?P<name>.*)", re.IGNORECASE | re.DOTALL)
_WORD_START = re.compile(r"(?<=[a-z])(?=[A-Z])")

CATEGORIES: Mapping[str, payloads.Payloads] = {
    "Memory": payloads.MEMORY,
    "Graph": payloads.GRAPH,
    "File": payloads.FILE,
    "Agent": payloads.AGENT,
    "Flow": payloads.FLOW,
    "System": payloads.SYSTEM,
    "Hook": payloads.HOOK,
    "Webhook": payloads.WEBHOOK,
    "Command": payloads.COMMAND,
    "Session": payloads.SESSION,
    "Gateway": payloads.GATEWAY,
    "Message": payloads.MESSAGE,
    "Tool": payloads.TOOL,
    "Qa": payloads.QA,
    "Task": payloads.TASK,
    "Kb": payloads.KB,
    "Schema": payloads.SCHEMA,
}

CATEGORY_ALIASES: Mapping[str, tuple[str, ...]] = {"Memory": ("entry",)}

# What other systems call the same thing. Graph's events are also known without their category, see `_aliases`.
TYPE_ALIASES: Mapping[str, tuple[str, ...]] = {
    "Tool.BeforeCall": ("before_tool_call", "pre_tool_use", "PreToolUse"),
    "Tool.AfterCall": ("after_tool_call", "post_tool_use", "PostToolUse"),
    "Tool.ResultPersisting": ("tool_result_persist",),
    "Session.Started": ("session_start", "session:start", "SessionStart"),
    "Session.Ended": ("session_end", "session:end", "SessionEnd"),
    "Session.Compacting": ("before_compaction", "session:compact:before", "pre_compact", "PreCompact"),
    "Session.Compacted": ("after_compaction", "session:compact:after", "post_compact", "PostCompact"),
    "Gateway.Started": ("gateway_start", "gateway:startup"),
    "Gateway.Stopped": ("gateway_stop", "gateway:shutdown"),
}


class Kind(msgspec.Struct, frozen=True):
    """One event type. Its payload type's docstring describes it; a payload type that does not forbid unknown fields is
    open. `aliases` are accepted beside those that follow from the name."""

    category: str
    event: str
    payload: type[msgspec.Struct]
    aliases: tuple[str, ...] = ()

    @property
    def dotted(self) -> str:
        return f"{self.category}.{self.event}"

    @property
    def open(self) -> bool:
        return not self.payload.__struct_config__.forbid_unknown_fields


class Catalogue:
    """An immutable set of event types. Paths in its errors are relative to what the caller names by `path`."""

    def __init__(self, kinds: Iterable[Kind]) -> None:
        """Raises ValueError where two kinds claim one name."""
        self._kinds = {kind.dotted: kind for kind in kinds}
        self._names = _names(self._kinds.values())
        self._sets = _sets(self._kinds.values())
        self._readers = {dotted: _reader(kind) for dotted, kind in self._kinds.items()}

    def extended(self, kinds: Iterable[Kind]) -> "Catalogue":
        """These types and `kinds`, which replace those of the same name."""
        return Catalogue((self._kinds | {kind.dotted: kind for kind in kinds}).values())

    def resolve(self, name: str, path: str = "type") -> str:
        """The canonical `Category.Event` of a type or alias. Raises InvalidError with the nearest known type."""
        return self._names.get(name) or self._resolve(name, path)

    def expand(self, pattern: str, path: str = "type") -> frozenset[str] | None:
        """The types that a type, alias, wildcard or category stands for; None is every type there is.

        `Custom.*` expands to itself (`ANY_CUSTOM`). Raises InvalidError with the nearest known type or wildcard.
        """
        if pattern == "*":
            return None
        if (found := self._sets.get(pattern.casefold())) is not None:
            return found
        if "*" in pattern:
            raise _unknown(pattern, self._nearest(pattern, [*self._wildcards(), "*"]), path)
        return frozenset({self.resolve(pattern, path)})

    def validate(self, dotted: str, payload: bytes) -> None:
        """Checks a payload (JSON) against its type. Raises MalformedError, or InvalidError with paths `payload.…`."""
        check_depth(payload, "payload")
        read = self._readers.get(dotted) or self._reader_of(dotted)
        try:
            read(payload)
        except msgspec.ValidationError as error:
            kind = self._kinds.get(self.resolve(dotted))
            raise refused(error, kind.payload if kind else dict, dotted[:_SHOWN], "payload") from None
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise malformed(error, "payload") from None

    def types(self) -> list[EventType]:
        """All types, as users read of them; `Custom.*` is the last."""
        return [*self._described, _CUSTOM_TYPE]

    def fields(self, dotted: str) -> Shape | None:
        """The shape of a type's payload (see `shape.Shape`); None where it may have any field."""
        if dotted == ANY_CUSTOM:
            return None
        kind = self._kinds.get(self.resolve(dotted))
        return shape_of(kind.payload) if kind else None

    def check_path(self, types: Iterable[str] | None, path: str) -> None:
        """Raises InvalidError (with the nearest path) where no payload of `types`, which are canonical or as `expand`
        gives them, can have a field at the dotted `path`."""
        outsides = {}
        for dotted in types or ():
            try:
                walk(self.fields(dotted), path)
            except Outside as outside:
                outsides[dotted] = outside
            else:
                return
        if outsides:
            raise _no_field(path, sorted(outsides), suggestion(path, outsides.values()))

    def example(self, dotted: str) -> dict[str, Any]:
        """A valid payload of a type."""
        kind = self._kinds.get(self.resolve(dotted))
        return example_of(kind.payload) if kind else {"message": "hello"}

    # ---- what is not found at first sight ----------------------------------------------------------------------------

    def _resolve(self, name: str, path: str) -> str:
        if found := self._names.get(name.casefold()):
            return found
        if custom := _CUSTOM.fullmatch(name):
            return _custom(custom["name"], path)
        if "*" in name:
            raise _refused(path, f"{_shown(name)} names many types, and one is needed here")
        raise _unknown(name, self._nearest(name, self._names), path)

    def _nearest(self, name: str, known: Iterable[str]) -> str | None:
        found = nearest(name[:_SHOWN].replace(":", "."), [other for other in known if ":" not in other])
        return self._names.get(found, found) if found else None

    def _wildcards(self) -> list[str]:
        return [*dict.fromkeys(f"{kind.category}.*" for kind in self._kinds.values()), ANY_CUSTOM]

    def _reader_of(self, dotted: str) -> Callable[[bytes], Any]:
        return self._readers.get(self.resolve(dotted), _read_object)

    @cached_property
    def _described(self) -> tuple[EventType, ...]:
        return tuple(map(_describe, self._kinds.values()))


# ---- names -----------------------------------------------------------------------------------------------------------


def _names(kinds: Iterable[Kind]) -> dict[str, str]:
    """From every accepted spelling (canonical, or an alias with its case folded) to the canonical one."""
    names: dict[str, str] = {}
    for kind in kinds:
        unbroken = _formed(kind, kind.event.lower())
        for name in (kind.dotted, *unbroken, *map(str.casefold, _aliases(kind))):
            if names.setdefault(name, kind.dotted) != kind.dotted:
                raise ValueError(f"{name} would name both {names[name]} and {kind.dotted}")
    return names


def _aliases(kind: Kind) -> list[str]:
    """`graph.node_added`, `graph:node_added` and `graph_node_added`, the same with the category's other names, and
    those that are written down; a Graph event's first word may stand for its category: `node.added`."""
    event = _WORD_START.sub("_", kind.event).lower()
    formed = _formed(kind, event)
    if kind.category == "Graph" and "_" in event:
        formed += [event.replace("_", separator, 1) for separator in _SEPARATORS]
    return list(dict.fromkeys([*formed, *kind.aliases]))


def _formed(kind: Kind, event: str) -> list[str]:
    heads = (kind.category.lower(), *CATEGORY_ALIASES.get(kind.category, ()))
    return [head + separator + event for head in heads for separator in _SEPARATORS]


def _sets(kinds: Iterable[Kind]) -> dict[str, frozenset[str]]:
    """From every spelling of a whole category, case folded, to its types."""
    members: dict[str, set[str]] = {"Custom": {ANY_CUSTOM}}
    for kind in kinds:
        members.setdefault(kind.category, set()).add(kind.dotted)
    return {
        word + ending: frozenset(types)
        for category, types in members.items()
        for word in (category.casefold(), *CATEGORY_ALIASES.get(category, ()))
        for ending in ("", *(separator + "*" for separator in _SEPARATORS))
    }


def _custom(name: str, path: str) -> str:
    if not 0 < len(name) <= MAX_CUSTOM_NAME or not name.isprintable() or " " in name or "*" in name:
        wanted = f"1 to {MAX_CUSTOM_NAME} printable characters without spaces or *"
        raise _refused(path, f"the name of a custom event is {wanted}")
    return f"Custom.{name}"


def _shown(name: str) -> str:
    return f'"{name[:_SHOWN]}"'


def _unknown(name: str, found: str | None, path: str) -> InvalidError:
    return _refused(path, f"there is no event type {_shown(name)}", found)


def _no_field(path: str, types: list[str], found: str | None) -> InvalidError:
    of = ", ".join(types[:3]) + (", …" if len(types) > 3 else "")
    return _refused(path, f"no payload of {of} has a field {_shown(path)}", found)


def _refused(path: str, message: str, found: str | None = None) -> InvalidError:
    asked = f' (did you mean "{found}"?)' if found else ""
    return InvalidError(message + asked, errors=[FieldError(path, message, found)])


# ---- payloads --------------------------------------------------------------------------------------------------------

_read_object = msgspec.json.Decoder(dict[str, Any]).decode


def _reader(kind: Kind) -> Callable[[bytes], Any]:
    if not kind.open:
        return msgspec.json.Decoder(kind.payload).decode

    # A Struct's decoder skips over fields that it does not know without looking into them. What is committed must be
    # readable as a whole, so everything is decoded first.
    def read(payload: bytes) -> Any:
        return msgspec.convert(_read_object(payload), kind.payload)

    return read


def _describe(kind: Kind) -> EventType:
    return EventType(
        type=kind.dotted,
        description=(kind.payload.__doc__ or "").strip(),
        aliases=_aliases(kind),
        open=kind.open,
        schema=schema_of(kind.payload, kind.dotted),
    )


_CUSTOM_TYPE = EventType(
    type=ANY_CUSTOM,
    description="Anything that users name themselves; the payload is any object.",
    aliases=[],
    open=True,
    schema={"title": ANY_CUSTOM, "type": "object"},
)

CATALOGUE = Catalogue(
    Kind(category, event, payload, TYPE_ALIASES.get(f"{category}.{event}", ()))
    for category, events in CATEGORIES.items()
    for event, payload in events.items()
)
