"""What a later version of a schema may change, against the validator itself."""

from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_core.schemas.compatibility import breaks
from crucible_core.schemas.dialect import check_schema

ORDER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "maxLength": 40},
        "amount": {"type": "number", "minimum": 0},
        "state": {"enum": ["new", "paid"]},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}},
    },
    "required": ["id"],
    "$defs": {"line": {"type": "object", "properties": {"sku": {"type": "string"}}, "additionalProperties": False}},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """ORDER with another value at a dotted path; None removes it."""
    *way, last = path.split(".")
    schema: Any = copied(ORDER)
    found = schema
    for segment in way:
        found = found.setdefault(segment, {})
    if value is None:
        del found[last]
    else:
        found[last] = value
    return dict(schema)


def copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: copied(inner) for name, inner in value.items()}
    return [copied(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("title", "An order"),
        ("properties.note", {"type": "string"}),
        ("properties.amount.minimum", -1),
        ("properties.amount.minimum", None),
        ("properties.amount.type", ["number", "null"]),
        ("properties.amount", {"anyOf": [{"type": "number", "minimum": 0}, {"type": "null"}]}),
        ("properties.id.maxLength", 80),
        ("properties.id.examples", ["o_1"]),
        ("properties.state.enum", ["new", "paid", "shipped"]),
        ("properties.state", {"type": "string"}),
        ("required", []),
        ("$defs.line.additionalProperties", True),
        ("$defs.line.properties.count", {"type": "integer"}),
        ("properties.lines.items", {"type": "object", "properties": {"sku": {}}}),
    ],
)
def test_what_may_change(path: str, value: Any) -> None:
    assert breaks(ORDER, changed(path, value)) == []


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("required", ["id", "amount"], "schema.properties.amount: would become required"),
        ("properties.amount", None, "schema.properties.amount: is no longer declared; filters may name it"),
        ("properties.amount.type", "string", "schema.properties.amount.type: was number and would be string"),
        ("properties.amount.type", "integer", "schema.properties.amount.type: was number and would be integer"),
        ("properties.amount.minimum", 1, "schema.properties.amount.minimum: would be narrower: 1"),
        ("properties.amount.exclusiveMinimum", 0, "schema.properties.amount.exclusiveMinimum: would be narrower: 0"),
        ("properties.amount.maximum", 9, "schema.properties.amount.maximum: would be narrower: 9"),
        ("properties.amount.multipleOf", 2, "schema.properties.amount.multipleOf: would be narrower: 2"),
        ("properties.amount.not", {"const": 7}, "schema.properties.amount.not: cannot be compared"),
        ("properties.id.maxLength", 20, "schema.properties.id.maxLength: would be narrower: 20"),
        ("properties.id.pattern", "^o", "schema.properties.id.pattern: may go, but not come or change"),
        ("properties.id.format", "uuid", "schema.properties.id.format: may go, but not come or change"),
        ("properties.id", False, "schema.properties.id: would accept nothing any more"),
        ("properties.state.enum", ["new"], 'schema.properties.state.enum: would no longer allow "paid"'),
        ("properties.state.const", "new", 'schema.properties.state.const: would no longer allow "paid"'),
        ("properties.lines.uniqueItems", True, "schema.properties.lines.uniqueItems: would refuse repeated items"),
        ("properties.lines.minItems", 1, "schema.properties.lines.minItems: would be narrower: 1"),
        ("additionalProperties", False, "schema.additionalProperties: would refuse fields that were accepted"),
        ("$defs.line.properties.sku.type", "number", "schema.properties.lines.items.properties.sku.type: was string"),
        ("dependentRequired", {"amount": ["state"]}, "schema.dependentRequired.amount: would require state where"),
        ("allOf", [{"required": ["amount"]}], "schema.allOf: cannot come or go beside other words"),
        ("unevaluatedProperties", False, "schema: unevaluatedProperties looks at the whole schema"),
    ],
)
def test_what_breaks_is_told_with_its_path(path: str, value: Any, told: str) -> None:
    first = breaks(ORDER, changed(path, value))[0]
    assert f"{first.path}: {first.message}".startswith(told)


def test_everything_that_breaks_is_told() -> None:
    new = {"type": "object", "properties": {"id": {"type": "integer"}, "state": {"enum": ["paid"]}}, "required": ["x"]}
    assert {error.path for error in breaks(ORDER, new)} == {
        "schema.properties.id.type",
        "schema.properties.amount",
        "schema.properties.state.enum",
        "schema.properties.lines",
        "schema.properties.x",
    }


def test_what_cannot_be_compared_must_stay_with_all_that_it_refers_to() -> None:
    def made(limit: int, text: str = "") -> dict[str, Any]:
        return {
            "oneOf": [{"$ref": "#/$defs/a"}, {"type": "object", "maxProperties": 0, "description": text}],
            "$defs": {"a": {"required": ["x"], "maxProperties": limit}},
        }

    assert breaks(made(3), made(3, "empty")) == []
    assert [error.path for error in breaks(made(3), made(4))] == ["schema.oneOf"]


