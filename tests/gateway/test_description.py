"""The OpenAPI document by itself: the same bytes at each start, examples that fit, names that are unique, and none of
what generators of clients stumble over. The generators themselves: tests/openapi."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import msgspec
import pytest

from crucible_core.limits import MEMORY_PATHS
from crucible_gateway.app import create_app
from crucible_gateway.openapi import TAGS
from crucible_gateway.routes.ops import openapi_bytes
from crucible_gateway.settings import Settings

DUMP = (
    "import sys; from crucible_gateway.app import create_app; from crucible_gateway.settings import Settings; "
    "from crucible_gateway.routes.ops import openapi_bytes; "
    "sys.stdout.buffer.write(openapi_bytes(create_app(Settings())))"
)


@pytest.fixture(scope="module")
def raw() -> bytes:
    return openapi_bytes(create_app(Settings()))


@pytest.fixture(scope="module")
def document(raw: bytes) -> Any:
    return msgspec.json.decode(raw)


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def nodes(node: Any, way: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of the document but examples."""
    if isinstance(node, dict):
        yield way, node
        for name, inner in node.items():
            if name != "example":
                yield from nodes(inner, f"{way}/{name}")
    elif isinstance(node, list):
        for place, inner in enumerate(node):
            yield from nodes(inner, f"{way}/{place}")


def test_the_bytes_are_the_same_in_every_process(raw: bytes) -> None:
    for seed in ("1", "2"):
        environ = {**os.environ, "PYTHONHASHSEED": seed}
        assert subprocess.run([sys.executable, "-c", DUMP], env=environ, capture_output=True, check=True).stdout == raw


def test_operations_have_names_and_known_tags(document: Any) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    assert {tag for _, _, operation in operations(document) for tag in operation["tags"]} == set(TAGS)
    assert [tag["name"] for tag in document["tags"]] == list(TAGS)
    assert {"append_event", "append_batch", "query_events", "create_memory", "query_memory"} <= set(names)


def test_no_memory_has_the_name_of_another_path(document: Any) -> None:
    below = (path.removeprefix("/api/v1/memory/") for path in document["paths"] if path.startswith("/api/v1/memory/"))
    assert set(below) - {"{id}"} == MEMORY_PATHS


def test_every_operation_with_a_key_tells_its_refusals(document: Any) -> None:
    for path, method, operation in operations(document):
        if operation.get("security") != []:
            assert {"401", "422", "503"} <= set(operation["responses"]), path
            assert method == "get" or "429" in operation["responses"], path


def test_examples_fit_their_schemas(document: Any) -> None:
    checked = 0
    for way, node in nodes(document):
        if "example" in node and "schema" in node:
            schema = {**node["schema"], "components": document["components"]}
            validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
            assert not [str(error) for error in validator.iter_errors(node["example"])], way
            checked += 1
    assert checked > 40


def test_nothing_that_generators_stumble_over(document: Any) -> None:
    """Each of these broke a client once."""
    assert "*/" not in str([node.get("description") for _, node in nodes(document)])  # it ends a comment
    schemas = document["components"]["schemas"]
    for way, node in nodes(schemas):
        if way.endswith("/properties"):
            continue
        assert "$ref" not in node or set(node) == {"$ref"}, way
        assert "default" not in node, way
        assert "enum" not in node or "type" in node, way
        assert {} not in node.get("anyOf", []), way
        assert r"\Z" not in node.get("pattern", ""), way
        free = node.get("type") == "object" and "properties" not in node
        assert not free or "additionalProperties" in node, way
    for path, method, operation in operations(document):
        kinds = operation.get("requestBody", {}).get("content", {})
        assert not any("anyOf" in body["schema"] for body in kinds.values()), path
        lists = [kind for kind, body in kinds.items() if body["schema"].get("type") == "array"]
        assert len(lists) <= 1, path
        assert not lists or all("$ref" not in body["schema"] for body in kinds.values()), (path, method)
    assert schemas["SentEvent"]["additionalProperties"] is False
    assert schemas["CloudEvent"]["additionalProperties"] is True
    assert schemas["Metadata"]["properties"]["timestamp"]["format"] == "date-time"
    assert schemas["Event"]["properties"]["sequence"]["format"] == "int64"


def test_patterns_are_those_of_javascript(document: Any) -> None:
    for _, node in nodes(document):
        if isinstance(node.get("pattern"), str):
            jsonschema_rs.Draft202012Validator({"type": "string", "pattern": node["pattern"]})
            assert "(?P" not in node["pattern"]
