"""Event types at run time: registered, validated, versioned, known on every replica, and gone again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette

from crucible_core.access import OPERATOR
from crucible_core.errors import ConflictError, InvalidError, NotFoundError
from crucible_core.protocol.events import (
    DescribedType,
    KnowTypes,
    RegisteredType,
    RegisterType,
    TypeRecord,
    TypesReply,
    TypesRequest,
    TypeVersion,
)
from crucible_core.protocol.hooks import GuardedRequest, HookRecord
from crucible_core.protocol.parts import GetRequest, TypeFilter
from crucible_core.protocol.retention import PutRetention, RetentionRule, RetentionView
from crucible_core.subjects import TTL, Names, token
from crucible_core.types.catalogue import CATALOGUE, Registered
from crucible_events.app import create_app
from crucible_events.append.validation import Validator
from crucible_events.replay.extent import select
from crucible_events.settings import Settings
from crucible_kit.buckets import open_bucket
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import Context, Endpoint, call, call_all, serve
from crucible_kit.telemetry.spans import Telemetry
from crucible_kit.types import BUCKET, open_types

from .conftest import Asker, Running, eventually, new, until

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": "^o_"},
        "amount": {"type": "number", "minimum": 0},
        "state": {"enum": ["new", "paid"]},
        "at": {"type": "string", "format": "date-time"},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}},
    },
    "required": ["id"],
    "additionalProperties": False,
    "$defs": {"line": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
}
WIDER: dict[str, Any] = {
    **SCHEMA,
    "properties": {**SCHEMA["properties"], "note": {"type": "string"}},
    "required": [],
}


class Catalogue:
    """The ways to the types."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def register(self, type: str = "Order.Placed", schema: Any = None, **fields: Any) -> RegisteredType:
        request = RegisterType(type=type, schema=SCHEMA if schema is None else schema, **fields)
        return await call(self._bus, OPERATOR, "events", "register_type", request, RegisteredType)

    async def get(self, type: str = "Order.Placed") -> DescribedType:
        return await call(self._bus, OPERATOR, "events", "type", GetRequest(id=type), DescribedType)

    async def delete(self, type: str = "Order.Placed") -> DescribedType:
        return await call(self._bus, OPERATOR, "events", "delete_type", GetRequest(id=type), DescribedType)

    async def all(self) -> list[Any]:
        reply = await call(self._bus, OPERATOR, "events", "types", TypesRequest(), TypesReply)
        assert reply.next is None
        return reply.types


@pytest.fixture
def types(bus: Bus) -> Catalogue:
    return Catalogue(bus)


@pytest.fixture
async def second(service: Starlette, settings: Settings, tmp_path: Path) -> AsyncIterator[Starlette]:
    """Another replica, with an index of its own."""
    app = create_app(msgspec.structs.replace(settings, data_dir=str(tmp_path / "second")))
    async with app.router.lifespan_context(app):
        await until(lambda: not app.state.ready())
        yield app


# ---- what a check may take -------------------------------------------------------------------------------------------

BOTH_WAYS: dict[str, Any] = {"properties": {"a": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, "b": {"type": "string"}}}


def chain(depth: int) -> dict[str, Any]:
    payload: dict[str, Any] = {"b": 1}
    for _ in range(depth):
        payload = {"a": payload}
    return payload


@pytest.mark.parametrize(
    ("schema", "payload"),
    [
        (BOTH_WAYS, chain(50)),
        ({"properties": {"a": {"items": {"enum": [[i] for i in range(1000)]}}}}, {"a": [[999]] * 100_000}),
        ({"properties": {"a": {"items": {"anyOf": [{"const": -i} for i in range(190)]}}}}, {"a": [1] * 26_000}),
    ],
)
def test_payload_that_takes_too_long_to_check_is_refused(schema: dict[str, Any], payload: Any) -> None:
    with pytest.raises(InvalidError, match="more than 2,000,000 steps to check"):
        Validator(schema).check(payload, "Order.Placed", msgspec.json.encode(payload))


