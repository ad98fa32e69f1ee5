"""The work engine, by real replicas that are killed, stopped and ended."""

import asyncio
import contextlib
import json
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from crucible_core.envelope import Data, Event, Metadata, Source, encode
from crucible_core.subjects import SHARDS, Names
from crucible_kit.buckets import open_bucket
from crucible_kit.clock import fresh_id, timestamp
from crucible_kit.eventlog import event_at
from crucible_kit.handlers.lanes import CAPACITY
from crucible_kit.handlers.service import subjects_of
from crucible_kit.nats.bus import Bus, open_bus
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.streams import declare_streams
from crucible_kit.settings import KitSettings

from .outage import private_server
from .replica import APART_MS, CALM, HANDLERS

REPLICA = Path(__file__).with_name("replica.py")
MANY = 200


class Replica:
    """A replica in a process of its own, and the attempts that it tells of."""

    def __init__(self, process: asyncio.subprocess.Process, attempts: "Attempts") -> None:
        self.process = process
        self.ready = asyncio.Event()
        self._attempts = attempts
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            if line == b"ready\n":
                self.ready.set()
            elif not line.endswith(b"\n"):
                break  # it was killed in the middle of the line
            elif line.startswith(b"parked"):
                self._attempts.parked.append(line.decode().strip())
            elif line.startswith(b"held"):
                self._attempts.held_back += int(line.split()[2])
            else:
                handler, sequence, attempt = line.split()
                self._attempts.made[handler.decode(), int(sequence), int(attempt)] += 1

    async def end(self, how: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(how)
        await self.process.wait()
        await self._reading


class Attempts:
    """What was attempted, over all replicas: (handler, event's sequence, attempt), and how often."""

    def __init__(self, bus: Bus) -> None:
        self.made: Counter[tuple[str, int, int]] = Counter()
        self.parked: list[str] = []
        self.held_back = 0
        self._bus = bus

    @contextlib.asynccontextmanager
    async def replica(self, seconds: float = 0.0) -> AsyncIterator[Replica]:
        url = self._bus._client.connected_url.geturl()  # type: ignore[union-attr]
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(REPLICA), url, self._bus.names.prefix, str(seconds), stdout=asyncio.subprocess.PIPE
        )
        replica = Replica(process, self)
        try:
            async with asyncio.timeout(30):
                await replica.ready.wait()
            yield replica
        finally:
            await replica.end(signal.SIGKILL)

    async def append(self, name: str, count: int = 1) -> list[int]:
        messages = []
        for _ in range(count):
            metadata = Metadata(
                id=fresh_id("evt"),
                timestamp=timestamp(),
                source=Source("user", "a"),
                actor="user:a",
                correlation_id="cor_1",
            )
            subject = self._bus.names.event("default", "main", "Custom", name, None)
            messages.append(Outgoing(subject, encode(Event("Custom", Data(name, {}), metadata))))
        return [stored.sequence for stored in await self._bus.store_all(messages)]

    async def append_to_all(self, each: int) -> set[tuple[str, int, int]]:
        busy = [handler for handler in HANDLERS if handler != CALM]
        return {(handler, n, 1) for handler in busy for n in await self.append(handler, each)}


@pytest.fixture
async def attempts(bus: Bus) -> Attempts:
    await declare_streams(bus, KitSettings())
    return Attempts(bus)


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.02)


async def owners(bus: Bus) -> Counter[str]:
    bucket = await open_bucket(bus, "shards")
    return Counter(json.loads(entry.value)["owner"] for entry in (await bucket.entries()).values())


async def test_each_event_is_attempted_once_and_failures_until_they_end(attempts: Attempts) -> None:
    async with attempts.replica():
        wanted = await attempts.append_to_all(10)
        [fails] = await attempts.append("Fails")
        wanted |= {("h0", fails, attempt) for attempt in (1, 2, 3)}
        await until(lambda: attempts.made.keys() >= wanted)
        await asyncio.sleep(0.3)
    assert attempts.made == Counter(wanted)


async def test_what_came_while_nobody_was_there_is_done_and_not_again(attempts: Attempts) -> None:
    async with attempts.replica() as replica:
        wanted = await attempts.append_to_all(5)
        await until(lambda: attempts.made.keys() >= wanted)
        await replica.end(signal.SIGTERM)
    wanted |= await attempts.append_to_all(5)
    async with attempts.replica():
        await until(lambda: attempts.made.keys() >= wanted)
        await asyncio.sleep(0.3)
    assert attempts.made == Counter(wanted)


