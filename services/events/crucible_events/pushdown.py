"""What of a filter SQLite can test by itself, so that fewer events are decoded: conditions that hold at least
where the filter does. The compiled filter has the last word. Pure."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from crucible_core.access import ABOUT_WORLDS, OF_ALL_WORLDS, Scope, View
from crucible_core.operators import SPELLINGS
from crucible_core.synonyms import other_names

COLUMNS = {
    "event.type": "category",
    "event.metadata.id": "id",
    "event.metadata.actor": "actor",
    "event.metadata.correlation_id": "correlation_id",
    "event.metadata.causation_id": "causation_id",
    "event.metadata.entity": "entity",
    "event.metadata.world_id": "world_id",
    "event.metadata.room_id": "room_id",
    "event.metadata.source.kind": "source_kind",
}
_PAYLOAD = ("event.payload.", "event.data.payload.")
_ORDERED = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_MOST_VALUES = 50
_MOST_CONDITIONS = 20


class Condition(NamedTuple):
    """An SQL expression over a row of `events`, and its values."""

    sql: str
    values: tuple[Any, ...]


def conditions(spec: Mapping[str, Any]) -> list[Condition]:
    """Of a filter that was compiled; all of them hold of every event that the filter matches."""
    return list(_conditions(spec))[:_MOST_CONDITIONS]


def seen(scope: Scope) -> list[Condition]:
    """The same of all that a scope sees."""
    if scope.everything:
        return []
    views = [_all(_of_view(view)) for view in scope.views] or [Condition("0", ())]
    return [Condition(" OR ".join(view.sql for view in views), tuple(v for view in views for v in view.values))]


def _of_view(view: View) -> Iterable[Condition]:
    yield Condition("1", ())
    for column, names in (("world_id", view.worlds), ("room_id", view.rooms)):
        if names is not None:
            yield _one_of(column, names)
    if view.types is not None:
        whole = {name[:-2] for name in view.types if name.endswith(".*")}
        either = _one_of("category", whole), _one_of("type", view.types)
        yield Condition(f"{either[0].sql} OR {either[1].sql}", (*either[0].values, *either[1].values))
    if view.worlds is not None:
        of_all = _one_of("type", OF_ALL_WORLDS)
        about = _all([_one_of("type", ABOUT_WORLDS), _one_of("entity", view.worlds)])
        yield Condition(f"NOT ({of_all.sql}) OR {about.sql}", (*of_all.values, *about.values))
    yield from conditions(view.where)


def _one_of(column: str, names: Collection[str]) -> Condition:
    return Condition(f"{column} IN ({', '.join('?' * len(names))})", tuple(sorted(names)))


def _all(parts: Iterable[Condition]) -> Condition:
    kept = list(parts)
    sql = " AND ".join(f"({part.sql})" for part in kept)
    return Condition(f"({sql})", tuple(value for part in kept for value in part.values))


def _conditions(spec: Mapping[str, Any]) -> Iterable[Condition]:
    for key, wanted in spec.items():
        if key == "$and":
            for part in wanted:
                yield from _conditions(part)
        elif not key.startswith("$"):
            operators = wanted if isinstance(wanted, dict) else {"equals": wanted}
            for spelling, operand in operators.items():
                found = _condition(key, SPELLINGS[spelling], operand)
                if found is not None:
                    yield found


def _condition(path: str, operator: str, operand: Any) -> Condition | None:
    column = COLUMNS.get(path)
    if column is not None:
        return _test(column, operator, operand)
    inner = next((path[len(root) :] for root in _PAYLOAD if path.startswith(root)), path)
    segments = inner.split(".")
    if inner.startswith("event.") or any(map(str.isdecimal, segments)):
        return None
    if operator == "contains":
        test = _contained(operand)
        segments.append("")
    else:
        test = _test("leaf.atom", operator, operand)
    return None if test is None else _somewhere(segments, test)


def _somewhere(segments: list[str], test: Condition) -> Condition:
    """That a member at a path passes. Members are walked rather than looked up: of one that comes twice, SQLite finds
    the first, and the last one counts. An empty segment stands for every element."""
    tables, walked, values = [], [], []
    below = "CAST(raw AS TEXT), '$.data.payload'"
    for depth, segment in enumerate(segments):
        name = "leaf" if depth == len(segments) - 1 else f"step{depth}"
        tables.append(f"json_each({below}) AS {name}")
        if segment:
            names = sorted(other_names(segment))
            walked.append(f"{name}.key IN ({', '.join('?' * len(names))})")
            values += names
        # What is no object or list has nothing below, and is no JSON by itself.
        below = f"CASE WHEN {name}.type IN ('object', 'array') THEN {name}.value ELSE json_array({name}.value) END"
    tests = " AND ".join([*walked, f"({test.sql})"])
    return Condition(f"EXISTS (SELECT 1 FROM {', '.join(tables)} WHERE {tests})", (*values, *test.values))


def _test(value: str, operator: str, operand: Any) -> Condition | None:
    if operator == "equals":
        operand, operator = [operand], "in"
    if operator == "in":
        usable = len(operand) <= _MOST_VALUES and all(map(_plain, operand))
        return Condition(f"{value} IN ({', '.join('?' * len(operand))})", tuple(operand)) if usable else None
    if operator in _ORDERED and _plain(operand):
        return Condition(f"{value} {_ORDERED[operator]} ?", (operand,))
    if operator == "starts_with" and _plain(operand):
        return Condition(f"substr({value}, 1, ?) = ?", (len(operand), operand))
    return None


def _contained(operand: Any) -> Condition | None:
    """Of a list's element, an object's key, or a text (which has itself as its only element)."""
    if not _plain(operand):
        return None
    if isinstance(operand, str):
        return Condition("leaf.atom = ? OR leaf.key = ? OR instr(leaf.atom, ?)", (operand,) * 3)
    return Condition("leaf.atom = ?", (operand,))


def _plain(operand: Any) -> bool:
    """Whether SQLite compares it as JSON does."""
    if isinstance(operand, str):
        return operand.isprintable() and operand.isascii() and len(operand) > 0
    return isinstance(operand, bool | float) or (isinstance(operand, int) and abs(operand) < 2**53)