def test_mistakes_of_alternatives_are_told_where_there_are_few() -> None:
    for depth, told in ((5, "fits no alternative"), (14, "too large to be told where")):
        payload = chain(depth)
        with pytest.raises(InvalidError, match=told):
            Validator(BOTH_WAYS).check(payload, "Order.Placed", msgspec.json.encode(payload))


async def test_type_whose_alternatives_multiply_is_refused(types: Catalogue, service: Starlette) -> None:
    defs = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(25)}
    schema = {"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": {**defs, "d25": {"type": "string"}}}
    with pytest.raises(InvalidError, match="multiply to more than can be checked"):
        await types.register(schema=schema)


# ---- registering -----------------------------------------------------------------------------------------------------


async def test_registered_type_is_appended_queried_and_shown(service: Starlette, ask: Asker, types: Catalogue) -> None:
    made = await types.register(description="An order", aliases=["new_order"])
    assert made.created
    assert (made.type.type, made.type.version, made.type.registered, made.type.count) == (
        "Order.Placed",
        "1.0.0",
        True,
        0,
    )
    for name in ("Order.Placed", "order.placed", "new_order"):
        done = await ask.one(new(name, {"id": "o_1"}))
        assert (done.error, done.type) == (None, "Order.Placed")
    event = await ask.get(done.id or "")
    assert (event.type, event.data.event, event.metadata.version) == ("Order", "Placed", "1.0.0")
    assert event.metadata.entity == "o_1"
    sequence = await ask.last()
    for asked in (["Order.Placed"], ["new_order"], ["Order.*"], ["order"], ["Order.*", "Memory.Created"]):
        assert len(await ask.found(type=asked, min_sequence=sequence)) == 3
    assert len(await ask.found(type=["Order.*"], entity="o_1", filter={"id": "o_1"})) == 3
    shown = await types.get("new_order")
    assert (shown.count, shown.schemas, shown.description) == (3, {"1.0.0": SCHEMA}, "An order")


async def test_others_are_served_while_two_schemas_are_compared(
    service: Starlette, ask: Asker, types: Catalogue
) -> None:
    def of(word: str) -> dict[str, Any]:
        return {"properties": {"a": {"anyOf": [{"const": i, word: i} for i in range(190)]}}}

    await types.register(schema=of("minimum"))
    comparing = asyncio.create_task(types.register(schema=of("maximum"), version="2.0.0"))
    for _ in range(3):
        assert (await ask.one(new())).error is None
    assert not comparing.done()
    with pytest.raises(InvalidError, match="not compatible"):
        await comparing


async def test_all_types_are_listed_with_their_counts(service: Starlette, ask: Asker, types: Catalogue) -> None:
    await types.register("Custom.order")
    await ask.append(new("Custom.order", {"id": "o_1"}), new("Custom.a"), new("Custom.b"))
    await until_counted(types, "Custom.*", 2)
    found = {kind.type: kind for kind in await types.all()}
    assert (found["Custom.order"].count, found["Custom.order"].registered) == (1, True)
    assert found["Memory.Created"].count == 0
    assert (await types.get("Custom.a")).count == 1


async def until_counted(types: Catalogue, type: str, count: int) -> None:
    async def counted() -> bool:
        return (await types.get(type)).count == count

    await eventually(counted)


async def test_many_types_are_listed_in_parts(service: Starlette, bus: Bus, types: Catalogue) -> None:
    bucket = await open_bucket(bus, BUCKET)
    for number in range(30):
        schema = {"description": "x" * 250_000}
        name = f"Large.T{number}"
        record = TypeRecord(type=name, versions=[TypeVersion(version="1.0.0", schema=schema)])
        await bucket.put(token(name), msgspec.json.encode(record))
    found: list[str] = []
    after: str | None = None
    parts = 0
    while True:
        part = await call(bus, OPERATOR, "events", "types", TypesRequest(after=after), TypesReply)
        found += [kind.type for kind in part.types]
        parts += 1
        if part.next is None:
            break
        after = part.next
    assert parts > 1
    assert len(found) == len(set(found))
    assert {f"Large.T{number}" for number in range(30)} < set(found)
    assert found[-1] == "Custom.*"


