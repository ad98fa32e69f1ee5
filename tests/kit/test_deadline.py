"""Whoever was told that it failed does not find it done: what comes, or goes on, after its caller has given up."""

import asyncio
import time
from typing import Any

import msgspec
import pytest

from crucible_core import subjects
from crucible_core.access import OPERATOR
from crucible_core.errors import UnavailableError, UnknownOutcomeError
from crucible_kit import deadline, rpc
from crucible_kit.deadline import Caller
from crucible_kit.nats.bus import Bus, open_bus
from crucible_kit.nats.frames import Outgoing
from crucible_kit.rpc import Context, call, serve
from crucible_kit.telemetry.spans import Telemetry
from tests.kit.outage import private_server, until
from tests.kit.test_rpc import Answer, Ask, ask, serving

HOUR_MS = 3_600_000


WHO = {subjects.PRINCIPAL: OPERATOR.header}


def pause(seconds: float) -> None:
    """The event loop stands still, as when the process is stopped."""
    time.sleep(seconds)


def sent(bus: Bus, ago_ms: float, timeout_ms: int = 15_000) -> dict[str, str]:
    return WHO | {subjects.DEADLINE: str(timeout_ms), subjects.SENT: str(int(bus.now_ms() - ago_ms))}


async def answer_to(bus: Bus, headers: dict[str, str]) -> Any:
    return await bus.request(bus.names.rpc("svc", "op"), msgspec.json.encode(Ask("x")), headers=headers)


@pytest.fixture
async def stored(bus: Bus) -> Any:
    """Stores on `kept`; how many messages that stream has."""
    await bus.ensure_stream(f"{bus.names.prefix}_KEPT", subjects=[f"{bus.names.prefix}.kept"])

    async def count() -> int:
        return await bus.last_sequence(f"{bus.names.prefix}_KEPT")

    return count


def kept(bus: Bus) -> Outgoing:
    return Outgoing(f"{bus.names.prefix}.kept", b"x")


@pytest.mark.parametrize("ago_ms", [3_000, 16_000, HOUR_MS])
async def test_a_request_that_comes_after_its_caller_has_given_up_is_not_done(bus: Bus, ago_ms: int) -> None:
    """Nobody waits for longer than three seconds without a word, whatever time there was in all."""
    done: list[str] = []

    async def do(request: Ask, context: Context) -> Answer:
        done.append(request.text)
        return Answer("")

    async with serving(bus, do):
        with pytest.raises(UnavailableError, match="not done") as caught:
            await answer_to(bus, sent(bus, ago_ms))
        assert not isinstance(caught.value, UnknownOutcomeError)
        assert done == []
        await answer_to(bus, sent(bus, 1_000))
        await answer_to(bus, sent(bus, -HOUR_MS))  # of a clock that is ahead
        await answer_to(bus, WHO | {subjects.DEADLINE: "15000"})  # who does not say when it was sent
        for odd in ("", "x", "²", "9" * 400, "-1"):
            await answer_to(bus, WHO | {subjects.DEADLINE: odd, subjects.SENT: odd})
    assert len(done) == 8


@pytest.mark.parametrize("paused_s", [0.25, 2.6])
async def test_what_a_stopped_process_goes_on_with_is_not_stored(bus: Bus, stored: Any, paused_s: float) -> None:
    """In the middle of its work: a loop that stands still is what a process knows of having been stopped."""

    async def do(request: Ask, context: Context) -> Answer:
        pause(paused_s)
        await bus.store(kept(bus))
        return Answer("")

    async with serving(bus, do):
        headers = sent(bus, 0, 200 if paused_s < 1 else 15_000)
        with pytest.raises(UnavailableError, match="not done"):
            await answer_to(bus, headers)
    assert await stored() == 0


async def test_what_waits_to_be_written_when_a_process_is_stopped_is_not_written(bus: Bus, stored: Any) -> None:
    storing = asyncio.get_running_loop().create_task
    with deadline.on_behalf_of(Caller(time.monotonic() + 0.2, time.monotonic())):
        one = storing(bus.store(kept(bus)))
        batch = storing(bus.commit([kept(bus), kept(bus)]))
        purge = storing(bus.purge(f"{bus.names.prefix}_KEPT", ">"))
    free = storing(bus.store(kept(bus)))
    asyncio.get_running_loop().call_soon(pause, 0.3)  # after they have asked, before anything is written
    for task in (one, batch, purge):
        with pytest.raises(UnavailableError, match="not done"):
            await task
    assert (await free).sequence == 1
    assert await stored() == 1


