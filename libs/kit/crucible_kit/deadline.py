"""How long the caller of a request waits: known to all that is done on its behalf, so that nothing is done after it.

A process may be stopped at any moment, and go on half a minute later with a request whose caller has long been answered
503. So everything with an effect asks here just before it has it, and the bus once more before it writes.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from contextvars import ContextVar

import msgspec

from crucible_core.errors import UnavailableError

SILENCE_S = 3.0
"""Who works longer on a request than a second says so every second; who has said nothing for so long has gone."""
_MARGIN_S = 0.5
"""How much earlier the answerer takes it that its caller has given up: clocks and ways differ by less."""


class Caller(msgspec.Struct, eq=False):
    """Who waits for an answer. `deadline` and `heard`, the last word that it had from us, are `time.monotonic()`, as is
    when it was `signed` to last that its request is worked on."""

    deadline: float
    heard: float
    reply: str = ""
    signed: float = msgspec.field(default_factory=time.monotonic)

    @property
    def until(self) -> float:
        """The moment from which on it has given up."""
        return min(self.deadline, self.heard + SILENCE_S - _MARGIN_S)

    @property
    def gone(self) -> bool:
        # Not the event loop's time: that stands still while a callback runs, or the process is stopped in one.
        return time.monotonic() >= self.until


_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)


def caller() -> Caller | None:
    """Who waits for what the present task does; None where nobody does, and it is done in any case."""
    return _caller.get()


@contextlib.contextmanager
def on_behalf_of(who: Caller | None) -> Iterator[None]:
    token = _caller.set(who)
    try:
        yield
    finally:
        _caller.reset(token)


def serve(who: Caller) -> None:
    """All that the present task does from here on is on behalf of a caller."""
    _caller.set(who)


def check_deadline(what: str) -> None:
    """Raises UnavailableError where the caller has given up: what it was told failed must not be done after all."""
    who = _caller.get()
    if who is not None and who.gone:
        raise late_error(what)


def late_error(what: str) -> UnavailableError:
    return UnavailableError(f"{what}: its time was over before it was begun, so it was not done", retry_after=1)


def limit_timeout(timeout: float) -> float:
    """`timeout` (seconds), or what the caller still waits where that is less."""
    who = _caller.get()
    return timeout if who is None else min(timeout, who.deadline - time.monotonic())


def earliest_caller(callers: list[Caller | None]) -> Caller | None:
    """Who gives up first, for what is done on behalf of them all."""
    there = [who for who in callers if who is not None]
    return Caller(min(who.until for who in there), math.inf) if there else None
