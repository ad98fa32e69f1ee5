"""Which schemas users may bring, and what is read out of them."""

from typing import Any

import jsonschema_rs
import pytest

from crucible_core.errors import InvalidError
from crucible_core.limits import SCHEMA_BYTES, SCHEMA_IN_PLACE, SCHEMA_SUBSCHEMAS
from crucible_core.schemas.dialect import DIALECT, check_schema
from crucible_core.types.registration import precedence
from crucible_core.types.shape import ITEM, example_of_schema, shape_of_schema

TREE: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "under": {"type": "array", "items": {"$ref": "#"}}},
    "additionalProperties": False,
}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"not": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {},
        TREE,
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://example.com/order"},
        {"properties": {"$ref": {"type": "string"}, "type": {"enum": [{"$ref": "http://example.com/"}]}}},
        {"definitions": {"a/b%": {}}, "properties": {"x": {"$ref": "#/definitions/a~1b%25"}}},
        {"x-owner": "sales", "discriminator": {"propertyName": "kind"}},
    ],
)
def test_schema_that_is_accepted(schema: dict[str, Any]) -> None:
    check_schema(schema)


@pytest.mark.parametrize(
    ("schema", "path", "suggestion"),
    [
        (True, "schema", None),
        ([], "schema", None),
        ({"type": "array"}, "schema.type", "object"),
        ({"type": ["object", "null"]}, "schema.type", "object"),
        ({"properties": {"a": {"type": "sting"}}}, "schema.properties.a.type", "string"),
        ({"properties": {"a": {"type": 5}}}, "schema.properties.a.type", None),
        ({"properties": {"a": 5}}, "schema.properties.a", None),
        ({"requierd": ["a"]}, "schema.requierd", "required"),
        ({"items": {"minimun": 3}}, "schema.items.minimun", "minimum"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "schema.$schema", DIALECT),
        ({"properties": {"a": {"$ref": "https://example.com/order.json"}}}, "schema.properties.a.$ref", None),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "schema.properties.a.$ref", None),
        ({"properties": {"a": {"$ref": 5}}}, "schema.properties.a.$ref", None),
        ({"$defs": {"line": {}}, "items": {"$ref": "#/$defs/lines"}}, "schema.items.$ref", "#/$defs/line"),
        ({"const": {"a": 1}, "items": {"$ref": "#/const"}}, "schema.items.$ref", None),
        ({"items": {"$id": "https://example.com/other"}}, "schema.items.$id", None),
        ({"items": {"$dynamicRef": "#x"}}, "schema.items.$dynamicRef", None),
        ({"$ref": "#"}, "schema", None),
        ({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}}, None, None),
        ({"allOf": [{"minimum": i} for i in range(SCHEMA_IN_PLACE + 1)]}, "schema", None),
        ({"properties": {f"p{i}": {} for i in range(1001)}}, "schema.properties", None),
        ({"properties": {"a": {"enum": list(range(1001))}}}, "schema.properties.a.enum", None),
        ({"allOf": [{"prefixItems": [{}] * 900}] * 3}, "schema", None),
        ({"patternProperties": {f"^{i}": {} for i in range(101)}}, "schema", None),
        ({"properties": {"a": {"pattern": "a" * 1001}}}, "schema.properties.a", None),
        ({"properties": {"a": {"pattern": r"\d" * 21}}}, "schema.properties.a", None),
        ({"properties": {f"p{i}": {"pattern": r"[\s\w]" * 10} for i in range(21)}}, "schema", None),
        ({"properties": {f"p{i}": {"pattern": "a" * 999} for i in range(11)}}, "schema", None),
        ({"description": "x" * SCHEMA_BYTES}, "schema", None),
        (nested(70), "schema", None),
    ],
)
def test_schema_that_is_refused(schema: Any, path: str | None, suggestion: str | None) -> None:
    with pytest.raises(InvalidError) as caught:
        check_schema(schema)
    assert (path or caught.value.errors[0].path, suggestion) == (
        caught.value.errors[0].path,
        caught.value.errors[0].suggestion,
    )


def test_mistakes_are_told_as_far_as_somebody_reads_them() -> None:
    """The nearest name is looked for only for those: for 900 of 900 it would take ten seconds."""
    unknown = {f"p{i}": {"$ref": "#/$defs/zzzzzz"} for i in range(900)}
    with pytest.raises(InvalidError) as caught:
        check_schema({"$defs": {f"x{i}": {} for i in range(900)}, "properties": unknown})
    assert 0 < len(caught.value.errors) <= 20


