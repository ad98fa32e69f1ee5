"""How long schemas take to check a value: what multiplies is counted as often."""

from typing import Any

import pytest

from crucible_core.limits import EVENT_DEPTH
from crucible_core.schemas.costs import MOST, steps

HERE = {"$ref": "#"}


def doubled(times: int, **words: Any) -> dict[str, Any]:
    """Each definition asks the next one twice."""
    twice = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2, **words} for i in range(times)}
    return {"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": {**twice, f"d{times}": {"type": "string"}}}


@pytest.mark.parametrize(
    ("schema", "levels"),
    [
        ({}, [1, 0]),
        ({"properties": {"a": {}, "b": {"allOf": [{}, {}]}}}, [1, 3, 0]),
        ({"properties": {"a": {"const": 1}, "b": {"enum": [1, 2]}}}, [1, 4, 0]),
        ({"properties": {"a": HERE}}, [1, 2, 2]),
        # Alternatives that go down to the same field, or each to its own.
        ({"oneOf": [{"properties": {"a": HERE}}, {"properties": {"a": HERE}}]}, [3, 8, 16, 32]),
        ({"oneOf": [{"properties": {"a": HERE}}, {"properties": {"b": HERE}}]}, [3, 4, 4]),
        ({"properties": {"a": HERE}, "patternProperties": {"^a": HERE}}, [1, 4, 8]),
        ({"anyOf": [{"items": HERE}, {"additionalProperties": HERE}]}, [3, 4, 4]),
        (doubled(3), [1, 2 * 15, 0]),
        ({"properties": {"a": {"unevaluatedProperties": False, "allOf": [{}]}}}, [1, 3, 1, 0]),
        (doubled(20), [MOST]),
        (
            {
                "$defs": {
                    f"d{i}": {"unevaluatedItems": False, "allOf": [{"$ref": f"#/$defs/d{i + 1}"}]} for i in range(50)
                }
                | {"d50": {}},
                "$ref": "#/$defs/d0",
            },
            [MOST],
        ),
    ],
)
def test_steps_by_depth(schema: dict[str, Any], levels: list[int]) -> None:
    found = steps(schema)
    assert len(found) == EVENT_DEPTH + 1
    assert list(found[: len(levels)]) == levels


def test_many_ways_down_are_counted_in_bounded_time() -> None:
    wide = {"properties": {f"q{i}": {} for i in range(900)}}
    schema = {"properties": {f"p{i}": {"$ref": "#/$defs/wide"} for i in range(900)}, "$defs": {"wide": wide}}
    assert steps(schema)[0] == MOST
