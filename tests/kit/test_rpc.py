"""Requests between services: Structs and errors across the wire."""

import asyncio
import contextlib
import gc
import warnings
from typing import Any

import msgspec
import pytest

from crucible_core import subjects
from crucible_core.access import OPERATOR, Grant, Principal
from crucible_core.errors import (
    CrucibleError,
    DeniedError,
    FieldError,
    ForbiddenError,
    InvalidError,
    LimitedError,
    MalformedError,
    NotFoundError,
    TooLargeError,
    UnavailableError,
)
from crucible_kit import deadline, rpc
from crucible_kit.nats.bus import Bus, Message, open_bus
from crucible_kit.nats.replies import PendingReply
from crucible_kit.rpc import Context, Endpoint, call, serve
from crucible_kit.telemetry.spans import Telemetry
from tests.kit.outage import until

WHO = {subjects.PRINCIPAL: OPERATOR.header}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Ask(msgspec.Struct):
    text: str


class Answer(msgspec.Struct):
    text: str


def serving(bus: Bus, handler: Any, operation: str = "op") -> contextlib.AbstractAsyncContextManager[None]:
    return serve(bus, "svc", {operation: Endpoint(Ask, handler)}, Telemetry())


async def ask(bus: Bus, text: str = "x", **options: Any) -> Answer:
    return await call(bus, OPERATOR, "svc", "op", Ask(text), Answer, **options)


async def test_request_and_reply_are_structs_and_the_trace_goes_on(bus: Bus) -> None:
    contexts: list[Context] = []
    waits: list[float] = []

    async def echo(request: Ask, context: Context) -> Answer:
        contexts.append(context)
        waits.append(deadline.limit_timeout(60))
        return Answer(request.text.upper())

    async with serving(bus, echo):
        assert await ask(bus, "häh", traceparent=TRACE, timeout=7) == Answer("HÄH")
    [context] = contexts
    assert context.traceparent.split("-")[1] == TRACE.split("-")[1]
    assert 6 < waits[0] <= 7


async def test_bytes_are_the_reply_as_they_are(bus: Bus) -> None:
    async def raw(request: Ask, context: Context) -> bytes:
        return b"\x00raw"

    async with serving(bus, raw):
        assert await call(bus, OPERATOR, "svc", "op", Ask(""), bytes) == b"\x00raw"
        with pytest.raises(UnavailableError, match="cannot be read"):
            await ask(bus)


@pytest.mark.parametrize(
    "error",
    [
        InvalidError("wrong", errors=[FieldError("payload.tags.0", "not text", "text")]),
        DeniedError("no", hook="guard", reason="because"),
        LimitedError("slow down", retry_after=3),
        NotFoundError("nothing"),
        CrucibleError("broken"),
        UnavailableError("away", retry_after=2),
    ],
)
async def test_errors_cross_the_wire_whole(bus: Bus, error: CrucibleError) -> None:
    async def refuse(request: Ask, context: Context) -> Answer:
        raise error

    async with serving(bus, refuse):
        with pytest.raises(type(error)) as caught:
            await ask(bus)
    assert type(caught.value) is type(error)
    assert caught.value.problem() == error.problem()


