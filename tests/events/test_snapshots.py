"""An index that begins with a snapshot is the one that is built from the log, and holds nothing that was erased."""

import contextlib
import secrets
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette

from crucible_core.access import OPERATOR
from crucible_core.protocol.worlds import ChangeWorld, WorldMade
from crucible_core.subjects import Names
from crucible_events.settings import Settings
from crucible_kit.index.snapshots import SnapshotStore, StoredSnapshot
from crucible_kit.nats.bus import Bus, Message
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.reader import read
from crucible_kit.rpc import call
from tests.conftest import delete_streams

from .conftest import Asker, Running, delete_index, eventually, new, starter
from .test_redaction import SECRET, redact

EVERY = 20


@pytest.fixture
async def names(request: pytest.FixtureRequest, nats_url: str) -> AsyncIterator[Names]:
    mine = Names(f"t{secrets.token_hex(5)}", getattr(request, "param", 1))
    yield mine
    await delete_streams(nats_url, mine.prefix)


@pytest.fixture
def settings(settings: Settings, names: Names) -> Settings:
    return msgspec.structs.replace(settings, events_snapshot_every=EVERY, streams=names.streams)


def other(settings: Settings, name: str) -> Settings:
    return msgspec.structs.replace(settings, data_dir=f"{settings.data_dir}-{name}")


async def snapshots(bus: Bus, at_least: int = 0) -> list[StoredSnapshot]:
    every = await SnapshotStore(bus, "events", 1, 3600).all()
    return [one for one in every if one.info and one.info.position.count >= at_least]


async def has_snapshot(bus: Bus, at_least: int) -> bool:
    return bool(await snapshots(bus, at_least))


def rows(settings: Settings) -> dict[str, list[Any]]:
    """All that the file of an index holds, but for the white space that redaction leaves in the place of a payload."""
    with contextlib.closing(sqlite3.connect(Path(settings.data_dir) / "events.sqlite")) as connection:
        events = connection.execute("SELECT * FROM events ORDER BY sequence").fetchall()
        meta = "SELECT * FROM meta WHERE name NOT IN ('open', 'trial') ORDER BY 1"
        return {
            "events": [(*row[:-1], row[-1].rstrip()) for row in events],
            "erasures": connection.execute("SELECT sequence, event_id FROM erasures ORDER BY 1").fetchall(),
            "spans": connection.execute("SELECT * FROM spans ORDER BY 1").fetchall(),
            "meta": connection.execute(meta).fetchall(),
        }


async def messages_of(bus: Bus, stream: str) -> list[Message]:
    found: list[Message] = []
    async with contextlib.aclosing(read(bus, stream)) as batches:
        async for messages in batches:
            found += messages
            if not messages:
                break
    return found


async def held(bus: Bus, one: StoredSnapshot) -> bytes:
    return b"".join(message.data for message in await messages_of(bus, one.stream))


async def is_gone(bus: Bus, stream: str) -> bool:
    return stream not in await bus.stream_names()


@pytest.fixture
async def filled(running: Running, ask: Asker) -> AsyncIterator[Starlette]:
    """With events of every kind, of which the snapshot has seen half."""
    async with running() as app:
        await call(ask.bus, OPERATOR, "events", "create_world", ChangeWorld(id="w"), WorldMade)
        for half in range(2):
            await ask.append(*(new(payload={"n": n}, id=f"evt_{half}_{n}") for n in range(EVERY)))
            await ask.append(new(idempotency_key=f"k{half}", fingerprint="f"), new(retention="forever", entity="e"))
            await ask.append(*(new(world_id="w", payload={"n": n}) for n in range(5)))
            if half == 0:
                await eventually(lambda: has_snapshot(ask.bus, EVERY))
        yield app


@pytest.mark.parametrize("names", [1, 3], indirect=True)
async def test_what_is_restored_is_what_is_rebuilt_row_by_row(
    filled: Starlette, ask: Asker, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    restored, rebuilt = other(settings, "restored"), other(settings, "rebuilt")
    async with starter(restored)():
        assert "the index begins with snapshot" in caplog.text
    for one in await snapshots(ask.bus):
        await ask.bus.delete_stream(one.stream)
    async with starter(rebuilt)():
        pass
    for stream in ask.bus.names.log_streams:
        await ask.query(min_sequence=await ask.bus.last_sequence(stream))
    assert rows(restored) == rows(rebuilt) == rows(settings)


async def test_what_was_purged_or_redacted_since_is_so_in_what_is_restored(
    filled: Starlette, ask: Asker, settings: Settings
) -> None:
    """Such a snapshot is removed within a moment: here one comes back, as with a backup of NATS."""
    [kept] = await snapshots(ask.bus)
    back = await messages_of(ask.bus, kept.stream)
    await redact(ask, "evt_0_3")
    await call(ask.bus, OPERATOR, "events", "delete_world", ChangeWorld(id="w", purge=True), bytes)
    await eventually(lambda: is_gone(ask.bus, kept.stream))
    await SnapshotStore(ask.bus, "events", 1, 3600).begin(kept.number)
    await ask.bus.store_all([Outgoing(message.subject, message.data) for message in back])
    restored = other(settings, "restored")
    async with starter(restored)():
        await ask.query(min_sequence=await ask.last())
    found = rows(restored)["events"]
    assert b'"n":3' not in next(row[-1] for row in found if row[1] == "evt_0_3")
    assert not [row for row in found if row[9] == "w"]


async def test_no_snapshot_holds_what_was_redacted(running: Running, ask: Asker) -> None:
    async with running():
        await ask.append(new(payload={"text": SECRET}, id="evt_a"), *(new() for _ in range(EVERY)))
        await eventually(lambda: has_snapshot(ask.bus, EVERY))
        [before] = await snapshots(ask.bus)
        assert SECRET.encode() in await held(ask.bus, before)
        await redact(ask, "evt_a")
        await eventually(lambda: is_gone(ask.bus, before.stream))
        await ask.append(*(new() for _ in range(EVERY)))
        await eventually(lambda: has_snapshot(ask.bus, 2 * EVERY))
        for one in await snapshots(ask.bus):
            assert SECRET.encode() not in await held(ask.bus, one)


async def test_an_index_without_snapshots_is_built_from_the_log(
    running: Running, ask: Asker, settings: Settings
) -> None:
    """Rule 1: nothing is true but the log."""
    async with running():
        await ask.append(*(new(payload={"n": n}) for n in range(2 * EVERY)))
        await eventually(lambda: has_snapshot(ask.bus, 2 * EVERY))
        before = await ask.query(limit=1000, min_sequence=2 * EVERY)
    for one in await snapshots(ask.bus):
        await ask.bus.delete_stream(one.stream)
    delete_index(settings)
    async with running():
        assert await ask.query(limit=1000) == before
