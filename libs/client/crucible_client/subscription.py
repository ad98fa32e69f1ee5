"""Where one live stream stands: what was seen last, and when to connect again. No I/O; both clients drive it."""

from collections.abc import Sequence
from typing import Any

import msgspec

from crucible_core.envelope import Event
from crucible_core.errors import CrucibleError, LimitedError, UnavailableError

from .answers import error_from, read_as
from .calls.events import stream_events
from .request import Call, Json
from .retries import retry_after

IDLE_S = 60.0
"""A stream that is silent for so long, keep-alives included, is dead."""
_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 5.0


class Subscription:
    """Follows the sequence through a stream's frames, so that a broken one resumes with no hole and no repeat."""

    def __init__(self, types: Sequence[str], filter: Json | None, start: str | int, patience_s: float | None) -> None:
        self._asked = (tuple(types), filter, start)
        self._patience_s = patience_s
        self._last: int | None = None
        self._opened = False
        self._away_since: float | None = None
        self._failures = 0

    def call(self) -> Call[bytes]:
        """The request that starts the stream, or resumes it after the last sequence seen."""
        return stream_events(*self._asked, self._last)

    def opened(self) -> None:
        """The gateway has accepted the stream."""
        self._opened = True
        self._away_since = None
        self._failures = 0

    def take(self, name: str, data: str) -> Event | None:
        """The event in a frame, if it has one. Raises UnavailableError on a gap, which only a new request can fill."""
        frame = read_as(data.encode(), dict[str, Any]) if data.strip() else {}
        kind = name if name in ("gap", "error", "caught_up", "subscribed") else frame.get("type")
        if kind == "gap" and self._last is not None:
            raise UnavailableError(f"the stream dropped {frame.get('dropped', 'some')} events", retry_after=0.0)
        if kind == "error":
            raise error_from(frame.get("error") or frame)
        event = _event_in(frame)
        sequence = frame.get("sequence") if event is None else event.sequence
        if not isinstance(sequence, int):
            return event
        if event is not None and self._last is not None and sequence <= self._last:
            return None
        self._last = max(sequence, self._last or 0)
        return event

    def failed(self, error: CrucibleError, at_s: float) -> float:
        """Seconds until the next connection; `at_s` is a monotonic time. Raises `error` when it is time to give up.

        A stream that never opened fails at once, and so does one that is refused for another reason than being away.
        """
        if not self._opened or not isinstance(error, UnavailableError | LimitedError):
            raise error
        self._away_since = at_s if self._away_since is None else self._away_since
        if self._patience_s is not None and at_s - self._away_since > self._patience_s:
            raise error
        self._failures += 1
        wanted = retry_after(error)
        backoff: float = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** (self._failures - 1))
        return backoff if wanted is None else wanted


def _event_in(frame: dict[str, Any]) -> Event | None:
    found = frame if "metadata" in frame else frame.get("event")
    if not isinstance(found, dict):
        return None
    try:
        event = msgspec.convert(found, Event)
    except msgspec.ValidationError as error:
        raise CrucibleError(f"the stream sent an event that does not read: {error}") from error
    if event.sequence is None and isinstance(frame.get("sequence"), int):
        return msgspec.structs.replace(event, sequence=frame["sequence"])
    return event
