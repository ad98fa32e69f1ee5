"""Registering event types: names, versions, limits, and the catalogue that has them."""

from typing import Any

import msgspec
import pytest

from crucible_core.envelope import Data, Event, Metadata, Source
from crucible_core.errors import ConflictError, InvalidError
from crucible_core.filters.matcher import Matcher, compile_filters
from crucible_core.limits import TYPE_BYTES, TYPES
from crucible_core.protocol.events import RegisterType, TypeRecord, TypeVersion
from crucible_core.protocol.parts import TypeFilter
from crucible_core.types.catalogue import CATALOGUE, Catalogue, Registered, UnknownTypeError
from crucible_core.types.registration import check_request, registered

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "lines": {"type": "array", "items": {"type": "string"}}},
    "required": ["id"],
    "additionalProperties": False,
}
NOW = "2026-11-21T10:00:00.000000Z"


def record(type: str = "Order.Placed", *aliases: str, schema: dict[str, Any] | None = None) -> TypeRecord:
    version = TypeVersion(version="1.0.0", schema=SCHEMA if schema is None else schema)
    return TypeRecord(type=type, versions=[version], aliases=list(aliases))


def known(*records: TypeRecord) -> Catalogue:
    return CATALOGUE.extended(map(Registered, records))


def wish(type: str = "Order.Placed", schema: dict[str, Any] | None = None, **fields: Any) -> RegisterType:
    return RegisterType(type=type, schema=SCHEMA if schema is None else schema, **fields)


def register(request: RegisterType, catalogue: Catalogue = CATALOGUE) -> TypeRecord | None:
    check_request(request, catalogue)
    return registered(request, catalogue, NOW)


def event(dotted: str, payload: dict[str, Any]) -> Event:
    category, _, name = dotted.partition(".")
    metadata = Metadata(id="evt_1", timestamp=NOW, source=Source("user", "t"), actor="user:t", correlation_id="cor_1")
    return Event(category, Data(name, payload), metadata)


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Order.Placed", "ORDER.X1", "Custom.order", "Custom.böse-sache", "Custom.a.b"])
def test_name_that_is_accepted(name: str) -> None:
    made = register(wish(name))
    assert made is not None
    assert known(made).resolve(name) == name


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("order_placed", "Order.Placed"),
        ("order.placed", "Order.Placed"),
        ("Order", None),
        ("", None),
        ("Order.*", None),
        ("Custom.*", None),
        ("Custom.", None),
        ("Custom.a b", None),
        ("Custom.a/b", None),
        ("custom.order", None),
        ("Order.Placed.Twice", "Order.PlacedTwice"),
        ("Order.Plac-ed", "Order.PlacEd"),
        ("Örder.Placed", None),
        ("Order." + "P" * 65, None),
        ("Memory.Mine", None),
        ("MEMORY.Mine", None),
        ("Entry.Mine", None),
        ("Memory.Created", None),
    ],
)
def test_name_that_is_refused(name: str, suggestion: str | None) -> None:
    with pytest.raises(InvalidError) as caught:
        register(wish(name))
    assert (caught.value.errors[0].path, caught.value.errors[0].suggestion) == ("type", suggestion)


def test_another_spelling_of_a_type_is_refused() -> None:
    with pytest.raises(InvalidError, match=r'is another name of Order.Placed \(did you mean "Order.Placed"'):
        register(wish("ORDER.PLACED"), known(record()))
    with pytest.raises(ConflictError, match="two categories"):
        register(wish("ORDER.Shipped"), known(record()))


@pytest.mark.parametrize(
    ("alias", "error"),
    [
        ("memory.created", InvalidError),
        ("memory_mine", InvalidError),
        ("custom.mine", InvalidError),
        ("a b", InvalidError),
        ("*", InvalidError),
        ("", InvalidError),
        ("pre_tool_use", ConflictError),
        ("parcel.sent", ConflictError),
        ("sent_off", ConflictError),
        ("order", ConflictError),
        ("parcel", ConflictError),
    ],
)
def test_alias_that_is_taken_or_none(alias: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="alias"):
        register(wish(aliases=[alias]), known(record("Parcel.Sent", "sent_off")))


def test_category_must_not_be_anothers_alias() -> None:
    with pytest.raises(ConflictError, match="type: parcel would name a type, and all types of a category"):
        register(wish("Parcel.Sent"), known(record("Order.Placed", "parcel")))


# ---- versions --------------------------------------------------------------------------------------------------------


def test_the_same_again_is_nothing_new() -> None:
    first = register(wish(description="An order", aliases=["new_order"]))
    assert first is not None
    assert register(wish(), known(first)) is None
    assert register(wish(description="An order", aliases=["new_order"]), known(first)) is None


def test_a_description_may_change_and_aliases_may_come() -> None:
    first = register(wish(description="An order", aliases=["new_order"]))
    assert first is not None
    second = register(wish(description="Ordered", aliases=["ordered"]), known(first))
    assert second is not None
    assert (second.description, second.aliases) == ("Ordered", ["new_order", "ordered"])
    assert second.versions == first.versions


def test_a_later_version_comes_after() -> None:
    wider = {**SCHEMA, "required": []}
    second = register(wish(schema=wider, version="1.1.0"), known(record()))
    assert second is not None
    assert [one.version for one in second.versions] == ["1.0.0", "1.1.0"]
    assert known(second).type("Order.Placed").schema == wider