def test_an_open_object_may_not_say_otherwise_of_the_rest() -> None:
    old = {"properties": {}, "additionalProperties": {"type": "string"}}
    assert breaks(old, {"properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}}) == []
    found = breaks(old, {"properties": {"a": {"type": "number"}}, "additionalProperties": {"type": "string"}})
    assert [error.path for error in found] == ["schema.properties.a.type"]


def test_a_schema_that_refers_to_itself_is_compared() -> None:
    def tree(kind: str) -> dict[str, Any]:
        return {
            "properties": {"name": {"type": kind}, "under": {"type": "array", "items": {"$ref": "#"}}},
            "additionalProperties": False,
        }

    assert breaks(tree("string"), tree("string") | {"title": "A tree"}) == []
    assert [error.path for error in breaks(tree("string"), tree("number"))] == ["schema.properties.name.type"]


def test_what_is_too_complex_is_refused_soon() -> None:
    """Alternatives in alternatives: each would be tried with each."""

    def nest(depth: int, leaf: dict[str, Any]) -> dict[str, Any]:
        return leaf if depth == 0 else {"anyOf": [nest(depth - 1, leaf), {"items": nest(depth - 1, leaf)}]}

    found = breaks(nest(9, {"type": "string"}), nest(9, {"type": "null"}))
    assert found


# ---- against the validator -------------------------------------------------------------------------------------------

SCALARS = st.sampled_from([None, True, 0, 1, 2, 3.5, "", "a", "bb"])
NAMES = st.sampled_from(["a", "b"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=2), max_leaves=6
)


def limited(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Schemas of one level; a field that is not declared is refused, since that exception is made knowingly."""
    words = {
        "type": st.sampled_from(["object", "array", "string", "number", "integer", ["string", "null"], "boolean"]),
        "enum": st.lists(SCALARS, min_size=1, max_size=3),
        "const": SCALARS,
        "minimum": st.integers(0, 3),
        "exclusiveMinimum": st.integers(0, 3),
        "maximum": st.integers(0, 3),
        "multipleOf": st.integers(1, 3),
        "minLength": st.integers(0, 2),
        "maxLength": st.integers(0, 2),
        "minItems": st.integers(0, 2),
        "uniqueItems": st.booleans(),
        "required": st.lists(NAMES, max_size=2, unique=True),
        "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, max_size=1), max_size=1),
        "properties": st.dictionaries(NAMES, inner, max_size=2),
        "patternProperties": st.dictionaries(st.just("a"), inner, max_size=1),
        "items": inner,
        "prefixItems": st.lists(inner, min_size=1, max_size=2),
        "anyOf": st.lists(inner, min_size=1, max_size=2),
        "allOf": st.lists(inner, min_size=1, max_size=2),
        "not": inner,
    }
    some = st.fixed_dictionaries({}, optional=words)
    return some.flatmap(
        lambda made: st.sampled_from([False, {"type": "string"}]).map(
            lambda rest: {**made, "additionalProperties": rest}
        )
    )


SCHEMAS = st.recursive(st.just(True) | limited(st.just(True)), limited, max_leaves=4)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Any, Any]:
    """A schema and what may be a later version: words of it changed, dropped or taken from another."""
    old = draw(SCHEMAS)
    return old, draw(_mutated(old) | SCHEMAS)


def _mutated(schema: Any) -> st.SearchStrategy[Any]:
    if not isinstance(schema, dict):
        return st.just(schema)
    other = limited(st.just(True))

    @st.composite
    def mutate(draw: st.DrawFn) -> Any:
        made = {}
        for word, value in schema.items():
            match draw(st.sampled_from(["keep", "keep", "keep", "drop", "deeper"])):
                case "keep":
                    made[word] = value
                case "deeper" if isinstance(value, dict) and word in ("properties", "patternProperties"):
                    made[word] = {name: draw(_mutated(inner)) for name, inner in value.items()}
                case "deeper" if word in ("anyOf", "allOf", "prefixItems"):
                    made[word] = [draw(_mutated(inner)) for inner in value]
                case "deeper" if word in ("items", "not", "additionalProperties"):
                    made[word] = draw(_mutated(value))
                case "deeper":
                    made[word] = draw(other).get(word, value)
        return made

    return mutate()


@given(pairs(), VALUES)
def test_what_was_valid_stays_valid(pair: tuple[Any, Any], value: Any) -> None:
    old, new = ({"properties": {"payload": each}, "additionalProperties": False} for each in pair)
    check_schema(old)
    check_schema(new)
    if not breaks(old, new) and jsonschema_rs.is_valid(old, {"payload": value}):
        assert jsonschema_rs.is_valid(new, {"payload": value})
