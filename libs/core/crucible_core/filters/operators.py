"""Operators of the filter language, each a test of one value by JSON's semantics: true is not 1, and 1 is 1.0."""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from itertools import count
from operator import ge, gt, le, lt
from typing import Any

import re2

from crucible_core.limits import FILTER_DEPTH, FILTER_OPERAND_VALUES, FILTER_OPERANDS, FILTER_PATTERN_CHARS
from crucible_core.suggest import nearest

Test = Callable[[Any], bool]

MISSING: Any = object()
"""The value of a field that is not there; only `exists: false`, `not_equals` and `not_in` hold of it."""


_PATTERN_MEMORY = 2 * 1024 * 1024
"""Bytes that one compiled pattern may use. RE2's own default, four times this, lets one pattern compile for 0.3 s."""

_NUMBERS = (int, float)
_TRUE = ("bool", True)
_FALSE = ("bool", False)


def scalar_key(value: Any) -> Hashable:
    """A key that two JSON scalars share if and only if they are equal; `MISSING` for lists, objects and no value."""
    kind = type(value)
    if kind is str or kind is int or kind is float or value is None:
        return value  # type: ignore[no-any-return]
    if kind is bool:
        return _TRUE if value else _FALSE
    return MISSING  # type: ignore[no-any-return]


def same(left: Any, right: Any) -> bool:
    """True if two JSON values are equal."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(value, right[key]) for key, value in left.items())
    return bool(left == right)


def operand_value(value: Any) -> Any:
    """A copy of `value`, which its owner may go on changing. Raises ValueError for what is not JSON or too large."""
    return _copy(value, 0, count())


def _copy(value: Any, depth: int, seen: Iterator[int]) -> Any:
    """`seen` counts values before they are copied: an object read from YAML may hold the same list many times over."""
    if depth > FILTER_DEPTH:
        raise ValueError(f"is nested deeper than {FILTER_DEPTH} levels")
    if next(seen) >= FILTER_OPERAND_VALUES:
        raise ValueError(f"holds more than {FILTER_OPERAND_VALUES} values")
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, list):
        if len(value) > FILTER_OPERANDS:
            raise ValueError(f"a list may hold {FILTER_OPERANDS} values, this one holds {len(value)}")
        return [_copy(item, depth + 1, seen) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _copy(item, depth + 1, seen) for key, item in value.items()}
    raise ValueError("is not a JSON value (text, number, true, false, null, list or object)")


def _equals(operand: Any) -> Test:
    if operand is None or isinstance(operand, bool):
        return lambda value: value is operand
    if isinstance(operand, str):
        return lambda value: bool(value == operand)
    if isinstance(operand, _NUMBERS):
        return lambda value: value == operand and type(value) is not bool
    return lambda value: same(value, operand)


def _one_of(operand: Any) -> Test:
    if not isinstance(operand, list):
        raise ValueError("needs a list of values")
    keys = frozenset(key for key in map(scalar_key, operand) if key is not MISSING)
    rest = tuple(_equals(item) for item in operand if scalar_key(item) is MISSING)
    if not rest:
        return lambda value: scalar_key(value) in keys
    return lambda value: scalar_key(value) in keys or any(test(value) for test in rest)


def _exists(operand: Any) -> Test:
    if not isinstance(operand, bool):
        raise ValueError("needs true or false")
    return (lambda value: value is not MISSING) if operand else (lambda value: value is MISSING)


def _contains(operand: Any) -> Test:
    if isinstance(operand, str):
        return lambda value: isinstance(value, str | list | dict) and operand in value
    equals = _equals(operand)
    return lambda value: isinstance(value, list) and any(map(equals, value))


def _text(operand: Any) -> str:
    if not isinstance(operand, str):
        raise ValueError("needs a text")
    return operand


def _starts_with(operand: Any) -> Test:
    prefix = _text(operand)
    return lambda value: isinstance(value, str) and value.startswith(prefix)


def _ends_with(operand: Any) -> Test:
    suffix = _text(operand)
    return lambda value: isinstance(value, str) and value.endswith(suffix)


def _matches(operand: Any) -> Test:
    search = _pattern(_text(operand)).search
    return lambda value: isinstance(value, str) and search(value.encode("utf-8", "replace")) is not None


def _pattern(text: str) -> Any:
    """The compiled pattern. It searches UTF-8 bytes: RE2 would encode text anyway, and count characters besides."""
    if len(text) > FILTER_PATTERN_CHARS:
        raise ValueError(f"a pattern may have {FILTER_PATTERN_CHARS} characters, this one has {len(text)}")
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = _PATTERN_MEMORY
    try:
        return re2.compile(text, options)
    except re2.error as error:
        reason = error.args[0]
        raise ValueError(f"is not an RE2 pattern: {reason.decode('utf-8', 'replace')}") from None
    except UnicodeEncodeError:
        raise ValueError("is not an RE2 pattern: it holds half of a surrogate pair") from None


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any], Test]:
    def build(operand: Any) -> Test:
        if isinstance(operand, str):
            return lambda value: isinstance(value, str) and compare(value, operand)
        if isinstance(operand, _NUMBERS) and not isinstance(operand, bool):
            return lambda value: type(value) in _NUMBERS and compare(value, operand)
        raise ValueError("needs a number or a text")

    return build


def _not(build: Callable[[Any], Test]) -> Callable[[Any], Test]:
    def negated(operand: Any) -> Test:
        test = build(operand)
        return lambda value: not test(value)

    return negated


OPERATORS: Mapping[str, Callable[[Any], Test]] = {
    "equals": _equals,
    "not_equals": _not(_equals),
    "in": _one_of,
    "not_in": _not(_one_of),
    "exists": _exists,
    "contains": _contains,
    "starts_with": _starts_with,
    "ends_with": _ends_with,
    "matches": _matches,
    "gt": _ordered(gt),
    "gte": _ordered(ge),
    "lt": _ordered(lt),
    "lte": _ordered(le),
}
"""Each operator's name, and what makes a test of its operand; that raises ValueError for an operand it cannot take."""

