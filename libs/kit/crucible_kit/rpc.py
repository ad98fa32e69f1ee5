"""Typed request and reply between services: Structs of `crucible_core.protocol` in, Structs or errors out."""

import asyncio
import contextlib
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import msgspec

from crucible_core import subjects
from crucible_core.access import Principal, Scope, read_principal
from crucible_core.errors import (
    CrucibleError,
    MalformedError,
    Problem,
    TooLargeError,
    UnavailableError,
    UnknownOutcomeError,
)
from crucible_kit import deadline
from crucible_kit.deadline import SILENCE_S, Caller
from crucible_kit.nats.budget import Share
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.message import Message, Receiver
from crucible_kit.tasks import finish
from crucible_kit.telemetry.spans import Telemetry

log = logging.getLogger(__name__)

MAX_AT_ONCE = 512
"""Requests that one process works on at once; it refuses more, rather than queue without bound."""
LARGE_BYTES = 32 * 1024
"""Larger requests and answers are paced: too many at once would overrun the connection."""
_OFFERED_S = 5.0
"""A large answer waits so long for its caller, who may be gone, while others wait for the budget."""
_GRACE_S = 10.0
_SIGN_EVERY_S = 1.0
_SUPERVISE_EVERY_S = 0.25
_PROBE_S = 0.5
_MOST_DIGITS = 15

Reply = TypeVar("Reply")
_Refusal = tuple[bytes, dict[str, str]]


class Context(msgspec.Struct, frozen=True):
    """The context of a request: the W3C trace context of the span that handles it, and the principal that it is on
    behalf of. `held` is closed once the answer is sent. The module `deadline` knows how long the caller waits."""

    traceparent: str
    principal: Principal
    held: contextlib.ExitStack = msgspec.field(default_factory=contextlib.ExitStack)

    @property
    def scope(self) -> Scope:
        """The part of the log that may be shown and changed."""
        return self.principal.scope


class Endpoint(msgspec.Struct, frozen=True):
    """`handler(request, context)` gets the decoded request; it returns a Struct, or bytes that are the reply.

    It is cancelled when its caller stops waiting, and not begun for a caller that has. With `every_replica` each
    replica gets the request (`call_all`). With `stores` it is refused while the storage is full.
    """

    request: type[Any]
    handler: Callable[[Any, Context], Awaitable[Any]]
    every_replica: bool = False
    stores: bool = False


async def call(
    bus: Bus,
    principal: Principal,
    service: str,
    operation: str,
    request: msgspec.Struct,
    reply: type[Reply],
    *,
    timeout: float = 10.0,
    traceparent: str | None = None,
) -> Reply:
    """Sends a request to any replica of a service, on behalf of a principal, and returns its answer. Raises the error
    in the answer, or UnavailableError; UnknownOutcomeError where the request may have taken effect. `reply` may be
    `bytes`. It waits no longer than the caller of the present task."""
    until = time.monotonic() + deadline.limit_timeout(timeout)
    data = msgspec.json.encode(request)
    share = await _take_outflow(bus, service, len(data), until) if len(data) > LARGE_BYTES else None
    timeout = until - time.monotonic()
    headers = {
        subjects.DEADLINE: str(math.ceil(timeout * 1000)),
        subjects.SENT: str(int(bus.now_ms())),
        subjects.PACED: "1",
        subjects.PRINCIPAL: principal.header,
    }
    if traceparent:
        headers[subjects.TRACEPARENT] = traceparent
    try:
        answer = await bus.request(
            bus.names.rpc(service, operation),
            data,
            timeout=timeout,
            silence=SILENCE_S,
            headers=headers,
            effect=True,
            arrived=share.release if share else None,
            doubt=partial(_wait_for_no_replica, bus, service, operation),
        )
    finally:
        if share is not None:
            share.release()
    if reply is bytes:
        return answer.data  # type: ignore[return-value]
    try:
        return msgspec.json.decode(answer.data, type=reply)
    except msgspec.DecodeError as error:
        raise UnavailableError(f"{service}.{operation} answered what cannot be read: another version?") from error


async def _take_outflow(bus: Bus, service: str, size: int, until: float) -> Share:
    """Takes a share of the budget of bytes on their way to a service. Raises UnavailableError."""
    try:
        async with asyncio.timeout(until - time.monotonic()):
            return await bus.flow.outflow(service).take(size)
    except TimeoutError:
        raise UnavailableError(f"{service} has too much to do: the request was not sent", retry_after=1) from None