def test_a_version_that_is_there_with_another_schema_is_a_conflict() -> None:
    with pytest.raises(ConflictError, match=r"1.0.0 of Order.Placed is registered with another schema"):
        register(wish(schema={}), known(record()))
    for one, other in ((1, 1.0), (1, True)):  # they are equal in Python
        with pytest.raises(ConflictError):
            register(wish(schema={"default": one}), known(record(schema={"default": other})))


def test_a_version_that_is_not_later_is_a_conflict() -> None:
    with pytest.raises(ConflictError, match=r"1.0.0-rc.1 is not later than 1.0.0, the latest version"):
        register(wish(version="1.0.0-rc.1", schema={}), known(record()))


def test_a_version_that_breaks_is_refused_with_what_to_do() -> None:
    breaking = {**SCHEMA, "required": ["id", "lines"], "properties": {"lines": {"type": "string"}}}
    with pytest.raises(InvalidError) as caught:
        register(wish(version="2.0.0", schema=breaking), known(record()))
    assert "register a type of a new name" in caught.value.detail
    assert [error.path for error in caught.value.errors] == [
        "schema.properties.id",
        "schema.properties.lines.type",
        "schema.properties.lines",
    ]


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_types_and_their_versions_are_limited() -> None:
    many = known(*(record(f"Order.T{number}", schema={}) for number in range(TYPES)))
    with pytest.raises(InvalidError, match="1000 types are registered"):
        register(wish("Order.Last"), many)
    assert register(wish("Order.T1", schema={}, version="1.0.1"), many)
    large = {"description": "x" * 200_000}
    versions = [TypeVersion(version=f"1.0.{number}", schema=large) for number in range(TYPE_BYTES // 200_000)]
    with pytest.raises(InvalidError, match="all versions of a type"):
        register(
            wish(version="2.0.0", schema={**large, "title": "x"}),
            known(TypeRecord(type="Order.Placed", versions=versions)),
        )


def test_every_mistake_is_told() -> None:
    request = wish("order", {"type": "array"}, version="one", aliases=["*"], description="x" * 5000)
    with pytest.raises(InvalidError) as caught:
        check_request(request, CATALOGUE)
    paths = [error.path for error in caught.value.errors]
    assert paths == ["type", "aliases.0", "description", "version", "schema.type"]


# ---- in the catalogue ------------------------------------------------------------------------------------------------


def test_registered_type_is_known_by_all_its_names() -> None:
    catalogue = known(record("OrderLine.WasAdded", "line_added"), record("Custom.order"))
    for spelling in ("orderline.was_added", "ORDERLINE:WASADDED", "orderline_was_added", "Line_Added"):
        assert catalogue.resolve(spelling) == "OrderLine.WasAdded"
    assert catalogue.resolve("Custom.order") == "Custom.order"
    assert catalogue.resolve("Custom.Order") == "Custom.Order"
    with pytest.raises(UnknownTypeError) as caught:
        catalogue.resolve("OrderLine.WasAded")
    assert caught.value.errors[0].suggestion == "OrderLine.WasAdded"
    with pytest.raises(UnknownTypeError) as caught:
        catalogue.expand("OrdrLine.*")
    assert caught.value.errors[0].suggestion == "OrderLine.*"


def test_wildcard_of_a_users_category_stays_open_for_types_to_come() -> None:
    catalogue = known(record())
    assert catalogue.expand("order.*") == catalogue.expand("Order") == {"Order.*"}
    assert catalogue.members({"Order.*", "Memory.Created"}) == {"Order.Placed", "Memory.Created"}
    filters = compile_filters([TypeFilter(event_type="Order.*", filter={"id": "o_1"})], catalogue=catalogue)
    matcher = Matcher([("all", filters)])
    later = event("Order.Shipped", {"id": "o_1"})
    assert matcher.match(later) == ["all"]
    assert filters.matches(later)
    assert filters.names_category("Order")
    assert matcher.match(event("Order.Shipped", {"id": "o_2"})) == []
    assert matcher.match(event("Orders.Shipped", {"id": "o_1"})) == []


def test_filters_are_checked_against_what_a_schema_declares() -> None:
    catalogue = known(record(), record("Parcel.Sent", schema={"properties": {"to": {}}}), record("Custom.order"))
    for pattern, path in (("Order.Placed", "lines.0"), ("Order.*", "id"), ("Parcel.*", "whatever"), ("custom.x", "y")):
        catalogue.check_path(catalogue.expand(pattern), path)
    for pattern in ("Order.Placed", "Order.*", "order_placed", "Custom.order"):
        with pytest.raises(InvalidError) as caught:
            compile_filters([TypeFilter(event_type=pattern, filter={"lnes": 1})], catalogue=catalogue)
        assert caught.value.errors[0].suggestion == "lines"


def test_users_read_of_registered_types_as_of_others() -> None:
    catalogue = known(record("Order.Placed", "new_order"))
    found = next(kind for kind in catalogue.types() if kind.type == "Order.Placed")
    assert (found.registered, found.version, found.versions, found.open) == (True, "1.0.0", ["1.0.0"], False)
    assert found.aliases == ["order.placed", "order:placed", "order_placed", "new_order"]
    assert catalogue.type("new_order") == found
    assert catalogue.type("Custom.what").schema == {"title": "Custom.what", "type": "object"}
    assert catalogue.type("memory.created").registered is False
    assert catalogue.example("Order.Placed") == {"id": "example"}
    assert catalogue.validate("Order.Placed", b'{"anything": 1}') == {"anything": 1}
    with pytest.raises(InvalidError):
        catalogue.validate("Order.Placed", b"[]")


def test_records_survive_the_wire() -> None:
    made = register(wish())
    assert made is not None
    assert msgspec.json.decode(msgspec.json.encode(made), type=TypeRecord) == made
