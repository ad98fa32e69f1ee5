"""Compatibility of a later version of a payload's JSON Schema with the one before: everything that was valid stays
valid, and every field that was declared stays declared.

One change that is made daily is let through although it is not strictly so: a new optional field in an object that is
open. A payload that had used the name for something else, undeclared, is refused from then on.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import re2

from crucible_core.errors import FieldError
from crucible_core.limits import BREAKS
from crucible_core.schemas.dialect import TYPES, Schema, bare, dotted, is_annotation, resolve, subschemas

_OPAQUE = (
    *("not", "if", "then", "else", "oneOf", "contains", "minContains", "maxContains", "propertyNames"),
    *("patternProperties", "dependentSchemas", "contentEncoding", "contentMediaType", "contentSchema"),
)
"""Keywords that cannot be compared, and so must stay as they are."""
_UNEVALUATED = ("unevaluatedProperties", "unevaluatedItems")
_LEAST = ("minLength", "minItems", "minProperties")
_MOST = ("maxLength", "maxItems", "maxProperties")
_MAX_STEPS = 50_000
_MAX_DEPTH = 150
_STAYS = "cannot be compared, so it must stay as it is"
_MISSING = object()

Errors = list[FieldError]
Words = Mapping[str, Any]


def breaks(old: Schema, new: Schema) -> Errors:
    """The parts of `new` that break with `old`, both accepted by `check_schema`, with paths `schema.…`; empty: it is
    compatible.

    Sound but not complete: what it cannot compare it takes for a break.
    """
    if _same(old, new):
        return []
    for place in (*subschemas(old), *subschemas(new)):
        for word in _UNEVALUATED:
            if isinstance(place.schema, Mapping) and word in place.schema:
                return [_break(place.path, f"{word} looks at the whole schema: nothing of it but its texts may change")]
    old, new = _payload(old), _payload(new)
    return _Comparison(old, new).schemas(old, new, "schema", 0)[:BREAKS]


def _payload(root: Schema) -> Schema:
    """A payload is an object, whether its schema says so or not."""
    return {"type": "object", **root} if isinstance(root, Mapping) else root


class _Comparison:
    """Two schemas on their way down together. A pair that is being compared already is taken to be compatible: if it is
    not, that shows where it was begun."""

    def __init__(self, old: Schema, new: Schema) -> None:
        self._old = old
        self._new = new
        self._steps = 0
        self._under_way: set[tuple[int, int]] = set()

    def schemas(self, old: Any, new: Any, path: str, depth: int) -> Errors:
        first, second = _followed(self._old, old), _followed(self._new, new)
        old, new = _deciding(first), _deciding(second)
        if old is False or (new == {} and not _declares(old)):
            return []
        if new is False:
            return [_break(path, "would accept nothing any more")]
        self._steps += 1
        if self._steps > _MAX_STEPS or depth > _MAX_DEPTH:
            return [_break(path, f"is too complex to be compared here: it {_STAYS}")]
        pair = (id(first), id(second))
        if pair in self._under_way:
            return []
        self._under_way.add(pair)
        try:
            return self._both(old, new, path, depth + 1)
        finally:
            self._under_way.discard(pair)

    def _both(self, old: Words, new: Words, path: str, depth: int) -> Errors:
        if old.keys() == {"anyOf"}:
            return [
                error
                for position, part in enumerate(old["anyOf"])
                for error in self.schemas(part, new, _under(path, "anyOf", str(position), new), depth)
            ]
        if new.keys() == {"anyOf"}:
            return self._any_of(old, new["anyOf"], path, depth)
        return [
            *_types(old, new, path),
            *_values(old, new, path),
            *_limits(old, new, path),
            *_texts(old, new, path),
            *self._object(old, new, path, depth),
            *self._array(old, new, path, depth),
            *self._combined(old, new, path, depth),
        ]

    def _any_of(self, old: Any, parts: list[Any], path: str, depth: int) -> Errors:
        """One of the alternatives must do; where none does, those are told that fail the least."""
        least: Errors | None = None
        for position, part in enumerate(parts):
            errors = self.schemas(old, part, dotted(path, "anyOf", str(position)), depth)
            if not errors:
                return []
            least = errors if least is None or len(errors) < len(least) else least
        return least or []

    def _object(self, old: Words, new: Words, path: str, depth: int) -> Errors:
        errors: Errors = []
        before, after = old.get("properties", {}), new.get("properties", {})
        for name in before:
            at = dotted(path, "properties", name)
            if name in after:
                errors += self.schemas(before[name], after[name], at, depth)
            else:
                errors.append(_break(at, "is no longer declared; filters may name it"))
        for name in new.get("required", ()):
            if name not in old.get("required", ()):
                errors.append(_break(dotted(path, "properties", name), "would become required"))
        for name in after:
            if name not in before:
                for governing in _governing(old, name):
                    errors += self.schemas(governing, after[name], dotted(path, "properties", name), depth)
        return errors + self._others(old, new, path, depth) + [*_dependents(old, new, path)]

    def _others(self, old: Words, new: Words, path: str, depth: int) -> Errors:
        """The fields that are not declared."""
        before, after = old.get("additionalProperties", True), new.get("additionalProperties", True)
        at = dotted(path, "additionalProperties")
        if after is False and before is not False:
            return [_break(at, "would refuse fields that were accepted")]
        return self.schemas(before, after, at, depth)

    def _array(self, old: Words, new: Words, path: str, depth: int) -> Errors:
        errors: Errors = []
        first, second = old.get("prefixItems", []), new.get("prefixItems", [])
        if len(first) != len(second):
            errors.append(_break(dotted(path, "prefixItems"), "must keep its number of entries"))
        for position, (before, after) in enumerate(zip(first, second, strict=False)):
            errors += self.schemas(before, after, dotted(path, "prefixItems", str(position)), depth)
        errors += self.schemas(old.get("items", True), new.get("items", True), dotted(path, "items"), depth)
        if new.get("uniqueItems") and not old.get("uniqueItems"):
            errors.append(_break(dotted(path, "uniqueItems"), "would refuse repeated items"))
        return errors

    def _combined(self, old: Words, new: Words, path: str, depth: int) -> Errors:
        errors: Errors = []
        for word in ("$ref", "allOf", "anyOf"):
            at, before, after = dotted(path, word), old.get(word, _MISSING), new.get(word, _MISSING)
            if (before is _MISSING) != (after is _MISSING):
                errors.append(_break(at, "cannot come or go beside other words"))
            elif before is _MISSING:
                continue
            elif word == "$ref":
                errors += self.schemas({"$ref": before}, {"$ref": after}, at, depth)
            elif word == "anyOf":
                for part in before:
                    errors += self._any_of(part, after, path, depth)
            elif len(before) != len(after):
                errors.append(_break(at, "must keep its number of entries"))
            else:
                for position, (first, second) in enumerate(zip(before, after, strict=True)):
                    errors += self.schemas(first, second, dotted(at, str(position)), depth)
        for word in _OPAQUE:
            if (word in old or word in new) and not self._unchanged(_only(old, word), _only(new, word), set()):
                errors.append(_break(dotted(path, word), _STAYS))
        return errors

    def _unchanged(self, old: Any, new: Any, seen: set[str]) -> bool:
        """Equal, texts aside, and so is all that they refer to."""
        if not _same(old, new):
            return False
        for reference in _references(old):
            if reference not in seen:
                seen.add(reference)
                try:
                    pair = resolve(self._old, reference), resolve(self._new, reference)
                except KeyError:
                    return False
                if not self._unchanged(*pair, seen):
                    return False
        return True


def _only(schema: Words, word: str) -> Words:
    return {word: schema[word]} if word in schema else {}


def _followed(root: Schema, schema: Any) -> Any:
    """The target of a schema that is nothing but a reference."""
    while isinstance(schema, Mapping) and "$ref" in schema and _deciding(schema).keys() == {"$ref"}:
        schema = resolve(root, schema["$ref"])
    return schema


def _deciding(schema: Any) -> Any:
    """The words of a schema that decide something; false for the one that nothing satisfies."""
    if isinstance(schema, bool):
        return {} if schema else False
    return {word: value for word, value in schema.items() if not is_annotation(word)}


def _declares(schema: Any) -> bool:
    """True if fields are declared anywhere in it: then even the schema that accepts all loses something."""
    return any(
        isinstance(place.schema, Mapping) and (place.schema.get("properties") or "$ref" in place.schema)
        for place in subschemas(schema)
    )


def _under(path: str, word: str, position: str, new: Words) -> str:
    """The other side of an alternative: in the same keyword, or in the schema itself."""
    return path if new.keys() == {word} else dotted(path, word, position)


def _same(old: Any, new: Any) -> bool:
    return _key(bare(old)) == _key(bare(new))


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


# ---- single words ----------------------------------------------------------------------------------------------------


def _types(old: Words, new: Words, path: str) -> Iterator[FieldError]:
    before, after = _type_names(old), _type_names({"type": new.get("type", list(TYPES))})
    if lost := [name for name in TYPES if name in before and name not in after]:
        was = ", ".join(_listed(old["type"])) if "type" in old else "anything"
        would = ", ".join(_listed(new["type"]))
        gone = "" if "type" in old and len(lost) == len(before) else f" (no longer {', '.join(lost)})"
        yield _break(dotted(path, "type"), f"was {was} and would be {would}{gone}")


def _type_names(schema: Words) -> set[str]:
    """The types of the values that are accepted, whether by name or one by one."""
    named = set(_listed(schema.get("type", list(TYPES))))
    named |= {"integer"} if "number" in named else set()
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    return named if listed is None else named & set().union(*map(_types_of, listed))


def _types_of(value: Any) -> set[str]:
    match value:
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"integer", "number"} if value.is_integer() else {"number"}
        case str():
            return {"string"}
        case None:
            return {"null"}
    return {"array"} if isinstance(value, list) else {"object"}


def _listed(types: Any) -> list[str]:
    return types if isinstance(types, list) else [types]


def _values(old: Words, new: Words, path: str) -> Iterator[FieldError]:
    """`const` and `enum`: a value that was allowed stays so."""
    for word in ("enum", "const"):
        if word not in new:
            continue
        after = set(map(_key, _allowed(new, word)))
        at = dotted(path, word)
        if "enum" not in old and "const" not in old:
            yield _break(at, "would limit the values, which were not limited")
            continue
        before = _allowed(old, "const") if "const" in old else _allowed(old, "enum")
        if lost := [value for value in map(_key, before) if value not in after]:
            shown = ", ".join(value.decode()[:40] for value in lost[:5])
            yield _break(at, f"would no longer allow {shown}{', …' if len(lost) > 5 else ''}")


def _allowed(schema: Words, word: str) -> list[Any]:
    return [schema["const"]] if word == "const" else schema["enum"]


def _key(value: Any) -> bytes:
    return msgspec.json.encode(value, order="deterministic")


def _limits(old: Words, new: Words, path: str) -> Iterator[FieldError]:
    for word, other, sign in (("minimum", "exclusiveMinimum", 1), ("maximum", "exclusiveMaximum", -1)):
        after = _bound(new, word, other, sign)
        if after > _bound(old, word, other, sign):
            named = other if after[1] else word
            yield _break(dotted(path, named), f"would be narrower: {new[named]}")
    for words, sign, none in ((_LEAST, 1, 0), (_MOST, -1, math.inf)):
        for word in words:
            if sign * new.get(word, none) > sign * old.get(word, none):
                yield _break(dotted(path, word), f"would be narrower: {new[word]}")
    step = new.get("multipleOf")
    if step is not None and not _is_multiple(old.get("multipleOf"), step):
        yield _break(dotted(path, "multipleOf"), f"would be narrower: {step}")


def _bound(schema: Words, word: str, other: str, sign: int) -> tuple[float, bool]:
    """The tighter of two limits, made so that a greater one is narrower."""
    given = [(sign * schema[name], name == other) for name in (word, other) if name in schema]
    return max(given, default=(-math.inf, False))


def _is_multiple(before: Any, after: Any) -> bool:
    whole = isinstance(before, int) and isinstance(after, int)
    return before is not None and (before == after or (whole and before % after == 0))


def _texts(old: Words, new: Words, path: str) -> Iterator[FieldError]:
    for word in ("pattern", "format"):
        if word in new and new[word] != old.get(word):
            yield _break(dotted(path, word), "may go, but not come or change")


def _dependents(old: Words, new: Words, path: str) -> Iterator[FieldError]:
    before = old.get("dependentRequired", {})
    for name, wanted in new.get("dependentRequired", {}).items():
        for other in wanted:
            if other not in before.get(name, ()) and other not in old.get("required", ()):
                at = dotted(path, "dependentRequired", name)
                yield _break(at, f"would require {other[:100]} where {name[:100]} is given")


def _governing(old: Words, name: str) -> list[Any]:
    """The schema of fields that were not declared, unless they may be anything."""
    found = [schema for pattern, schema in old.get("patternProperties", {}).items() if _matches(pattern, name)]
    others = old.get("additionalProperties", True)
    return found or ([] if others is True or others == {} else [others])


def _matches(pattern: str, name: str) -> bool:
    try:
        return re2.search(pattern, name) is not None
    except re2.error:
        return True


def _break(path: str, message: str) -> FieldError:
    return FieldError(path, message)
