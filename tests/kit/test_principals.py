"""What owners may see, by the keys that there are."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from crucible_core.access import OPERATOR, Grant, KeyRecord
from crucible_core.envelope import Data, Event, Metadata, Source
from crucible_core.protocol.parts import Owned
from crucible_kit.buckets import Bucket, open_bucket
from crucible_kit.nats.bus import Bus
from crucible_kit.principals import BUCKET, Principals


@pytest.fixture
async def bucket(bus: Bus) -> Bucket:
    return await open_bucket(bus, BUCKET)


@pytest.fixture
async def principals(bucket: Bucket) -> AsyncIterator[Principals]:
    found = Principals(bucket)
    following = asyncio.create_task(found.view.follow())
    await found.view.reach(0)
    yield found
    following.cancel()


async def put(bucket: Bucket, key: str, principal: str, *worlds: str, disabled: bool = False) -> None:
    grants = [Grant(worlds=worlds)] if worlds else None
    record = KeyRecord(id=key, name="k", created_at="", principal=principal, grants=grants, disabled=disabled)
    await bucket.put(key, msgspec.json.encode(record))


def event(world: str) -> Event:
    about = Metadata(
        id="evt_1", timestamp="", source=Source("user", "a"), actor="a", correlation_id="c", world_id=world
    )
    return Event("Custom", Data("X", {}), about)


def seen(principals: Principals, record: Owned) -> str:
    return "".join(world for world in "abc" if principals.may_receive(record, event(world)))


async def test_an_owner_may_see_what_any_of_its_keys_may(principals: Principals, bucket: Bucket) -> None:
    mine = Owned(owner="agent:x")
    assert (seen(principals, mine), principals.powerless_reason(mine)) == (
        "",
        "its owner agent:x may see nothing any more",
    )
    for key, worlds in (("one", "a"), ("two", "b")):
        await put(bucket, key, "agent:x", *worlds)
    await principals.view.refresh()
    assert (seen(principals, mine), principals.powerless_reason(mine)) == ("ab", None)
    assert seen(principals, Owned(owner="agent:x", world_id="b")) == "b"
    assert seen(principals, Owned(owner="agent:x", world_id="c")) == ""
    await put(bucket, "two", "agent:x", "c")
    await put(bucket, "one", "agent:x", "a", disabled=True)
    await principals.view.refresh()
    assert seen(principals, mine) == "c"
    await put(bucket, "three", "agent:x")  # all rights
    await principals.view.refresh()
    assert (seen(principals, mine), principals.of("agent:x").admin) == ("abc", True)
    for key in ("two", "three"):
        await bucket.delete(key)
    await principals.view.refresh()
    assert (seen(principals, mine), principals.holder("three")) == ("", None)


async def test_a_key_that_goes_to_another_takes_nothing_with_it(principals: Principals, bucket: Bucket) -> None:
    await put(bucket, "one", "agent:x", "a")
    await put(bucket, "one", "agent:y", "b")
    await principals.view.refresh()
    assert [seen(principals, Owned(owner=owner)) for owner in ("agent:x", "agent:y")] == ["", "b"]
    assert principals.holder("one") == principals.of("agent:y")


async def test_the_operator_may_see_all_whatever_keys_there_are(principals: Principals, bucket: Bucket) -> None:
    await put(bucket, "one", OPERATOR.id, "a")
    await bucket.put("two", b"{")  # which cannot be read
    await principals.view.refresh()
    assert principals.of("") is principals.of(OPERATOR.id) is OPERATOR
    assert seen(principals, Owned()) == "abc"
    assert principals.holder("two") is None
    assert principals.powerless_reason(Owned()) is None
