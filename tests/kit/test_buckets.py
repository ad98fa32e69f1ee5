"""Buckets, and the copies of them that follow."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crucible_core.errors import ConflictError, InvalidError, UnavailableError
from crucible_core.subjects import Names
from crucible_kit.buckets import Bucket, Change, View, open_bucket
from crucible_kit.nats.bus import Bus, open_bus
from tests.kit.outage import private_server, until


@pytest.fixture
async def bucket(bus: Bus) -> Bucket:
    return await open_bucket(bus, "hooks")


class Copy:
    """A View and what it made of the changes."""

    def __init__(self, bucket: Bucket) -> None:
        self.held: dict[str, bytes] = {}
        self.revisions: list[int] = []
        self.view = View(bucket, self._take)

    def _take(self, change: Change) -> None:
        self.revisions.append(change.revision)
        if change.value is None:
            self.held.pop(change.key, None)
        else:
            self.held[change.key] = change.value


@contextlib.asynccontextmanager
async def followed(bucket: Bucket) -> AsyncIterator[Copy]:
    copy = Copy(bucket)
    task = asyncio.create_task(copy.view.follow())
    try:
        yield copy
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_what_is_put_is_got_until_it_is_deleted(bucket: Bucket) -> None:
    assert await bucket.get("a") is None
    first = await bucket.put("a", b"1")
    entry = await bucket.get("a")
    assert entry is not None
    assert (entry.key, entry.value, entry.revision) == ("a", b"1", first)
    await bucket.put("a", b"")
    assert (entry := await bucket.get("a")) is not None
    assert entry.value == b""
    await bucket.delete("a")
    assert await bucket.get("a") is None
    assert await bucket.entries() == {}


@pytest.mark.parametrize("key", ["", "*", "a.>", "a b", "a..b", ".a", "ä", "a\r\n"])
async def test_what_is_no_key_is_refused(bucket: Bucket, key: str) -> None:
    await bucket.put("a", b"1")
    for attempt in (lambda: bucket.get(key), lambda: bucket.put(key, b""), lambda: bucket.delete(key)):
        with pytest.raises(InvalidError):
            await attempt()


async def test_create_only_where_there_is_none_also_after_a_delete(bucket: Bucket) -> None:
    await bucket.create("a.b", b"1")
    with pytest.raises(ConflictError):
        await bucket.create("a.b", b"2")
    await bucket.delete("a.b")
    await bucket.create("a.b", b"3")
    assert {key: entry.value for key, entry in (await bucket.entries()).items()} == {"a.b": b"3"}


async def test_one_of_many_creates_wins(bucket: Bucket) -> None:
    results = await asyncio.gather(*(bucket.create("a", b"%d" % n) for n in range(20)), return_exceptions=True)
    assert sum(isinstance(result, int) for result in results) == 1
    assert sum(isinstance(result, ConflictError) for result in results) == 19


async def test_update_only_at_the_present_revision(bucket: Bucket) -> None:
    revision = await bucket.put("a", b"1")
    await bucket.put("b", b"1")
    later = await bucket.update("a", b"2", revision)
    with pytest.raises(ConflictError):
        await bucket.update("a", b"3", revision)
    assert (entry := await bucket.get("a")) is not None
    assert (entry.value, entry.revision) == (b"2", later)


async def test_a_mark_ends_by_itself_and_can_be_made_again(bucket: Bucket) -> None:
    await bucket.create("a", b"1", ttl="1s")
    with pytest.raises(ConflictError):
        await bucket.create("a", b"2", ttl="1s")

    async def gone() -> bool:
        return await bucket.get("a") is None

    await until(gone)
    await bucket.create("a", b"3", ttl="1s")


async def test_watch_gives_the_state_then_says_so_then_the_changes(bucket: Bucket) -> None:
    await bucket.put("a", b"1")
    await bucket.put("a", b"2")
    await bucket.put("b", b"1")
    await bucket.delete("b")
    async with contextlib.aclosing(bucket.watch()) as changes:
        found = [await anext(changes) for _ in range(3)]
        assert [(change.key, change.value, change.revision) for change in found] == [
            ("a", b"2", 2),
            ("b", None, 4),
            ("", None, 4),
        ]
        await bucket.put("c", b"3")
        last = await anext(changes)
        assert (last.key, last.value, last.revision) == ("c", b"3", 5)


async def test_view_reaches_what_was_acknowledged_to_anybody(bucket: Bucket, bus: Bus) -> None:
    async with followed(bucket) as copy:
        await copy.view.reach(0)
        assert copy.view.ready
        for n in range(50):
            key = f"k{random.randrange(5)}"
            await bucket.put(key, b"%d" % n)
            await copy.view.refresh()
            assert copy.held[key] == b"%d" % n
        with pytest.raises(UnavailableError, match="lags"):
            await copy.view.reach(1000, timeout=0.05)


async def test_view_is_ready_though_its_newest_key_has_ended(bucket: Bucket) -> None:
    await bucket.put("a", b"1")
    await bucket.create("mark", b"", ttl="1s")

    async def gone() -> bool:
        return await bucket.get("mark") is None

    await until(gone)
    async with followed(bucket) as copy:
        await copy.view.refresh()
        assert copy.held == {"a": b"1"}


async def test_view_survives_restarts_and_ends_up_equal(tmp_path: Path) -> None:
    async with private_server(tmp_path) as server, open_bus(server.url, Names("p")) as bus:
        bucket = await open_bucket(bus, "hooks")
        truth: dict[str, bytes] = {}
        async with followed(bucket) as copy:
            for n in range(300):
                if n % 100 == 50:
                    await server.restart()
                key = f"k{random.randrange(10)}"
                while True:
                    try:
                        if n % 7 == 0:
                            await bucket.delete(key)
                            truth.pop(key, None)
                        else:
                            await bucket.put(key, b"%d" % n)
                            truth[key] = b"%d" % n
                        break
                    except UnavailableError:
                        await asyncio.sleep(0.01)
                        await bus.wait_connected()
            await until(lambda: copy.held == truth)
            assert copy.revisions == sorted(set(copy.revisions))
