"""JSON Schemas of the API's types, as validators and generators of clients understand them best."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from msgspec.inspect import type_info

from crucible_core.envelope import Event
from crucible_core.types.shape import structs_of

REF = "#/components/schemas/{name}"
Schema = dict[str, Any]

_NULL = {"type": "null"}
_INT32 = 2**31 - 1
_TIMES = frozenset(
    {"at", "created_at", "expires_at", "next_attempt_at", "registered_at", "since", "started_at", "timestamp"}
    | {"time", "from_time", "to_time", "updated_at"}
)
"""Fields and parameters that hold RFC 3339 wherever they are texts."""

_OBJECT: Schema = {"type": "object", "additionalProperties": True}
_EVENT: Schema = {"$ref": REF.format(name=Event.__name__)}
_LINKS: Schema = {"type": "array", "items": {"$ref": REF.format(name="SentLink")}}
_OVERRIDES: Mapping[tuple[str, str], Schema] = {
    ("Data", "payload"): _OBJECT,
    ("SentData", "payload"): _OBJECT,
    ("SentEvent", "payload"): _OBJECT,
    ("Event", "sequence"): {"type": "integer", "format": "int64", "minimum": 1},
    ("Result", "error"): {"$ref": REF.format(name="ProblemDocument")},
    ("QueryReply", "events"): {"type": "array", "items": _EVENT},
    ("TraceNode", "event"): _EVENT,
    ("SentMemory", "links"): _LINKS,
    ("SentChanges", "links"): {**_LINKS, "type": ["array", "null"]},
}
"""Schemas that the Structs do not have, since payloads and stored events pass through as bytes; and a name for what
has none."""
_EXTRA: Mapping[str, Schema] = {
    "SentLink": {
        "description": "A memory's id, or a note's title or path; or an object that says more of the link.",
        "anyOf": [{"type": "string"}, {"$ref": REF.format(name="Reference")}],
    }
}


def components(answered: Iterable[Any], sent: Iterable[Any], open: Iterable[Any] = ()) -> dict[str, Schema]:
    """The schema of every Struct among types, by name.

    A body that is `sent` may have no other fields than it says, but for the `open` ones, and tells its defaults in
    words: generators take a field with a default for one that must be sent. An answer has every field that is not left
    out on purpose, and gets new ones in later versions.
    """
    kinds, wanted, free = [Event, *answered, *open], [*sent], {kind.__name__ for kind in open}
    _, found = msgspec.json.schema_components([*kinds, *wanted], ref_template=REF)
    strict = set(_reachable([schema_of(kind) for kind in wanted], found))
    whole = {kind.__name__: kind for node in map(type_info, [*kinds, *wanted]) for kind in structs_of(node)}
    made = {}
    for name, schema in sorted(found.items()):
        made[name] = tidy(schema)
        for field, inner in made[name].get("properties", {}).items():
            made[name]["properties"][field] = _OVERRIDES.get((name, field)) or _without_default(inner, name in strict)
        if name in free or (name in strict and schema.get("type") == "object"):
            made[name].setdefault("additionalProperties", name in free)
        elif name in whole and (always := _required_fields(whole[name])):
            made[name]["required"] = always
    return dict(sorted({**made, **_EXTRA}.items()))


def _required_fields(kind: type[msgspec.Struct]) -> list[str]:
    """The fields that are in every answer."""
    config = kind.__struct_config__
    return [
        field.encode_name
        for field in msgspec.structs.fields(kind)
        if field.required or (not config.omit_defaults and field.default is not msgspec.UNSET)
    ]


def _without_default(schema: Schema, sent: bool) -> Schema:
    made = {word: value for word, value in schema.items() if word != "default"}
    if sent and "default" in schema:
        default = f"Default: {msgspec.json.encode(schema['default']).decode()}."
        made["description"] = " ".join([*([made["description"]] if "description" in made else []), default])
    return made


def schema_of(kind: Any) -> Schema:
    """The schema of a type, which refers to `components`; a JSON Schema is taken as it is."""
    if isinstance(kind, dict):
        return {**kind}
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=REF)
    return tidy(schema)


def struct_types(kind: Any) -> list[Any]:
    return [] if kind is None or isinstance(kind, dict) else [kind]


def tidy(schema: Schema, name: str = "") -> Schema:
    """The same schema: one type where null is another, enums with their type, times as times, texts without indents,
    and no default that says nothing or stands beside others."""
    made: Schema = {}
    for word, value in schema.items():
        if word == "properties":
            made[word] = {field: tidy(inner, field) for field, inner in value.items()}
        elif word in ("items", "additionalProperties") and isinstance(value, dict):
            made[word] = tidy(value)
        elif word in ("anyOf", "prefixItems"):
            made[word] = [tidy(inner, name) for inner in value]
        elif word == "pattern":
            made[word] = value.replace(r"\Z", "$")  # which in Python also stands before a last line break
        elif word == "description":
            made[word] = " ".join(inspect.cleandoc(value).split())
        else:
            made[word] = value
    if "enum" in made and "type" not in made:
        made["type"] = "string" if all(isinstance(value, str) for value in made["enum"]) else "integer"
    if "anyOf" in made:
        made = _without_null(made)
    if made.get("type") in ("object", ["object", "null"]) and not made.keys() & {"properties", "additionalProperties"}:
        made["additionalProperties"] = True
    if made.get("type") == "integer" and made.get("maximum", _INT32 + 1) > _INT32 and "enum" not in made:
        made["format"] = "int64"
    if made.get("type") == "string" and name in _TIMES:
        made["format"] = "date-time"
    if "$ref" in made or "anyOf" in made or made.get("default", {}) in ({}, [], None):
        made.pop("default", None)
    return made


def _without_null(schema: Schema) -> Schema:
    """`anyOf` of something and null as one schema, where that can be said."""
    others = [inner for inner in schema["anyOf"] if inner != _NULL]
    rest = {word: value for word, value in schema.items() if word != "anyOf"}
    if {} in others:
        return rest
    if len(others) == len(schema["anyOf"]):
        return schema
    [only, *more] = others
    if more or "$ref" in only:
        return {**schema, "anyOf": [*others, _NULL]}
    if isinstance(only.get("type"), str):
        only = only | {"type": [only["type"], "null"]}
        if "enum" in only:
            only["enum"] = [*only["enum"], None]
    return {**only, **rest}


def _reachable(schemas: Iterable[Any], found: Mapping[str, Schema]) -> Iterator[str]:
    """The names of all components that schemas refer to."""
    waiting, seen = list(schemas), set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            waiting += [value for value in node.values() if isinstance(value, dict | list)]
            name = str(node.get("$ref", "")).rpartition("/")[2]
            if name in found and name not in seen:
                seen.add(name)
                waiting.append(found[name])
                yield name
