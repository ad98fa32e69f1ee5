"""Reading a stream: no hole and no repeat, whatever breaks."""

import asyncio
import contextlib
import random
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from crucible_core.errors import NotFoundError, UnavailableError
from crucible_core.subjects import Names
from crucible_kit.nats.bus import Bus, Message, open_bus
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.reader import read
from tests.kit.outage import Server, private_server, proxied, until


class Reader:
    """What a reading has handed on, and whether it said that it had caught up."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.caught_up: list[int] = []
        """How many messages came before it."""

    @property
    def data(self) -> list[bytes]:
        return [message.data for message in self.messages]

    async def run(self, reading: AsyncIterator[list[Message]]) -> None:
        async for messages in reading:
            if not messages:
                self.caught_up.append(len(self.messages))
            self.messages += messages


@contextlib.asynccontextmanager
async def reader_of(reading: AsyncIterator[list[Message]]) -> AsyncIterator[Reader]:
    reader = Reader()
    task = asyncio.create_task(reader.run(reading))
    try:
        yield reader
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()):
            raise error


@pytest.fixture
async def stream(bus: Bus) -> str:
    return await make(bus)


async def make(bus: Bus, **options: float) -> str:
    name = bus.names.bucket("S")
    await bus.ensure_stream(name, subjects=[subject(bus, ">")], allow_atomic=True, **options)
    return name


async def made(bus: Bus) -> bool:
    """Whether it could be: the server may still be clearing away what had the name."""
    with contextlib.suppress(UnavailableError):
        return bool(await make(bus))
    return False


def subject(bus: Bus, rest: str) -> str:
    return f"{bus.names.prefix}.s.{rest}"


async def fill(bus: Bus, *data: int, name: str = "a") -> None:
    await bus.store_all([Outgoing(subject(bus, name), b"%d" % n) for n in data])


def numbers(*wanted: int) -> list[bytes]:
    return [b"%d" % n for n in wanted]


async def test_reads_what_is_there_says_so_once_and_goes_on(bus: Bus, stream: str) -> None:
    await fill(bus, *range(25))
    async with reader_of(read(bus, stream, batch=4)) as reader:
        await until(lambda: reader.caught_up)
        await fill(bus, *range(25, 50))
        await until(lambda: len(reader.messages) == 50)
        assert reader.data == numbers(*range(50))
        assert [message.sequence for message in reader.messages] == list(range(1, 51))
        assert reader.caught_up == [25]


async def test_an_empty_stream_is_caught_up_at_once(bus: Bus, stream: str) -> None:
    async with reader_of(read(bus, stream)) as reader:
        await until(lambda: reader.caught_up == [0])
        await fill(bus, 1)
        await until(lambda: reader.data == numbers(1))


async def test_begins_after_a_sequence_or_at_a_time_and_filters(bus: Bus, stream: str) -> None:
    await fill(bus, 1, 2)
    await fill(bus, 3, name="b")
    await fill(bus, 4)
    third = await bus.get(stream, 3)
    assert third is not None
    async with (
        reader_of(read(bus, stream, after=2)) as after,
        reader_of(read(bus, stream, after=99)) as beyond,
        reader_of(read(bus, stream, since_ms=third.time_ms)) as since,
        reader_of(read(bus, stream, filters=[subject(bus, "b"), subject(bus, "c")])) as filtered,
    ):
        await until(lambda: all(reader.caught_up for reader in (after, beyond, since, filtered)))
        assert after.data == numbers(3, 4)
        assert beyond.data == []
        assert since.data[-2:] == numbers(3, 4)
        assert filtered.data == numbers(3)


async def test_catches_up_while_others_write_without_pause(bus: Bus, stream: str) -> None:
    """In a busy stream something is always pending."""
    await fill(bus, *range(1000))
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            await bus.store_all([Outgoing(subject(bus, "a"), b"x") for _ in range(50)])

    writing = asyncio.create_task(write())
    async with reader_of(read(bus, stream, batch=50)) as reader:
        await until(lambda: reader.caught_up)
        assert reader.caught_up[0] >= 1000
    stop.set()
    await writing


async def test_catches_up_though_what_waited_was_removed(bus: Bus, stream: str) -> None:
    await fill(bus, *range(200))
    reading = read(bus, stream, batch=10)
    async with contextlib.aclosing(reading):
        first = await anext(reading)
        await bus.purge(stream, subject(bus, ">"))
        rest: list[Message] = []
        async for messages in reading:
            if not messages:
                break
            rest += messages
        assert len(first) + len(rest) < 200


async def test_what_the_stream_has_dropped_is_skipped(bus: Bus) -> None:
    stream = await make(bus, max_msgs_per_subject=1)
    for n in range(20):
        await fill(bus, n)
        await fill(bus, n, name=f"k{n % 3}")
    async with reader_of(read(bus, stream, after=3)) as reader:
        await until(lambda: reader.caught_up)
        assert reader.data == numbers(17, 18, 19, 19)


async def test_messages_that_expire_unread_are_skipped(bus: Bus) -> None:
    stream = await make(bus, max_age=1.0, duplicate_window=0.5)
    await fill(bus, *range(50))
    reading = read(bus, stream, batch=10)
    async with contextlib.aclosing(reading):
        assert await anext(reading)

        async def expired() -> bool:
            return await bus.last(stream, subject(bus, ">")) is None

        await until(expired)
        await fill(bus, 77)
        async for messages in reading:
            if messages and messages[-1].data == b"77":
                break
        assert messages[-1].sequence == 51


async def test_consumer_that_disappears_is_replaced(bus: Bus, stream: str) -> None:
    await fill(bus, *range(5))
    async with reader_of(read(bus, stream)) as reader:
        await until(lambda: reader.caught_up)
        for name in await consumers(bus, stream):
            await bus.delete_consumer(stream, name)
        await fill(bus, *range(5, 10))
        await until(lambda: len(reader.messages) == 10)
        assert reader.data == numbers(*range(10))
        assert reader.caught_up == [5]


async def consumers(bus: Bus, stream: str) -> list[str]:
    answer = await bus.request(f"$JS.API.CONSUMER.NAMES.{stream}")
    return list(msgspec.json.decode(answer.data)["consumers"])


async def test_leaves_no_consumer_behind(bus: Bus, stream: str) -> None:
    await fill(bus, 1)
    reading = read(bus, stream)
    assert await anext(reading)
    assert await consumers(bus, stream)
    await reading.aclose()
    assert await consumers(bus, stream) == []


async def test_memory_is_bounded_by_bytes_not_by_messages(bus: Bus, stream: str) -> None:
    large = bytes(1024 * 1024)
    for _ in range(40):
        await bus.store(Outgoing(subject(bus, "a"), large))
    reading = read(bus, stream, batch=1000)
    async with contextlib.aclosing(reading):
        count = 0
        while count < 40:
            messages = await anext(reading)
            assert len(messages) <= 33
            count += len(messages)
        assert count == 40


async def test_a_stream_that_is_missing_is_not_found(bus: Bus) -> None:
    with pytest.raises(NotFoundError):
        await anext(read(bus, "nope"))


async def test_a_stream_that_was_made_anew_is_not_read_on(bus: Bus, stream: str) -> None:
    await fill(bus, *range(5))
    reading = read(bus, stream)
    assert len(await anext(reading)) == 5
    assert await anext(reading) == []
    await bus.delete_stream(stream)
    await until(lambda: made(bus))
    await fill(bus, *range(9))
    with pytest.raises(NotFoundError, match="is gone"):
        await anext(reading)


# ---- outages


async def test_no_hole_and_no_repeat_over_broken_connections(nats_url: str, bus: Bus, stream: str) -> None:
    """The server and its consumers live on, and may go on sending to where nobody listens any more."""
    async with proxied(nats_url) as (proxy, url), open_bus(url, bus.names) as shaky:
        async with (
            reader_of(read(shaky, stream, batch=50)) as all_of_it,
            reader_of(read(shaky, stream, filters=[subject(bus, "b")], batch=5)) as filtered,
        ):
            for n in range(0, 6000, 200):
                await fill(bus, *range(n, n + 200))
                await fill(bus, n, name="b")
                await asyncio.sleep(random.uniform(0, 0.1))
                if n % 600 == 0:
                    proxy.drop()
            await until(lambda: len(all_of_it.messages) >= 6030 and len(filtered.messages) >= 30)
        assert [message.sequence for message in all_of_it.messages] == list(range(1, 6031))
        assert filtered.data == numbers(*range(0, 6000, 200))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with private_server(tmp_path) as started:
        yield started


async def test_no_hole_and_no_repeat_over_restarts(server: Server) -> None:
    async with open_bus(server.url, Names("p"), "writer") as writer, open_bus(server.url, Names("p")) as bus:
        stream = await make(bus)
        written: list[int] = []

        async def write() -> None:
            for n in range(4000):
                while True:
                    try:
                        await writer.store(Outgoing(subject(writer, f"k{n % 7}"), b"%d" % n, msg_id=str(n)))
                        break
                    except UnavailableError:
                        await asyncio.sleep(0.01)
                        await writer.wait_connected()
                written.append(n)

        writing = asyncio.create_task(write())
        async with (
            reader_of(read(bus, stream, batch=20)) as all_of_it,
            reader_of(read(bus, stream, filters=[subject(bus, "k3")])) as filtered,
        ):
            for count in (300, 1500, 2500):
                await until(lambda count=count: len(written) > count)
                await server.restart()
            await writing
            await until(lambda: len(all_of_it.messages) >= 4000 and len(filtered.messages) >= 571)
            assert all_of_it.data == numbers(*range(4000))
            assert filtered.data == numbers(*range(3, 4000, 7))
            assert len(all_of_it.caught_up) == len(filtered.caught_up) == 1


async def test_last_per_subject_misses_nothing_of_an_outage_before_its_first_message(server: Server) -> None:
    async with open_bus(server.url, Names("p")) as bus:
        stream = await make(bus)
        async with reader_of(read(bus, stream, last_per_subject=True)) as reader:
            await until(lambda: reader.caught_up)
            await server.kill()
            await until(lambda: not bus.connected)
            await server.start()
            async with open_bus(server.url, Names("p"), "faster") as other:
                await fill(other, 1, 2, 3)
            await until(lambda: len(reader.messages) >= 3)
            assert reader.data == numbers(1, 2, 3)


async def test_last_per_subject_goes_on_with_each_change(server: Server) -> None:
    async with open_bus(server.url, Names("p")) as bus:
        stream = await make(bus)
        await fill(bus, 1, 2, 3)
        async with reader_of(read(bus, stream, last_per_subject=True)) as reader:
            await until(lambda: reader.caught_up)
            await server.restart()
            async with open_bus(server.url, Names("p"), "faster") as other:
                await fill(other, 4, 5)
                await fill(other, 6, name="b")
            await until(lambda: len(reader.messages) >= 4)
            assert reader.data == numbers(3, 4, 5, 6)


async def test_a_stream_that_lost_its_end_is_not_read_on(server: Server, tmp_path: Path) -> None:
    async with open_bus(server.url, Names("p")) as bus:
        stream = await make(bus)
        await fill(bus, 1)
        reading = read(bus, stream)
        assert await anext(reading)
        assert await anext(reading) == []
        await server.kill()
        kept = tmp_path / "store"
        before = tmp_path / "before"
        await asyncio.to_thread(copy, kept, before)
        await server.start()
        await bus.wait_connected()
        await fill(bus, 2, 3)
        assert await anext(reading)
        await server.kill()
        await asyncio.to_thread(copy, before, kept)
        await server.start()
        await bus.wait_connected()
        async with open_bus(server.url, Names("p"), "other") as other:
            await fill(other, 4, 5, 6)
        with pytest.raises(NotFoundError, match="is gone"):
            async with asyncio.timeout(20):
                await anext(reading)


def copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