async def test_what_a_lane_has_no_room_for_stays_in_the_log(attempts: Attempts, bus: Bus) -> None:
    """… and is done in order once there is room, while more comes and others are not held up."""
    async with attempts.replica(0.004):
        wanted = {("h1", n, 1) for n in await attempts.append("h1", 5 * CAPACITY)}
        other = {("h2", n, 1) for n in await attempts.append("h2", 5)}
        await until(lambda: attempts.made.keys() >= other)
        assert not attempts.made.keys() >= wanted
        for _ in range(20):
            wanted |= {("h1", n, 1) for n in await attempts.append("h1", 10)}
            await asyncio.sleep(0.05)
        await until(lambda: attempts.made.keys() >= wanted)
        order = [sequence for handler, sequence, _ in attempts.made if handler == "h1"]
        assert all(abs(place - order.index(sequence)) < 8 for place, sequence in enumerate(sorted(order)))
    assert attempts.made == Counter(wanted | other)
    assert await bus.last_sequence(bus.names.deliveries) == 0  # not a copy, nor a pointer


async def test_two_replicas_share_and_hand_over_without_a_repeat(attempts: Attempts, bus: Bus) -> None:
    async with attempts.replica(0.01) as first:
        wanted = await attempts.append_to_all(10)
        async with attempts.replica(0.01) as second:
            await until_async(lambda: shared(bus, 2))
            wanted |= await attempts.append_to_all(10)
            await first.end(signal.SIGTERM)
            await until_async(lambda: shared(bus, 1))
            wanted |= await attempts.append_to_all(10)
            await until(lambda: attempts.made.keys() >= wanted)
            await second.end(signal.SIGTERM)
    assert attempts.made == Counter(wanted)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_nats_may_restart_in_the_middle_of_a_hand_over(tmp_path: Path, how: signal.Signals) -> None:
    async with private_server(tmp_path) as server, open_bus(server.url, Names("p")) as bus:
        await declare_streams(bus, KitSettings())
        attempts = Attempts(bus)
        async with attempts.replica(0.01) as first, attempts.replica(0.01):
            await until_async(lambda: shared(bus, 2))
            wanted = await attempts.append_to_all(20)
            await until(lambda: len(attempts.made) > 20)
            ending = asyncio.create_task(first.end(how))
            await server.restart()
            await ending
            await bus.wait_connected()
            wanted |= await attempts.append_to_all(5)
            await until_async(lambda: shared(bus, 1))
            await until(lambda: attempts.made.keys() >= wanted)
        assert max(attempts.made.values()) <= 2
        assert attempts.made.keys() == wanted


async def test_two_replicas_that_start_together_share_without_a_repeat(attempts: Attempts, bus: Bus) -> None:
    wanted = await attempts.append_to_all(10)
    async with contextlib.AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(attempts.replica(0.01)) for _ in range(2)))
        wanted |= await attempts.append_to_all(10)
        await until_async(lambda: shared(bus, 2))
        wanted |= await attempts.append_to_all(10)
        await until(lambda: attempts.made.keys() >= wanted)
    assert attempts.made == Counter(wanted)


async def shared(bus: Bus, replicas: int) -> bool:
    found = await owners(bus)
    return len(found) == replicas and sum(found.values()) == SHARDS


