"""Durable work: at least once, never too much at a time, and nothing held up."""

import asyncio
import contextlib
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from crucible_core import subjects
from crucible_core.errors import InvalidError, NotFoundError, UnavailableError
from crucible_core.limits import CRASHES, PARK_AFTER
from crucible_core.subjects import Names
from crucible_kit.nats import inflight
from crucible_kit.nats.bus import Bus, Message, open_bus
from crucible_kit.nats.consumer import PoisonError, ensure_durable, work, work_batches
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.pull import open_pull
from tests.kit.outage import Server, private_server, proxied, until

DURABLE = "d"
DEADLY = Path(__file__).with_name("deadly.py")


@pytest.fixture
async def stream(bus: Bus) -> str:
    return await make(bus)


async def make(bus: Bus) -> str:
    """A work queue, and the place where parked messages go."""
    name = bus.names.bucket("W")
    await bus.ensure_stream(name, subjects=[subject(bus, ">")], retention="workqueue")
    await bus.ensure_stream(bus.names.attempts, subjects=[bus.names.all_attempts])
    return name


def subject(bus: Bus, rest: str) -> str:
    return f"{bus.names.prefix}.w.{rest}"


async def fill(bus: Bus, *numbers: int, name: str = "a") -> None:
    await bus.store_all([Outgoing(subject(bus, name), b"%d" % n, msg_id=f"{name}{n}") for n in numbers])


@contextlib.asynccontextmanager
async def running(coroutine: Coroutine[Any, Any, None]) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        await stop(task)


async def stop(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()):
        raise error


class Seen:
    """A handler that notes what it was given, and does what it is told."""

    def __init__(self, *failures: Exception | None) -> None:
        self.data: list[int] = []
        self.deliveries: list[int] = []
        self.at_once = self.most_at_once = 0
        self.failures = list(failures)
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, message: Message) -> None:
        self.data.append(int(message.data))
        self.deliveries.append(message.delivered)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
        finally:
            self.at_once -= 1
        if self.failures and (failure := self.failures.pop(0)):
            raise failure


class SeenBatches:
    """The same for batches; `bad` numbers raise what they are mapped to."""

    def __init__(self, bad: dict[int, Exception] | None = None) -> None:
        self.bad = bad or {}
        self.batches: list[list[int]] = []
        self.done: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, messages: list[Message]) -> None:
        numbers = [int(message.data) for message in messages]
        self.batches.append(numbers)
        await self.gate.wait()
        for number in numbers:
            if number in self.bad:
                raise self.bad[number]
        self.done += numbers


async def parked(bus: Bus) -> Message | None:
    return await bus.last(bus.names.attempts, bus.names.parked(DURABLE))


def done(bus: Bus, stream: str) -> Any:
    async def nothing_waits() -> bool:
        with contextlib.suppress(NotFoundError):
            return await bus.consumer_backlog(stream, DURABLE) == (0, 0)
        return False

    return nothing_waits


# ---- work


async def test_each_message_is_handled_once_and_never_more_than_allowed_at_a_time(bus: Bus, stream: str) -> None:
    seen = Seen()
    await fill(bus, *range(3000))
    async with running(work(bus, stream, DURABLE, seen, filters=[subject(bus, ">")], concurrency=7)):
        await until(lambda: len(seen.data) >= 3000)
        await fill(bus, *range(3000, 3050))
        await until(done(bus, stream))
    assert Counter(seen.data) == Counter(range(3050))
    assert seen.most_at_once == 7
    assert set(seen.deliveries) == {1}


async def test_concurrency_is_counted_over_all_replicas(bus: Bus, stream: str) -> None:
    seen = Seen()
    seen.gate.clear()
    await fill(bus, *range(50))
    arguments = (bus, stream, DURABLE, seen)
    async with (
        running(work(*arguments, filters=[subject(bus, ">")], concurrency=5)),
        running(work(*arguments, filters=[subject(bus, ">")], concurrency=5)),
    ):
        await until(lambda: seen.at_once == 5)
        seen.gate.set()
        await until(done(bus, stream))
    assert seen.most_at_once == 5
    assert Counter(seen.data) == Counter(range(50))


