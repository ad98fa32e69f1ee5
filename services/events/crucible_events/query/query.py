"""Queries: the check of a request, its cursors, and the SQL conditions that follow from its filter and scope."""

import base64
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar, get_args

import msgspec

from crucible_core.access import ABOUT_WORLDS, EVERYTHING, OF_ALL_WORLDS, Scope, View
from crucible_core.envelope import SourceKind
from crucible_core.errors import CrucibleError, FieldError, InvalidError
from crucible_core.filters.filter import Predicate, compile_filter
from crucible_core.filters.operators import SPELLINGS
from crucible_core.limits import PAGE, QUERY_TYPES
from crucible_core.position import Encoded, Position, counted
from crucible_core.protocol.events import QueryRequest
from crucible_core.suggest import nearest
from crucible_core.times import parse_time
from crucible_core.types.catalogue import Catalogue
from crucible_core.types.synonyms import other_names

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
MAX_SEQUENCE = 2**63 - 1
EQUAL = ("correlation_id", "causation_id", "entity", "actor", "world_id", "room_id")
"""The parameters that are a column's value."""

_CURSOR_BYTES = 2000

A = TypeVar("A")
B = TypeVar("B")


class Condition(NamedTuple):
    """An SQL expression over a row of `events`, and its values."""

    sql: str
    values: tuple[Any, ...]


class Query(msgspec.Struct, frozen=True):
    """A checked request: `types` are as `Catalogue.expand` returns them (None: all); times are microseconds; `position`
    is the end of the page before."""

    types: frozenset[str] | None
    equal: dict[str, str]
    start: int | None
    end: int | None
    after: int
    until: Encoded
    descending: bool
    predicate: Predicate | None
    conditions: tuple[Condition, ...]
    limit: int
    position: Encoded | None
    fingerprint: str
    with_retention: bool = False


class _Cursor(msgspec.Struct):
    query: str
    position: Encoded


def read_query(request: QueryRequest, catalogue: Catalogue, scope: Scope = EVERYTHING) -> Query:
    """The query of a request within a scope. Raises InvalidError with every mistake of the request."""
    errors: list[FieldError] = []

    def read(value: A | None, reader: Callable[[A], B]) -> B | None:
        try:
            return None if value is None else reader(value)
        except CrucibleError as error:
            errors.extend(error.errors)
            return None

    fingerprint = _fingerprint(request)
    types = read(request.type or None, partial(_types, catalogue))
    start = read(request.from_time, partial(parse_time, path="from_time"))
    end = read(request.to_time, partial(parse_time, path="to_time"))
    source = read(request.source, _source) or {}
    if start is not None and end is not None and start > end:
        errors.append(FieldError("to_time", "must not be before from_time"))
    predicate = read(request.filter or None, partial(_predicate, catalogue, types))
    position = read(request.cursor, partial(_position, fingerprint))
    for path, value, least, most in (
        ("limit", request.limit, 1, PAGE),
        ("after", request.after, 0, MAX_SEQUENCE),
        ("until", request.until, 0, MAX_SEQUENCE),
        ("min_sequence", request.min_sequence, 0, MAX_SEQUENCE),
    ):
        if value is not None and not least <= counted(value) <= most:
            errors.append(FieldError(path, f"must be {least} to {most}"))
    if errors:
        raise InvalidError("; ".join(f"{error.path}: {error.message}" for error in errors), errors=errors)
    equal = {name: value for name in EQUAL if (value := getattr(request, name)) is not None} | source
    if scope.worlds is not None and len(scope.worlds) == 1:  # whose index then finds the events
        equal.setdefault("world_id", min(scope.worlds))
    if any(view.accepts for view in scope.views):
        predicate = scope.sees if predicate is None else _both(scope.sees, predicate)
    return Query(
        types=types,
        equal=equal,
        start=start,
        end=end,
        after=request.after or 0,
        until=MAX_SEQUENCE if request.until is None else request.until,
        descending=request.order == "desc",
        predicate=predicate,
        conditions=(*scope_conditions(scope), *(filter_conditions(request.filter) if request.filter else ())),
        limit=request.limit,
        position=position,
        fingerprint=fingerprint,
        with_retention=request.with_retention,
    )


