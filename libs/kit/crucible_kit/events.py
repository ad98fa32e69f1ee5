"""Requests of the other services to `events`: they append through here."""

from collections.abc import Sequence

from crucible_core.access import Principal
from crucible_core.errors import from_problem
from crucible_core.protocol.events import Appended, AppendReply, AppendRequest, NewEvent
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import call


async def append(
    bus: Bus,
    principal: Principal,
    events: Sequence[NewEvent],
    *,
    atomic: bool = False,
    apart: bool = False,
    timeout: float = 10.0,
    traceparent: str | None = None,
) -> list[Appended]:
    """Appends events on behalf of a principal; see `AppendRequest`. Returns the outcome of each, in order: one that is
    refused has its `error`. Raises as `call` does."""
    request = AppendRequest(events=list(events), atomic=atomic, apart=apart)
    reply = await call(
        bus, principal, "events", "append", request, AppendReply, timeout=timeout, traceparent=traceparent
    )
    return reply.results


async def append_one(
    bus: Bus, principal: Principal, event: NewEvent, *, timeout: float = 10.0, traceparent: str | None = None
) -> Appended:
    """Appends one event. Raises the error that refuses it."""
    [appended] = await append(bus, principal, [event], timeout=timeout, traceparent=traceparent)
    if appended.error is not None:
        raise from_problem(appended.error)
    return appended