@pytest.mark.parametrize(
    ("payload", "path", "said", "suggestion"),
    [
        ({}, "payload.id", "required, but missing", None),
        ({"id": 5}, "payload.id", 'is not of type "string"', None),
        ({"id": "x"}, "payload.id", 'does not match "^o_"', None),
        ({"id": "o_1", "amount": -1}, "payload.amount", "is less than the minimum of 0", None),
        ({"id": "o_1", "state": "nw"}, "payload.state", 'is not one of "new" or "paid"', "new"),
        ({"id": "o_1", "at": "soon"}, "payload.at", 'is not a "date-time"', None),
        ({"id": "o_1", "lines": ["a", 5]}, "payload.lines.1", 'fits no alternative: is not of type "string"', None),
        ({"id": "o_1", "amont": 1}, "payload.amont", "unknown field", "amount"),
        ([], "payload", "expected object, got array", None),
    ],
)
async def test_payload_that_its_schema_refuses(
    service: Starlette, ask: Asker, types: Catalogue, payload: Any, path: str, said: str, suggestion: str | None
) -> None:
    await types.register()
    event = new("Order.Placed")
    event.payload = msgspec.Raw(msgspec.json.encode(payload))
    error = (await ask.one(event)).error
    assert error is not None
    assert error.code == "invalid"
    assert (error.errors[0].path, error.errors[0].suggestion) == (path, suggestion)
    assert error.errors[0].message.startswith(said)


@pytest.mark.parametrize(("amount", "code"), [("1" + "0" * 30, None), ("1e308", None), ("1e400", "invalid")])
async def test_huge_numbers(service: Starlette, ask: Asker, types: Catalogue, amount: str, code: str | None) -> None:
    await types.register()
    event = new("Order.Placed")
    event.payload = msgspec.Raw(b'{"id":"o_1","amount":%b}' % amount.encode())
    error = (await ask.one(event)).error
    assert (error.code if error else None) == code


async def test_every_mistake_of_a_payload_is_told(service: Starlette, ask: Asker, types: Catalogue) -> None:
    await types.register()
    error = (await ask.one(new("Order.Placed", {"amount": "1", "x": 1, "y": 2}))).error
    assert error is not None
    assert {field.path for field in error.errors} == {"payload.id", "payload.amount", "payload.x", "payload.y"}
    large = {"id": "o_1", "lines": [5] * 100_000}
    error = (await ask.one(new("Order.Placed", large))).error
    assert error is not None
    assert [field.path for field in error.errors] == ["payload"], "each line has two alternatives"


async def test_costly_patterns_are_matched_in_linear_time(service: Starlette, ask: Asker, types: Catalogue) -> None:
    await types.register(schema={"properties": {"text": {"pattern": "^(a+)+$"}}})
    async with asyncio.timeout(5):
        done = await ask.one(new("Order.Placed", {"text": "a" * 200_000 + "!"}))
    assert done.error is not None


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"properties": {"a": {"minimum": "low"}}}, "schema.properties.a.minimum"),
        ({"properties": {"a": {"pattern": "(?=x)"}}}, "schema.properties.a.pattern"),
        ({"properties": {"a": {"pattern": "(("}}}, "schema.properties.a.pattern"),
        ({"properties": {"a": {"pattern": "((a{999}){999}){999}"}}}, "schema.properties.a.pattern"),
        ({"properties": {"a": {"$ref": "http://127.0.0.1:9/a"}}}, "schema.properties.a.$ref"),
        ({"required": "a"}, "schema.required"),
        ({"properties": []}, "schema.properties"),
    ],
)
async def test_schema_that_is_none_is_refused(
    service: Starlette, types: Catalogue, schema: dict[str, Any], path: str
) -> None:
    with pytest.raises(InvalidError) as caught:
        await types.register(schema=schema)
    assert caught.value.errors[0].path == path


