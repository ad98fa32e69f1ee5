"""An index follows its stream, and is made anew when it is not of it."""

import asyncio
import contextlib
import os
import sqlite3
import stat
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from crucible_core.errors import NotFoundError, UnavailableError
from crucible_core.position import numbered
from crucible_kit.index.index import Index, open_index, unwritable
from crucible_kit.nats.bus import Bus, Message
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.streams import declare_streams
from crucible_kit.settings import KitSettings
from tests.kit.outage import until

SCHEMA = "CREATE TABLE IF NOT EXISTS rows (sequence INTEGER PRIMARY KEY, data BLOB NOT NULL);"


@pytest.fixture
async def stream(bus: Bus) -> str:
    return await make(bus)


async def make(bus: Bus) -> str:
    name = bus.names.bucket("S")
    await bus.ensure_stream(name, subjects=[subject(bus, ">")])
    return name


async def made(bus: Bus) -> bool:
    """Whether it could be: the server may still be clearing away what had the name."""
    with contextlib.suppress(UnavailableError):
        return bool(await make(bus))
    return False


def subject(bus: Bus, rest: str) -> str:
    return f"{bus.names.prefix}.s.{rest}"


async def fill(bus: Bus, *numbers: int, name: str = "a") -> None:
    await bus.store_all([Outgoing(subject(bus, name), b"%d" % n) for n in numbers])


def insert(connection: sqlite3.Connection, messages: list[Message]) -> None:
    rows = [(message.sequence, message.data) for message in messages]
    connection.executemany("INSERT INTO rows VALUES (?, ?)", rows)


@contextlib.asynccontextmanager
async def followed(
    path: Path, bus: Bus, stream: str, version: int = 1, filters: Sequence[str] = ()
) -> AsyncIterator[Index]:
    async with open_index(path, bus, (stream,), version, SCHEMA) as index:
        task = asyncio.create_task(index.follow(bus, insert, filters))
        try:
            await until(lambda: index.caught_up or task.done())
            yield index
        finally:
            task.cancel()
            await asyncio.wait({task})


async def rows(index: Index) -> list[bytes]:
    return [row[0] for row in await index.reader.execute_fetchall("SELECT data FROM rows ORDER BY sequence")]


def numbers(*wanted: int) -> list[bytes]:
    return [b"%d" % n for n in wanted]


async def test_follows_the_stream_and_goes_on_where_it_was(bus: Bus, stream: str, tmp_path: Path) -> None:
    path = tmp_path / "x" / "i.sqlite"
    await fill(bus, 1, 2)
    async with followed(path, bus, stream) as index:
        assert await rows(index) == numbers(1, 2)
        await fill(bus, 3)
        await index.reach(3)
        assert await rows(index) == numbers(1, 2, 3)
    await fill(bus, 4)
    async with followed(path, bus, stream) as index:  # a repeat would violate the primary key
        assert await rows(index) == numbers(1, 2, 3, 4)


async def test_what_comes_one_after_another_is_there_for_whoever_waits_for_it(
    bus: Bus, stream: str, tmp_path: Path
) -> None:
    """Messages are gathered then: each shares its transaction with those of the next moment."""
    async with followed(tmp_path / "i.sqlite", bus, stream) as index:
        for n in range(1, 101):
            await fill(bus, n)
            if n % 20 == 0:
                await index.reach(n)
                assert await rows(index) == numbers(*range(1, n + 1))
        await fill(bus, 101)
        await index.flush_gathered()
        await until(lambda: index.position.covers(101))
        assert await rows(index) == numbers(*range(1, 102))


async def test_reach_is_bounded(bus: Bus, stream: str, tmp_path: Path) -> None:
    async with followed(tmp_path / "i.sqlite", bus, stream) as index:
        with pytest.raises(UnavailableError, match="not yet at 9"):
            await index.reach(9, timeout=0.1)


async def test_reach_does_not_wait_for_what_the_filters_leave_out(bus: Bus, stream: str, tmp_path: Path) -> None:
    filters = [subject(bus, "a"), subject(bus, "c")]
    async with followed(tmp_path / "i.sqlite", bus, stream, filters=filters) as index:
        await fill(bus, 1)
        await fill(bus, 2, 3, name="b")
        await index.reach(3, timeout=2)
        assert await rows(index) == numbers(1)
        with pytest.raises(UnavailableError):
            await index.reach(4, timeout=0.2)


