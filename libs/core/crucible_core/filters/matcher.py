"""Many filters against one event: subscriptions compiled once, and an index that finds the ones that match."""

from collections.abc import Hashable, Iterable, Sequence, Set
from functools import cached_property, lru_cache, partial
from itertools import count
from typing import Generic, NamedTuple, TypeVar

import msgspec

from crucible_core.envelope import Event
from crucible_core.errors import FieldError, InvalidError
from crucible_core.filters.filter import Anchor, Predicate, anchors, compile_filter
from crucible_core.filters.operators import scalar_key
from crucible_core.filters.paths import Getter
from crucible_core.limits import ERRORS, FILTERS
from crucible_core.protocol.parts import TypeFilter
from crucible_core.types.catalogue import CATALOGUE, Catalogue

T = TypeVar("T", bound=Hashable)

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


class CompiledFilters(msgspec.Struct, frozen=True, dict=True):
    """The filters of one handler: any of the alternatives. With none, nothing matches."""

    alternatives: tuple[Alternative, ...]

    @cached_property
    def types(self) -> frozenset[str] | None:
        """The types that can match, canonical or the wildcard of an open category; None for every type."""
        named = [alternative.types for alternative in self.alternatives]
        return None if None in named else frozenset[str]().union(*(types for types in named if types is not None))

    def matches(self, event: Event) -> bool:
        return any(alternative.matches(event) for alternative in self.alternatives)

    def wants_type(self, event: Event) -> bool:
        """True if an event of that type may match, whatever its payload is."""
        return any(alternative.wants_type(event) for alternative in self.alternatives)

    def names_category(self, category: str) -> bool:
        """True if a filter names this category or one of its types, by any alias; `*` names none."""
        prefix = f"{category}."
        return any(name.startswith(prefix) for alternative in self.alternatives for name in alternative.types or ())


def compile_filters(
    filters: Sequence[TypeFilter],
    *,
    at: str = "event_filters",
    catalogue: Catalogue = CATALOGUE,
    any_path: bool = False,
) -> CompiledFilters:
    """The compiled `filters`, with the types of `catalogue`. With `any_path` they may name fields that no payload can
    have, as do filters that were accepted before their type was registered.

    Raises InvalidError with the mistakes of the `filters`, each with its path (`event_filters.0.filter.tags`).
    """
    if len(filters) > FILTERS and not any_path:
        message = f"must be at most {FILTERS} filters"
        raise InvalidError.field(at, message)
    alternatives: list[Alternative] = []
    errors: list[FieldError] = []
    for i, wanted in enumerate(filters):
        try:
            alternatives.append(_alternative(wanted, f"{at}.{i}", catalogue, any_path))
        except InvalidError as refused:
            errors += refused.errors
            if len(errors) >= ERRORS:
                break
    if errors:
        first = errors[0]
        raise InvalidError(f"{first.path}: {first.message}", errors=errors)
    if len(filters) == 1 and not filters[0].filter:
        return _unfiltered(alternatives[0].types)
    return CompiledFilters(tuple(alternatives))


@lru_cache(maxsize=4096)
def _unfiltered(types: frozenset[str] | None) -> CompiledFilters:
    """A predicate for all events of some types: the same for all handlers that take them."""
    return CompiledFilters((Alternative(types, compile_filter({})),))


def _alternative(wanted: TypeFilter, at: str, catalogue: Catalogue, any_path: bool) -> Alternative:
    types = catalogue.expand(wanted.event_type, f"{at}.event_type")
    check = None if any_path else partial(catalogue.check_path, types)
    predicate = compile_filter(wanted.filter, check=check, at=f"{at}.filter")
    return Alternative(types, predicate, tuple(anchors(wanted.filter)))