def test_replay_of_a_category_reads_no_subject_twice() -> None:
    version = TypeVersion(version="1.0.0", schema={})
    known = CATALOGUE.extended([Registered(TypeRecord(type="Order.Placed", versions=[version]))])
    wanted = [TypeFilter(event_type=name) for name in ("Order.*", "Order.Placed", "Custom.a", "Custom.*")]
    subjects = select(wanted, None, None, Names(), known).subjects
    assert subjects == [Names().events_of("Custom"), Names().events_of("Order")]


# ---- versions --------------------------------------------------------------------------------------------------------


async def test_events_have_the_latest_version_or_the_one_they_name(
    service: Starlette, ask: Asker, types: Catalogue
) -> None:
    await types.register()
    assert not (await types.register()).created
    assert (await types.register(schema=WIDER, version="1.1.0")).type.versions == ["1.0.0", "1.1.0"]

    async def version(**fields: Any) -> str:
        done = await ask.one(new("Order.Placed", {"id": "o_1"}, **fields))
        assert done.error is None
        return (await ask.get(done.id or "")).metadata.version

    assert await version() == "1.1.0"
    assert await version(version="1.0.0") == "1.0.0"
    assert (await ask.one(new("Order.Placed", {"note": "x"}))).error is None
    refused = (await ask.one(new("Order.Placed", {"id": "o_1", "note": "x"}, version="1.0.0"))).error
    assert refused is not None
    assert refused.errors[0].path == "payload.note"
    refused = (await ask.one(new("Order.Placed", {"id": "o_1"}, version="1.2.0"))).error
    assert refused is not None
    assert refused.errors[0].path == "version"
    assert "its versions: 1.0.0, 1.1.0" in refused.detail
    assert (await types.get()).schemas == {"1.0.0": SCHEMA, "1.1.0": WIDER}


async def test_version_that_breaks_is_refused_and_changes_nothing(service: Starlette, types: Catalogue) -> None:
    await types.register()
    with pytest.raises(InvalidError, match="not compatible") as caught:
        await types.register(schema={**SCHEMA, "required": ["id", "amount"]}, version="2.0.0")
    assert caught.value.errors[0].path == "schema.properties.amount"
    with pytest.raises(ConflictError):
        await types.register(schema=WIDER)
    with pytest.raises(ConflictError, match=r"0.9.0 is not later"):
        await types.register(schema=WIDER, version="0.9.0")
    assert (await types.get()).versions == ["1.0.0"]


# ---- replicas and restarts -------------------------------------------------------------------------------------------


async def test_types_survive_a_restart(running: Running, ask: Asker, types: Catalogue) -> None:
    async with running():
        await types.register()
        await ask.one(new("Order.Placed", {"id": "o_1"}))
    async with running():
        assert (await ask.one(new("Order.Placed", {"id": 1}))).error is not None
        assert (await ask.one(new("Order.Placed", {"id": "o_2"}))).error is None
        await until_counted(types, "Order.Placed", 2)


async def test_every_replica_knows_what_was_registered(
    service: Starlette, second: Starlette, ask: Asker, types: Catalogue
) -> None:
    for number in range(10):
        await types.register(f"Order.T{number}")
        done = await asyncio.gather(*(ask.one(new(f"Order.T{number}", {"id": "o_1"})) for _ in range(6)))
        assert [one.error for one in done] == [None] * 6


async def test_a_replica_that_was_not_told_looks_before_it_refuses(service: Starlette, bus: Bus, ask: Asker) -> None:
    """A type that comes into the bucket while nobody tells of it, as when a replica could not be reached."""
    bucket = await open_bucket(bus, BUCKET)
    for number in range(5):
        name = f"Order.T{number}"
        record = TypeRecord(type=name, versions=[TypeVersion(version="1.0.0", schema={})])
        await bucket.put(token(name), msgspec.json.encode(record))
        assert (await ask.one(new(name))).error is None
        assert (await ask.append(new(name), atomic=True))[0].error is None
        await ask.query(type=[f"Order.T{number}"])