async def test_an_index_of_the_history_and_the_log_tells_them_apart(bus: Bus, tmp_path: Path) -> None:
    await declare_streams(bus, KitSettings())
    names = bus.names
    streams, filters = (names.attempts, names.events), [names.attempts_of("run"), names.events_of("Hook", "Executed")]
    told = [names.event("default", "main", "Hook", event, "h") for event in ("Executed", "Triggered", "Executed")]
    record = names.attempt("run", "h", "r")
    for n, subject in enumerate((record, *told[:2])):
        await bus.store(Outgoing(subject, b"%d" % n))

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[Index]:
        async with open_index(tmp_path / "i.sqlite", bus, streams, 1, SCHEMA) as index:
            following = asyncio.create_task(index.follow(bus, insert, filters, lambda one: one.data != b"not for it"))
            await until(lambda: index.caught_up)
            yield index
            following.cancel()
            await asyncio.wait({following})

    async with opened() as index:
        assert await rows(index) == numbers(0, 1)
        await index.reach(await index.end(bus))
        last = await bus.store(Outgoing(told[2], b"not for it"))
        await until(lambda: index.position.covers(numbered(1, last.sequence)))
        await bus.store_all([Outgoing(record, b"3"), Outgoing(told[2], b"4")])
        await until(lambda: index.lag == 0)
        await index.reach(await index.end(bus))
        assert await rows(index) == numbers(0, 3, 1, 4)
    async with opened() as index:
        assert await rows(index) == numbers(0, 3, 1, 4)
        await bus.store(Outgoing(told[0], b"5"))
        await index.reach(await index.end(bus))
        assert await rows(index) == numbers(0, 3, 1, 4, 5)


async def test_the_position_is_of_one_piece_with_what_was_applied(bus: Bus, stream: str, tmp_path: Path) -> None:
    path = tmp_path / "i.sqlite"
    await fill(bus, 1, 2, 3)

    def break_down(connection: sqlite3.Connection, messages: list[Message]) -> None:
        insert(connection, messages)
        raise RuntimeError

    async with open_index(path, bus, (stream,), 1, SCHEMA) as index:
        with pytest.raises(RuntimeError):
            await index.follow(bus, break_down)
        assert index.position.count == 0
    async with followed(path, bus, stream) as index:
        assert await rows(index) == numbers(1, 2, 3)


async def test_a_locked_file_is_waited_for(bus: Bus, stream: str, tmp_path: Path) -> None:
    path = tmp_path / "i.sqlite"
    failures = 2

    def locked_at_first(connection: sqlite3.Connection, messages: list[Message]) -> None:
        nonlocal failures
        insert(connection, messages)
        if failures:
            failures -= 1
            raise sqlite3.OperationalError("database is locked")

    await fill(bus, 1, 2)
    async with open_index(path, bus, (stream,), 1, SCHEMA) as index:
        task = asyncio.create_task(index.follow(bus, locked_at_first))
        await index.reach(2)
        assert await rows(index) == numbers(1, 2)
        task.cancel()
        await asyncio.wait({task})


async def test_the_files_are_their_owners_alone(bus: Bus, stream: str, tmp_path: Path) -> None:
    path = tmp_path / "x" / "i.sqlite"
    before = os.umask(0)
    try:
        for _ in range(2):
            async with followed(path, bus, stream) as index:
                await fill(bus, 1)
                await index.reach(await bus.last_sequence(stream))
                files = sorted(path.parent.iterdir())
                assert len(files) == 3
                assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            path.chmod(0o644)
    finally:
        os.umask(before)


async def test_damage_that_a_write_meets_makes_the_index_anew(bus: Bus, stream: str, tmp_path: Path) -> None:
    met: list[int] = []

    def damaged_at_first(connection: sqlite3.Connection, messages: list[Message]) -> None:
        insert(connection, messages)
        met.append(messages[-1].sequence)
        if met == [2, 3]:
            raise sqlite3.DatabaseError("database disk image is malformed")

    await fill(bus, 1, 2)
    async with open_index(tmp_path / "i.sqlite", bus, (stream,), 1, SCHEMA) as index:
        task = asyncio.create_task(index.follow(bus, damaged_at_first))
        await index.reach(2)
        await fill(bus, 3)
        await until(lambda: index.caught_up and index.position.count == 3)
        assert await rows(index) == numbers(1, 2, 3)
        assert met == [2, 3, 3]
        task.cancel()
        await asyncio.wait({task})


async def test_damage_that_a_reader_meets_makes_the_index_anew(
    bus: Bus, stream: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "i.sqlite"
    wanted = range(1, 2000)
    await fill(bus, *wanted)
    async with followed(path, bus, stream) as index:
        other = await index.open_reader()
        assert await index.writer.empty_log()
        with path.open("r+b") as file:
            file.seek(3 * 4096)
            file.write(b"\xff" * 4096 * 2)
        fresh = await index.open_reader()  # it has read nothing yet
        with pytest.raises(UnavailableError):
            await fresh.execute_fetchall("SELECT data FROM rows ORDER BY sequence")
        await until(lambda: index.caught_up and index.position.count == 1999)
        for reader in (index.reader, other, fresh):
            found = await reader.execute_fetchall("SELECT data FROM rows ORDER BY sequence")
            assert [row[0] for row in found] == numbers(*wanted)
    assert "i.sqlite is damaged, and is built anew" in caplog.text


def write_garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 1000)


