"""Deadlines of requests: everything that a task does on behalf of a caller knows its deadline, and stops after it.

A process may be stopped at any moment, and continue half a minute later with a request whose caller already has a 503.
So code with an effect checks the deadline just before the effect, and the bus checks it again before it writes.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from contextvars import ContextVar

import msgspec

from crucible_core.errors import UnavailableError

SILENCE_S = 3.0
"""A service reports every second that it still works on a request; after so long without a report it counts as gone."""
_MARGIN_S = 0.5
"""The answering side ends so much earlier than its caller: clocks and network delays differ by less."""


class Caller(msgspec.Struct, eq=False):
    """The caller that waits for an answer. `deadline`, `heard` (its last word from us) and `signed` (our last report
    that its request is worked on) are `time.monotonic()`."""

    deadline: float
    heard: float
    reply: str = ""
    signed: float = msgspec.field(default_factory=time.monotonic)

    @property
    def until(self) -> float:
        """The time at which it gives up."""
        return min(self.deadline, self.heard + SILENCE_S - _MARGIN_S)

    @property
    def gone(self) -> bool:
        # Not the event loop's time: that stands still while a callback runs, or the process is stopped in one.
        return time.monotonic() >= self.until


_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)


def caller() -> Caller | None:
    """The caller of the present task; None where nobody waits, and the task goes on in any case."""
    return _caller.get()


@contextlib.contextmanager
def on_behalf_of(who: Caller | None) -> Iterator[None]:
    token = _caller.set(who)
    try:
        yield
    finally:
        _caller.reset(token)


def serve(who: Caller) -> None:
    """Sets the caller of the present task."""
    _caller.set(who)


def check_deadline(what: str) -> None:
    """Raises UnavailableError where the caller has given up: its request has failed, and must not take effect now."""
    who = _caller.get()
    if who is not None and who.gone:
        raise late_error(what)


def late_error(what: str) -> UnavailableError:
    return UnavailableError(f"{what}: its time was over before it was begun, so it was not done", retry_after=1)


def limit_timeout(timeout: float) -> float:
    """Returns `timeout`, or the rest of the caller's time where that is less (seconds)."""
    who = _caller.get()
    return timeout if who is None else min(timeout, who.deadline - time.monotonic())


def earliest_caller(callers: list[Caller | None]) -> Caller | None:
    """The caller that gives up first, for work on behalf of them all."""
    waiting = [caller for caller in callers if caller is not None]
    return Caller(min(caller.until for caller in waiting), math.inf) if waiting else None