async def test_the_services_that_know_types_are_told(service: Starlette, bus: Bus, types: Catalogue) -> None:
    told: list[str] = []

    def telling(name: str) -> dict[str, Endpoint]:
        async def know(request: KnowTypes, context: Context) -> KnowTypes:
            told.append(name)
            return request

        return {"know_types": Endpoint(KnowTypes, know, every_replica=True)}

    async with contextlib.AsyncExitStack() as stack:
        for name in ("hooks", "webhooks", "gateway", "gateway"):
            await stack.enter_async_context(serve(bus, name, telling(name), Telemetry()))
        await types.register()
    assert sorted(told) == ["gateway", "gateway", "hooks", "webhooks"]


async def test_types_registered_at_once_share_no_name(
    service: Starlette, second: Starlette, bus: Bus, types: Catalogue
) -> None:
    wishes = [types.register(f"Order.T{number}", aliases=["the_one"]) for number in range(8)]
    done = await asyncio.gather(*wishes, return_exceptions=True)
    assert [type(one) for one in done].count(RegisteredType) == 1
    assert [type(one) for one in done].count(ConflictError) == 7
    same = await asyncio.gather(*(types.register("Order.Same") for _ in range(8)))
    assert [one.created for one in same].count(True) == 1


async def test_records_that_stand_in_the_way_are_left_out(bus: Bus) -> None:
    """Written by a version with other types of its own, or by hand."""
    types = await open_types(bus, 1)
    for name, alias in (("Memory.Created", "x"), ("Order.Placed", "taken"), ("Order.Sent", "taken"), ("Custom.a", "b")):
        record = TypeRecord(type=name, versions=[TypeVersion(version="1.0.0", schema={})], aliases=[alias])
        await types.bucket.put(token(name), msgspec.json.encode(record))
    await types.bucket.put("broken", b"{")
    following = asyncio.create_task(types.view.follow())
    await types.view.reach(await types.bucket.last_revision())
    assert set(types.catalogue.registered) == {"Order.Placed", "Custom.a"}
    following.cancel()


# ---- deleting --------------------------------------------------------------------------------------------------------


async def test_type_without_events_can_be_deleted_and_made_anew(
    service: Starlette, ask: Asker, types: Catalogue
) -> None:
    await types.register()
    assert (await types.delete("order.placed")).type == "Order.Placed"
    assert (await ask.one(new("Order.Placed", {"id": "o_1"}))).error is not None
    with pytest.raises(NotFoundError):
        await types.get()
    await types.register(schema={"properties": {"id": {"type": "integer"}}})
    assert (await ask.one(new("Order.Placed", {"id": 1}))).error is None
    assert (await ask.one(new("Order.Placed", {"id": "o_1"}))).error is not None


async def test_type_with_events_stays(service: Starlette, ask: Asker, types: Catalogue) -> None:
    await types.register()
    await ask.one(new("Order.Placed", {"id": "o_1"}))
    with pytest.raises(ConflictError, match="the log has one event of Order"):
        await types.delete()
    assert (await ask.one(new("Order.Placed", {"id": "o_1"}))).error is None


async def test_what_is_not_registered_cannot_be_deleted(service: Starlette, types: Catalogue) -> None:
    for name in ("Memory.Created", "Custom.unheard", "Custom.*"):
        with pytest.raises(ConflictError, match="is not a registered type"):
            await types.delete(name)
    for name, near in (("Memory.Creatd", "Memory.Created"), ("Unheard.Of", None)):
        with pytest.raises(NotFoundError) as caught:
            await types.delete(name)
        assert caught.value.errors[0].suggestion == near


# ---- Pre hooks -------------------------------------------------------------------------------------------------------


def gate(*types: str) -> bytes:
    definition = {"trigger": {"timing": "Pre", "events": [{"type": name, "filter": {"amount": 1}} for name in types]}}
    return msgspec.json.encode(HookRecord(name="gate", definition=definition))


