"""Files of event types: one type as people write it, or many with all their versions, as `types export` writes them."""

from collections.abc import Mapping
from typing import Any

import typer

from crucible_core.kinds import Registered
from crucible_core.naming import aliases
from crucible_core.protocol.events import DescribedType, TypeRecord

_FIELDS = frozenset(("type", "version", "schema", "schemas", "description", "aliases"))
_TOLD = frozenset(DescribedType.__struct_fields__) - _FIELDS
"""Fields that `types get --json` has beside them: none could be registered."""


def written(kinds: list[DescribedType]) -> dict[str, Any]:
    """A document that `definitions` reads as the same types."""
    return {"types": [_written(kind) for kind in kinds]}


def definitions(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The registrations to make one after another, each a version of a type. A usage error for fields that no type
    has."""
    if "types" not in given:
        return _versions(given)
    types = given["types"]
    if not isinstance(types, list) or not all(isinstance(one, dict) for one in types):
        raise typer.BadParameter("types: must be a list of types")
    return [version for one in types for version in _versions(one)]


def _written(kind: DescribedType) -> dict[str, Any]:
    own = _own(kind.type, kind.aliases)
    return {"type": kind.type, "description": kind.description, "aliases": own, "schemas": kind.schemas}


def _versions(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    if unknown := given.keys() - _FIELDS - _TOLD:
        raise typer.BadParameter(f"{min(unknown)} is not known: a type has type, version, schema, description, aliases")
    found = {name: value for name, value in given.items() if name in _FIELDS}
    if isinstance(found.get("type"), str) and isinstance(found.get("aliases"), list):
        found["aliases"] = _own(found["type"], found["aliases"])
    schemas = found.pop("schemas", None)
    if not isinstance(schemas, dict) or not schemas:
        return [found]
    return [{**found, "schema": schema, "version": version} for version, schema in schemas.items()]


def _own(type: str, given: list[str]) -> list[str]:
    """Without those that follow from the name."""
    formed = aliases(Registered(TypeRecord(type=type, versions=[])))
    return [alias for alias in given if alias not in formed]
