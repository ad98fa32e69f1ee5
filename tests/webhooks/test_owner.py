"""Whom a webhook belongs to: it gets what its owner may see, and is for nobody else to see or change."""

from typing import Any

import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import Response

from crucible_core.access import Grant, KeyRecord, Principal
from crucible_core.errors import ConflictError, CrucibleError, ForbiddenError, NotFoundError
from crucible_core.protocol import parts
from crucible_core.protocol.parts import GetRequest, ListRequest
from crucible_core.protocol.webhooks import (
    AttemptsRequest,
    EnableWebhook,
    RotateSecret,
    UpdateWebhook,
    WebhookList,
    WebhookRecord,
    WebhookView,
)
from crucible_kit.buckets import open_bucket
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import call

from .conftest import Answer, Receiver, Service, until

BEA = Principal("agent:bea", [Grant(worlds=("default",))])
OTHER = Principal("agent:other", [Grant(worlds=("other",))])


def _answering(status: int) -> Answer:
    async def answer(request: Request, body: bytes) -> Response:
        return Response(status_code=status)

    return answer


async def give(bus: Bus, who: Principal, disabled: bool = False) -> None:
    record = KeyRecord(id="key_1", name="k", created_at="", principal=who.id, grants=who.grants, disabled=disabled)
    await (await open_bucket(bus, "keys")).put(who.id.replace(":", "_"), msgspec.json.encode(record))


async def create(bus: Bus, who: Principal, url: str, name: str = "ci", **fields: Any) -> WebhookView:
    await give(bus, who)
    wanted = {"name": name, "url": url, "event_filters": [{"event_type": "Custom.*"}], **fields}
    asked = msgspec.defstruct("Wanted", [(key, Any) for key in wanted])(*wanted.values())
    return await call(bus, who, "webhooks", "create", asked, WebhookView)


async def test_it_gets_what_its_owner_may_see_at_the_time(service: Service, receiver: Receiver, bus: Bus) -> None:
    await create(bus, OTHER, receiver.url, "other")
    mine = await create(bus, BEA, receiver.url, options={"retry_delays_s": [1.5]})
    assert (mine.owner, mine.state, mine.world_id) == ("agent:bea", "active", None)
    receiver.answer = _answering(500)
    await service.append(n=1)
    await until(lambda: receiver.requests)
    assert len(receiver.requests) == 1
    # Its first attempt failed. Until the second is due, what it may see is taken away.
    await give(bus, BEA, disabled=True)
    receiver.answer = _answering(200)

    async def outcomes() -> list[str]:
        return [attempt.outcome for attempt in await service.attempts(mine)]

    async def skipped() -> bool:
        return await outcomes() == ["skipped", "retrying"]

    await until(skipped)
    assert len(receiver.requests) == 1
    shown: WebhookView = await service.ask("get", GetRequest(mine.id), WebhookView)
    assert shown.state == "inert: its owner agent:bea may see nothing any more"
    await service.create(receiver.url, auth={"type": "bearer", "token": "operator"})
    await service.append(n=2)
    await until(lambda: len(receiver.requests) == 2)  # the operator's: it is decided who gets the event
    await give(bus, BEA)
    await service.append(n=3)
    await until(lambda: len(receiver.requests) == 4)
    sent = [body for headers, body in receiver.requests if "authorization" not in headers]
    assert [b'"n":3' in body for body in sent] == [False, True]


async def test_nobody_else_sees_or_changes_it(service: Service, receiver: Receiver, bus: Bus) -> None:
    mine = await create(bus, BEA, receiver.url)
    theirs = await create(bus, OTHER, receiver.url, "theirs")
    asks: dict[str, Any] = {
        "get": GetRequest(mine.id),
        "update": UpdateWebhook(id=mine.id, patch={"name": "x"}),
        "rotate_secret": RotateSecret(id=mine.id),
        "enable": EnableWebhook(id=mine.id, enabled=False),
        "attempts": AttemptsRequest(id=mine.id),
        "test": parts.TestRequest(id=mine.id),
        "replayable": GetRequest(mine.id),
        "delete": GetRequest(mine.id),
    }
    for operation, request in asks.items():
        with pytest.raises(NotFoundError) as hidden:
            await call(bus, OTHER, "webhooks", operation, request, bytes)
        assert "was deleted" not in hidden.value.detail
        assert hidden.value.errors[0].suggestion is None
    with pytest.raises(ConflictError) as taken:
        await create(bus, OTHER, receiver.url, "ci")
    assert mine.id not in taken.value.detail
    assert "id" not in taken.value.extra
    found = await call(bus, OTHER, "webhooks", "list", ListRequest(), WebhookList)
    assert [one.id for one in found.webhooks] == [theirs.id]
    everything: WebhookList = await service.ask("list", ListRequest(), WebhookList)
    assert {one.owner for one in everything.webhooks} == {"agent:bea", "agent:other"}


async def test_one_of_a_world_is_seen_by_who_sees_all_of_it_and_changed_by_its_owner(
    service: Service, receiver: Receiver, bus: Bus
) -> None:
    made: WebhookView = await service.create(receiver.url)
    await _confine(bus, made.id, "other")
    assert (await call(bus, OTHER, "webhooks", "get", GetRequest(made.id), WebhookView)).world_id == "other"
    some = Principal("agent:some", [Grant(worlds=("other",), rooms=("main",))])
    for who, error in ((OTHER, ForbiddenError), (some, NotFoundError), (BEA, NotFoundError)):
        with pytest.raises(error) as refused:
            await call(bus, who, "webhooks", "delete", GetRequest(made.id), bytes)
        assert _required(refused.value) == ("admin" if error is ForbiddenError else None)
    await service.append(n=1)  # of another world
    await _confine(bus, made.id, "default")
    await service.append(n=2)
    await until(lambda: receiver.requests)
    assert [b'"n":2' in body for _, body in receiver.requests] == [True]


def _required(error: CrucibleError) -> Any:
    return error.extra.get("required")


async def _confine(bus: Bus, webhook: str, world: str) -> None:
    bucket = await open_bucket(bus, "webhooks")
    entry = await bucket.get(webhook)
    assert entry is not None
    record = msgspec.json.decode(entry.value, type=WebhookRecord)
    await bucket.put(webhook, msgspec.json.encode(msgspec.structs.replace(record, world_id=world)))


async def test_a_record_of_before_there_were_owners_is_the_operators(
    service: Service, receiver: Receiver, bus: Bus
) -> None:
    made: WebhookView = await service.create(receiver.url)
    bucket = await open_bucket(bus, "webhooks")
    entry = await bucket.get(made.id)
    assert entry is not None
    record = msgspec.json.decode(entry.value)
    assert record.pop("owner") == "user:admin"
    await bucket.put(made.id, msgspec.json.encode(record))
    await service.append(n=1)
    await until(lambda: receiver.requests)
    assert ((await service.ask("get", GetRequest(made.id), WebhookView)).owner) == "user:admin"
    with pytest.raises(NotFoundError):
        await call(bus, BEA, "webhooks", "get", GetRequest(made.id), bytes)