async def until_async(condition: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - of other processes
            await asyncio.sleep(0.05)


async def test_the_work_of_a_killed_replica_goes_on_at_another(attempts: Attempts, bus: Bus) -> None:
    async with attempts.replica(0.01) as first, attempts.replica(0.01):
        await until_async(lambda: shared(bus, 2))
        before = await attempts.append_to_all(MANY // len(HANDLERS))
        await first.end(signal.SIGKILL)
        wanted = before | await attempts.append_to_all(MANY // len(HANDLERS))
        await until(lambda: attempts.made.keys() >= wanted)
    again = [one for one, times in attempts.made.items() if times > 1]
    # What was in hand when it was killed, and that once more.
    assert set(again) <= before
    assert max(attempts.made.values()) <= 2
    assert max(attempts.made.values()) <= 2


async def test_a_replica_that_stood_still_does_no_harm(attempts: Attempts, bus: Bus) -> None:
    async with attempts.replica(0.05) as first, attempts.replica(0.05):
        await until_async(lambda: shared(bus, 2))
        wanted = await attempts.append_to_all(5)
        first.process.send_signal(signal.SIGSTOP)
        wanted |= await attempts.append_to_all(5)
        await asyncio.sleep(3)
        first.process.send_signal(signal.SIGCONT)
        wanted |= await attempts.append_to_all(5)
        await until(lambda: attempts.made.keys() >= wanted)
        await until_async(lambda: shared(bus, 2))
        await asyncio.sleep(0.5)
    assert max(attempts.made.values()) <= 2


async def test_events_that_must_be_apart_are_so_over_a_kill_and_a_restart(attempts: Attempts, bus: Bus) -> None:
    """By the times of their commits: the first one, and each that comes late enough after the last that was given."""
    sequences: list[int] = []

    async def some(count: int) -> None:
        for _ in range(count):
            sequences.extend(await attempts.append(CALM, 2))
            await asyncio.sleep(0.02)

    async with attempts.replica(0.05) as first, attempts.replica(0.05) as second:
        await until_async(lambda: shared(bus, 2))
        await some(30)
        await first.end(signal.SIGKILL)
        await some(30)
        await second.end(signal.SIGKILL)
    await some(20)
    async with attempts.replica(0.05) as third:
        await until(lambda: bool(attempts.made) and max(n for _, n, _ in attempts.made) > sequences[-30])
        await third.end(signal.SIGTERM)
    await some(20)
    due: dict[int, int] = {}
    for sequence in sequences:
        message = await event_at(bus, sequence)
        assert message is not None
        if not due or message.time_ms >= max(due.values()) + APART_MS:
            due[sequence] = message.time_ms
    wanted = {(CALM, sequence, 1) for sequence in due}
    async with attempts.replica(0.05):
        await until(lambda: attempts.made.keys() >= wanted)
        await until(lambda: attempts.held_back >= len(sequences) - len(due))
        await asyncio.sleep(0.3)
    assert attempts.made.keys() == wanted
    assert max(attempts.made.values()) <= 2


async def test_a_job_that_ends_its_process_is_put_aside_and_holds_up_nobody(attempts: Attempts) -> None:
    [deadly] = await attempts.append("Deadly")
    wanted = await attempts.append_to_all(3)
    for _ in range(4):
        with contextlib.suppress(TimeoutError):
            async with attempts.replica(0.02) as replica, asyncio.timeout(8):
                await replica.process.wait()
        if attempts.parked:
            break
    assert [line.split()[1] for line in attempts.parked] == [str(deadly)]
    assert attempts.made.keys() >= wanted


@pytest.mark.parametrize("meanwhile", [False, True], ids=["while it is served", "while nobody is there"])
async def test_a_log_that_is_made_anew_is_read_from_its_start(attempts: Attempts, bus: Bus, meanwhile: bool) -> None:
    """… though it is not as long as the one before, whose places mean nothing in it."""
    async with attempts.replica() as replica:
        before = await attempts.append_to_all(5)
        await until(lambda: attempts.made.keys() >= before)
        if meanwhile:
            await replica.end(signal.SIGTERM)
        await bus.delete_stream(bus.names.events)
        await declare_streams(bus, KitSettings())
        attempts.made.clear()
        wanted = await attempts.append_to_all(1)
        if not meanwhile:
            await until(lambda: attempts.made.keys() >= wanted)
            await replica.end(signal.SIGTERM)
    async with attempts.replica():
        await until(lambda: attempts.made.keys() >= wanted)
        await asyncio.sleep(0.3)
    assert attempts.made == Counter(wanted)


def test_types_are_told_to_the_server_so_that_none_overlap() -> None:
    names = Names("p")
    found = subjects_of({"Custom.*", "Custom.a note", "Memory.Created", "File.a note"}, names)
    assert found == [
        "p.evt.*.*.Custom.*.*",
        "p.evt.*.*.File.a=20note.*",
        "p.evt.*.*.Memory.Created.*",
    ]
    assert subjects_of(None, names) == subjects_of({f"Custom.n{n}" for n in range(100)}, names) == ()
