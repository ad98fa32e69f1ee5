"""Event types over HTTP: the routes, and subscriptions to types that users registered."""

import json
from typing import Any

import httpx
import msgspec
from websockets.asyncio.client import connect

from crucible_core.access import OPERATOR
from crucible_core.errors import ConflictError, NotFoundError
from crucible_core.protocol.events import (
    DescribedType,
    RegisteredType,
    RegisterType,
    TypeRecord,
    TypesReply,
    TypesRequest,
    TypeVersion,
)
from crucible_core.protocol.parts import GetRequest
from crucible_core.subjects import token
from crucible_gateway import examples
from crucible_kit.buckets import open_bucket
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import call_all
from crucible_kit.types import BUCKET
from tests.cases import each_of

from .conftest import HEADERS, Answers, Served, answering, commit

SHOWN = msgspec.convert(examples.DESCRIBED_TYPE, DescribedType)
PATH = "/api/v1/event-types"


async def test_types_over_http(http: httpx.AsyncClient, bus: Bus) -> None:
    kinds: dict[str, Any] = {"register_type": RegisterType, "type": GetRequest, "delete_type": GetRequest}
    async with answering(bus, "events", types=TypesRequest, **kinds) as events:
        events.replies = {
            "register_type": RegisteredType(type=SHOWN),
            "type": SHOWN,
            "delete_type": SHOWN,
            "types": lambda asked: TypesReply(types=[SHOWN], next=None if asked.after else "Order.Placed"),
        }
        made = await http.post(PATH, json=examples.REGISTER_TYPE)
        assert (made.status_code, made.json()) == (201, examples.DESCRIBED_TYPE)
        assert events.last.schema == examples.REGISTER_TYPE["schema"]
        events.replies["register_type"] = RegisteredType(type=SHOWN, created=False)
        assert (await http.post(PATH, json=examples.REGISTER_TYPE)).status_code == 200
        events.replies["register_type"] = ConflictError("version: 1.0.0 is there")
        assert (await http.post(PATH, json=examples.REGISTER_TYPE)).status_code == 409
        assert (await http.get(f"{PATH}/new_order")).json() == examples.DESCRIBED_TYPE
        assert (await http.get(f"{PATH}/Custom.%C3%BC")).status_code == 200
        assert events.last.id == "Custom.ü"
        assert [kind["type"] for kind in (await http.get(PATH)).json()["types"]] == ["Order.Placed"] * 2
        assert (await http.delete(f"{PATH}/Order.Placed")).status_code == 204
        events.replies["type"] = NotFoundError("there is no event type")
        assert (await http.get(f"{PATH}/Order.Placd")).status_code == 404


@each_of(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 422),
        (b'{"type": "Order.Placed"}', 422),
        (b'{"type": "Order.Placed", "schema": []}', 422),
        (b'{"type": "Order.Placed", "schema": {}, "versoin": "1.0.0"}', 422),
        (b'{"type": "A.B", "schema": {}, "aliases": "x"}', 422),
        (b'{"type": "A.B", "schema": ' + b'{"not":' * 70 + b"{}" + b"}" * 70 + b"}", 400),
        (b'{"type": "A.B", "schema": {}, "description": "' + b"x" * 1024 * 1024 + b'"}', 413),
    ],
)
async def test_what_is_no_type_is_refused(http: httpx.AsyncClient, body: bytes, status: int) -> None:
    answer = await http.post(PATH, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status


async def register(bus: Bus, name: str) -> None:
    """Into the bucket, without telling anybody."""
    bucket = await open_bucket(bus, BUCKET)
    record = TypeRecord(type=name, versions=[TypeVersion(version="1.0.0", schema={})], aliases=["new_order"])
    await bucket.put(token(name), msgspec.json.encode(record))


async def test_the_gateway_is_told_of_types(gateway: Served, bus: Bus) -> None:
    await register(bus, "Order.Placed")
    revision = await (await open_bucket(bus, BUCKET)).last_revision()
    known = msgspec.defstruct("Know", [("revision", int)])(revision)
    assert await call_all(bus, OPERATOR, "gateway", "know_types", known) == 1
    assert gateway.app.state.gateway.types.catalogue.resolve("new_order") == "Order.Placed"


async def test_subscription_to_registered_types(gateway: Served, bus: Bus) -> None:
    """By alias and by wildcard: then also to a type that comes later. An unknown one is refused."""
    await register(bus, "Order.Placed")
    async with connect(gateway.ws, additional_headers=HEADERS) as socket:
        for name in ("new_order", "Order.*", "Order.Sent"):
            await socket.send(json.dumps({"action": "subscribe", "filters": [{"event_type": name}]}))
        said = [json.loads(await socket.recv()) for _ in range(3)]
        assert [one["type"] for one in said] == ["subscribed", "subscribed", "error"]
        assert said[2]["error"]["errors"][0]["path"] == "filters.0.event_type"
        await commit(bus, 1, type="Order.Placed")
        await commit(bus, 2, type="Order.Sent")
        got = [json.loads(await socket.recv()) for _ in range(3)]
        by_subscription = sorted((one["subscription"], one["sequence"]) for one in got)
        alias, wildcard = (one["subscription"] for one in said[:2])
        assert by_subscription == sorted([(alias, 1), (wildcard, 1), (wildcard, 2)])


async def test_the_past_of_registered_types_is_read(http: httpx.AsyncClient, bus: Bus) -> None:
    await commit(bus, 1, type="Order.Placed")
    await commit(bus, 2, type="Custom.Tick")
    await register(bus, "Order.Placed")
    params = {"type": "Order.*", "from": "start"}
    headers = {"Accept": "text/event-stream"}
    async with http.stream("GET", "/api/v1/events/stream", params=params, headers=headers) as answer:
        ids = []
        async for line in answer.aiter_lines():
            if line.startswith("id:"):
                ids.append(line)
            if line == "event: caught_up":
                break
    assert ids[0] == "id: 1"


async def test_cloud_events_name_registered_types(http: httpx.AsyncClient, bus: Bus, events: Answers) -> None:
    await register(bus, "Order.Placed")
    event = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "com.example.Order.Placed", "data": {}}
    headers = {"Content-Type": "application/cloudevents+json"}
    await http.post("/api/v1/events", content=json.dumps(event), headers=headers)
    assert events.last.events[0].type.endswith("Order.Placed")