def damage_a_page(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)


def forget_itself(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM meta")


def claim_too_much(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE meta SET value = '999' WHERE name = 'sequence'")


def claim_nonsense(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE meta SET value = 'x' WHERE name = 'sequence'")


def hold_another_past(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE meta SET value = '1' WHERE name = 'time_ms'")


def delete_only_the_main_file(path: Path) -> None:
    path.unlink()
    path.with_name(path.name + "-wal").write_bytes(b"left over")


@pytest.mark.parametrize(
    "harm",
    [
        write_garbage,
        damage_a_page,
        forget_itself,
        claim_too_much,
        claim_nonsense,
        hold_another_past,
        delete_only_the_main_file,
    ],
)
async def test_a_file_that_is_not_right_is_made_anew(bus: Bus, stream: str, tmp_path: Path, harm: object) -> None:
    path = tmp_path / "i.sqlite"
    other = tmp_path / "i.sqlite2"
    other.write_bytes(b"not ours")
    await fill(bus, 1, 2, 3)
    async with followed(path, bus, stream):
        pass
    await asyncio.to_thread(harm, path)  # type: ignore[arg-type]
    async with followed(path, bus, stream) as index:
        assert await rows(index) == numbers(1, 2, 3)
    assert other.read_bytes() == b"not ours"


async def test_another_version_is_made_anew(bus: Bus, stream: str, tmp_path: Path) -> None:
    await fill(bus, 1)
    async with followed(tmp_path / "i.sqlite", bus, stream, version=1):
        pass
    async with followed(tmp_path / "i.sqlite", bus, stream, version=2) as index:
        assert await rows(index) == numbers(1)


async def test_another_stream_of_the_same_name_is_made_anew(bus: Bus, stream: str, tmp_path: Path) -> None:
    path = tmp_path / "i.sqlite"
    await fill(bus, 1, 2)
    async with open_index(path, bus, (stream,), 1, SCHEMA) as index:
        following = asyncio.create_task(index.follow(bus, insert))
        await index.reach(2)
        await bus.delete_stream(stream)
        await until(lambda: made(bus))
        await fill(bus, 7, 8, 9)
        with pytest.raises(NotFoundError):
            await following
    async with followed(path, bus, stream) as index:
        assert await rows(index) == numbers(7, 8, 9)


async def test_message_that_cannot_be_written_is_parked_and_passed_over(bus: Bus, stream: str, tmp_path: Path) -> None:
    await bus.ensure_stream(bus.names.attempts, subjects=[bus.names.all_attempts])
    await fill(bus, 1, 2, 13, 3)

    def picky(connection: sqlite3.Connection, messages: list[Message]) -> None:
        insert(connection, messages)
        if any(message.data == b"13" for message in messages):
            raise OverflowError("Python int too large to convert to SQLite INTEGER")

    noted: list[int] = []
    bus.note_parked = lambda: noted.append(1)
    async with open_index(tmp_path / "index", bus, (stream,), 1, SCHEMA) as index:
        following = asyncio.create_task(index.follow(bus, picky))
        await until(lambda: index.position.count == 4 or following.done())
        rows = [row[0] for row in await index.reader.execute_fetchall("SELECT data FROM rows")]
        following.cancel()
        await asyncio.wait({following})
    assert rows == [b"1", b"2", b"3"]
    parked = await bus.last(bus.names.attempts, bus.names.parked(f"index-{stream}"))
    assert parked is not None
    assert parked.data == b"13"
    assert noted == [1]


def test_an_index_that_cannot_be_written_says_why_in_words(tmp_path: Path) -> None:
    def refusal(connection: sqlite3.Connection) -> str:
        with contextlib.closing(connection), pytest.raises(sqlite3.OperationalError) as caught:
            connection.execute("INSERT INTO rows VALUES (1, zeroblob(100000))")
        return unwritable(caught.value).detail

    file = tmp_path / "index"
    with contextlib.closing(sqlite3.connect(file)) as made:
        made.executescript(SCHEMA)
    small = sqlite3.connect(file)
    small.execute("PRAGMA max_page_count = 3")
    assert refusal(small) == "the index cannot be written: the disk is full"
    assert refusal(sqlite3.connect(f"file:{file}?mode=ro", uri=True)).endswith("its file may not be written")
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert refusal(sqlite3.connect(file, timeout=0)).endswith("another process holds its file")
