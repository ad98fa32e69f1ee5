import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from crucible_core.errors import ConflictError, LimitedError, UnavailableError, UnknownOutcomeError
from crucible_core.subjects import EXPECTED_SEQUENCE, EXPECTED_SUBJECT, Names
from crucible_events.append.committer import FEW, Committer
from crucible_events.settings import Settings
from crucible_kit import deadline
from crucible_kit.deadline import Caller
from crucible_kit.nats.bus import Bus, DuplicateError, Stored
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.streams import declare_streams
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.telemetry.spans import Telemetry

from .conftest import until

MANY = 10 * FEW


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("events")


@pytest.fixture
async def committer(bus: Bus, settings: Settings, metrics: Metrics) -> Committer:
    await declare_streams(bus, settings)
    return Committer(bus, Telemetry(), metrics, 2000, 8 * 1024 * 1024)


@contextlib.asynccontextmanager
async def committing(committer: Committer) -> AsyncIterator[None]:
    task = asyncio.create_task(committer.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def message(names: Names, id: str, entity: str = "m", expected: int | None = None, size: int = 10) -> Outgoing:
    headers = {}
    if expected is not None:
        versions = names.versions("w", "Memory", entity)
        headers = {EXPECTED_SEQUENCE: str(expected), EXPECTED_SUBJECT: versions}
    return Outgoing(names.event("w", "r", "Memory", "Updated", entity), b"x" * size, headers, id)


def messages(names: Names, count: int, prefix: str = "id") -> Iterator[Outgoing]:
    return (message(names, f"{prefix}{n}") for n in range(count))


def commits(metrics: Metrics) -> int:
    line = next(line for line in metrics.render().decode().splitlines() if "commit_events_count" in line)
    return int(float(line.split()[1]))


async def test_what_waits_together_is_committed_together(committer: Committer, bus: Bus, metrics: Metrics) -> None:
    waiting = [committer.submit([one]) for one in messages(bus.names, MANY)]
    async with committing(committer):
        assert [(await one)[0].sequence for one in waiting] == list(range(1, MANY + 1))
    assert commits(metrics) == 1


async def test_a_batch_has_bounded_bytes(committer: Committer, bus: Bus, metrics: Metrics) -> None:
    waiting = [committer.submit([message(bus.names, f"id{n}", size=1_000_000)]) for n in range(8)]
    async with committing(committer):
        assert [(await one)[0].sequence for one in waiting] == list(range(1, 9))
        await until(lambda: commits(metrics) == 2)


@pytest.mark.parametrize("count", [FEW, MANY])
async def test_one_that_is_refused_does_not_harm_the_others(committer: Committer, bus: Bus, count: int) -> None:
    await bus.store(message(bus.names, "known", "other"))
    waiting = [committer.submit([one]) for one in messages(bus.names, count - 2)]
    stale = committer.submit([message(bus.names, "stale", "m2", expected=99)], "m2")
    again = committer.submit([message(bus.names, "known", "other")])
    async with committing(committer):
        assert [(await one)[0].sequence for one in waiting] == list(range(2, count))
        with pytest.raises(ConflictError):
            await stale
        assert (await again)[0] == Stored(1, duplicate=True)


async def test_an_expectation_sees_what_its_own_batch_wrote_before_it(committer: Committer, bus: Bus) -> None:
    """JetStream would let both pass in one batch: the second would overwrite what it has not seen."""
    filling = [committer.submit([one]) for one in messages(bus.names, MANY)]
    first = committer.submit([message(bus.names, "a", "m2", expected=0)], "m2")
    second = committer.submit([message(bus.names, "b", "m2", expected=0)], "m2")
    plain = committer.submit([message(bus.names, "c", "m3")], "m3")
    third = committer.submit([message(bus.names, "d", "m3", expected=0)], "m3")
    async with committing(committer):
        await asyncio.gather(*filling, first, plain)
        for late in (second, third):
            with pytest.raises(ConflictError):
                await late


async def test_several_messages_are_stored_together_or_not_at_all(committer: Committer, bus: Bus) -> None:
    before = committer.submit([message(bus.names, "x")])
    whole = committer.submit(list(messages(bus.names, 5)))
    spoilt = committer.submit([message(bus.names, "y"), message(bus.names, "id3")])
    after = committer.submit([message(bus.names, "z")])
    async with committing(committer):
        assert (await before)[0].sequence == 1
        assert [stored.sequence for stored in await whole] == [2, 3, 4, 5, 6]
        with pytest.raises(DuplicateError):
            await spoilt
        assert (await after)[0].sequence == 7


async def test_what_was_given_up_in_time_is_not_stored(committer: Committer, bus: Bus) -> None:
    waiting = [committer.submit([one]) for one in messages(bus.names, 6)]
    for one in waiting[::2]:
        one.cancel()
    async with committing(committer):
        assert [(await one)[0].sequence for one in waiting[1::2]] == [1, 2, 3]
    assert await bus.last_sequence(bus.names.events) == 3


@pytest.mark.parametrize("count", [1, FEW, MANY])
async def test_what_nobody_waits_for_any_more_is_not_stored(committer: Committer, bus: Bus, count: int) -> None:
    """Also not what shares its batch with what is waited for."""
    now = time.monotonic()
    with deadline.on_behalf_of(Caller(now - 1, now)):
        late = [committer.submit([one]) for one in messages(bus.names, count, "late")]
    with deadline.on_behalf_of(Caller(now + 60, now)):
        waiting = [committer.submit([one]) for one in messages(bus.names, count)]
    async with committing(committer):
        assert [(await one)[0].sequence for one in waiting] == list(range(1, count + 1))
        for one in late:
            with pytest.raises(UnavailableError, match="not done"):
                await one
    assert await bus.last_sequence(bus.names.events) == count


async def test_what_comes_after_something_that_failed_waits_for_its_repetition(
    committer: Committer, bus: Bus, settings: Settings
) -> None:
    await bus.delete_stream(bus.names.events)
    async with committing(committer):
        first = committer.submit([message(bus.names, "a")])
        with pytest.raises(UnavailableError):
            await first
        await declare_streams(bus, settings)
        second = committer.submit_each([message(bus.names, "b")], after=first)
        third = committer.submit_each([message(bus.names, "c"), message(bus.names, "d")], after=second)
        for late in (second, third):
            with pytest.raises(UnavailableError):
                await late
        conflict = committer.submit([message(bus.names, "e", "m2", expected=9)], ["m2"])
        with pytest.raises(ConflictError):
            await conflict
        assert await committer.submit_each([message(bus.names, "f", "m2")], ["m2"], after=conflict) == [Stored(1)]


async def test_too_much_is_refused_at_once(committer: Committer, bus: Bus) -> None:
    waiting = [committer.submit([one]) for one in messages(bus.names, 2000)]
    with pytest.raises(LimitedError) as error:
        committer.submit([message(bus.names, "more")])
    assert error.value.extra["retry_after"] == 1
    async with committing(committer):
        await asyncio.gather(*waiting)
        await committer.submit([message(bus.names, "more")])
    for n in range(8):
        committer.submit([message(bus.names, f"big{n}", size=1_000_000)])
    with pytest.raises(LimitedError):
        committer.submit([message(bus.names, "big", size=1_000_000)])


async def test_what_waits_at_the_end_is_refused(committer: Committer, bus: Bus) -> None:
    task = asyncio.create_task(committer.run())
    await asyncio.sleep(0)
    waiting = [committer.submit([one]) for one in messages(bus.names, 3)]
    task.cancel()
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert type(outcome) is UnavailableError


async def test_of_what_was_being_stored_at_the_end_it_is_said_that_it_may_be(committer: Committer, bus: Bus) -> None:
    first = committer.submit([message(bus.names, "a")])
    second = committer.submit([message(bus.names, "b")])
    task = asyncio.create_task(committer.run())
    for _ in range(3):  # it has taken the first ones, and waits for JetStream
        await asyncio.sleep(0)
    waiting = committer.submit([message(bus.names, "c")])
    task.cancel()
    outcomes = await asyncio.gather(first, second, waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [UnknownOutcomeError, UnknownOutcomeError, UnavailableError]


@pytest.mark.parametrize("count", [1, FEW, MANY])
async def test_without_a_stream_every_caller_hears_so(committer: Committer, bus: Bus, count: int) -> None:
    await bus.delete_stream(bus.names.events)
    waiting = [committer.submit([one]) for one in messages(bus.names, count)]
    async with committing(committer):
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, UnavailableError)
