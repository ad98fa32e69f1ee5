"""What a payload type looks like from outside: the paths that a filter may name, its JSON Schema and an example."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect

from .payloads import Synonyms
from .suggest import nearest

Shape = Mapping[str, "Shape | None"]
"""What stands under each field: nothing under a scalar, `ITEM` for the elements of a list, None for anything at all."""

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
    """What stands in any of them; of a field that is not the same everywhere nothing is known below it."""
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
