"""What a user's JSON Schema says of a payload: the paths that a filter may name, and an example."""

from collections.abc import Mapping
from typing import Any

from .schemas import TYPES, Schema, is_annotation, resolve
from .shape import ITEM, Shape, union

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