class Matcher(Generic[T]):
    """Finds, for an event, the targets whose filters match it, in the order in which they were put.

    To put or to drop one costs some microseconds for each type that its filters name, however many others there are.
    Matching asks the tables of the event's type, of its category's wildcard and of `*`; each holds its filters by a
    value that they require (`equals` or `in` of a scalar). So it costs one lookup for each field so required, and a
    call for each filter whose value is the event's or that requires none. Type names that no filter has take no memory,
    however many events bring.
    """

    def __init__(self, pairs: Iterable[tuple[T, CompiledFilters]] = ()) -> None:
        self._placed: dict[T, tuple[int, CompiledFilters]] = {}
        self._tables: dict[str, _Table[T]] = {}
        self._positions = count()
        for target, compiled in pairs:
            self.put(target, compiled)

    def put(self, target: T, compiled: CompiledFilters) -> None:
        """Adds a target, in place of what it listened to before."""
        self.drop(target)
        position = next(self._positions)
        self._placed[target] = position, compiled
        for alternative in compiled.alternatives:
            entry = _Entry(position, target, alternative.predicate, alternative.anchors)
            for name in _EVERYTHING if alternative.types is None else alternative.types:
                table = self._tables.get(name)
                if table is None:
                    table = self._tables[name] = _Table()
                table.add(entry)

    def drop(self, target: T) -> None:
        """Removes a target, if it is there."""
        if target not in self._placed:
            return
        position, compiled = self._placed.pop(target)
        for alternative in compiled.alternatives:
            for name in _EVERYTHING if alternative.types is None else alternative.types:
                table = self._tables.get(name)
                if table is not None and table.remove(position, alternative.anchors):
                    del self._tables[name]

    @property
    def types(self) -> Set[str] | None:
        """The types that may match, as `Catalogue.expand` gives them; None is every one."""
        return None if "*" in self._tables else self._tables.keys()

    def may_want(self, category: str, event: str) -> bool:
        """True if an event of a type may match, whatever is in it."""
        tables = self._tables
        return not tables.keys().isdisjoint((f"{category}.{event}", f"{category}.*", *_EVERYTHING))

    def match(self, event: Event) -> list[T]:
        hits: dict[int, T] = {}
        for name in (*_names(event), *_EVERYTHING):
            if (table := self._tables.get(name)) is not None:
                table.collect(event, hits)
        return [hits[position] for position in sorted(hits)]


class _Entry(NamedTuple, Generic[T]):
    position: int
    target: T
    predicate: Predicate
    anchors: tuple[Anchor, ...]


class _Table(Generic[T]):
    """The filters of one type: those found through a value that they require, and the others, which are all asked."""

    __slots__ = ("_indexes", "_others")

    def __init__(self) -> None:
        self._indexes: dict[str, tuple[Getter, dict[Hashable, list[_Entry[T]]]]] = {}
        self._others: list[_Entry[T]] = []

    def add(self, entry: _Entry[T]) -> None:
        """Under the anchor whose values the fewest other filters have."""
        anchor = min(entry.anchors, key=self._shared, default=None)
        if anchor is None:
            self._others.append(entry)
            return
        _, by_value = self._indexes.setdefault(anchor.path, (anchor.get, {}))
        for value in anchor.values:
            by_value.setdefault(value, []).append(entry)

    def _shared(self, anchor: Anchor) -> int:
        _, by_value = self._indexes.get(anchor.path, (None, {}))
        return sum(len(by_value.get(value, ())) for value in anchor.values)

    def remove(self, position: int, anchors: Sequence[Anchor]) -> bool:
        """Removes the filters of a target; true when none is left."""
        self._others = [entry for entry in self._others if entry.position != position]
        for anchor in anchors:
            _, by_value = self._indexes.get(anchor.path, (None, {}))
            for value in anchor.values:
                left = [entry for entry in by_value.pop(value, ()) if entry.position != position]
                if left:
                    by_value[value] = left
            if not by_value:
                self._indexes.pop(anchor.path, None)
        return not self._indexes and not self._others

    def collect(self, event: Event, hits: dict[int, T]) -> None:
        """Adds the targets that match `event` to `hits`, by their positions."""
        for get, by_value in self._indexes.values():
            _ask(by_value.get(scalar_key(get(event)), ()), event, hits)
        _ask(self._others, event, hits)


def _ask(entries: Iterable[_Entry[T]], event: Event, hits: dict[int, T]) -> None:
    for position, target, predicate, _ in entries:
        if position not in hits and predicate(event):
            hits[position] = target