def cursor_at(query: Query, position: Position) -> str:
    raw = msgspec.json.encode(_Cursor(query.fingerprint, position.encoded))
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _types(catalogue: Catalogue, patterns: list[str]) -> frozenset[str] | None:
    if len(patterns) > QUERY_TYPES:
        raise InvalidError.field("type", f"may be given {QUERY_TYPES} times", detail="too many types")
    expanded = [catalogue.expand(pattern) for pattern in patterns]
    if None in expanded:
        return None
    return frozenset[str]().union(*(types for types in expanded if types is not None))


def _source(source: str) -> dict[str, str]:
    """The columns of `kind` or `kind:id`."""
    kind, colon, source_id = source.partition(":")
    kinds = get_args(SourceKind)
    if kind not in kinds:
        message = f"must be one of {', '.join(kinds)}, alone or with an id: agent:alice"
        raise InvalidError.field("source", message, nearest(kind, kinds))
    return {"source_kind": kind, "source_id": source_id} if colon else {"source_kind": kind}


def _predicate(catalogue: Catalogue, types: frozenset[str] | None, spec: dict[str, Any]) -> Predicate:
    return compile_filter(spec, check=partial(catalogue.check_path, types))


def _both(first: Predicate, second: Predicate) -> Predicate:
    return lambda event: first(event) and second(event)


def _fingerprint(request: QueryRequest) -> str:
    """The same for two requests that differ only in the size of their page."""
    same = msgspec.structs.replace(request, cursor=None, limit=0, min_sequence=None)
    return hashlib.sha256(msgspec.json.encode(same, order="sorted")).hexdigest()[:16]


def _position(fingerprint: str, cursor: str) -> Encoded:
    message = "is not a cursor of this query"
    try:
        padded = cursor.encode("ascii")[:_CURSOR_BYTES] + b"=" * (-len(cursor) % 4)
        decoded = msgspec.json.decode(base64.b64decode(padded, altchars=b"-_", validate=True), type=_Cursor)
    except (ValueError, msgspec.DecodeError):
        decoded = None
    if decoded is None or decoded.query != fingerprint or not 0 <= counted(decoded.position) <= MAX_SEQUENCE:
        raise InvalidError.field("cursor", message, detail=f"cursor {message}")
    return decoded.position


# ---- conditions ------------------------------------------------------------------------------------------------------


def filter_conditions(spec: Mapping[str, Any]) -> list[Condition]:
    """Conditions that hold for every event that a compiled filter matches."""
    return list(_conditions(spec))[:_MOST_CONDITIONS]


def scope_conditions(scope: Scope) -> list[Condition]:
    """Conditions that hold for every event that a scope shows."""
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
    yield from filter_conditions(view.where)


def _one_of(column: str, names: Collection[str]) -> Condition:
    return Condition(f"{column} IN ({', '.join('?' * len(names))})", tuple(sorted(names)))


def _all(parts: Iterable[Condition]) -> Condition:
    all_parts = list(parts)
    sql = " AND ".join(f"({part.sql})" for part in all_parts)
    return Condition(f"({sql})", tuple(value for part in all_parts for value in part.values))


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
        test = _contains(operand)
        segments.append("")
    else:
        test = _test("leaf.atom", operator, operand)
    return None if test is None else _at_path(segments, test)


def _at_path(segments: list[str], test: Condition) -> Condition:
    """The condition that a member at a path passes. It walks the members: SQLite looks up the first of two with one
    name, and the last one counts. An empty segment stands for every element."""
    tables, walked, values = [], [], []
    below = "CAST(raw AS TEXT), '$.data.payload'"
    for depth, segment in enumerate(segments):
        name = "leaf" if depth == len(segments) - 1 else f"step{depth}"
        tables.append(f"json_each({below}) AS {name}")
        if segment:
            names = sorted(other_names(segment))
            walked.append(f"{name}.key IN ({', '.join('?' * len(names))})")
            values += names
        # A scalar has no members, and is no JSON by itself.
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


def _contains(operand: Any) -> Condition | None:
    """The test of a list's element, an object's key, or a text (which is its own only element)."""
    if not _plain(operand):
        return None
    if isinstance(operand, str):
        return Condition("leaf.atom = ? OR leaf.key = ? OR instr(leaf.atom, ?)", (operand,) * 3)
    return Condition("leaf.atom = ?", (operand,))


def _plain(operand: Any) -> bool:
    """True where SQLite compares it as JSON does."""
    if isinstance(operand, str):
        return operand.isprintable() and operand.isascii() and len(operand) > 0
    return isinstance(operand, bool | float) or (isinstance(operand, int) and abs(operand) < 2**53)
