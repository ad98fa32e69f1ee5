"""What a query asks, checked, and the cursors that go on with it."""

import base64
import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, get_args

import msgspec

from crucible_core.access import EVERYTHING, Scope
from crucible_core.catalogue import Catalogue
from crucible_core.envelope import SourceKind
from crucible_core.errors import CrucibleError, FieldError, InvalidError
from crucible_core.filters import Predicate, compile_filter
from crucible_core.position import Encoded, Position, counted
from crucible_core.protocol.events import QueryRequest
from crucible_core.suggest import nearest
from crucible_core.times import parse_time

from .pushdown import Condition, conditions, seen

MAX_LIMIT = 1000
MAX_SEQUENCE = 2**63 - 1
MAX_TYPES = 100
EQUAL = ("correlation_id", "causation_id", "entity", "actor", "world_id", "room_id")
"""The parameters that are a column's value."""

_CURSOR_BYTES = 2000

A = TypeVar("A")
B = TypeVar("B")


class Query(msgspec.Struct, frozen=True):
    """A request that was checked: `types` are as `Catalogue.expand` gives them (None: all); times are microseconds;
    `position` is where in the log the page before ended."""

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


def checked(request: QueryRequest, catalogue: Catalogue, scope: Scope = EVERYTHING) -> Query:
    """What is asked, of what the one that asks may see. Raises InvalidError with every mistake of the request."""
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
        ("limit", request.limit, 1, MAX_LIMIT),
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
        conditions=(*seen(scope), *(conditions(request.filter) if request.filter else ())),
        limit=request.limit,
        position=position,
        fingerprint=fingerprint,
        with_retention=request.with_retention,
    )


def _types(catalogue: Catalogue, patterns: list[str]) -> frozenset[str] | None:
    if len(patterns) > MAX_TYPES:
        raise InvalidError("too many types", errors=[FieldError("type", f"may be given {MAX_TYPES} times")])
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
        raise InvalidError(f"source: {message}", errors=[FieldError("source", message, nearest(kind, kinds))])
    return {"source_kind": kind, "source_id": source_id} if colon else {"source_kind": kind}


def _predicate(catalogue: Catalogue, types: frozenset[str] | None, spec: dict[str, Any]) -> Predicate:
    return compile_filter(spec, check=partial(catalogue.check_path, types))


def _both(first: Predicate, second: Predicate) -> Predicate:
    return lambda event: first(event) and second(event)


def _fingerprint(request: QueryRequest) -> str:
    """The same for two requests that differ only in how much of the answer they want."""
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
        raise InvalidError(f"cursor {message}", errors=[FieldError("cursor", message)])
    return decoded.position


def cursor_at(query: Query, position: Position) -> str:
    raw = msgspec.json.encode(_Cursor(query.fingerprint, position.encoded))
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
