import asyncio
import contextlib
import subprocess
from pathlib import Path

import pytest

from crucible_cli.up import nats_server
from crucible_core.errors import CrucibleError
from crucible_core.subjects import Names
from crucible_events import store
from crucible_events.app import create_app
from crucible_events.settings import Settings
from crucible_kit.index.index import Index, open_index
from crucible_kit.nats.bus import Bus, open_bus
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.streams import declare_streams
from crucible_kit.telemetry.metrics import Metrics

from .conftest import Asker, Running, delete_index, eventually, index_files, new, until


def overwrite(settings: Settings) -> None:
    for file in index_files(settings):
        file.write_bytes(b"garbage" * 1000)


def tear(settings: Settings) -> None:
    """The first page stays; the others are noise."""
    path = Path(settings.data_dir) / "events.sqlite"
    raw = path.read_bytes()
    path.write_bytes(raw[:4096] + b"\xa5" * (len(raw) - 4096))


@pytest.mark.parametrize("harm", [None, delete_index, overwrite, tear])
async def test_the_index_answers_the_same_after_a_restart(
    running: Running, ask: Asker, settings: Settings, harm: object
) -> None:
    async with running():
        await ask.append(*(new(payload={"n": n}, id=f"evt_{n}") for n in range(300)))
        before = await ask.query(limit=1000, min_sequence=300)
        assert len(before.events) == 300
    if callable(harm):
        harm(settings)
    async with running():
        assert await ask.query(limit=1000) == before
        assert (await ask.one(new(id="evt_7"))).duplicate


async def test_an_index_of_another_stream_is_built_anew(running: Running, ask: Asker, settings: Settings) -> None:
    async with running():
        await ask.append(*(new() for _ in range(20)))
        await ask.query(min_sequence=20)
    await ask.bus.delete_stream(ask.bus.names.events)
    async with running():
        assert (await ask.query()).events == []
        assert (await ask.one(new())).sequence == 1
        assert len((await ask.query(min_sequence=1)).events) == 1


async def test_what_is_no_event_is_passed_over(running: Running, ask: Asker, settings: Settings) -> None:
    names = ask.bus.names
    await declare_streams(ask.bus, settings)
    for junk in (b"", b"junk", b"{}", b'{"type": "Memory"}', b"\xff" * 100):
        await ask.bus.store(Outgoing(names.event("default", "main", "Custom", "x", None), junk))
    async with running() as app:
        await ask.one(new())
        assert len(await ask.found(min_sequence=6)) == 1
        assert not app.state.ready()


async def test_an_index_of_a_log_whose_end_has_gone_catches_up(
    running: Running, ask: Asker, settings: Settings
) -> None:
    async with running():
        await ask.append(*(new(id=f"evt_{n}") for n in range(5)))
    await ask.bus.purge(ask.bus.names.events, ask.bus.names.all_events)
    delete_index(settings)
    async with running():
        assert (await ask.query(min_sequence=5)).events == []
        assert (await ask.one(new())).sequence == 6


async def test_what_has_expired_is_forgotten_unless_kept_for_ever(
    ask: Asker, settings: Settings, running: Running, tmp_path: Path
) -> None:
    async with running():
        await ask.append(new(retention="forever", id="evt_a"), new(), new(id="evt_b"))
    bus = ask.bus
    path = tmp_path / "other.sqlite"
    async with open_index(path, bus, bus.names.log_streams, store.VERSION, store.SCHEMA) as index:
        following = asyncio.create_task(index.follow(bus, store.Projection(Metrics("t")).apply))
        await index.reach(3)
        assert await store.first_since(index, 0, 0) == 1
        assert await store.first_since(index, 2**62, 0) == 4
        assert await store.forget_range(index, 0, 1) == 0
        assert await store.forget_range(index, 0, 4) == 2
        assert await store.find_by_id(index, "evt_b") is None
        assert await store.find_by_id(index, "evt_a") is not None
        following.cancel()


async def test_rows_are_applied_once(bus: Bus, settings: Settings, tmp_path: Path) -> None:
    """Messages that come again, after a crash between two commits, change nothing."""
    await declare_streams(bus, settings)
    async with open_index(tmp_path / "x.sqlite", bus, bus.names.log_streams, store.VERSION, store.SCHEMA) as index:
        projection = store.Projection(Metrics("t"))
        messages = []
        for n in range(3):
            stored = await bus.store(_stored_event(bus.names, n))
            found = await bus.get(bus.names.events, stored.sequence)
            assert found is not None
            messages.append(found)
        for _ in range(2):
            await index.writer.run(lambda writer: projection.apply(writer, messages))
        assert await _count(index) == 3


def _stored_event(names: Names, n: int) -> Outgoing:
    raw = (
        b'{"type":"Custom","data":{"event":"x","payload":{}},"metadata":{"id":"evt_%d","timestamp":'
        b'"2026-11-21T10:00:00.000000Z","source":{"kind":"user","id":"a"},"actor":"user:a","correlation_id":"c"}}'
    )
    return Outgoing(names.event("default", "main", "Custom", "x", None), raw % n)


async def _count(index: Index) -> int:
    rows = await store.select(index, "SELECT count(*) FROM events")
    return int(rows[0][0])


async def test_nats_may_restart_under_a_running_service(tmp_path: Path) -> None:
    server = nats_server.prepare(tmp_path / "nats", nats_server.free_port(), sync="always")
    settings = Settings(nats_url=server.url, data_dir=str(tmp_path / "data"))
    app = create_app(settings)
    with serving(server) as first:
        await eventually(server.ready)
        async with app.router.lifespan_context(app), open_bus(server.url, Names()) as bus:
            ask = Asker(bus)
            await until(lambda: not app.state.ready())
            accepted = [(await ask.one(new(id="evt_0"))).id]
            first.kill()
            first.wait()
            await until(lambda: bool(app.state.ready()))
            with serving(server) as second:
                await eventually(server.ready)
                await until(lambda: not app.state.ready())
                accepted += [await _append_again(ask, f"evt_{n}") for n in range(1, 50)]
                found = await ask.found(min_sequence=await ask.last())
                assert [event.metadata.id for event in found] == accepted
                second.terminate()


async def _append_again(ask: Asker, event_id: str) -> str:
    """Appends as a client does that repeats what was not answered."""

    async def accepted() -> bool:
        with contextlib.suppress(CrucibleError):
            return (await ask.one(new(id=event_id))).error is None
        return False

    await eventually(accepted)
    return event_id


def serving(server: nats_server.NatsServer) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(server.command, stderr=subprocess.DEVNULL)
