"""The dialect of JSON Schema (2020-12) that users may register: its words, its limits, and what its references mean."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from crucible_core.decode import check_depth
from crucible_core.errors import FieldError, InvalidError, MalformedError
from crucible_core.limits import (
    ERRORS,
    SCHEMA_BYTES,
    SCHEMA_CLASSES,
    SCHEMA_IN_PLACE,
    SCHEMA_PATTERN_CHARS,
    SCHEMA_PATTERN_CLASSES,
    SCHEMA_PATTERNS,
    SCHEMA_PATTERNS_CHARS,
    SCHEMA_SUBSCHEMAS,
    SCHEMA_VALUES,
)
from crucible_core.suggest import nearest

Schema = Mapping[str, Any] | bool


DIALECT = "https://json-schema.org/draft/2020-12/schema"
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")

# The words of JSON Schema by where subschemas stand under them.
_ONE = (
    *("not", "if", "then", "else", "items", "contains", "additionalProperties", "propertyNames"),
    *("unevaluatedItems", "unevaluatedProperties", "contentSchema"),
)
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
IN_PLACE = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas")
_PLAIN = (
    *("$ref", "type", "enum", "const", "multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("minLength", "maxLength", "pattern", "format", "minItems", "maxItems", "uniqueItems", "minContains"),
    *("maxContains", "minProperties", "maxProperties", "required", "dependentRequired"),
    *("contentEncoding", "contentMediaType"),
)
ANNOTATIONS = frozenset(
    (
        *("$schema", "$id", "$comment", "title", "description", "default", "examples", "example", "deprecated"),
        *("readOnly", "writeOnly", "discriminator", "xml", "externalDocs", "$defs", "definitions"),
    )
)
"""Keywords that decide nothing about a value, extensions (`x-…`) aside."""
_WORDS = frozenset((*_ONE, *_LISTS, *_MAPS, *_PLAIN, *ANNOTATIONS))
_CLASS = re.compile(r"\\[dDwWsS]")
_MAX_NEAR = 100
"""Names among which the nearest one is looked for."""
_SHOWN = 100


class Subschema(NamedTuple):
    """A subschema and the way to it from the root."""

    way: tuple[str, ...]
    schema: Any

    @property
    def path(self) -> str:
        return dotted("schema", *self.way)


def dotted(*segments: str) -> str:
    """A path for an error: what users write is shown, but not at any length."""
    return ".".join(segment[:_SHOWN] for segment in segments)


def is_annotation(word: str) -> bool:
    return word in ANNOTATIONS or word.startswith("x-")


def children(schema: Any, words: Iterable[str] = (*_ONE, *_LISTS, *_MAPS)) -> Iterator[Subschema]:
    """The subschemas directly under a schema, as far as it is well-formed."""
    if not isinstance(schema, Mapping):
        return
    for word in words:
        under = schema.get(word)
        if under is None:
            continue
        if word in _ONE:
            yield Subschema((word,), under)
        elif word in _LISTS and isinstance(under, list):
            yield from (Subschema((word, str(position)), inner) for position, inner in enumerate(under))
        elif word in _MAPS and isinstance(under, Mapping):
            yield from (Subschema((word, name), inner) for name, inner in under.items())


def subschemas(root: Schema) -> Iterator[Subschema]:
    """Every subschema, the root first."""
    waiting = [Subschema((), root)]
    while waiting:
        sub = waiting.pop()
        yield sub
        waiting += [Subschema((*sub.way, *child.way), child.schema) for child in children(sub.schema)]


def resolve(root: Schema, reference: str) -> Any:
    """The target of a reference inside `root` (`#` or `#/…`, RFC 6901). Raises KeyError."""
    found: Any = root
    for segment in way_of(reference):
        if isinstance(found, list):
            if not (segment.isascii() and segment.isdecimal() and int(segment[:9]) < len(found)):
                raise KeyError(reference)
            found = found[int(segment[:9])]
        elif isinstance(found, Mapping):
            found = found[segment]
        else:
            raise KeyError(reference)
    return found


def way_of(reference: str) -> tuple[str, ...]:
    """The segments of `#/…`. Raises KeyError for any other reference."""
    if reference == "#":
        return ()
    if not reference.startswith("#/"):
        raise KeyError(reference)
    return tuple(unquote(part).replace("~1", "/").replace("~0", "~") for part in reference[2:].split("/"))


def bare(schema: Any) -> Any:
    """The schema without what decides nothing, at every depth; definitions stay."""
    if not isinstance(schema, Mapping):
        return schema
    kept = {word: value for word, value in schema.items() if not is_annotation(word)}
    for word in (*_ONE, *_LISTS, *_MAPS):
        under = schema.get(word)
        if word in _LISTS and isinstance(under, list):
            kept[word] = [bare(inner) for inner in under]
        elif word in _MAPS and isinstance(under, Mapping):
            kept[word] = {name: bare(inner) for name, inner in under.items()}
        elif word in _ONE and under is not None:
            kept[word] = bare(under)
    return kept


# ---- checks ----------------------------------------------------------------------------------------------------------


def check_schema(schema: Any) -> None:
    """Raises InvalidError, with paths `schema.…`, for what is no schema of a payload or is past a limit.

    Whether each word's value is well-formed is for the validator's own check.
    """
    if not isinstance(schema, dict):
        raise _invalid([FieldError("schema", "must be a JSON Schema: an object")])
    raw = msgspec.json.encode(schema)
    if len(raw) > SCHEMA_BYTES:
        raise _invalid([FieldError("schema", f"has {len(raw)} bytes, and may have {SCHEMA_BYTES}")])
    try:
        check_depth(raw, "schema")
    except MalformedError as error:
        raise _invalid([FieldError("schema", error.detail.removeprefix("schema "))]) from None
    found = list(islice(subschemas(schema), SCHEMA_SUBSCHEMAS + 1))
    if len(found) > SCHEMA_SUBSCHEMAS:
        raise _invalid([FieldError("schema", f"may have {SCHEMA_SUBSCHEMAS} subschemas")])
    mistakes = chain(_root_errors(schema), _pattern_errors(found), *map(_errors, found))
    errors = [*islice(mistakes, ERRORS)] or [*islice(_reference_errors(schema, found), ERRORS)]
    errors = errors or _loops(schema, found)
    if errors:
        raise _invalid(errors)


def _root_errors(schema: Mapping[str, Any]) -> Iterator[FieldError]:
    if schema.get("type", "object") != "object":
        yield FieldError("schema.type", 'a payload is an object: must be "object"', "object")
    dialect = schema.get("$schema", DIALECT)
    if not isinstance(dialect, str) or dialect.rstrip("#") != DIALECT:
        yield FieldError("schema.$schema", "only JSON Schema 2020-12 is read here", DIALECT)


def _pattern_errors(found: list[Subschema]) -> Iterator[FieldError]:
    patterns = [pattern for sub in found for pattern in _patterns(sub.schema)]
    if len(patterns) > SCHEMA_PATTERNS:
        yield FieldError("schema", f"has {len(patterns)} patterns, and may have {SCHEMA_PATTERNS}")
    texts = [pattern for pattern in patterns if isinstance(pattern, str)]
    characters = sum(map(len, texts))
    if characters > SCHEMA_PATTERNS_CHARS:
        yield FieldError("schema", f"has patterns of {characters} characters, and may have {SCHEMA_PATTERNS_CHARS}")
    elif (classes := sum(map(_classes, texts))) > SCHEMA_CLASSES:
        yield FieldError("schema", f"has {classes} classes such as \\d in its patterns, and may have {SCHEMA_CLASSES}")


def _classes(pattern: str) -> int:
    return len(_CLASS.findall(pattern))


def _patterns(schema: Any) -> list[Any]:
    if not isinstance(schema, Mapping):
        return []
    named = schema.get("patternProperties")
    own = [schema["pattern"]] if "pattern" in schema else []
    return [*own, *(named if isinstance(named, Mapping) else ())]


def _errors(sub: Subschema) -> Iterator[FieldError]:
    schema = sub.schema
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        yield FieldError(sub.path, "must be a schema: an object, true or false")
        return
    for word, value in schema.items():
        at = dotted(sub.path, word)
        if word == "$id" and sub.way:
            yield FieldError(at, "belongs at the top of the schema")
        elif word not in _WORDS and not word.startswith("x-"):
            message = "is no word of JSON Schema that is read here; one of your own begins with x-"
            yield FieldError(at, message, nearest(word, _WORDS))
        elif isinstance(value, list | Mapping) and len(value) > SCHEMA_VALUES and not is_annotation(word):
            yield FieldError(at, f"may have {SCHEMA_VALUES} entries")
    for pattern in _patterns(schema):
        if isinstance(pattern, str) and len(pattern) > SCHEMA_PATTERN_CHARS:
            yield FieldError(sub.path, f"a pattern may have {SCHEMA_PATTERN_CHARS} characters")
        elif isinstance(pattern, str) and _classes(pattern) > SCHEMA_PATTERN_CLASSES:
            message = (
                f"a pattern may have {SCHEMA_PATTERN_CLASSES} classes such as \\d: write \\d{{8}} for eight digits"
            )
            yield FieldError(sub.path, message)
    types = schema.get("type", [])
    for name in types if isinstance(types, list) else [types]:
        if name not in TYPES:
            message = f"must be one or several of {', '.join(TYPES)}"
            yield FieldError(dotted(sub.path, "type"), message, nearest(str(name), TYPES))


def _reference_errors(root: Schema, found: list[Subschema]) -> Iterator[FieldError]:
    known = {sub.way for sub in found}
    definitions = (way for way in known if way and way[0] in ("$defs", "definitions"))
    spelt = ["#/" + "/".join(way) for way in islice(definitions, _MAX_NEAR)]
    for sub in found:
        reference = sub.schema.get("$ref") if isinstance(sub.schema, Mapping) else None
        if reference is None:
            continue
        at = dotted(sub.path, "$ref")
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            yield FieldError(at, "must be # or begin with #/: nothing is fetched, so the schema holds all of itself")
        elif way_of(reference) not in known:
            yield FieldError(at, f"{reference[:_SHOWN]} is no subschema of this schema", nearest(reference, spelt))


def _loops(root: Schema, found: list[Subschema]) -> list[FieldError]:
    """Errors for subschemas that would be asked about one value without end, or too often."""
    paths = {id(sub.schema): sub.path for sub in reversed(found)}
    reached: dict[int, set[int]] = {}
    for sub in found:
        # Depth first: the schemas on the way, each with those beside it that are still to come, and what it reaches.
        way = [(sub.schema, _beside(root, sub.schema), set[int]())] if id(sub.schema) not in reached else []
        on_way = {id(schema) for schema, _, _ in way}
        while way:
            schema, waiting, seen = way[-1]
            below = id(waiting[-1]) if waiting else None
            if below is None:
                reached[id(schema)] = seen
                on_way.discard(id(way.pop()[0]))
            elif below in on_way:
                return [FieldError(paths[below], "refers to itself without going down into the payload")]
            elif below in reached:
                waiting.pop()
                seen |= {below, *reached[below]}
                if len(seen) > SCHEMA_IN_PLACE:
                    message = f"more than {SCHEMA_IN_PLACE} subschemas would be asked about one value"
                    return [FieldError(paths[id(schema)], message)]
            else:
                on_way.add(below)
                way.append((waiting[-1], _beside(root, waiting[-1]), set()))
    return []


def _beside(root: Schema, schema: Any) -> list[Any]:
    """The subschemas that are asked about the same value."""
    if not isinstance(schema, Mapping):
        return []
    referred = [resolve(root, schema["$ref"])] if "$ref" in schema else []
    return referred + [child.schema for child in children(schema, IN_PLACE)]


def _invalid(errors: list[FieldError]) -> InvalidError:
    first = errors[0]
    asked = f' (did you mean "{first.suggestion}"?)' if first.suggestion else ""
    return InvalidError(f"{first.path}: {first.message}{asked}", errors=errors)
