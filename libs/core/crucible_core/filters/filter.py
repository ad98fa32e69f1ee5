"""The filter language: one JSON object, checked and compiled once to a predicate of an event or of a document.

A path names a field of the payload and goes down at dots, into list elements at numbers (`links.0.target`). A path that
starts with `event.` starts at the event instead (`event.metadata.actor`). `operators` says what each operator means.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from crucible_core.envelope import Event
from crucible_core.errors import FieldError, InvalidError
from crucible_core.filters.operators import (
    MISSING,
    OPERATORS,
    SPELLINGS,
    Test,
    operand_value,
    operator_meant,
    scalar_key,
)
from crucible_core.filters.paths import FieldReader, Getter, bind, document_field, event_field
from crucible_core.limits import ERRORS, FILTER_CONDITIONS, FILTER_DEPTH, FILTER_PATH_CHARS, FILTER_PATTERNS
from crucible_core.suggest import nearest

Predicate = Callable[[Event], bool]
DocumentPredicate = Callable[[dict[str, Any]], bool]

_MAX_ANCHOR_VALUES = 32
_COMBINERS = ("$and", "$or", "$not")
_SHOWN = 80


class Anchor(NamedTuple):
    """A field that must equal one of a few scalars (as `scalar_key`s) for a filter to hold: what an index can use."""

    path: str
    get: Getter
    values: frozenset[Hashable]


def compile_filter(spec: Any, *, check: Callable[[str], None] | None = None, at: str = "filter") -> Predicate:
    """The predicate that `spec` describes; `{}` holds of every event.

    `check` is asked about each payload path, and raises InvalidError for one that cannot exist. Raises InvalidError
    with the mistakes found (the first 20), each with its path under `at`.
    """
    return _Compilation(partial(event_field, check)).run(spec, at)


def compile_document_filter(
    spec: Any, fields: Collection[str] | None = None, *, at: str = "filter"
) -> DocumentPredicate:
    """The same language over a plain JSON object: paths start at its top, where only `fields` exist (None: any)."""
    return _Compilation(partial(document_field, fields)).run(spec, at)


def anchors(spec: Mapping[str, Any]) -> list[Anchor]:
    """The anchors of a filter that `compile_filter` has accepted."""
    found: list[Anchor] = []
    for key, wanted in spec.items():
        if key == "$and":
            found += [anchor for part in wanted for anchor in anchors(part)]
        elif key not in _COMBINERS:
            field = event_field(None, key)
            found += [Anchor(field.name, field.get, values) for values in _required(wanted)]
    return found


def _required(wanted: Any) -> Iterable[frozenset[Hashable]]:
    operators = wanted if isinstance(wanted, dict) else {"equals": wanted}
    for spelling, operand in operators.items():
        name = SPELLINGS[spelling]
        if name in ("equals", "in"):
            values = frozenset(map(scalar_key, operand if name == "in" else [operand]))
            if MISSING not in values and len(values) <= _MAX_ANCHOR_VALUES:
                yield values


def _always(_: Any) -> bool:
    return True


def _never(_: Any) -> bool:
    return False


class _Compilation:
    """One filter on its way to a predicate: what it has used of its limits, and the mistakes found so far."""

    def __init__(self, field: Callable[[str], FieldReader]) -> None:
        self._compile_path = field
        self._errors: list[FieldError] = []
        self._conditions = 0
        self._patterns = 0

    def run(self, spec: Any, at: str) -> Callable[[Any], bool]:
        predicate = self._filter(spec, at, 1)
        if self._errors:
            raise _invalid(self._errors)
        return predicate

    def _filter(self, spec: Any, at: str, depth: int) -> Callable[[Any], bool]:
        if not isinstance(spec, dict):
            return self._wrong(at, "a filter is an object of paths and what their values must be")
        if depth > FILTER_DEPTH:
            return self._wrong(at, f"filters may be nested {FILTER_DEPTH} deep")
        if depth > 1 and not spec:
            self._count(at)
        return _all([self._entry(key, wanted, at, depth) for key, wanted in spec.items()])

    def _entry(self, key: Any, wanted: Any, at: str, depth: int) -> Callable[[Any], bool]:
        if not isinstance(key, str):
            return self._wrong(f"{at}.{key}", "a path is a text")
        inside = f"{at}.{key[:FILTER_PATH_CHARS]}"
        if key == "$not":
            return _negated(self._filter(wanted, inside, depth + 1))
        if key in ("$and", "$or"):
            return self._combined(key, wanted, inside, depth)
        if key in SPELLINGS and key.startswith("$"):
            return self._wrong(inside, f'an operator stands under a path: {{"path": {{"{key}": …}}}}')
        if key.startswith("$"):
            return self._wrong(inside, f'"{key[:_SHOWN]}" is none of $and, $or and $not', nearest(key, _COMBINERS))
        if (
            f"${key.lower()}" in _COMBINERS
            and isinstance(wanted, list)
            and all(isinstance(one, dict) for one in wanted)
        ):
            return self._wrong(inside, f"{key} is taken for a field's name", f"${key.lower()}")
        return self._field(key, wanted, inside)

    def _combined(self, key: str, wanted: Any, at: str, depth: int) -> Callable[[Any], bool]:
        if not isinstance(wanted, list) or not wanted:
            return self._wrong(at, f"{key} needs a list of at least one filter")
        parts = [self._filter(part, f"{at}.{i}", depth + 1) for i, part in enumerate(wanted)]
        return _all(parts) if key == "$and" else _any(parts)

    def _field(self, path: str, wanted: Any, at: str) -> Callable[[Any], bool]:
        try:
            field = self._compile_path(path)
        except InvalidError as refused:
            first = refused.errors[0] if refused.errors else FieldError(at, refused.detail)
            self._wrong(at, first.message, first.suggestion)
            field = FieldReader(path, _never, partial(bind, _never))
        tests = self._tests(wanted, at)
        return field.bind(tests[0] if len(tests) == 1 else _all(tests))

    def _tests(self, wanted: Any, at: str) -> list[Test]:
        if not isinstance(wanted, dict):
            return [self._test("equals", wanted, at)]
        if not wanted:
            return [self._wrong(at, 'an empty object holds no operator; {"equals": {}} compares with one')]
        return [self._operator(spelling, operand, at) for spelling, operand in wanted.items()]

    def _operator(self, spelling: Any, operand: Any, at: str) -> Test:
        inside = f"{at}.{str(spelling)[:_SHOWN]}"
        if isinstance(spelling, str) and spelling in SPELLINGS:
            return self._test(SPELLINGS[spelling], operand, inside)
        self._count(inside)
        if spelling in _COMBINERS:
            return self._wrong(inside, f'{spelling} takes whole filters: {{"{spelling}": …}} stands beside the paths')
        unknown = f'unknown operator "{str(spelling)[:_SHOWN]}"'
        suggestion = operator_meant(str(spelling)[:_SHOWN])
        if suggestion is None:
            unknown += '; {"equals": {…}} compares with an object, and a dotted path goes down into one'
        return self._wrong(inside, unknown, suggestion)

    def _test(self, name: str, operand: Any, at: str) -> Test:
        self._count(at)
        if name == "matches":
            self._patterns += 1
            if self._patterns > FILTER_PATTERNS:
                raise _invalid([*self._errors, FieldError(at, f"a filter may have {FILTER_PATTERNS} patterns")])
        try:
            return OPERATORS[name](operand_value(operand))
        except ValueError as error:
            return self._wrong(at, f"{name}: {error}")

    def _count(self, at: str) -> None:
        """One more condition at `at`. Past the limit nothing more is read: refusing a huge filter is cheap."""
        self._conditions += 1
        if self._conditions > FILTER_CONDITIONS:
            raise _invalid([*self._errors, FieldError(at, f"a filter may have {FILTER_CONDITIONS} conditions")])

    def _wrong(self, at: str, message: str, suggestion: str | None = None) -> Callable[[Any], bool]:
        self._errors.append(FieldError(at, message, suggestion))
        if len(self._errors) >= ERRORS:
            raise _invalid(self._errors)
        return _never


def _invalid(errors: list[FieldError]) -> InvalidError:
    first = errors[0]
    hint = f' (did you mean "{first.suggestion}"?)' if first.suggestion else ""
    return InvalidError(f"{first.path}: {first.message}{hint}", errors=errors)


def _all(parts: list[Callable[[Any], bool]]) -> Callable[[Any], bool]:
    if _never in parts:
        return _never
    kept = tuple(part for part in parts if part is not _always)
    if len(kept) < 2:
        return kept[0] if kept else _always
    if len(kept) == 2:
        first, second = kept
        return lambda root: first(root) and second(root)
    return lambda root: all(part(root) for part in kept)


def _any(parts: list[Callable[[Any], bool]]) -> Callable[[Any], bool]:
    if _always in parts:
        return _always
    kept = tuple(part for part in parts if part is not _never)
    if len(kept) < 2:
        return kept[0] if kept else _never
    if len(kept) == 2:
        first, second = kept
        return lambda root: first(root) or second(root)
    return lambda root: any(part(root) for part in kept)


def _negated(part: Callable[[Any], bool]) -> Callable[[Any], bool]:
    if part is _always or part is _never:
        return _never if part is _always else _always
    return lambda root: not part(root)
