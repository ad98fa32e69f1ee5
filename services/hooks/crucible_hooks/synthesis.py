"""Synthetic events: an example of a type, bent until a filter accepts it, as far as that can be done."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from crucible_core.catalogue import ANY_CUSTOM, Catalogue
from crucible_core.envelope import DEFAULT_WORLD, Data, Event, Metadata, Source
from crucible_core.operators import SPELLINGS
from crucible_core.protocol.shared import TypeFilter
from crucible_core.shape import ITEM, Shape
from crucible_kit.clock import fresh_id, timestamp

_ANYTHING = "Memory.Created"
_PAYLOAD_ROOTS = ("event.payload.", "event.data.payload.")
_FILLER = "Crucible tries this hook with a synthetic event whose words mean nothing at all. "


def synthetic(
    filters: Sequence[TypeFilter], payload: dict[str, Any] | None, catalogue: Catalogue, world: str = DEFAULT_WORLD
) -> Event:
    """An event for the first of `filters`: with `payload` where one is given, else with one made to fit."""
    wanted = filters[0]
    dotted = one_type(wanted.event_type, catalogue)
    category, _, event = dotted.partition(".")
    metadata = Metadata(
        id=fresh_id("evt"),
        timestamp=timestamp(),
        source=Source("system", "hooks"),
        actor="system:test",
        correlation_id=fresh_id("cor"),
        world_id=world,
    )
    fields: dict[str, Any] = {}
    if payload is None:
        payload = catalogue.example(dotted)
        fit(wanted.filter, payload, fields, catalogue.fields(dotted))
    known = {name: value for name, value in fields.items() if name in Metadata.__struct_fields__}
    return Event(category, Data(event, payload), _replaced(metadata, known))


def one_type(pattern: str, catalogue: Catalogue) -> str:
    """One type out of those that a pattern stands for."""
    types = catalogue.expand(pattern)
    if types is None or _ANYTHING in types:
        return _ANYTHING
    first = min(catalogue.members(types), default=ANY_CUSTOM)
    return "Custom.Test" if first == ANY_CUSTOM else first


def fit(spec: Mapping[str, Any], payload: dict[str, Any], metadata: dict[str, Any], shape: Shape | None) -> None:
    """Writes into `payload` and `metadata` what `spec` asks for. What it cannot make is left as it is."""
    for path, wanted in spec.items():
        if path == "$and":
            for part in wanted:
                fit(part, payload, metadata, shape)
        elif path == "$or":
            fit(wanted[0], payload, metadata, shape)
        elif not path.startswith("$"):
            operators = wanted if isinstance(wanted, dict) else {"equals": wanted}
            _fit_path(path, operators, payload, metadata, shape)


def _fit_path(
    path: str, operators: Mapping[str, Any], payload: dict[str, Any], metadata: dict[str, Any], shape: Shape | None
) -> None:
    target, inner = payload, path
    if path.startswith("event.metadata."):
        target, inner = metadata, path.removeprefix("event.metadata.")
    else:
        root = next((root for root in _PAYLOAD_ROOTS if path.startswith(root)), "")
        inner = path.removeprefix(root)
    for spelling, operand in operators.items():
        with contextlib.suppress(TypeError, KeyError, IndexError, ValueError):
            _write(target, inner.split("."), _value(SPELLINGS[spelling], operand, target, inner, shape))


def _value(operator: str, operand: Any, target: dict[str, Any], path: str, shape: Shape | None) -> Any:
    """A value that the operator accepts. Raises KeyError for an operator that asks for nothing that could be made."""
    present = target.get(path)
    match operator:
        case "equals" | "gte" | "lte":
            return operand
        case "in":
            return operand[0]
        case "contains" if isinstance(present, list) or (present is None and _is_list(shape, path)):
            return [*(present or []), operand]
        case "contains" | "starts_with" | "ends_with":
            text = present if isinstance(present, str) else ""
            return operand + text if operator == "starts_with" else text + operand
        case "gt":
            return operand + 1
        case "lt":
            return operand - 1
        case "exists" if operand:
            return present if present is not None else "synthetic"
        case "matches":
            return (present if isinstance(present, str) else "") + _FILLER * 8
    raise KeyError(operator)


def _is_list(shape: Shape | None, path: str) -> bool:
    field = shape.get(path) if shape is not None else {}
    return field is not None and ITEM in field


def _write(target: dict[str, Any], segments: list[str], value: Any) -> None:
    *way, last = segments
    for segment in way:
        target = target.setdefault(segment, {})
    target[last] = value


def _replaced(metadata: Metadata, fields: Mapping[str, Any]) -> Metadata:
    values = {name: getattr(metadata, name) for name in Metadata.__struct_fields__} | dict(fields)
    return Metadata(**values)
