"""What waits in a work queue, as NATS and Prometheus show it."""

import asyncio

import pytest

from crucible_core.subjects import DLV, RUN
from crucible_kit.backlog import Backlog, ParkedMessages
from crucible_kit.clock import now_ms
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.consumer import ensure_durable
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.inflight import park
from crucible_kit.nats.message import Message
from crucible_kit.nats.streams import declare_bucket, declare_streams
from crucible_kit.settings import KitSettings
from crucible_kit.telemetry.metrics import Metrics


@pytest.fixture
async def declared(bus: Bus) -> Bus:
    await declare_streams(bus, KitSettings())
    return bus


async def values(bus: Bus) -> dict[str, float]:
    metrics = Metrics("webhooks")
    backlog = Backlog(bus, bus.names.deliveries, bus.names.all_work(DLV), metrics)
    await backlog._measure()
    lines = metrics.render().decode().splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines if line.startswith("crucible_work_"))
    }


async def test_what_waits_now_is_told_apart_from_what_waits_for_its_time(declared: Bus) -> None:
    bus, names = declared, declared.names
    assert (await values(bus))["crucible_work_waiting"] == 0
    for number in range(3):
        await bus.store(Outgoing(names.work(DLV, "whk_1"), b"{}", msg_id=f"a{number}"))
    await bus.store(Outgoing(names.work(DLV, "whk_2"), b"{}", msg_id="b"))
    for number in range(2):
        await bus.schedule(
            names.schedule(DLV, "whk_1", f"dlv_{number}"),
            names.work(DLV, "whk_1"),
            now_ms() + 60_000,
            b"{}",
            {},
            f"s{number}",
        )
    await asyncio.sleep(0.05)
    found = await values(bus)
    assert (found["crucible_work_waiting"], found["crucible_work_scheduled"]) == (4, 2)
    assert 0.05 <= found["crucible_work_oldest_seconds"] < 60


async def test_streams_buckets_and_consumers_say_what_they_are(declared: Bus) -> None:
    bus = declared
    await declare_bucket(bus, "hooks")
    durable = bus.names.durable("reader")
    for _ in range(2):  # the second time they are there already
        await ensure_durable(bus, bus.names.events, durable, [bus.names.all_events])
    described = (await bus.consumer_options(bus.names.events, durable))["description"]
    assert described == f"Crucible: how far {durable} has come in {bus.names.events}"
    for stream in await bus.stream_names():
        if stream.startswith(bus.names.events.removesuffix("EVENTS")) or bus.names.bucket("hooks") in stream:
            assert (await bus.stream_options(stream))["description"].startswith("Crucible: "), stream


async def test_messages_that_were_put_aside_are_counted(declared: Bus) -> None:
    bus, metrics = declared, Metrics("events")
    for number, durable in enumerate(("hooks-dispatch", "whk_1", "whk_1")):
        message = Message("s", b"{}", sequence=number)
        await park(bus, durable, message, "no good")
        await park(bus, durable, message, "no good")  # told twice
    await bus.store(Outgoing(bus.names.attempt(RUN, "hook", "run_1"), b"{}"))
    await ParkedMessages(bus, metrics)._measure()
    assert "crucible_parked_messages 3.0" in metrics.render().decode().splitlines()
