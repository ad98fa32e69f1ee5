"""How long a broken stream is opened again before it is given up. No I/O."""

from crucible_core.errors import CrucibleError, LimitedError, UnavailableError

from .errors import UnreachableError
from .retries import retry_after

AWAY_S = 60.0
"""How long the other side may be away in the middle of something that goes on where it was."""
_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 5.0


class Patience:
    """Counts the time that the other side has been away; None as `patience_s` is no limit.

    A call that never went well fails at once; with `from_start` only where nothing listens at all.
    """

    def __init__(self, patience_s: float | None, *, from_start: bool = False) -> None:
        self._patience_s = patience_s
        self._from_start = from_start
        self._went_well = False
        self._away_since: float | None = None
        self._failures = 0

    def went_well(self) -> None:
        self._went_well = True
        self._away_since = None
        self._failures = 0

    def wait_s(self, error: CrucibleError, at_s: float) -> float:
        """Seconds until the next try; `at_s` is a monotonic time. Raises `error` when it is time to give up, or when it
        says something else than that the other side is away."""
        early = not self._went_well and (not self._from_start or isinstance(error, UnreachableError))
        if early or not isinstance(error, UnavailableError | LimitedError):
            raise error
        self._away_since = at_s if self._away_since is None else self._away_since
        if self._patience_s is not None and at_s - self._away_since > self._patience_s:
            raise error
        self._failures += 1
        wanted = retry_after(error)
        if wanted is not None and self._patience_s is not None and wanted > self._patience_s:
            raise error
        backoff: float = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** (self._failures - 1))
        return backoff if wanted is None else wanted