async def test_pre_hook_on_a_type_decides_from_its_first_event(
    service: Starlette, bus: Bus, ask: Asker, types: Catalogue
) -> None:
    """While the type is not known its hook stands in nobody's way; then it decides, though no hooks service answers."""
    bucket = await open_bucket(bus, "hooks")
    revision = await bucket.put("gate", gate("Order.Placed", "Parcel.*", "new_order"))
    await call_all(bus, OPERATOR, "events", "guarded", GuardedRequest(revision=revision))
    assert (await ask.one(new("Custom.note", {"amount": 1}))).error is None
    await types.register(aliases=["new_order"])
    for payload, code in (({"id": "o_1", "amount": 1}, "unavailable"), ({"id": "o_1"}, None)):
        error = (await ask.one(new("Order.Placed", payload))).error
        assert (error.code if error else None) == code
    await types.register("Parcel.Sent", schema={})
    error = (await ask.one(new("Parcel.Sent", {"amount": 1}))).error
    assert error is not None
    assert error.code == "unavailable"
    await types.delete("Parcel.Sent")
    assert (await ask.one(new("Custom.note", {"amount": 1}))).error is None


async def test_a_schema_that_closes_a_custom_type_does_not_make_its_hook_deny_everything(
    service: Starlette, bus: Bus, ask: Asker, types: Catalogue
) -> None:
    bucket = await open_bucket(bus, "hooks")
    await bucket.put("gate", gate("Custom.order"))
    await types.register("Custom.order", schema={"properties": {"id": {}}, "additionalProperties": False})
    assert (await ask.one(new("Custom.order", {"id": 1}))).error is None
    assert (await ask.one(new("Custom.note"))).error is None


# ---- retention -------------------------------------------------------------------------------------------------------


async def test_rules_of_retention_name_registered_types(
    running: Running, bus: Bus, ask: Asker, types: Catalogue
) -> None:
    async def kept(name: str) -> str | None:
        done = await ask.one(new(name, {"id": "o_1"}))
        stored = await bus.get(bus.names.events, done.sequence or 0)
        assert stored is not None
        return stored.headers.get(TTL)

    rules = [RetentionRule(type="order_placed", keep="forever"), RetentionRule(type="Order.*", keep="1h")]
    async with running():
        with pytest.raises(InvalidError):
            await call(bus, OPERATOR, "events", "put_retention", PutRetention(rules=rules), RetentionView)
        await types.register()
        await call(bus, OPERATOR, "events", "put_retention", PutRetention(rules=rules), RetentionView)
        await types.register("Order.Sent")
        assert [await kept("Order.Placed"), await kept("Order.Sent")] == ["never", "3600s"]
    async with running():
        assert [await kept("Order.Placed"), await kept("Order.Sent")] == ["never", "3600s"]


async def test_changes_of_types_and_of_retention_are_told(service: Starlette, ask: Asker, types: Catalogue) -> None:
    await types.register()
    await types.register()  # the same again changes nothing
    await types.register(version="1.1.0", schema=SCHEMA | {"title": "An order"})
    await types.delete()
    rules = PutRetention(rules=[RetentionRule(type="Custom.*", keep="90d")])
    view = await call(ask.bus, OPERATOR, "events", "put_retention", rules, RetentionView)
    told = [
        event.data.payload for event in await ask.found(type=["System.ConfigChanged"], min_sequence=await ask.last())
    ]
    about = [(payload["setting"], payload.get("id"), payload["changes"]) for payload in told]
    assert about == [
        ("event_types", "Order.Placed", {"registered": "1.0.0"}),
        ("event_types", "Order.Placed", {"registered": "1.1.0"}),
        ("event_types", "Order.Placed", {"deleted": True}),
        ("retention", None, {"rules": 1, "revision": view.revision}),
    ]


async def test_of_many_unknown_types_the_first_are_told_the_nearest(service: Starlette, ask: Asker) -> None:
    done = await ask.append(*(new(f"Memory.Creatd{number}") for number in range(40)), new("Custom.a"))
    errors = [each.error.errors[0] for each in done if each.error is not None]
    assert {error.path for error in errors} == {"type"}
    assert [error.suggestion for error in errors] == ["Memory.Created"] * 20 + [None] * 20
    assert done[-1].error is None
