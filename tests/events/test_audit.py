"""A log whose files were damaged while nobody looked: it is noticed, told with the sequences, and taken for given only
by an operator. Real nats-servers on real files."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from crucible_cli.up import nats_server
from crucible_core.access import OPERATOR
from crucible_core.envelope import Source, decode
from crucible_core.errors import UnavailableError
from crucible_core.protocol.events import RedactRequest
from crucible_core.protocol.losses import Loss, LossesRequest, LossList
from crucible_core.protocol.memory import Cause
from crucible_core.protocol.retention import PutRetention, RetentionRule, RetentionView
from crucible_core.protocol.worlds import ChangeWorld
from crucible_core.subjects import Names
from crucible_events.app import create_app
from crucible_events.settings import Settings
from crucible_kit.nats.bus import Bus, open_bus
from crucible_kit.rpc import call

from .conftest import Asker, Running, eventually, new, until

EVENTS = 44
SIZE = 400_000
"""So that the log has three blocks: JetStream's have 8 MB."""


class Machine:
    """A NATS server and an events service, which go down and come up again on the same files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server = nats_server.prepare(directory / "nats", nats_server.free_port(), sync="2m")
        self.settings = Settings(nats_url=self.server.url, data_dir=str(directory / "index"))
        self.stopped_by = signal.SIGTERM

    @property
    def blocks(self) -> list[Path]:
        stream = self.directory / "nats" / "store" / "jetstream" / "$G" / "streams" / Names().events / "msgs"
        return sorted(stream.glob("*.blk"), key=lambda block: int(block.stem))

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        with subprocess.Popen(self.server.command, stderr=subprocess.DEVNULL) as process:
            try:
                yield
            finally:
                process.send_signal(self.stopped_by)
                process.wait()

    @contextlib.asynccontextmanager
    async def up(self) -> AsyncIterator[tuple[Starlette, Bus]]:
        app = create_app(self.settings)
        with self.serving():
            await eventually(self.server.ready)
            async with app.router.lifespan_context(app), open_bus(self.server.url, Names()) as bus:
                await until(lambda: not app.state.ready())
                yield app, bus


@pytest.fixture
async def machine(tmp_path: Path) -> Machine:
    """It holds as many events as were appended to it."""
    made = Machine(tmp_path)
    async with made.up() as (app, bus):
        for start in range(1, EVENTS, 11):
            wanted = [new(payload={"text": "x" * SIZE}, id=f"evt_{n}") for n in range(start, start + 11)]
            await Asker(bus).append(*wanted)
        await app.state.audit._index.reach(EVENTS)
        assert app.state.troubles() == []
    return made


def flip(block: Path) -> None:
    with block.open("r+b") as file:
        file.seek(block.stat().st_size // 2)
        file.write(b"\xff\x00\xff")


def cut(block: Path) -> None:
    os.truncate(block, block.stat().st_size // 2)


def remove(block: Path) -> None:
    block.unlink()


def zero(block: Path) -> None:
    with block.open("r+b") as file:
        file.seek(block.stat().st_size // 3)
        file.write(bytes(1_000_000))


async def gone(bus: Bus) -> list[int]:
    """The sequences at which the stream has nothing."""
    return [n for n in range(1, EVENTS + 1) if await bus.get(bus.names.events, n) is None]


def told(app: Starlette) -> str:
    return " ".join(trouble.message for trouble in app.state.troubles() if trouble.code == "losses")


async def losses(bus: Bus, operation: str = "losses") -> list[Loss]:
    return (await call(bus, OPERATOR, "events", operation, LossesRequest(), LossList)).losses


@pytest.mark.parametrize("stopped_by", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(("which", "damage"), [(0, flip), (1, cut), (0, remove), (1, zero), (-1, flip), (-1, cut)])
async def test_what_the_log_has_lost_is_told_with_its_sequences(
    machine: Machine, which: int, damage: Callable[[Path], None], stopped_by: signal.Signals
) -> None:
    machine.stopped_by = stopped_by
    async with machine.up():
        pass
    assert len(machine.blocks) >= 3
    damage(machine.blocks[which])
    async with machine.up() as (app, bus):
        await until(lambda: told(app) != "")
        lost = await gone(bus)
        found = await losses(bus)
        assert lost
        assert [(loss.first, loss.last, loss.count) for loss in found] == [(lost[0], lost[-1], len(lost))]
        number = f"{len(lost)} events" if len(lost) > 1 else "one event"
        sequences = f"sequences {lost[0]} to {lost[-1]}" if len(lost) > 1 else f"sequence {lost[0]}"
        assert f"the log has lost {number}: {sequences}" in told(app)
        if found[0].kind == "missing":  # the index has them still
            assert await ids(bus) == [f"evt_{n}" for n in range(1, EVENTS + 1)]
    async with machine.up() as (app, bus):
        await until(lambda: told(app) != "")
        assert await losses(bus) == found
        assert await losses(bus, "accept_losses") == found
        await until(lambda: told(app) == "")
        await app.state.audit.once()
        await until(lambda: told(app) == "")
        assert await ids(bus) == [f"evt_{n}" for n in range(1, EVENTS + 1) if n not in lost]
        appended = await Asker(bus).one(new())
        assert appended.sequence is not None
    async with machine.up() as (app, bus):
        await app.state.audit.once()
        # The server may give up more of a damaged block when it starts again: that is a loss of its own.
        later = set(await gone(bus)) - set(lost)
        assert {n for loss in await losses(bus) for n in range(loss.first, loss.last + 1)} == later


async def test_a_log_in_the_place_of_another_is_told(machine: Machine) -> None:
    shutil.rmtree(machine.blocks[0].parents[1])
    async with machine.up() as (app, bus):
        await until(lambda: told(app) != "")
        [loss] = await losses(bus)
        assert (loss.kind, loss.first, loss.last, loss.count) == ("log", 1, EVENTS, EVENTS)
        assert (await Asker(bus).one(new())).sequence == 1


async def test_a_stream_that_is_made_anew_with_all_that_it_held_has_lost_nothing(machine: Machine) -> None:
    """As when the file that describes it is damaged: the server forgets the stream, and finds its messages again."""
    [meta] = machine.blocks[0].parents[1].glob("meta.inf")
    meta.write_bytes(b"x" + meta.read_bytes()[1:])
    async with machine.up() as (app, bus):
        assert await ids(bus) == [f"evt_{n}" for n in range(1, EVENTS + 1)]
        assert await app.state.audit.once() == []
        assert told(app) == ""


async def test_an_end_that_is_lost_and_written_again_is_told(machine: Machine) -> None:
    """The index compares moments too: sequences come again. Somebody writes while events is away."""
    machine.stopped_by = signal.SIGKILL
    async with machine.up():
        pass
    cut(machine.blocks[-1])
    (machine.blocks[-1].parent / "index.db").unlink(missing_ok=True)  # it has the last sequence, from a good stop
    names = Names()
    with machine.serving():
        await eventually(machine.server.ready)
        async with open_bus(machine.server.url, names) as bus:
            kept = await bus.last_sequence(names.events)
            message = await bus.get(names.events, 1)
            assert message is not None
            while await bus.last_sequence(names.events) < EVENTS + 3:
                await bus.request(message.subject, message.data)
    async with machine.up() as (app, bus):
        await until(lambda: told(app) != "")
        [loss] = await losses(bus)
        assert (loss.kind, loss.first, loss.last, loss.count) == ("end", kept + 1, EVENTS, EVENTS - kept)


async def test_an_index_that_has_lost_events_is_made_anew(running: Running, ask: Asker) -> None:
    async with running() as app:
        await ask.append(*(new(id=f"evt_{n}") for n in range(20)))
        index = app.state.audit._index
        await index.reach(20)
        await index.writer.run(lambda writer: writer.execute("DELETE FROM events WHERE sequence IN (5, 6, 19)"))
        assert await app.state.audit.once() == []

        async def is_whole() -> bool:
            with contextlib.suppress(UnavailableError):  # while it is built
                return len(await ask.found(limit=100)) == 20
            return False

        await eventually(is_whole)
        assert await app.state.audit.once() == []
        assert app.state.troubles() == []


async def test_what_went_as_it_should_is_no_loss(running: Running, ask: Asker) -> None:
    """Expired, redacted and purged events, what is no event, and what nobody keeps in the index."""
    by: Any = {"source": Source("user", "a"), "actor": "user:a"}
    async with running() as app:
        bus = ask.bus
        rules = [RetentionRule(type="Custom.short", keep="1s")]
        await call(bus, OPERATOR, "events", "put_retention", PutRetention(rules=rules), RetentionView)
        cause = Cause(**by)
        await call(bus, OPERATOR, "events", "create_world", ChangeWorld(id="w", cause=cause), bytes)
        await ask.append(*(new("Custom.short") for _ in range(10)))
        await ask.append(*(new(world_id="w") for _ in range(10)))
        kept = await ask.append(*(new(id=f"evt_{n}") for n in range(10)))
        for n in (0, 4):
            await call(bus, OPERATOR, "events", "redact", RedactRequest(id=f"evt_{n}", **by), bytes)
        assert await app.state.audit.once() == []
        await call(bus, OPERATOR, "events", "delete_world", ChangeWorld(id="w", purge=True, cause=cause), bytes)
        assert await app.state.audit.once() == []
        await bus.request(bus.names.event("default", "main", "Custom", "x", None), b"no event")
        for _ in range(3):
            assert await app.state.audit.once() == []
            assert not await app.state.audit._differs()

        async def expired() -> bool:
            return await bus.get(bus.names.events, 3) is None

        await eventually(expired)
        assert await app.state.audit.once() == []
        assert kept[9].sequence is not None
        await bus.remove(bus.names.events, kept[9].sequence)  # an operator's slip with another tool
        assert await app.state.audit._differs()
        [loss] = await app.state.audit.once()
        assert (loss.first, loss.count) == (kept[9].sequence, 1)
        assert await app.state.audit.once() == []


async def ids(bus: Bus) -> list[str]:
    """Of all events that a query finds; of so large ones a few at a time."""
    found: list[str] = []
    cursor = None
    while True:
        page = await Asker(bus).query(limit=1000, cursor=cursor)
        found += [decode(bytes(raw)).metadata.id for raw in page.events]
        cursor = page.next_cursor
        if cursor is None:
            return found
