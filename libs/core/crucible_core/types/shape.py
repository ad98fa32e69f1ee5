"""The outside of a payload type: the paths that a filter may name, its JSON Schema and an example."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect

from crucible_core.schemas.dialect import TYPES, Schema, is_annotation, resolve
from crucible_core.suggest import nearest
from crucible_core.types.payloads import Synonyms

Shape = Mapping[str, "Shape | None"]
"""The shape below each field: nothing under a scalar, `ITEM` for the elements of a list, None for anything at all."""

ITEM = "[]"


class Outside(Exception):
    """A path that a shape does not have; `known` are paths that it has near there."""

    def __init__(self, known: list[str]) -> None:
        super().__init__(known)
        self.known = known


@cache
def shape_of(kind: type[msgspec.Struct]) -> Shape | None:
    """The shape of a payload type; None where it accepts other fields too."""
    return _shape(inspect.type_info(kind))


def _shape(node: inspect.Type) -> Shape | None:
    match node:
        case inspect.Metadata():
            return _shape(node.type)
        case inspect.UnionType():
            return union([_shape(member) for member in node.types if not isinstance(member, inspect.NoneType)])
        case inspect.StructType(forbid_unknown_fields=True):
            fields = {field.encode_name: _shape(field.type) for field in node.fields}
            return {name: fields[first] for name, (first, *_) in synonyms_of(node.cls).items()} | fields
        case inspect.CollectionType():
            return {ITEM: _shape(node.item_type)}
        case inspect.StructType() | inspect.DictType() | inspect.AnyType() | inspect.RawType():
            return None
    return {}


def synonyms_of(kind: type[msgspec.Struct]) -> Synonyms:
    found: Synonyms = getattr(kind, "synonyms", {})
    return found


def union(shapes: Iterable[Shape | None]) -> Shape | None:
    """The union of shapes; of a field that is not the same everywhere nothing is known below it."""
    merged: dict[str, Shape | None] = {}
    for shape in shapes:
        if shape is None:
            return None
        for name, below in shape.items():
            merged[name] = below if merged.get(name, below) == below else None
    return merged


def walk(shape: Shape | None, path: str) -> None:
    """Raises `Outside` where nothing of this shape can ever stand at the dotted `path`; numbers go into lists."""
    prefix = ""
    for segment in path.split("."):
        if shape is None:
            return
        name = ITEM if ITEM in shape and segment.isascii() and segment.isdecimal() else segment
        if name not in shape:
            raise Outside([prefix + known for known in _names(shape)])
        shape = shape[name]
        prefix += segment + "."


def _names(shape: Shape) -> Iterable[str]:
    for name, below in shape.items():
        if name != ITEM:
            yield name
        elif below:
            yield from (f"0.{inner}" for inner in _names(below))
        else:
            yield "0"


def suggestion(path: str, outsides: Iterable[Outside]) -> str | None:
    """The nearest path that exists in any of the shapes that `path` is outside of."""
    return nearest(path, [known for outside in outsides for known in outside.known])


# ---- JSON Schema -----------------------------------------------------------------------------------------------------


def schema_of(kind: type[msgspec.Struct], title: str) -> dict[str, Any]:
    """JSON Schema (2020-12) of a payload type, its own object at the top and what it refers to in `$defs`."""
    schema = msgspec.json.schema(kind)
    definitions = dict(schema["$defs"])
    for each in structs_of(inspect.type_info(kind)):
        if synonyms := synonyms_of(each):
            definitions[each.__name__]["x-synonyms"] = {name: list(fields) for name, fields in synonyms.items()}
    own = definitions.pop(schema["$ref"].removeprefix("#/$defs/"))
    return {**own, "title": title, **({"$defs": definitions} if definitions else {})}


def structs_of(node: inspect.Type) -> list[type[msgspec.Struct]]:
    """A type's Structs: itself, and those that its fields hold."""
    waiting, found = [node], dict[type[msgspec.Struct], None]()
    while waiting:
        match waiting.pop():
            case inspect.Metadata(type=inner) | inspect.CollectionType(item_type=inner):
                waiting.append(inner)
            case inspect.UnionType(types=members):
                waiting += members
            case inspect.StructType() as struct if struct.cls not in found:
                found[struct.cls] = None
                waiting += [field.type for field in struct.fields]
    return list(found)


def example_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """A valid payload, made of the examples that its fields carry."""
    properties = schema_of(kind, "")["properties"]
    examples = {name: _examples(property_schema) for name, property_schema in properties.items()}
    return {name: found[0] for name, found in examples.items() if found}


def _examples(schema: Mapping[str, Any]) -> list[Any]:
    nested = (example for member in schema.get("anyOf", ()) for example in _examples(member))
    return [*schema.get("examples", ()), *nested]