async def test_a_slow_consumer_does_not_hold_up_another(bus: Bus, stream: str) -> None:
    slow, fast = Seen(), Seen()
    slow.gate.clear()
    await fill(bus, *range(2000), name="slow")
    await fill(bus, *range(200), name="fast")
    async with (
        running(work(bus, stream, "slow", slow, filters=[subject(bus, "slow")])),
        running(work(bus, stream, "fast", fast, filters=[subject(bus, "fast")])),
    ):
        await until(lambda: len(fast.data) == 200)
        assert len(slow.data) <= 8
        slow.gate.set()


async def test_poison_is_parked_with_its_reason_headers_and_origin(bus: Bus, stream: str) -> None:
    seen = Seen(PoisonError("not an event\r\nX: y"), None)
    await bus.store(Outgoing(subject(bus, "a"), b"7", {subjects.JOB: "run_1"}, "id"))
    await fill(bus, 8)
    async with running(work(bus, stream, DURABLE, seen, filters=[subject(bus, ">")], concurrency=1)):
        await until(done(bus, stream))
    message = await parked(bus)
    assert message is not None
    assert (message.data, seen.data) == (b"7", [7, 8])
    assert message.headers[subjects.REASON] == "not an event  X: y"
    assert message.headers[subjects.ORIGIN] == f"{subject(bus, 'a')} 1"
    assert message.headers[subjects.JOB] == "run_1"


async def test_what_cannot_be_decoded_is_parked(bus: Bus, stream: str) -> None:
    async def handler(message: Message) -> None:
        msgspec.json.decode(message.data)

    await bus.store(Outgoing(subject(bus, "a"), b"{"))
    async with running(work(bus, stream, DURABLE, handler, filters=[subject(bus, ">")])):
        await until(lambda: parked(bus))
        await until(done(bus, stream))


