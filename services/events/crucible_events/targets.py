"""To whom a replay goes: whether a target takes replays, and the requests that hand batches to it."""

import contextlib
from collections.abc import Sequence

import msgspec

from crucible_core.access import Principal
from crucible_core.errors import CrucibleError, FieldError, InvalidError, NotFoundError
from crucible_core.ids import is_id
from crucible_core.protocol.replays import Replayable, ReplayBatch, ReplayedEvent, ReplayTaken, ReplayTarget
from crucible_core.protocol.shared import GetRequest
from crucible_kit.bus import Bus, Message
from crucible_kit.rpc import call, call_all

from .stamping import EVENTS

PATIENCE_S = 20.0
"""How long a target may take over a batch."""
_FAREWELL_S = 2.0
_SERVICES = {"hook": "hooks", "webhook": "webhooks"}
_KINDS = (*_SERVICES, "subscription")


class Target(msgspec.Struct, frozen=True):
    """`kind` is hook, webhook or subscription; `id` the name or id under which batches are handed over."""

    kind: str
    id: str

    @property
    def endpoint(self) -> tuple[str, str]:
        """Service and operation: a subscription is served by the one gateway that has it."""
        return (_SERVICES[self.kind], "replay") if self.kind in _SERVICES else ("gateway", self.id)


async def find(bus: Bus, principal: Principal, wanted: ReplayTarget, traceparent: str) -> Target:
    """Raises NotFoundError with the nearest name, InvalidError where it takes no replay, UnavailableError."""
    given = [(kind, name) for kind in _KINDS if (name := getattr(wanted, kind)) is not None]
    if len(given) != 1:
        message = 'must be one of {"hook": name}, {"webhook": id or name} and {"subscription": id}'
        raise InvalidError(f"target: {message}", errors=[FieldError("target", message)])
    kind, name = given[0]
    if kind in _SERVICES:
        asked = GetRequest(id=name)
        found = await call(bus, principal, _SERVICES[kind], "replayable", asked, Replayable, traceparent=traceparent)
        return Target(kind, found.id)
    if not is_id("sub", name) or not await call_all(bus, principal, "gateway", "attach", GetRequest(id=name)):
        errors = [FieldError("target.subscription", "there is no such live subscription")]
        raise NotFoundError(f"there is no live subscription {name[:100]!r}", errors=errors)
    return Target(kind, name)


async def hand_on(bus: Bus, target: Target, replay: str, messages: Sequence[Message]) -> ReplayTaken:
    """Raises what the target answers, and UnavailableError where it does not."""
    events = [
        ReplayedEvent(sequence=message.sequence, time_ms=message.time_ms, event=msgspec.Raw(message.data))
        for message in messages
    ]
    batch = ReplayBatch(replay=replay, target=target.id, events=events)
    return await call(bus, EVENTS, *target.endpoint, batch, ReplayTaken, timeout=PATIENCE_S)


async def say_goodbye(bus: Bus, target: Target, replay: str, state: str, sent: int) -> None:
    """A subscriber hears how a replay ended, if it is still there."""
    if target.kind == "subscription":
        batch = ReplayBatch(replay=replay, target=target.id, end=state, sent=sent)
        with contextlib.suppress(CrucibleError):
            await call(bus, EVENTS, *target.endpoint, batch, ReplayTaken, timeout=_FAREWELL_S)