async def test_a_question_on_behalf_of_another_waits_no_longer_than_that(bus: Bus) -> None:
    left: list[float] = []

    async def inner(request: Ask, context: Context) -> Answer:
        left.append(deadline.limit_timeout(60))
        return Answer("")

    async def outer(request: Ask, context: Context) -> Answer:
        await call(bus, OPERATOR, "svc", "inner", Ask("x"), Answer, timeout=30)
        pause(0.6)
        await call(bus, OPERATOR, "svc", "inner", Ask("x"), Answer, timeout=30)
        return Answer("")

    both = {"op": rpc.Endpoint(Ask, outer), "inner": rpc.Endpoint(Ask, inner)}
    async with serve(bus, "svc", both, Telemetry()):
        with pytest.raises(UnavailableError, match="not done"):
            await answer_to(bus, sent(bus, 0, 500))
    [first] = left
    assert 0 < first <= 0.5


async def test_work_that_nobody_waits_for_any_more_ends(bus: Bus) -> None:
    """Where a process was stopped and its caller has gone, not only writing ends but the work as well."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def endless(request: Ask, context: Context) -> Answer:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return Answer("")

    async with serving(bus, endless):
        asking = asyncio.create_task(answer_to(bus, sent(bus, 0)))
        await begun.wait()
        pause(deadline.SILENCE_S)
        async with asyncio.timeout(3):
            await ended.wait()
        asking.cancel()


async def test_work_that_says_it_goes_on_is_waited_for(bus: Bus, stored: Any) -> None:
    async def slow(request: Ask, context: Context) -> Answer:
        await asyncio.sleep(deadline.SILENCE_S + 0.5)
        await bus.store(kept(bus))
        return Answer("done")

    async with serving(bus, slow):
        assert await ask(bus, timeout=10) == Answer("done")
    assert await stored() == 1


async def test_an_answer_that_does_not_come_leaves_it_open_and_one_that_does_not(bus: Bus) -> None:
    with pytest.raises(UnavailableError) as nobody:
        await ask(bus)
    assert not isinstance(nobody.value, UnknownOutcomeError)
    subjects = (bus.names.rpc("svc", "op"), bus.names.rpc_alive("svc", "op"))
    leave = [await bus.listen(subject, lambda message: None) for subject in subjects]
    with pytest.raises(UnknownOutcomeError):
        await ask(bus, timeout=0.2)
    for each in leave:
        await each()


async def test_what_a_server_may_have_stored_is_open_and_what_was_not_sent_is_not(tmp_path: Any, names: Any) -> None:
    async with private_server(tmp_path) as server, open_bus(server.url, names) as bus:
        await bus.ensure_stream(f"{names.prefix}_KEPT", subjects=[f"{names.prefix}.kept"])
        server.stop()
        for storing in (bus.store(kept(bus), timeout=0.3), bus.commit([kept(bus)] * 2, timeout=0.3)):
            with pytest.raises(UnknownOutcomeError):
                await storing
        with pytest.raises(UnavailableError) as looking:
            await bus.request("$JS.API.INFO", timeout=0.2)
        assert not isinstance(looking.value, UnknownOutcomeError)
        await server.kill()
        await until(lambda: not bus.connected)
        with pytest.raises(UnavailableError) as away:
            await bus.store(kept(bus))
        assert not isinstance(away.value, UnknownOutcomeError)


async def test_the_clock_is_the_servers(bus: Bus) -> None:
    await bus.ensure_stream(bus.names.events, subjects=[bus.names.all_events])
    bus._clock_ms -= HOUR_MS  # as on a machine whose clock is wrong
    assert time.time() * 1000 - bus.now_ms() > HOUR_MS - 1_000
    await bus.set_clock()
    assert abs(time.time() * 1000 - bus.now_ms()) < 1_000