def test_what_many_fields_share_is_looked_through_once() -> None:
    shared = {"anyOf": [{"$ref": "#/$defs/leaf"}, *({"minLength": i} for i in range(SCHEMA_IN_PLACE - 3))]}
    fields = {f"p{i}": {"$ref": "#/$defs/shared"} for i in range(500)}
    check_schema({"$defs": {"shared": shared, "leaf": {}}, "properties": fields})
    shared["anyOf"] += [{"minLength": i} for i in range(3)]
    with pytest.raises(InvalidError, match="would be asked about one value"):
        check_schema({"$defs": {"shared": shared, "leaf": {}}, "properties": fields})


def test_every_mistake_is_told() -> None:
    with pytest.raises(InvalidError) as caught:
        check_schema({"type": "string", "requird": [], "properties": {"a": {"tpye": "string"}}})
    assert {error.path for error in caught.value.errors} == {
        "schema.type",
        "schema.requird",
        "schema.properties.a.tpye",
    }
    assert SCHEMA_SUBSCHEMAS > 1000


# ---- shapes and examples ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "shape"),
    [
        ({}, None),
        ({"properties": {"a": {}}}, None),
        ({"properties": {"a": {}}, "additionalProperties": False}, {"a": None}),
        ({"properties": {"a": {"type": "string"}}, "additionalProperties": False}, {"a": {}}),
        (
            {"properties": {"a": {"type": "array", "items": {"type": "string"}}}, "additionalProperties": False},
            {"a": {ITEM: {}}},
        ),
        (
            {"properties": {"a": {"anyOf": [{"type": "null"}, {"type": "number"}]}}, "additionalProperties": False},
            {"a": {}},
        ),
        ({"properties": {}, "additionalProperties": False, "patternProperties": {"^x": {}}}, None),
        ({"additionalProperties": False, "allOf": [{}]}, None),
    ],
)
def test_shape_of_a_schema(schema: dict[str, Any], shape: Any) -> None:
    assert shape_of_schema(schema) == shape


def test_shape_of_a_schema_that_refers_to_itself_ends() -> None:
    shape = shape_of_schema(TREE)
    assert shape is not None
    assert set(shape) == {"name", "under"}
    wide = {"properties": {name: {"$ref": "#"} for name in "abcdefgh"}, "additionalProperties": False}
    assert set(shape_of_schema(wide) or ()) == set("abcdefgh")
    assert example_of_schema({**wide, "required": list("abcdefgh")})


@pytest.mark.parametrize(
    "schema",
    [
        {},
        TREE,
        {"properties": {"a": {"type": "string", "minLength": 20}}, "required": ["a"]},
        {"properties": {"a": {"type": "string", "format": "date-time"}}, "required": ["a"]},
        {"properties": {"a": {"type": "integer", "minimum": 7}}, "required": ["a"]},
        {"properties": {"a": {"type": "number", "exclusiveMaximum": 0}}, "required": ["a"]},
        {"properties": {"a": {"enum": ["x", "y"]}, "b": {"const": 4}}, "required": ["a", "b"]},
        {"properties": {"a": {"anyOf": [{"type": "null"}, {"type": "number"}]}}, "required": ["a"]},
        {"$defs": {"l": {"type": "boolean"}}, "properties": {"a": {"items": {"$ref": "#/$defs/l"}, "type": "array"}}},
        {"properties": {"a": {"type": "array", "minItems": 2, "items": {"type": "boolean"}}}, "required": ["a"]},
        {"properties": {"a": {"type": "string", "examples": ["exemplary"]}}},
    ],
)
def test_example_of_a_schema_is_valid(schema: dict[str, Any]) -> None:
    assert jsonschema_rs.is_valid(schema, example_of_schema(schema))


# ---- versions --------------------------------------------------------------------------------------------------------


def test_versions_are_ordered_as_semver_orders_them() -> None:
    ordered = "1.0.0-alpha 1.0.0-alpha.1 1.0.0-alpha.beta 1.0.0-beta.2 1.0.0-beta.11 1.0.0-rc.1 1.0.0 1.0.2 10.0.0"
    assert sorted(sorted(ordered.split()), key=precedence) == ordered.split()


@pytest.mark.parametrize("wrong", ["", "1", "1.0", "v1.0.0", "1.0.0+build", "01.0.0", "1.0.0-", "1.0.0\n", "1" * 100])
def test_what_is_no_version_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidError):
        precedence(wrong)