_MAX_DEPTH = 8
_MAX_PARTS = 500
"""Of an example: what refers to itself goes on for ever."""
_BESIDE = frozenset(("allOf", "anyOf", "oneOf", "if", "then", "else", "not", "dependentSchemas", "$ref"))
_TEXT = "example"
_FORMATS: Mapping[str, str] = {
    "date-time": "2026-11-21T10:00:00Z",
    "date": "2026-11-21",
    "time": "10:00:00Z",
    "duration": "PT1H",
    "email": "alice@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "01936e2a-0000-7000-8000-000000000000",
}


def shape_of_schema(root: Schema) -> Shape | None:
    """The shape of a payload, which is an object; None where it may have fields that are not declared."""
    return _Shapes(root).of({"type": "object"} | dict(root) if isinstance(root, Mapping) else root)


class _Shapes:
    """The shapes of a schema's parts, each made once; of a part inside itself nothing is said."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._made: dict[int, Shape | None] = {}

    def of(self, schema: Any) -> Shape | None:
        if not isinstance(schema, Mapping):
            return {} if schema is False else None
        if id(schema) not in self._made:
            self._made[id(schema)] = None
            self._made[id(schema)] = self._make(schema)
        return self._made[id(schema)]

    def _make(self, schema: Mapping[str, Any]) -> Shape | None:
        words = {word for word in schema if not is_annotation(word)}
        if words == {"$ref"}:
            return self.of(resolve(self._root, schema["$ref"]))
        for word in ("anyOf", "oneOf"):
            if words == {word}:
                return union([self.of(part) for part in schema[word]])
        if words & _BESIDE:
            return None
        types = schema.get("type", TYPES)
        shapes: list[Shape | None] = [{}]
        if "object" in types:
            shapes.append(self._object(schema))
        if "array" in types:
            shapes.append({ITEM: None if "prefixItems" in schema else self.of(schema.get("items", True))})
        return union(shapes)

    def _object(self, schema: Mapping[str, Any]) -> Shape | None:
        if schema.get("additionalProperties", True) is not False or schema.get("patternProperties"):
            return None
        return {name: self.of(inner) for name, inner in schema.get("properties", {}).items()}


def example_of_schema(root: Schema) -> dict[str, Any]:
    """A payload with what is required and what has examples; it is valid unless the schema asks for something odd."""
    made = _Example(root).of(root, 0)
    return made if isinstance(made, dict) else {}


class _Example:
    """An example on its way, and how many parts it may still have."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._left = _MAX_PARTS

    def of(self, schema: Any, depth: int) -> Any:
        self._left -= 1
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH or self._left < 0:
            return {}
        for word in ("const", "default"):
            if word in schema:
                return schema[word]
        for word in ("examples", "enum"):
            if isinstance(schema.get(word), list) and schema[word]:
                return schema[word][0]
        if "$ref" in schema:
            return self.of(resolve(self._root, schema["$ref"]), depth + 1)
        for word in ("anyOf", "oneOf", "allOf"):
            if schema.get(word) and "properties" not in schema:
                return self.of(schema[word][0], depth + 1)
        return self._typed(schema, depth)

    def _typed(self, schema: Mapping[str, Any], depth: int) -> Any:
        types = schema.get("type", "object")
        match types if isinstance(types, str) else next(iter(types), "object"):
            case "string":
                return _text(schema)
            case "integer" | "number":
                return _number(schema)
            case "boolean":
                return True
            case "null":
                return None
            case "array":
                least = min(schema.get("minItems", 0), 10)
                return [self.of(schema.get("items", {"type": "string"}), depth + 1) for _ in range(least)]
        declared = schema.get("properties", {})
        wanted = [*schema.get("required", ()), *(name for name, inner in declared.items() if _has_example(inner))]
        return {name: self.of(declared.get(name, {"type": "string"}), depth + 1) for name in dict.fromkeys(wanted)}


def _has_example(schema: Any) -> bool:
    return isinstance(schema, Mapping) and bool(schema.keys() & {"examples", "default", "const"})


def _text(schema: Mapping[str, Any]) -> str:
    text = _FORMATS.get(schema.get("format", ""), _TEXT)
    short = schema.get("minLength", 0) - len(text)
    made: str = (text + "x" * min(max(short, 0), 10_000))[: schema.get("maxLength")]
    return made


def _number(schema: Mapping[str, Any]) -> Any:
    step = schema.get("multipleOf", 1)
    if "minimum" in schema:
        return schema["minimum"]
    if "exclusiveMinimum" in schema:
        return schema["exclusiveMinimum"] + step
    if "maximum" in schema:
        return min(schema["maximum"], step)
    return schema["exclusiveMaximum"] - step if "exclusiveMaximum" in schema else step