async def test_a_failure_is_logged_there_and_says_little_here(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(request: Ask, context: Context) -> Answer:
        raise KeyError("secret detail")

    async with serving(bus, fail):
        with pytest.raises(CrucibleError) as caught:
            await ask(bus)
    assert caught.value.code == "internal"
    assert "secret" not in caught.value.detail
    assert "secret detail" in caplog.text


@pytest.mark.parametrize("data", [b"", b"{", b'{"text": 1}', b"\xff", b"[]"])
async def test_a_request_that_cannot_be_decoded_is_malformed(bus: Bus, data: bytes) -> None:
    async def echo(request: Ask, context: Context) -> Answer:
        return Answer(request.text)

    async with serving(bus, echo):
        with pytest.raises(MalformedError):
            await bus.request(bus.names.rpc("svc", "op"), data, headers=WHO)


async def test_a_request_says_who_asks_and_is_refused_where_it_does_not(bus: Bus) -> None:
    asked: list[Principal] = []

    async def echo(request: Ask, context: Context) -> Answer:
        asked.append(context.principal)
        return Answer(request.text)

    somebody = Principal("agent:zoë", [Grant(worlds=("acme",), where={"n": 1})])
    async with serving(bus, echo):
        await call(bus, somebody, "svc", "op", Ask("x"), Answer)
        assert await rpc.call_all(bus, somebody, "svc", "op", Ask("x")) == 1
        for headers in ({}, {subjects.PRINCIPAL: "zoë"}, {subjects.PRINCIPAL: "{}"}):
            with pytest.raises(ForbiddenError):
                await bus.request(bus.names.rpc("svc", "op"), b'{"text": "x"}', headers=headers)
    assert asked == [somebody, somebody]


async def test_nobody_there_is_unavailable_at_once(bus: Bus) -> None:
    with pytest.raises(UnavailableError):
        async with asyncio.timeout(1):
            await ask(bus, timeout=60)


async def test_a_handler_is_cancelled_when_its_caller_has_stopped_waiting(bus: Bus) -> None:
    ended = asyncio.Event()

    async def endless(request: Ask, context: Context) -> Answer:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return Answer("")

    async with serving(bus, endless):
        with pytest.raises(UnavailableError, match="within"):
            await ask(bus, timeout=0.2)
        async with asyncio.timeout(2):
            await ended.wait()


async def test_a_request_without_a_reply_subject_is_handled_in_silence(bus: Bus) -> None:
    seen: list[str] = []

    async def note(request: Ask, context: Context) -> Answer:
        seen.append(request.text)
        return Answer("")

    async with serving(bus, note):
        await bus.publish(bus.names.rpc("svc", "op"), msgspec.json.encode(Ask("quiet")), WHO)
        assert await ask(bus, "loud") == Answer("")
    assert seen == ["quiet", "loud"]


async def test_a_reply_that_is_too_large_is_refused(bus: Bus) -> None:
    async def large(request: Ask, context: Context) -> bytes:
        return bytes(bus.max_payload + 1)

    async with serving(bus, large):
        with pytest.raises(TooLargeError):
            await ask(bus)
        with pytest.raises(TooLargeError):
            await ask(bus, "x" * (bus.max_payload + 1))


async def test_an_error_that_cannot_be_read_is_unavailable(bus: Bus) -> None:
    async def odd(message: Message) -> None:
        await bus.publish(message.reply, message.data, {subjects.ERROR: "odd"})

    answers: list[asyncio.Task[None]] = []
    await bus.listen(bus.names.rpc("svc", "op"), lambda message: answers.append(asyncio.create_task(odd(message))))
    with pytest.raises(UnavailableError, match="cannot be read"):
        await ask(bus)
    with pytest.raises(UnavailableError, match="cannot be read"):
        await bus.request(bus.names.rpc("svc", "op"), b'{"code": "denied", "detail": "x", "extra": {"detail": "y"}}')


async def test_what_is_too_much_at_once_is_refused_at_once(bus: Bus) -> None:
    gate = asyncio.Event()
    begun: list[str] = []

    async def wait(request: Ask, context: Context) -> Answer:
        begun.append(request.text)
        await gate.wait()
        return Answer("")

    async with serving(bus, wait):
        waiting = [asyncio.create_task(ask(bus)) for _ in range(rpc.MAX_AT_ONCE)]
        await until(lambda: len(begun) == rpc.MAX_AT_ONCE)
        with pytest.raises(UnavailableError, match="too many"):
            await ask(bus)
        gate.set()
        assert await asyncio.gather(*waiting) == [Answer("")] * rpc.MAX_AT_ONCE


async def test_replicas_share_and_one_can_go_without_losing_a_request(bus: Bus, nats_url: str) -> None:
    counts = [0, 0]

    def replica(n: int) -> Any:
        async def handle(request: Ask, context: Context) -> Answer:
            counts[n] += 1
            await asyncio.sleep(0.01)
            return Answer(request.text)

        return handle

    async with open_bus(nats_url, bus.names) as other, serving(other, replica(1)):
        async with serving(bus, replica(0)):
            asking = [asyncio.create_task(ask(bus, str(n))) for n in range(200)]
            await until(lambda: min(counts) > 5)
        more = [asyncio.create_task(ask(bus, str(n))) for n in range(200, 300)]
        answers = await asyncio.gather(*asking, *more)
    assert [answer.text for answer in answers] == [str(n) for n in range(300)]


async def test_who_works_for_long_says_so(bus: Bus) -> None:
    async def slow(request: Ask, context: Context) -> Answer:
        await asyncio.sleep(rpc.SILENCE_S + 1)
        return Answer("late")

    async with serving(bus, slow):
        assert await ask(bus, timeout=10) == Answer("late")


async def test_who_was_killed_is_not_waited_for(bus: Bus) -> None:
    """The request was taken, and whoever took it says nothing more; another replica is there."""
    taken: list[object] = []
    subjects = (bus.names.rpc("svc", "op"), bus.names.rpc_alive("svc", "op"))
    leaving = [await bus.listen(subject, taken.append) for subject in subjects]
    began = asyncio.get_running_loop().time()
    with pytest.raises(UnavailableError) as caught:
        await ask(bus, timeout=15)
    assert rpc.SILENCE_S <= asyncio.get_running_loop().time() - began < rpc.SILENCE_S + 2
    assert caught.value.extra["retry_after"] == 1
    for leave in leaving:
        await leave()


async def test_a_service_of_which_nobody_is_left_is_not_waited_for(bus: Bus, nats_url: str) -> None:
    gone = asyncio.Event()

    async def stuck(request: Ask, context: Context) -> Answer:
        gone.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with contextlib.AsyncExitStack() as stack:
        other = await stack.enter_async_context(open_bus(nats_url, bus.names))
        await stack.enter_async_context(serving(other, stuck))
        asking = asyncio.create_task(ask(bus, timeout=15))
        await gone.wait()
        await other._client.close()  # as a process ends that is killed
        began = asyncio.get_running_loop().time()
        with pytest.raises(UnavailableError, match="went away"):
            await asking
        assert asyncio.get_running_loop().time() - began < rpc.SILENCE_S - 1


async def test_an_answer_that_comes_as_the_doubt_begins_leaves_nothing_behind() -> None:
    async def gone() -> CrucibleError:
        raise AssertionError

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        waiting = PendingReply("svc", 5, doubt=gone)
        # Both moments come in one turn of the loop: the doubt is there, and has not taken a step.
        waiting.look(waiting.until - 1)
        waiting.received(Message("reply", b"answer"))
        waiting.close()
        answer = await waiting.answered
        await asyncio.sleep(0)
        gc.collect()
    assert not caught
    assert isinstance(answer, Message)


async def test_requests_are_finished_by_a_service_that_ends(bus: Bus, nats_url: str) -> None:
    """It takes no more of them, and still counts as there."""
    begun = asyncio.Event()

    async def slow(request: Ask, context: Context) -> Answer:
        begun.set()
        await asyncio.sleep(2)
        return Answer("done")

    async with open_bus(nats_url, bus.names) as other:
        async with serving(other, slow):
            asking = asyncio.create_task(ask(bus, timeout=15))
            await begun.wait()
        assert await asking == Answer("done")


async def test_all_are_waited_for_that_have_been_heard_of(bus: Bus, nats_url: str) -> None:
    """Who answers at once does not speak for who works on it, longer than until he says so again."""
    done: list[str] = []

    def working(seconds: float) -> Endpoint:
        async def handle(request: Ask, context: Context) -> Answer:
            await asyncio.sleep(seconds)
            done.append(request.text)
            return Answer("")

        return Endpoint(Ask, handle, every_replica=True)

    async with (
        open_bus(nats_url, bus.names) as other,
        serve(bus, "svc", {"op": working(0)}, Telemetry()),
        serve(other, "svc", {"op": working(2.5)}, Telemetry()),
    ):
        assert await rpc.call_all(bus, OPERATOR, "svc", "op", Ask("x")) == 2
        assert len(done) == 2


async def test_a_replica_that_dies_at_work_is_not_waited_for_by_who_asks_all(bus: Bus, nats_url: str) -> None:
    async def handle(request: Ask, context: Context) -> Answer:
        await other._client.close()  # as a process ends that is killed
        return Answer("")

    async with open_bus(nats_url, bus.names) as other:
        await other._client.flush()
        stack = contextlib.AsyncExitStack()
        await stack.enter_async_context(serve(other, "svc", {"op": Endpoint(Ask, handle, True)}, Telemetry()))
        began = asyncio.get_running_loop().time()
        assert await rpc.call_all(bus, OPERATOR, "svc", "op", Ask("x")) == 0
        assert asyncio.get_running_loop().time() - began < rpc.SILENCE_S + 1
        await stack.aclose()
