"""The cost of checking one value of a payload by a JSON Schema, in steps: alternatives that
refer to the same place multiply, and with recursion they do so at every level of the payload."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from crucible_core.limits import EVENT_DEPTH
from crucible_core.schemas.dialect import IN_PLACE, children, resolve

MOST = 1_000_000_000
"""Nothing is counted beyond it."""

_NAMED, _EACH = ("properties", "prefixItems"), ("patternProperties", "additionalProperties", "unevaluatedProperties")
_ITEMS = ("items", "contains", "unevaluatedItems")
_TWICE = ("unevaluatedProperties", "unevaluatedItems")
"""To know what is unevaluated, the validator asks all subschemas beside it once more."""
_MOST_BESIDE = 2_000
_MOST_EDGES = 100_000


def steps(schema: Mapping[str, Any]) -> tuple[int, ...]:
    """By the depth of a value in the payload, how many steps it takes at most to check it, one for each subschema; MOST
    at each depth where that is too much, or the schema too tangled, to be counted. The schema has no loop in place."""
    return tuple(min(level, MOST) for level in _Counted(schema).levels())


class _Counted:
    """The subschemas that are asked from above, each with those beside it and with those that it asks below."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._edges = 0
        self._beside: dict[int, Counter[int]] = {}
        self._known: dict[int, Any] = {}
        """By their identity, which holds while the root does."""
        self._steps: dict[int, int] = {}

    def levels(self) -> list[int]:
        below: dict[int, list[Counter[int]]] = {}
        waiting = [self._root]
        while waiting:
            schema = waiting.pop()
            if id(schema) in below:
                continue
            beside = self._all_beside(schema)
            if beside is None or self._edges > _MOST_EDGES:
                return [MOST] * (EVENT_DEPTH + 1)
            below[id(schema)] = list(self._below(beside))
            waiting += [self._known[inner] for counts in below[id(schema)] for inner in counts if inner not in below]
        own = {one: _sum(self._beside[one], self._steps) for one in below}
        return self._grown(own, below)

    def _grown(self, own: dict[int, int], below: dict[int, list[Counter[int]]]) -> list[int]:
        """The cost of the root at each level, from the cost of every other subschema one level higher."""
        at, root = own, id(self._root)
        found = [own[root]]
        while len(found) <= EVENT_DEPTH:
            after = {one: max((_sum(counts, at) for counts in kinds), default=0) for one, kinds in below.items()}
            if after == at or not after[root]:
                found += [after[root]] * (EVENT_DEPTH + 1 - len(found))
                break
            at = after
            found.append(at[root])
        return found

    def _all_beside(self, schema: Any) -> Counter[int] | None:
        """The subschemas that are asked about the same value, by how often, itself among them; None for too many."""
        if id(schema) in self._beside:
            return self._beside[id(schema)]
        found: Counter[int] = Counter()
        waiting, seen = [(schema, 1)], 0
        while waiting:
            one, times = waiting.pop()
            self._known[id(one)], self._steps[id(one)] = one, _steps(one)
            found[id(one)] += times
            seen += times
            if seen > _MOST_BESIDE:
                return None
            if isinstance(one, Mapping):
                times *= 1 + sum(word in one for word in _TWICE)
                referred = [resolve(self._root, one["$ref"])] if "$ref" in one else []
                waiting += [(inner, times) for inner in (*referred, *(c.schema for c in children(one, IN_PLACE)))]
        self._beside[id(schema)] = found
        return found

    def _below(self, beside: Counter[int]) -> Iterator[Counter[int]]:
        """For each kind of value directly below (a field by its name, an item by its place, any other, a field's name),
        what is asked about it."""
        named: dict[tuple[str, ...], Counter[int]] = {}
        each: dict[str, Counter[int]] = {"properties": Counter(), "prefixItems": Counter(), "names": Counter()}
        for one, times in beside.items():
            for child in children(self._known[one], (*_NAMED, *_EACH, *_ITEMS, "propertyNames")):
                self._edges += 1
                self._known[id(child.schema)] = child.schema
                word = child.way[0]
                if word in _NAMED:
                    named.setdefault(child.way, Counter())[id(child.schema)] += times
                else:
                    kind = "properties" if word in _EACH else "prefixItems" if word in _ITEMS else "names"
                    each[kind][id(child.schema)] += times
        yield from (counts for counts in each.values() if counts)
        yield from (counts + each[way[0]] for way, counts in named.items())


def _steps(schema: Any) -> int:
    """A subschema is one step; to compare a value with another takes as long as a few."""
    if not isinstance(schema, Mapping):
        return 1
    choices = schema.get("enum", ())
    return 1 + 3 * ("const" in schema) + (len(choices) if isinstance(choices, list) else 0)


def _sum(counts: Counter[int], at: Mapping[int, int]) -> int:
    return min(MOST, sum(times * at[one] for one, times in counts.items()))
