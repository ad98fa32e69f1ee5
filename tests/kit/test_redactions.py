"""Erasing messages, and knowing which events are redacted."""

import asyncio

import pytest

from crucible_core.errors import NotFoundError
from crucible_kit.index.erasure import RedactedEvents
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.streams import declare_streams
from crucible_kit.settings import KitSettings
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


async def test_what_was_redacted_before_and_since_is_known(bus: Bus, nats_url: str) -> None:
    await declare_streams(bus, KitSettings(nats_url=nats_url, bus_prefix=bus.names.prefix))
    names = bus.names
    for sequence in range(1, 4):
        await bus.store(Outgoing(names.event("w", "r", "Custom", "x", None), b"%d" % sequence))
    await tell(bus, 1)
    redacted = RedactedEvents(bus, 60)
    following = asyncio.create_task(redacted.follow())
    async with asyncio.timeout(10):
        await redacted.wait_complete()
        assert [n in redacted for n in (1, 2, 3)] == [True, False, False]
        await tell(bus, 3)
        while 3 not in redacted:  # noqa: ASYNC110 - another task
            await asyncio.sleep(0.01)
    following.cancel()