SPELLINGS: Mapping[str, str] = {name: name for name in OPERATORS} | {
    "$eq": "equals",
    "$ne": "not_equals",
    "$in": "in",
    "$nin": "not_in",
    "$exists": "exists",
    "$contains": "contains",
    "$regex": "matches",
    "$gt": "gt",
    "$gte": "gte",
    "$lt": "lt",
    "$lte": "lte",
}
"""Every spelling of an operator, and the operator's name."""

_ELSEWHERE: Mapping[str, str] = {
    other: name
    for name, others in {
        "equals": "eq is = == === equal ieq equalto",
        "not_equals": "ne neq != <> not isnot notequal notequals notequalto",
        "in": "isin oneof anyof any inlist",
        "not_in": "nin notin noneof none",
        "exists": "exist present isset defined isnotnull has_field hasfield",
        "contains": "contain includes include has like ilike substring all containsall containsany",
        "starts_with": "startswith prefix beginswith begins",
        "ends_with": "endswith suffix",
        "matches": "match regex regexp re pattern rlike ~ =~ glob",
        "gt": "> greater greaterthan after above over min_exclusive",
        "gte": ">= ge min minimum atleast greaterorequal greaterthanorequal greaterthanorequals from since",
        "lt": "< less lessthan before below under",
        "lte": "<= le max maximum atmost lessorequal lessthanorequal lessthanorequals until",
    }.items()
    for other in others.split()
}
"""Names of the operators in other query languages, in lower case and without `$`, `_` and `-`."""


def operator_meant(spelling: str) -> str | None:
    """The operator that somebody means who knows another query language, or has made a slip of the pen."""
    plain = spelling.casefold().lstrip("$").replace("_", "").replace("-", "")
    found = _ELSEWHERE.get(plain) or nearest(spelling, SPELLINGS)
    return found or nearest(plain, SPELLINGS)
