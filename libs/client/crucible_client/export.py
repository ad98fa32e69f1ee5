"""The state of one export: its lines put together, and the sequence after which it goes on when it breaks. No I/O."""

from collections.abc import Iterator, Sequence

import msgspec

from crucible_client.calls.events import Wanted, export_events
from crucible_client.request import Call
from crucible_client.response import read_as
from crucible_client.retries import Backoff
from crucible_core.errors import CrucibleError, UnavailableError
from crucible_core.limits import SDK_AWAY_S


class _Placed(msgspec.Struct):
    sequence: int


class Export:
    """Follows the sequence through an export's lines, so that a broken one goes on with no hole and no repeat."""

    def __init__(self, types: Sequence[str], wanted: Wanted) -> None:
        self._types = tuple(types)
        self._wanted = wanted
        self._backoff = Backoff(SDK_AWAY_S, from_start=True)
        self._begun = b""
        self._last: int | None = None
        self.complete = False

    def call(self) -> Call[bytes]:
        """The request for what has not come yet."""
        self._begun = b""
        wanted: Wanted = self._wanted if self._last is None else {**self._wanted, "after": self._last}
        return export_events(self._types, wanted)

    def take(self, chunk: bytes) -> Iterator[bytes]:
        """The events that a chunk of the body completes, one a line, without its end."""
        *lines, self._begun = (self._begun + chunk).split(b"\n")
        for line in map(bytes.strip, lines):
            if not line:
                self.complete = True
                return
            self._last = read_as(line, _Placed).sequence
            self._backoff.succeeded()
            yield line

    def ended(self) -> None:
        """The body is over. Raises UnavailableError where that was too early."""
        if not self.complete:
            raise UnavailableError("the export was cut off")

    def failed(self, error: CrucibleError, at_s: float) -> float:
        """Seconds until the next request; `at_s` is a monotonic time. Raises `error` when it is time to give up."""
        return self._backoff.wait_s(error, at_s)
