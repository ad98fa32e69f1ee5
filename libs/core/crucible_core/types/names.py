"""Spellings of event types and of sets of them: aliases that follow from a name, wildcards, custom names."""

import re
from collections.abc import Iterable, Mapping

from crucible_core.errors import InvalidError
from crucible_core.limits import TYPE_NAME_CHARS
from crucible_core.types.kinds import AnyKind

ANY_CUSTOM = "Custom.*"
"""Stands for every `Custom.<name>` where types are listed: their names are not known beforehand."""

SEPARATORS = (".", ":", "_")
_SHOWN = 100
_WORD_START = re.compile(r"(?<=[a-z])(?=[A-Z])")

CATEGORY_ALIASES: Mapping[str, tuple[str, ...]] = {"Memory": ("entry",)}


class UnknownTypeError(InvalidError):
    """A type, or a version of one, that the catalogue at hand does not have; a newer one may."""


def spellings(kinds: Iterable[AnyKind]) -> dict[str, str]:
    """From every accepted spelling (canonical, or an alias with its case folded) to the canonical one. Raises
    ValueError where one would name two types."""
    names: dict[str, str] = {}
    for kind in kinds:
        unbroken = () if kind.category == "Custom" else _formed(kind, kind.event.lower())
        for name in (kind.dotted, *unbroken, *map(str.casefold, aliases(kind))):
            if names.setdefault(name, kind.dotted) != kind.dotted:
                raise ValueError(f"{name} would name both {names[name]} and {kind.dotted}")
    return names


def aliases(kind: AnyKind) -> list[str]:
    """`graph.node_added`, `graph:node_added` and `graph_node_added`, the same with the category's other names, and
    those that are written down; a Graph event's first word may stand for its category: `node.added`. A custom name is
    taken as it is written, so nothing follows from it."""
    if kind.category == "Custom":
        return list(kind.aliases)
    event = _WORD_START.sub("_", kind.event).lower()
    formed = _formed(kind, event)
    if kind.category == "Graph" and "_" in event:
        formed += [event.replace("_", separator, 1) for separator in SEPARATORS]
    return list(dict.fromkeys([*formed, *kind.aliases]))


def _formed(kind: AnyKind, event: str) -> list[str]:
    heads = (kind.category.lower(), *CATEGORY_ALIASES.get(kind.category, ()))
    return [head + separator + event for head in heads for separator in SEPARATORS]


def category_spellings(category: str) -> list[str]:
    """Every spelling of all the types of a category, case folded."""
    return [
        word + ending
        for word in (category.casefold(), *CATEGORY_ALIASES.get(category, ()))
        for ending in ("", *(separator + "*" for separator in SEPARATORS))
    ]


def custom(name: str, path: str) -> str:
    if not 0 < len(name) <= TYPE_NAME_CHARS or not name.isprintable() or " " in name or "*" in name:
        wanted = f"1 to {TYPE_NAME_CHARS} printable characters without spaces or *"
        raise refusal(path, f"the name of a custom event is {wanted}")
    return f"Custom.{name}"


def shown(name: str) -> str:
    return f'"{name[:_SHOWN]}"'


def unknown(name: str, found: str | None, path: str, *, own: bool) -> InvalidError:
    """`own`: whether its category is built in, so that a slip of the pen is all that it can be."""
    message = f"there is no event type {shown(name)}"
    if not own:
        example = f"Custom.{name}" if 0 < len(name) <= 40 else "Custom.<name>"
        message += f": call it {example}, or register it first (crucible events types add, POST /api/v1/event-types)"
    return refusal(path, message, found, UnknownTypeError)


def no_field(path: str, types: list[str], found: str | None) -> InvalidError:
    of = ", ".join(types[:3]) + (", …" if len(types) > 3 else "")
    return refusal(path, f"no payload of {of} has a field {shown(path)}", found)


def refusal(path: str, message: str, found: str | None = None, kind: type[InvalidError] = InvalidError) -> InvalidError:
    asked = f' (did you mean "{found}"?)' if found else ""
    return kind.field(path, message, found, detail=message + asked)
