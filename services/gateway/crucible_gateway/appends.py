"""Appends of one event: those that arrive in the same turn of the event loop share one request to `events`."""

import asyncio

from crucible_core.access import Principal
from crucible_core.errors import CrucibleError, from_problem
from crucible_core.protocol.events import Appended, NewEvent
from crucible_kit.events import append
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import LARGE_BYTES
from crucible_kit.telemetry.spans import Telemetry

_ENVELOPE_BYTES = 512
"""About the bytes that an event's own fields add to its payload."""


class _Request:
    """Events of one principal that go together, and the answer to them all."""

    def __init__(self) -> None:
        self.events: list[NewEvent] = []
        self.bytes = 0
        self.answer: asyncio.Task[list[Appended] | CrucibleError] | None = None


class Appends:
    """Nobody waits for what another's event needs: one that Pre hooks decide on, say, is left out of the answer, and
    asked for alone."""

    def __init__(self, bus: Bus, telemetry: Telemetry, timeout: float) -> None:
        self._bus = bus
        self._telemetry = telemetry
        self._timeout = timeout
        self._open: dict[tuple[str, bool], _Request] = {}

    async def append(self, event: NewEvent, principal: Principal, traceparent: str) -> Appended | None:
        """The outcome of an event; None where it has to be asked for alone. Raises what `events` raised, or
        UnavailableError."""
        size = len(event.payload) + _ENVELOPE_BYTES
        if size > LARGE_BYTES // 2 or self._telemetry.recording or not principal.scope.everything or _is_special(event):
            return None
        # Only those that bring a name of their own have to be looked up.
        key = principal.header, event.id is not None or event.idempotency_key is not None
        shared = self._open.get(key)
        if shared is None or shared.bytes + size > LARGE_BYTES:
            shared = self._open[key] = _Request()
            shared.answer = asyncio.create_task(self._ask(key, shared, principal, traceparent))
        index = len(shared.events)
        shared.events.append(event)
        shared.bytes += size
        assert shared.answer is not None
        answer = await asyncio.shield(shared.answer)
        if isinstance(answer, CrucibleError):
            raise from_problem(answer.problem())
        return None if answer[index].alone else answer[index]

    async def _ask(
        self, key: tuple[str, bool], shared: _Request, principal: Principal, traceparent: str
    ) -> list[Appended] | CrucibleError:
        """Begins a turn of the event loop after the first of its events has come."""
        if self._open.get(key) is shared:
            del self._open[key]
        events, apart = shared.events, len(shared.events) > 1
        try:
            return await append(
                self._bus, principal, events, apart=apart, timeout=self._timeout, traceparent=traceparent
            )
        except CrucibleError as error:
            return error.as_value()


def _is_special(event: NewEvent) -> bool:
    """True if an event may have to wait for what others need not: its cause, its entity's last event, its own past."""
    both = event.id is not None and event.idempotency_key is not None
    return both or event.causation_id is not None or event.expected_sequence is not None or event.redacted is not None
