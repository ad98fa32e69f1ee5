"""What is on its way to a connection is bounded: the server cuts off a client that has too much to read."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from crucible_core import subjects
from crucible_core.access import OPERATOR
from crucible_core.errors import UnavailableError
from crucible_core.limits import IN_HAND_BYTES, INFLOW_BYTES
from crucible_core.subjects import Names
from crucible_kit import rpc
from crucible_kit.nats.budget import Budget
from crucible_kit.nats.bus import Bus, Message, open_bus
from crucible_kit.nats.consumer import work, work_batches
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.reader import read
from crucible_kit.rpc import Context, Endpoint, call, serve
from crucible_kit.telemetry.spans import Telemetry
from tests.kit.outage import Server, private_server, until

WHO = {subjects.PRINCIPAL: OPERATOR.header}
MIB = 1024 * 1024
COUNT = 20
MANY = 8
STREAM, QUEUE = "S", "W"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with private_server(tmp_path) as server:
        yield server


@pytest.fixture
async def bus(server: Server) -> AsyncIterator[Bus]:
    """On a log of large messages, and a queue of them for each of many consumers."""
    async with open_bus(server.url, Names("p")) as bus:
        await bus.ensure_stream(STREAM, subjects=["p.s.>"])
        await bus.ensure_stream(QUEUE, subjects=["p.w.>"], retention="workqueue")
        await bus.store_all([Outgoing("p.s.a", bytes(MIB)) for _ in range(COUNT)])
        await bus.store_all([Outgoing(f"p.w.{n % MANY}", bytes(MIB)) for n in range(6 * MANY)])
        yield bus


@contextlib.asynccontextmanager
async def busy(block_s: float = 0.2, free_s: float = 0.05) -> AsyncIterator[None]:
    """An event loop that is again and again at something else for so long that the server could send everything."""

    async def block() -> None:
        while True:
            await asyncio.sleep(free_s)
            time.sleep(block_s)  # noqa: ASYNC251

    blocking = asyncio.create_task(block())
    try:
        yield
    finally:
        blocking.cancel()


async def test_many_readers_of_large_messages_are_never_too_much(server: Server, bus: Bus) -> None:
    async def count() -> int:
        found = 0
        async with contextlib.aclosing(read(bus, STREAM)) as batches:
            async for messages in batches:
                found += len(messages)
                if not messages:
                    return found
        return found

    async with busy():
        assert await asyncio.gather(*(count() for _ in range(MANY))) == [COUNT] * MANY
    assert server.cut_off() == 0
    assert bus.flow.inflow.free == INFLOW_BYTES
    assert bus.flow.pulls == 0


async def test_workers_of_many_queues_are_never_too_much(server: Server, bus: Bus) -> None:
    done: list[int] = []
    most = 0

    async def handle(message: Message) -> None:
        nonlocal most
        most = max(most, bus.flow.held_bytes)
        await asyncio.sleep(0.05)
        done.append(message.sequence)

    workers = [
        asyncio.create_task(work(bus, QUEUE, f"w{n}", handle, filters=[f"p.w.{n}"], concurrency=8)) for n in range(MANY)
    ]
    async with busy():
        await until(lambda: len(done) == 6 * MANY, 40)
    for worker in workers:
        worker.cancel()
    await asyncio.wait(workers)
    assert server.cut_off() == 0
    assert most <= IN_HAND_BYTES + MANY * 2 * MIB
    assert bus.flow.held_bytes == 0
    assert bus.flow.inflow.free == INFLOW_BYTES


async def test_a_dispatcher_of_large_messages_takes_few_at_once(server: Server, bus: Bus) -> None:
    sizes: list[int] = []

    async def handle(messages: list[Message]) -> None:
        sizes.append(len(messages))

    working = asyncio.create_task(work_batches(bus, STREAM, "d", handle, filters=["p.s.>"]))
    async with busy():
        await until(lambda: sum(sizes) == COUNT)
    working.cancel()
    await asyncio.wait({working})
    assert max(sizes) <= 2 * bus.flow.pull_bytes // MIB + 1
    assert server.cut_off() == 0


async def test_lookups_at_once_are_never_too_much(server: Server, bus: Bus) -> None:
    async with busy():
        found = await asyncio.gather(*(bus.get(STREAM, n % COUNT + 1) for n in range(60)))
    assert all(message and len(message.data) == MIB for message in found)
    assert server.cut_off() == 0


async def test_messages_of_every_size_come_though_requests_are_small(bus: Bus) -> None:
    sizes = [10, bus.max_payload - 200, 3 * MIB, 100_000, MIB, bus.max_payload - 200, 10]
    await bus.purge(STREAM, "p.s.>")
    for size in sizes:
        await bus.store(Outgoing("p.s.a", bytes(size)))
    bus.flow.pulls += 1000  # as where there are many consumers
    found: list[int] = []
    async with contextlib.aclosing(read(bus, STREAM)) as batches:
        async for messages in batches:
            found += [len(message.data) for message in messages]
            if not messages:
                break
    assert found == sizes
    assert bus.flow.inflow.free == INFLOW_BYTES


# ---- requests and answers


class Text(msgspec.Struct):
    text: str


async def echo(request: Text, context: Context) -> Text:
    await asyncio.sleep(0.01)
    return request


async def ask(bus: Bus, size: int, timeout: float = 40.0) -> int:
    return len((await call(bus, OPERATOR, "svc", "op", Text("x" * size), Text, timeout=timeout)).text)


@pytest.mark.parametrize("size", [40_000, 3 * MIB])
async def test_large_requests_and_answers_at_once_are_never_too_much(server: Server, bus: Bus, size: int) -> None:
    count = 40 if size > MIB else 300
    endpoints = {"op": Endpoint(Text, echo)}
    async with open_bus(server.url, Names("p")) as other, serve(other, "svc", endpoints, Telemetry()):
        async with busy(0.2, 0.2):
            assert await asyncio.gather(*(ask(bus, size) for _ in range(count))) == [size] * count
        assert server.cut_off() == 0
        assert bus.flow.inflow.free == bus.flow.inflow.total
        assert bus.flow.outflow("svc").free == bus.flow.outflow("svc").total
        await until(lambda: other.flow.requests.free == other.flow.requests.total)


async def test_small_requests_pass_large_ones_that_wait(server: Server, bus: Bus) -> None:
    """A service with its hands full says nothing of what arrives, and large requests wait where they are."""
    go = asyncio.Event()
    begun: list[int] = []

    async def slow(request: Text, context: Context) -> Text:
        begun.append(len(request.text))
        if len(request.text) > MIB:
            await go.wait()
        return Text("")

    endpoints = {"op": Endpoint(Text, slow)}
    async with open_bus(server.url, Names("p")) as other, serve(other, "svc", endpoints, Telemetry()):
        asking = [asyncio.create_task(ask(bus, 4 * MIB)) for _ in range(20)]
        await until(lambda: bus.flow.outflow("svc").free < 5 * MIB and other.flow.requests.free < 5 * MIB)
        assert await ask(bus, 10) == 0
        assert sum(begun) <= other.flow.requests.total + bus.flow.outflow("svc").total
        with pytest.raises(UnavailableError, match="not sent"):
            await ask(bus, 4 * MIB, timeout=0.2)
        go.set()
        assert await asyncio.gather(*asking) == [0] * 20
    assert len(begun) == 21


async def test_an_answer_that_nobody_asks_for_is_given_up(server: Server, bus: Bus, monkeypatch: Any) -> None:
    monkeypatch.setattr(rpc, "_OFFERED_S", 0.1)
    async with open_bus(server.url, Names("p")) as other:
        held = asyncio.Event()

        async def large(request: Text, context: Context) -> Text:
            context.held.callback(held.set)
            return Text("x" * MIB)

        async with serve(other, "svc", {"op": Endpoint(Text, large)}, Telemetry()), bus.inbox() as (reply, offers):
            request = msgspec.json.encode(Text(""))
            await bus.publish(bus.names.rpc("svc", "op"), request, WHO | {subjects.PACED: "1"}, reply)
            offer = await asyncio.wait_for(offers.get(), 5)
            assert (offer.data, int(offer.headers[subjects.SIZE]) > MIB) == (b"", True)
            await asyncio.wait_for(held.wait(), 5)


async def test_who_does_not_know_of_offers_gets_the_answer(server: Server, bus: Bus) -> None:
    async with serve(bus, "svc", {"op": Endpoint(Text, echo)}, Telemetry()):
        answer = await bus.request(bus.names.rpc("svc", "op"), msgspec.json.encode(Text("x" * MIB)), headers=WHO)
        assert len(answer.data) > MIB


# ---- the budget


async def test_budget_is_given_in_turn_and_never_exceeded() -> None:
    budget = Budget(10)
    order: list[str] = []

    async def use(name: str, size: int) -> None:
        with await budget.take(size):
            order.append(name)
            assert budget.free >= 0
            await asyncio.sleep(0.01)

    await asyncio.gather(use("a", 6), use("b", 5), use("c", 1), use("d", 99))
    assert order == ["a", "b", "c", "d"]
    assert budget.free == 10


async def test_who_is_cancelled_in_line_takes_nothing_and_holds_up_nobody() -> None:
    budget = Budget(10)
    held = await budget.take(8)
    waiting = [asyncio.create_task(budget.take(size)) for size in (9, 5, 5)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    waiting[0].cancel()
    await asyncio.sleep(0)
    held.release()
    held.release()
    waiting[2].cancel()  # just when it was given its part
    await asyncio.wait(waiting)
    assert budget.free == 10
    small, last = [asyncio.create_task(budget.take(size)) for size in (1, 10)]
    (await small).release()
    (await last).release()
    assert budget.free == 10