async def call_all(
    bus: Bus,
    principal: Principal,
    service: str,
    operation: str,
    request: msgspec.Struct,
    *,
    patience: float = 1.0,
    quiet: float = 0.05,
) -> int:
    """Sends a request to every replica, and returns the number of answers. Waits `patience` seconds for the first
    message, for each replica that has announced itself as long as it works on the request, and `quiet` seconds for
    others, since their number is not known."""
    answered = 0
    working: set[str] = set()
    async with bus.inbox() as (reply, arrived):
        headers = {subjects.PRINCIPAL: principal.header}
        await bus.publish(bus.names.rpc(service, operation), msgspec.json.encode(request), headers, reply)
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(SILENCE_S if working else quiet if answered else patience):
                    answer = await arrived.get()
                if answer.status is not None:
                    break
                replica = answer.headers.get(subjects.REPLICA, "")
                if subjects.RECEIVED in answer.headers:
                    continue
                if subjects.WORKING not in answer.headers:
                    working.discard(replica)
                    answered += subjects.ERROR not in answer.headers
                elif replica:
                    working.add(replica)
    return answered


@contextlib.asynccontextmanager
async def serve(bus: Bus, service: str, endpoints: Mapping[str, Endpoint], telemetry: Telemetry) -> AsyncIterator[None]:
    """Answers requests while the context is open, sharing them with the service's other replicas; drains at its end."""
    tasks: dict[asyncio.Task[None], Caller] = {}
    awake = asyncio.Event()
    replica = secrets.token_hex(8)
    async with contextlib.AsyncExitStack() as stack:
        supervision = asyncio.create_task(_supervise(bus, tasks, awake))
        stack.callback(supervision.cancel)
        for operation in endpoints:
            stack.push_async_callback(await bus.listen(bus.names.rpc_alive(service, operation), _ignore, service))
        stack.push_async_callback(finish, tasks, _GRACE_S)
        for operation, endpoint in endpoints.items():
            received = _receiver(bus, f"{service}.{operation}", endpoint, telemetry, tasks, awake, replica)
            queue = "" if endpoint.every_replica else service
            stack.push_async_callback(await bus.listen(bus.names.rpc(service, operation), received, queue))
        yield


def _receiver(
    bus: Bus,
    name: str,
    endpoint: Endpoint,
    telemetry: Telemetry,
    tasks: dict[asyncio.Task[None], Caller],
    awake: asyncio.Event,
    replica: str,
) -> Receiver:
    decoder = msgspec.json.Decoder(endpoint.request)
    about = {"rpc.system": "nats", "rpc.service": name.partition(".")[0], "rpc.method": name.partition(".")[2]}
    # A caller of all replicas waits for those that it knows: each announces itself at once, by its name.
    named = {subjects.REPLICA: replica} if endpoint.every_replica else {}

    async def handle(message: Message, held: contextlib.ExitStack) -> bytes:
        parent = message.headers.get(subjects.TRACEPARENT)
        with telemetry.span(name, parent, "server", about) as span:
            principal = read_principal(message.headers.get(subjects.PRINCIPAL, ""))
            request = decoder.decode(message.data)
            if endpoint.stores:
                bus.storage.check()
            result = await endpoint.handler(request, Context(span.traceparent, principal, held))
        return result if isinstance(result, bytes) else msgspec.json.encode(result)

    async def answer(message: Message, caller: Caller) -> None:
        deadline.serve(caller)
        headers: dict[str, str] = {}
        with contextlib.ExitStack() as held:
            if len(message.data) > LARGE_BYTES:
                held.callback(asyncio.create_task(_acknowledge_arrival(bus, message)).cancel)
            if named:
                await _reply(bus, message, b"", {subjects.WORKING: "1", **named})
            try:
                deadline.check_deadline(name)
                reply = await handle(message, held)
            except CrucibleError as error:
                reply, headers = _refusal(error.as_value().problem())
            except msgspec.DecodeError as error:
                reply, headers = _refusal(MalformedError(f"{name}: {error}").problem())
            except Exception:
                log.exception("%s failed", name)
                reply, headers = _refusal(Problem("internal", f"{name} failed; its log says why"))
            await _reply(bus, message, reply, {**headers, **named})

    def received(message: Message) -> None:
        caller = _caller(message, bus.now_ms())
        if caller.gone:
            log.warning("%s: a request came after its time, and is not done", name)
            bus.clock_doubted.set()
        if len(tasks) < MAX_AT_ONCE:
            answering = answer(message, caller)
        else:
            busy = UnavailableError(f"{name}: too many requests at once", retry_after=1)
            answering = _reply(bus, message, *_refusal(busy.problem()))
        task = asyncio.create_task(answering)
        tasks[task] = caller
        awake.set()
        task.add_done_callback(tasks.pop)

    return received


