"""Typed request and reply between services: Structs of `crucible_core.protocol` in, Structs or errors out."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec

from crucible_core import subjects
from crucible_core.errors import CrucibleError, MalformedError, Problem, UnavailableError

from .bus import Bus, Message
from .telemetry import Telemetry

log = logging.getLogger(__name__)

MAX_AT_ONCE = 512
"""Requests that one process works on at once; past that it refuses, rather than queue without bound."""

Reply = TypeVar("Reply")


class Context(msgspec.Struct, frozen=True):
    """What comes with a request: the W3C trace context of the span that handles it."""

    traceparent: str


class Endpoint(msgspec.Struct, frozen=True):
    """`handler(request, context)` gets the decoded request; it returns a Struct, or bytes that are the reply."""

    request: type[Any]
    handler: Callable[[Any, Context], Awaitable[Any]]


async def call(
    bus: Bus,
    service: str,
    operation: str,
    request: msgspec.Struct,
    reply: type[Reply],
    *,
    timeout: float = 10.0,
    traceparent: str | None = None,
) -> Reply:
    """Asks any replica of a service. Raises the error that it answered, or UnavailableError. `reply` may be `bytes`."""
    headers = {subjects.TRACEPARENT: traceparent} if traceparent else None
    data = msgspec.json.encode(request)
    answer = await bus.request(bus.names.rpc(service, operation), data, timeout=timeout, headers=headers)
    if reply is bytes:
        return answer.data  # type: ignore[return-value]
    return msgspec.json.decode(answer.data, type=reply)


@contextlib.asynccontextmanager
async def serve(bus: Bus, service: str, endpoints: Mapping[str, Endpoint], telemetry: Telemetry) -> AsyncIterator[None]:
    """Answers requests while the context is open, sharing them with the service's other replicas; drains at its end."""
    tasks: set[asyncio.Task[None]] = set()
    unsubscribes = [
        await bus.subscribe(
            bus.names.rpc(service, operation),
            _receiver(bus, f"{service}.{operation}", endpoint, telemetry, tasks),
            queue=service,
        )
        for operation, endpoint in endpoints.items()
    ]
    try:
        yield
    finally:
        for unsubscribe in unsubscribes:
            await unsubscribe()
        if tasks:
            await asyncio.wait(tasks, timeout=10)


def _receiver(
    bus: Bus, name: str, endpoint: Endpoint, telemetry: Telemetry, tasks: set[asyncio.Task[None]]
) -> Callable[[Message], Awaitable[None]]:
    decoder = msgspec.json.Decoder(endpoint.request)

    async def answer(message: Message) -> None:
        parent = message.headers.get(subjects.TRACEPARENT) if message.headers else None
        try:
            with telemetry.span(f"{name}", parent, kind="server") as span:
                request = decoder.decode(message.data)
                result = await endpoint.handler(request, Context(span.traceparent))
            reply, headers = (result if isinstance(result, bytes) else msgspec.json.encode(result)), None
        except CrucibleError as error:
            reply, headers = _refusal(error.problem())
        except msgspec.DecodeError as error:
            reply, headers = _refusal(MalformedError(f"{name}: {error}").problem())
        except Exception:
            log.exception("%s failed", name)
            reply, headers = _refusal(Problem("internal", f"{name} failed; its log says why"))
        with contextlib.suppress(CrucibleError):
            await bus.publish(message.reply, reply, headers)

    async def received(message: Message) -> None:
        if len(tasks) >= MAX_AT_ONCE:
            busy = UnavailableError(f"{name}: too many requests at once", retry_after=1)
            await bus.publish(message.reply, *_refusal(busy.problem()))
            return
        task = asyncio.create_task(answer(message))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    return received


def _refusal(problem: Problem) -> tuple[bytes, dict[str, str]]:
    return msgspec.json.encode(problem), {subjects.ERROR: problem.code}
