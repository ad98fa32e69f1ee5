"""The history of runs and deliveries against the index that was made of it."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crucible_core.limits import HISTORY_S
from crucible_core.protocol.losses import Loss
from crucible_core.subjects import RUN
from crucible_kit.buckets import open_bucket
from crucible_kit.clock import now_ms, timestamp
from crucible_kit.history import History
from crucible_kit.index.index import Index, open_index
from crucible_kit.losses import BUCKET, Losses
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.message import Message
from crucible_kit.nats.streams import declare_streams
from crucible_kit.settings import KitSettings

SCHEMA = "CREATE TABLE rows (sequence INTEGER PRIMARY KEY, started TEXT)"
OLD_MS = int(HISTORY_S * 1000)
MANY = 2500


def insert(connection: sqlite3.Connection, messages: list[Message]) -> None:
    rows = [(message.sequence, message.data.decode()) for message in messages]
    connection.executemany("INSERT INTO rows VALUES (?, ?)", rows)


@contextlib.asynccontextmanager
async def following(bus: Bus, path: Path) -> AsyncIterator[Index]:
    async with open_index(path, bus, (bus.names.attempts,), 1, SCHEMA) as index:
        task = asyncio.create_task(index.follow(bus, insert, [bus.names.attempts_of(RUN)]))
        await index.reach(await bus.last_sequence(bus.names.attempts))
        try:
            yield index
        finally:
            task.cancel()
            await asyncio.wait({task})


@pytest.fixture
async def losses(bus: Bus) -> Losses:
    await declare_streams(bus, KitSettings())
    return Losses(await open_bucket(bus, BUCKET))


def history(bus: Bus, index: Index, losses: Losses) -> History:
    return History(bus, index, "rows", "started", [bus.names.attempts_of(RUN)], losses)


async def fill(bus: Bus, count: int, started_ms: int = 0) -> None:
    """Records of runs, each beside one of a delivery, which is not in this index."""
    began = timestamp(started_ms or now_ms()).encode()
    for start in range(0, count, 500):
        numbers = range(start, min(count, start + 500))
        runs = [Outgoing(bus.names.attempt(RUN, "h", f"r{n}"), began) for n in numbers]
        deliveries = [Outgoing(bus.names.attempt("dlv", "w", f"d{n}"), began) for n in numbers]
        await bus.store_all([message for pair in zip(runs, deliveries, strict=True) for message in pair])


async def kept(losses: Losses) -> list[Loss]:
    await losses.view.refresh()
    return losses.open


async def test_records_that_are_gone_are_a_loss_with_their_sequences(bus: Bus, losses: Losses, tmp_path: Path) -> None:
    await fill(bus, MANY)
    watching = asyncio.create_task(losses.view.follow())
    async with following(bus, tmp_path / "index") as index:
        comparing = history(bus, index, losses)
        assert await comparing.compare() == []
        [rows] = zip(*await index.reader.execute_fetchall("SELECT sequence FROM rows ORDER BY sequence"), strict=True)
        for sequence in (*rows[:3], rows[1999], rows[2000], rows[-1]):
            await bus.remove(bus.names.attempts, sequence)
        found = await comparing.compare()
        assert [(loss.first, loss.last, loss.count) for loss in found] == [
            (rows[0], rows[2], 3),
            (rows[1999], rows[2000], 2),
            (rows[-1], rows[-1], 1),
        ]
        assert {(loss.kind, loss.stream) for loss in found} == {("missing", bus.names.attempts)}
        assert [loss.first for loss in await kept(losses)] == [rows[0], rows[1999], rows[-1]]
        await losses.accept()
        await comparing.compare()
        assert await kept(losses) == []
    watching.cancel()
    await asyncio.wait({watching})


async def test_the_log_s_part_of_an_index_is_not_the_history(bus: Bus, losses: Losses, tmp_path: Path) -> None:
    await fill(bus, 3)
    event = bus.names.event("default", "main", "Hook", "Executed", "h")
    for _ in range(20):
        await bus.store(Outgoing(event, timestamp().encode()))
    filters = [bus.names.attempts_of(RUN), bus.names.events_of("Hook")]
    async with open_index(tmp_path / "index", bus, (bus.names.attempts, bus.names.events), 1, SCHEMA) as index:
        following = asyncio.create_task(index.follow(bus, insert, filters))
        await index.reach(await index.end(bus))
        await bus.purge(bus.names.events, event)
        assert await history(bus, index, losses).compare() == []
        await bus.remove(bus.names.attempts, 3)
        assert [(loss.first, loss.stream) for loss in await history(bus, index, losses).compare()] == [
            (3, bus.names.attempts)
        ]
        following.cancel()
        await asyncio.wait({following})


async def test_records_that_are_old_may_be_gone(bus: Bus, losses: Losses, tmp_path: Path) -> None:
    await fill(bus, 20, now_ms() - OLD_MS)
    async with following(bus, tmp_path / "index") as index:
        await bus.purge(bus.names.attempts, bus.names.attempts_of(RUN))
        assert await history(bus, index, losses).compare() == []
