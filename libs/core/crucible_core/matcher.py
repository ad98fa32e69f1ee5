"""Many filters against one event: subscriptions compiled once, and an index that finds the ones that match."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from .catalogue import CATALOGUE, Catalogue
from .envelope import Event
from .errors import FieldError, InvalidError
from .filters import MAX_ERRORS, Anchor, Predicate, anchors, compile_filter
from .limits import FILTERS
from .operators import scalar_key
from .paths import Getter
from .protocol.shared import TypeFilter

T = TypeVar("T")

_EVERYTHING = ("*",)


class Alternative(msgspec.Struct, frozen=True):
    """One compiled `TypeFilter`; `types` are as `Catalogue.expand` gives them: None is every type."""

    types: frozenset[str] | None
    predicate: Predicate
    anchors: tuple[Anchor, ...] = ()

    def matches(self, event: Event) -> bool:
        return self.wants_type(event) and self.predicate(event)

    def wants_type(self, event: Event) -> bool:
        return self.types is None or any(name in self.types for name in _names(event))


def _names(event: Event) -> tuple[str, ...]:
    """The names under which an alternative's `types` may hold the event's type."""
    return event.dotted, f"{event.type}.*"


class CompiledFilters(msgspec.Struct, frozen=True):
    """What one handler listens to: any of the alternatives. With none, nothing matches."""

    alternatives: tuple[Alternative, ...]

    @property
    def types(self) -> frozenset[str] | None:
        """The types that can match, canonical or the wildcard of an open category; None for every type."""
        named = [alternative.types for alternative in self.alternatives]
        return None if None in named else frozenset[str]().union(*(types for types in named if types is not None))

    def matches(self, event: Event) -> bool:
        return any(alternative.matches(event) for alternative in self.alternatives)

    def wants_type(self, event: Event) -> bool:
        """Whether an event of that type may match, whatever its payload is."""
        return any(alternative.wants_type(event) for alternative in self.alternatives)

    def names_category(self, category: str) -> bool:
        """Whether a filter names this category or one of its types, by any alias; `*` names none."""
        prefix = f"{category}."
        return any(name.startswith(prefix) for alternative in self.alternatives for name in alternative.types or ())


def compile_filters(
    filters: Sequence[TypeFilter],
    *,
    at: str = "event_filters",
    catalogue: Catalogue = CATALOGUE,
    any_path: bool = False,
) -> CompiledFilters:
    """What `filters` mean with the types of `catalogue`. With `any_path` they may name fields that no payload can have,
    as do filters that were accepted before their type was registered.

    Raises InvalidError with the mistakes of the `filters`, each with its path (`event_filters.0.filter.tags`).
    """
    if len(filters) > FILTERS and not any_path:
        message = f"must be at most {FILTERS} filters"
        raise InvalidError(f"{at}: {message}", errors=[FieldError(at, message)])
    alternatives: list[Alternative] = []
    errors: list[FieldError] = []
    for i, wanted in enumerate(filters):
        try:
            alternatives.append(_alternative(wanted, f"{at}.{i}", catalogue, any_path))
        except InvalidError as refused:
            errors += refused.errors
            if len(errors) >= MAX_ERRORS:
                break
    if errors:
        first = errors[0]
        raise InvalidError(f"{first.path}: {first.message}", errors=errors)
    return CompiledFilters(tuple(alternatives))


def _alternative(wanted: TypeFilter, at: str, catalogue: Catalogue, any_path: bool) -> Alternative:
    types = catalogue.expand(wanted.event_type, f"{at}.event_type")
    check = None if any_path else partial(catalogue.check_path, types)
    predicate = compile_filter(wanted.filter, check=check, at=f"{at}.filter")
    return Alternative(types, predicate, tuple(anchors(wanted.filter)))


class Matcher(Generic[T]):
    """Finds, for an event, the targets whose filters match it, in the order in which they were given.

    Immutable: build a new one for each change, from `CompiledFilters` that are kept. Building takes about a microsecond
    for each type that each filter names; the first event of a type then pays about 5 µs for each filter on that type,
    once. Matching asks the tables of the event's type, of its category's wildcard and of `*`; each holds its filters by
    a value that they require (`equals` or `in` of a scalar). So it costs one lookup for each field so required, and a
    call for each filter whose value is the event's or that requires none. Type names that no filter has take no memory,
    however many events bring.
    """

    def __init__(self, pairs: Iterable[tuple[T, CompiledFilters]]) -> None:
        self._targets: list[T] = []
        self._entries: dict[str, list[_Entry]] = {}
        self._tables: dict[str, _Table] = {}
        for position, (target, compiled) in enumerate(pairs):
            self._targets.append(target)
            for alternative in compiled.alternatives:
                entry = _Entry(position, alternative.predicate, alternative.anchors)
                for name in _EVERYTHING if alternative.types is None else alternative.types:
                    self._entries.setdefault(name, []).append(entry)

    def may_want(self, category: str, event: str) -> bool:
        """Whether an event of a type may match, whatever is in it."""
        return any(name in self._entries for name in (f"{category}.{event}", f"{category}.*", *_EVERYTHING))

    def match(self, event: Event) -> list[T]:
        hits: set[int] = set()
        for name in (*_names(event), *_EVERYTHING):
            if name in self._entries:
                self._table(name).collect(event, hits)
        return [self._targets[position] for position in sorted(hits)]

    def _table(self, name: str) -> "_Table":
        table = self._tables.get(name)
        if table is None:
            table = self._tables[name] = _table(self._entries[name])
        return table


class _Entry(NamedTuple):
    position: int
    predicate: Predicate
    anchors: tuple[Anchor, ...]


class _Index(NamedTuple):
    get: Getter
    entries: Mapping[Hashable, Sequence[_Entry]]


class _Table(NamedTuple):
    """The filters of one type: those found through a value that they require, and the others, which are all asked."""

    indexes: tuple[_Index, ...]
    others: tuple[_Entry, ...]

    def collect(self, event: Event, hits: set[int]) -> None:
        """Adds the positions that match `event` to `hits`."""
        for get, entries in self.indexes:
            _ask(entries.get(scalar_key(get(event)), ()), event, hits)
        _ask(self.others, event, hits)


def _ask(entries: Iterable[_Entry], event: Event, hits: set[int]) -> None:
    for position, predicate, _ in entries:
        if position not in hits and predicate(event):
            hits.add(position)


def _table(entries: Sequence[_Entry]) -> _Table:
    rivals = Counter((anchor.path, value) for entry in entries for anchor in entry.anchors for value in anchor.values)
    getters: dict[str, Getter] = {}
    indexed: dict[str, dict[Hashable, list[_Entry]]] = {}
    others: list[_Entry] = []
    for entry in entries:
        anchor = _most_telling(entry.anchors, rivals)
        if anchor is None:
            others.append(entry)
            continue
        getters[anchor.path] = anchor.get
        by_value = indexed.setdefault(anchor.path, {})
        for value in anchor.values:
            by_value.setdefault(value, []).append(entry)
    return _Table(tuple(_Index(getters[path], by_value) for path, by_value in indexed.items()), tuple(others))


def _most_telling(found: Sequence[Anchor], rivals: Mapping[tuple[str, Any], int]) -> Anchor | None:
    """The anchor whose values the fewest filters share."""
    return min(found, key=lambda anchor: sum(rivals[anchor.path, value] for value in anchor.values), default=None)