async def _wait_for_no_replica(bus: Bus, service: str, operation: str) -> CrucibleError:
    """Waits until no replica is left that could answer: NATS says so at once where nobody listens. A replica that
    drains takes no more requests, but still listens."""
    with contextlib.suppress(CrucibleError):  # the request itself hears when the connection breaks
        async with bus.inbox() as (reply, nobody):
            silent = True
            while silent:
                await bus.ask(bus.names.rpc_alive(service, operation), b"", reply)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_PROBE_S):
                        await nobody.get()
                    silent = False
    return UnknownOutcomeError(f"{service} went away during {operation}", retry_after=1)


def _ignore(message: Message) -> None:
    """The caller only checks that somebody listens."""


async def _supervise(bus: Bus, tasks: Mapping[asyncio.Task[None], Caller], awake: asyncio.Event) -> None:
    """Cancels requests whose caller has given up, and reports to the other callers that the work goes on."""
    while True:
        if not tasks:
            awake.clear()
            await awake.wait()
        await asyncio.sleep(_SUPERVISE_EVERY_S)
        for task, caller in list(tasks.items()):
            if caller.gone:
                task.cancel()
            elif caller.reply and time.monotonic() - caller.signed > _SIGN_EVERY_S:
                with contextlib.suppress(CrucibleError):
                    await bus.publish(caller.reply, b"", {subjects.WORKING: "1"})
                    caller.heard = caller.signed = time.monotonic()


async def _acknowledge_arrival(bus: Bus, message: Message) -> None:
    """Confirms the arrival of a large request once the budget allows another one, and holds its share until
    cancelled."""
    with await bus.flow.requests.take(len(message.data)):
        with contextlib.suppress(CrucibleError):
            await bus.publish(message.reply, b"", {subjects.RECEIVED: "1"})
        await asyncio.Event().wait()


async def _reply(bus: Bus, message: Message, data: bytes, headers: dict[str, str] | None) -> None:
    """Sends an answer, unless nobody listens: the request has no reply subject, or the connection broke."""
    if not message.reply:
        return
    with contextlib.suppress(CrucibleError):
        try:
            if len(data) > LARGE_BYTES and subjects.PACED in message.headers:
                await _offer(bus, message.reply, data, headers)
            else:
                await bus.publish(message.reply, data, headers)
        except TooLargeError as error:
            await bus.publish(message.reply, *_refusal(error.problem()))


async def _offer(bus: Bus, reply: str, data: bytes, headers: dict[str, str] | None) -> None:
    """Offers a large answer, and sends it once its caller asks for it."""
    if len(data) > bus.max_payload:
        raise TooLargeError(f"an answer of {len(data)} bytes, at most {bus.max_payload}")
    async with bus.inbox() as (here, requests):
        await bus.publish(reply, b"", {subjects.SIZE: str(len(data))}, here)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_OFFERED_S):
                wish = await requests.get()
                await bus.publish(wish.reply, data, headers)


def _caller(message: Message, now_ms: float) -> Caller:
    """The caller of a request, by its headers; without them its deadline is unknown, and the request is done in any
    case."""
    left_ms, sent_ms = _number(message, subjects.DEADLINE), _number(message, subjects.SENT)
    if left_ms is None:
        return Caller(math.inf, math.inf, message.reply)
    age_s = 0.0 if sent_ms is None else max(0.0, (now_ms - sent_ms) / 1000)
    sent = time.monotonic() - age_s
    return Caller(sent + left_ms / 1000, sent, message.reply)


def _number(message: Message, header: str) -> int | None:
    text = message.headers.get(header, "")
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None


def _refusal(problem: Problem) -> _Refusal:
    return msgspec.json.encode(problem), {subjects.ERROR: problem.code}