async def test_failure_is_delivered_again(bus: Bus, stream: str, caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen(ValueError("no"), InvalidError("neither"))
    await fill(bus, 1)
    async with running(work(bus, stream, DURABLE, seen, filters=[subject(bus, ">")])):
        await until(done(bus, stream))
    assert seen.deliveries == [1, 2, 3]
    assert "ValueError: no" in caplog.text


async def test_message_that_always_fails_is_parked_but_not_for_what_was_away(bus: Bus, stream: str) -> None:
    """The hand alone, since the pauses between ten deliveries are long."""
    hand = inflight.InFlight(bus, DURABLE)
    failures: list[Exception] = [UnavailableError("away")] * 30 + [ValueError("no")] * PARK_AFTER
    seen = Seen(*failures)
    for delivered in range(1, len(failures) + 1):
        assert await parked(bus) is None
        message = Message(subject(bus, "a"), b"1", reply="_INBOX.nobody", sequence=5, delivered=delivered)
        assert hand.take(message)
        await hand.handle(seen, message)
        assert len(hand) == 0
    message = await parked(bus) or Message("", b"")
    assert message.headers[subjects.REASON] == "failed 10 times: no"


async def test_a_long_handler_keeps_its_message(bus: Bus, stream: str) -> None:
    seen = Seen()
    seen.gate.clear()
    await fill(bus, 1)
    async with running(work(bus, stream, DURABLE, seen, filters=[subject(bus, ">")], ack_wait=0.6)):
        await until(lambda: seen.data)
        await asyncio.sleep(2)
        seen.gate.set()
        await until(done(bus, stream))
    assert seen.data == [1]


async def test_what_is_begun_finishes_and_the_rest_is_given_back_at_once(bus: Bus, stream: str) -> None:
    first, second = Seen(), Seen()
    first.gate.clear()
    await fill(bus, *range(20))
    task = asyncio.create_task(work(bus, stream, DURABLE, first, filters=[subject(bus, ">")], concurrency=4))
    await until(lambda: first.at_once == 4)
    task.cancel()
    await asyncio.sleep(0.1)
    assert not task.done()
    first.gate.set()
    await asyncio.wait({task})
    async with running(work(bus, stream, DURABLE, second, filters=[subject(bus, ">")], concurrency=4)):
        await until(done(bus, stream), seconds=5)
    assert len(first.data) < 20
    assert Counter(first.data + second.data) == Counter(range(20))


async def test_rolling_restarts_under_load_lose_and_delay_nothing(bus: Bus, stream: str) -> None:
    seen = Seen()
    await fill(bus, *range(2000))
    arguments = (bus, stream, DURABLE, seen)
    async with asyncio.timeout(20):  # less than ack_wait
        while not seen.data or sum(await bus.consumer_backlog(stream, DURABLE)):
            task = asyncio.create_task(work(*arguments, filters=[subject(bus, ">")], concurrency=16))
            await asyncio.sleep(random.uniform(0.02, 0.15))
            await stop(task)
    assert set(seen.data) == set(range(2000))
    assert len(seen.data) == 2000


async def test_a_handler_that_does_not_end_is_cancelled_and_its_message_given_back(bus: Bus, stream: str) -> None:
    first, second = Seen(), Seen()
    first.gate.clear()
    await fill(bus, 1)
    task = asyncio.create_task(work(bus, stream, DURABLE, first, filters=[subject(bus, ">")], grace=0.2))
    await until(lambda: first.data)
    await stop(task)
    assert first.at_once == 0
    async with running(work(bus, stream, DURABLE, second, filters=[subject(bus, ">")])):
        await until(done(bus, stream), seconds=5)
    assert second.data == [1]


async def test_consumer_that_was_deleted_is_made_again(bus: Bus, stream: str) -> None:
    seen = Seen()
    async with running(work(bus, stream, DURABLE, seen, filters=[subject(bus, ">")])):
        await fill(bus, 1)
        await until(lambda: seen.data == [1])
        await bus.delete_consumer(stream, DURABLE)
        await fill(bus, 2)
        await until(lambda: seen.data == [1, 2])


async def test_a_stream_that_comes_later_is_waited_for(bus: Bus) -> None:
    seen = Seen()
    async with running(work(bus, bus.names.bucket("W"), DURABLE, seen, filters=[subject(bus, ">")])):
        await asyncio.sleep(0.1)
        await make(bus)
        await fill(bus, 1)
        await until(lambda: seen.data == [1])


async def test_a_durable_is_brought_to_new_options(bus: Bus) -> None:
    stream = bus.names.bucket("L")
    await bus.ensure_stream(stream, subjects=[subject(bus, ">")])
    await fill(bus, 1, 2)
    await ensure_durable(bus, stream, DURABLE, [subject(bus, "a")], deliver="new")
    await ensure_durable(
        bus, stream, DURABLE, [subject(bus, "a"), subject(bus, "b")], deliver="all", concurrency=3, ack_wait=9
    )
    options = await bus.consumer_options(stream, DURABLE)
    assert options["deliver_policy"] == "new"
    assert (options["max_ack_pending"], options["ack_wait"]) == (3, 9_000_000_000)
    assert options["filter_subjects"] == [subject(bus, "a"), subject(bus, "b")]
    await fill(bus, 3, name="b")
    seen = Seen()
    async with running(work(bus, stream, DURABLE, seen, filters=[subject(bus, ">")])):
        await until(lambda: seen.data == [3])


# ---- work_batches


async def test_batches_come_in_order_and_are_bounded(bus: Bus, stream: str) -> None:
    seen = SeenBatches()
    await fill(bus, *range(1000))
    async with running(work_batches(bus, stream, DURABLE, seen, filters=[subject(bus, ">")], batch=50)):
        await until(done(bus, stream))
    assert seen.done == list(range(1000))
    assert max(map(len, seen.batches)) <= 50
    assert len(seen.batches) < 100


async def test_poison_in_a_batch_costs_only_itself(bus: Bus, stream: str) -> None:
    seen = SeenBatches({3: PoisonError("three"), 5: ValueError("five")})
    await fill(bus, *range(8))
    async with running(work_batches(bus, stream, DURABLE, seen, filters=[subject(bus, ">")])):
        await until(lambda: len(seen.done) == 6)
        assert seen.done == [0, 1, 2, 4, 6, 7]
        assert (await parked(bus) or Message("", b"")).data == b"3"
        del seen.bad[5]
        await until(done(bus, stream))
    assert seen.done == [0, 1, 2, 4, 6, 7, 5]


async def test_a_batch_waits_whole_while_something_is_away(bus: Bus, stream: str) -> None:
    seen = SeenBatches({0: UnavailableError("away")})
    await fill(bus, *range(5))
    async with running(work_batches(bus, stream, DURABLE, seen, filters=[subject(bus, ">")], ack_wait=0.3)):
        await until(lambda: len(seen.batches) >= 3)
        seen.bad.clear()
        await until(done(bus, stream))
    assert seen.done == list(range(5))


async def test_a_long_batch_keeps_its_messages_and_those_that_wait(bus: Bus, stream: str) -> None:
    seen = SeenBatches()
    seen.gate.clear()
    await fill(bus, *range(30))
    options: dict[str, Any] = {"filters": [subject(bus, ">")], "batch": 10, "ack_wait": 0.6}
    async with running(work_batches(bus, stream, DURABLE, seen, **options)):
        await until(lambda: seen.batches)
        await asyncio.sleep(2)
        seen.gate.set()
        await until(done(bus, stream))
    assert seen.done == list(range(30))


async def test_the_batch_that_is_begun_finishes_and_the_rest_is_given_back(bus: Bus, stream: str) -> None:
    first, second = SeenBatches(), SeenBatches()
    first.gate.clear()
    await fill(bus, *range(40))
    options: dict[str, Any] = {"filters": [subject(bus, ">")], "batch": 10}
    task = asyncio.create_task(work_batches(bus, stream, DURABLE, first, **options))
    await until(lambda: first.batches)
    task.cancel()
    await asyncio.sleep(0.1)
    first.gate.set()
    await asyncio.wait({task})
    async with running(work_batches(bus, stream, DURABLE, second, **options)):
        await until(done(bus, stream), seconds=5)
    assert first.done + second.done == list(range(40))


async def test_a_batch_that_waits_does_not_hold_up_the_end(bus: Bus, stream: str) -> None:
    seen = SeenBatches({0: UnavailableError("away")})
    await fill(bus, 0)
    async with running(work_batches(bus, stream, DURABLE, seen, filters=[subject(bus, ">")])):
        await until(lambda: seen.batches)
        await asyncio.sleep(0.05)
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 2


# ---- outages


async def test_broken_connections_lose_no_work(bus: Bus, stream: str, nats_url: str) -> None:
    seen, batches = Seen(), SeenBatches()
    await fill(bus, *range(3000), name="a")
    await fill(bus, *range(3000), name="b")
    options: dict[str, Any] = {"ack_wait": 1.0}
    async with (
        proxied(nats_url) as (proxy, url),
        open_bus(url, bus.names) as shaky,
        running(work(shaky, stream, DURABLE, seen, filters=[subject(bus, "a")], **options)),
        running(work_batches(shaky, stream, "b", batches, filters=[subject(bus, "b")], batch=20, **options)),
    ):
        for _ in range(8):
            await asyncio.sleep(random.uniform(0.05, 0.4))
            proxy.drop()
        await until(lambda: len(set(seen.data)) == len(set(batches.done)) == 3000)
        await until(done(bus, stream))
    assert len(seen.data) < 4000


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with private_server(tmp_path) as started:
        yield started


async def test_restarts_of_the_server_lose_no_work(server: Server) -> None:
    seen, batches = Seen(), SeenBatches()
    async with open_bus(server.url, Names("p"), "writer") as writer, open_bus(server.url, Names("p")) as bus:
        stream = await make(bus)
        options: dict[str, Any] = {"ack_wait": 2.0}
        async with (
            running(work(bus, stream, DURABLE, seen, filters=[subject(bus, "a")], **options)),
            running(work_batches(bus, stream, "b", batches, filters=[subject(bus, "b")], **options)),
        ):
            for start in range(0, 900, 300):
                for n in range(start, start + 300):
                    for name in ("a", "b"):
                        await insist(writer, Outgoing(subject(bus, name), b"%d" % n, msg_id=f"{name}{n}"))
                await server.restart()
            await until(lambda: set(seen.data) == set(batches.done) == set(range(900)))
    repeated = len(seen.data) + len(batches.done) - 1800
    assert repeated < 400, "at least once, but mostly once"


async def insist(bus: Bus, message: Outgoing) -> None:
    while True:
        try:
            await bus.store(message)
        except UnavailableError:
            await asyncio.sleep(0.01)
            await bus.wait_connected()
        else:
            return


async def test_a_worker_that_is_killed_loses_nothing(bus: Bus, stream: str, nats_url: str, names: Names) -> None:
    """Its connection is gone and its messages are not answered: they come again after ack_wait."""
    first, second = Seen(), Seen()
    first.gate.clear()
    await fill(bus, *range(10))
    await ensure_durable(bus, stream, DURABLE, [subject(bus, ">")], concurrency=4, ack_wait=1.0)
    async with open_bus(nats_url, names) as dying:
        task = asyncio.create_task(
            work(dying, stream, DURABLE, first, filters=[subject(bus, ">")], concurrency=4, ack_wait=1.0)
        )
        await until(lambda: first.at_once == 4)
        await dying._client.close()
    async with running(work(bus, stream, DURABLE, second, filters=[subject(bus, ">")], concurrency=4, ack_wait=1.0)):
        await until(done(bus, stream))
    assert set(second.data) == set(range(10))
    first.gate.set()
    with contextlib.suppress(UnavailableError):
        await stop(task)


@pytest.mark.parametrize("kind", ["one by one", "batches", "index"])
async def test_message_that_ends_its_process_is_parked_and_takes_nothing_with_it(
    bus: Bus, nats_url: str, stream: str, kind: str, tmp_path: Path
) -> None:
    wanted = [b"1", b"2", b"deadly", b"3", b"4"]
    on, place = subject(bus, "a"), bus.names.parked(DURABLE)
    if kind == "index":  # of a stream that is no work queue
        stream, on = bus.names.bucket("I"), f"{bus.names.prefix}.i.a"
        await bus.ensure_stream(stream, subjects=[on])
        place = bus.names.parked(f"index-{stream}")
    await bus.store_all([Outgoing(on, data, msg_id=data.decode()) for data in wanted])
    done: Counter[str] = Counter()
    deaths = 0
    async with asyncio.timeout(60):
        while await bus.last(bus.names.attempts, place) is None or len(done) < 4:
            command = [sys.executable, str(DEADLY), nats_url, bus.names.prefix, stream, kind, str(tmp_path / "x")]
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            assert process.stdout is not None
            reading = asyncio.create_task(_lines(process.stdout, done))
            ended = asyncio.create_task(process.wait())
            while not ended.done() and (await bus.last(bus.names.attempts, place) is None or len(done) < 4):
                await asyncio.wait([ended], timeout=0.05)
            if ended.done():
                deaths += 1
            else:
                process.kill()
            await asyncio.gather(ended, reading)
    assert deaths == 1 + CRASHES
    assert set(done) == {"1", "2", "3", "4"}
    parked = await bus.last(bus.names.attempts, place)
    assert parked is not None
    assert parked.data == b"deadly"
    assert "processes ended" in parked.headers[subjects.REASON]


async def _lines(stream: asyncio.StreamReader, done: Counter[str]) -> None:
    async for line in stream:
        done[line.decode().strip()] += 1


async def test_message_that_was_in_hand_as_its_process_ended_is_done_all_the_same(bus: Bus, stream: str) -> None:
    """Whatever ended that one, as long as it was not over this message alone, and twice."""
    await fill(bus, 1)
    await ensure_durable(bus, stream, DURABLE, [subject(bus, ">")], ack_wait=0.2)
    for times in range(4):
        await bus.store(Outgoing(bus.names.trial(DURABLE, "1"), b"%d" % min(times, CRASHES - 1)))
        arrived: list[Message] = []
        async with open_pull(bus, stream, DURABLE, arrived.append) as pull:
            await pull.ask(1)
            await until(lambda arrived=arrived: bool(arrived))  # type: ignore[misc]  # and no word of it
    done: list[bytes] = []

    async def handle(message: Message) -> None:
        done.append(message.data)

    async with running(work(bus, stream, DURABLE, handle, filters=[subject(bus, ">")], ack_wait=0.2)):
        await until(lambda: bool(done))
    assert done == [b"1"]
