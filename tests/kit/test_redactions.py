"""Erasing messages, and knowing which events are redacted."""

import asyncio

import pytest

from crucible_core.errors import NotFoundError
from crucible_core.subjects import EVENT_SEQUENCE
from crucible_kit.bus import Bus, Message
from crucible_kit.frames import Outgoing
from crucible_kit.redactions import Redacted, event_sequence
from crucible_kit.settings import KitSettings
from crucible_kit.streams import declare_streams
from tests.tombstones import tell


async def test_erasing_is_idempotent(bus: Bus) -> None:
    names = bus.names
    await bus.ensure_stream(names.attempts, subjects=[names.all_attempts])
    for n in range(3):
        await bus.store(Outgoing(names.parked("x"), b"%d" % n))
    for sequence in (2, 2, 3, 3, 99):
        await bus.remove(names.attempts, sequence, erase=True)
    assert [await bus.get(names.attempts, n) is not None for n in (1, 2, 3)] == [True, False, False]
    with pytest.raises(NotFoundError):
        await bus.remove("NOTHING", 1, erase=True)


async def test_what_was_redacted_before_and_since_is_known_and_swept(bus: Bus, nats_url: str) -> None:
    await declare_streams(bus, KitSettings(nats_url=nats_url, bus_prefix=bus.names.prefix))
    names = bus.names
    for sequence in range(1, 4):
        await bus.store(Outgoing(names.event("w", "r", "Custom", "x", None), b"%d" % sequence))
        await bus.store(Outgoing(names.run("a hook"), b"%d" % sequence, {EVENT_SEQUENCE: str(sequence)}))
    await tell(bus, 1)
    redacted = Redacted(bus, 60)
    dropped: list[int] = []

    async def drop(message: Message) -> None:
        dropped.append(event_sequence(message))

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(redacted.follow()), tasks.create_task(redacted.sweep(names.hook_runs, drop))]
        await redacted.complete()
        assert [n in redacted for n in (1, 2, 3)] == [True, False, False]
        await tell(bus, 3)
        while dropped != [1, 3] or await bus.get(names.hook_runs, 3) is not None:  # noqa: ASYNC110 - another task
            await asyncio.sleep(0.01)
        assert await bus.get(names.hook_runs, 2) is not None
        for task in running:
            task.cancel()


def test_work_that_says_no_event() -> None:
    found = [event_sequence(Message("x", b"", {EVENT_SEQUENCE: value})) for value in ("7", "", "x", "9" * 30)]
    assert found == [7, 0, 0, 0]
