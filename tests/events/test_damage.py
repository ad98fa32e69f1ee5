"""Streams beside the log whose files were damaged while nobody looked. Real nats-servers on real files."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.applications import Starlette

from crucible_core.subjects import RUN, Names, kv_stream, kv_subject
from crucible_events.damage import other_streams
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.streams import BUCKETS, declare_bucket, declare_streams
from crucible_kit.settings import KitSettings

from .conftest import until
from .test_audit import Machine, losses, told

NAMES = Names()
MESSAGES = 40
SUBJECTS: dict[str, Callable[[int], str]] = {
    NAMES.hook_runs: lambda n: NAMES.work(RUN, f"hook{n}"),
    NAMES.deliveries: lambda n: NAMES.work("dlv", f"whk_{n}"),
    NAMES.attempts: lambda n: NAMES.attempt(RUN, "hook", f"run_{n}"),
    **{kv_stream(name): lambda n, name=name: kv_subject(name, f"key{n}") for name in BUCKETS if name != "losses"},  # type: ignore[misc]
}


def cut(block: Path) -> None:
    os.truncate(block, block.stat().st_size // 2)


def zero(block: Path) -> None:
    with block.open("r+b") as file:
        file.seek(block.stat().st_size // 3)
        file.write(bytes(3000))


def remove(block: Path) -> None:
    block.unlink()


def block_of(machine: Machine, stream: str) -> Path:
    streams = machine.directory / "nats" / "store" / "jetstream" / "$G" / "streams"
    return max((streams / stream / "msgs").glob("*.blk"), key=lambda block: int(block.stem))


async def fill(bus: Bus, stream: str) -> None:
    for bucket in BUCKETS:
        await declare_bucket(bus, bucket)
    for number in range(MESSAGES):
        await bus.store(Outgoing(SUBJECTS[stream](number), b"x" * 500, msg_id=f"{stream}{number}"))


def test_every_stream_beside_the_log_is_looked_at() -> None:
    assert set(SUBJECTS) | {kv_stream("losses")} == set(other_streams(NAMES))


@pytest.mark.parametrize("damage", [cut, zero, remove])
@pytest.mark.parametrize("stream", [NAMES.hook_runs, NAMES.deliveries, NAMES.attempts, kv_stream("webhooks")])
async def test_what_another_stream_has_lost_is_told_and_accepted(
    tmp_path: Path, stream: str, damage: Callable[[Path], None]
) -> None:
    machine = Machine(tmp_path)
    async with machine.up() as (app, bus):
        await fill(bus, stream)
        last = await bus.last_sequence(stream)
    damage(block_of(machine, stream))
    async with machine.up() as (app, bus):
        await until(lambda: told(app) != "")
        found = await losses(bus)
        assert {loss.stream for loss in found} == {stream}
        assert {loss.kind for loss in found} == {"unreadable"}
        assert f"{stream} has lost " in told(app)
        if damage is not cut:  # of half a block JetStream does not know what was in it
            assert max(loss.last for loss in found) == last
            assert str(last) in told(app)
        else:
            assert "bytes that JetStream cannot read" in told(app)
    async with machine.up() as (app, bus):  # JetStream has forgotten it; we have not
        await until(lambda: told(app) != "")
        assert await losses(bus) == found
        assert await losses(bus, "accept_losses") == found
        await until(lambda: told(app) == "")


@pytest.mark.parametrize("damage", [cut, remove])
@pytest.mark.parametrize("stream", [NAMES.hook_runs, NAMES.attempts, kv_stream("hooks")])
async def test_a_stream_that_ends_earlier_than_it_did_has_lost_its_end(
    tmp_path: Path, stream: str, damage: Callable[[Path], None]
) -> None:
    """JetStream takes a file that is not there for one that never was, where it could not note what it has."""
    machine = Machine(tmp_path)
    machine.stopped_by = signal.SIGKILL
    async with machine.up() as (app, bus):
        await fill(bus, stream)
        last = await bus.last_sequence(stream)
        await app.state.audit._damage.look()
    damage(block_of(machine, stream))
    async with machine.up() as (app, bus):
        await until(lambda: "at its end" in told(app))
        kept = await bus.last_sequence(stream)
        [loss] = [loss for loss in await losses(bus) if loss.kind == "end"]
        assert (loss.stream, loss.first, loss.last, loss.count) == (stream, kept + 1, last, last - kept)
        found = await losses(bus, "accept_losses")
        assert loss in found
        await until(lambda: told(app) == "")
        await app.state.audit._damage.look()
        assert await losses(bus) == []


async def test_a_stream_in_the_place_of_another_is_told(service: Starlette, bus: Bus, names: Names) -> None:
    await bus.store(Outgoing(names.attempt(RUN, "hook", "run_1"), b"{}"))
    await service.state.audit._damage.look()
    before = (await bus.stream_state(names.attempts)).created
    await bus.delete_stream(names.attempts)
    await declare_streams(bus, KitSettings())
    await service.state.audit._damage.look()
    [loss] = await losses(bus)
    assert (loss.stream, loss.kind, loss.log, loss.first, loss.last) == (names.attempts, "log", before, 1, 1)


async def test_streams_of_a_server_that_was_killed_have_lost_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.stopped_by = signal.SIGKILL
    for _ in range(2):
        async with machine.up() as (app, bus):
            for stream in SUBJECTS:
                await fill(bus, stream)
            assert await losses(bus) == []
            assert told(app) == ""
