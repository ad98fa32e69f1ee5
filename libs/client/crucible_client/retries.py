"""Policies for sending a failed request again, and for reconnecting: when, and after how long."""

import msgspec

from crucible_client.errors import UnreachableError
from crucible_core.errors import CrucibleError, LimitedError, UnavailableError


class Retries(msgspec.Struct, frozen=True):
    """`attempts` counts the first one; waits are in seconds. A Retry-After over `longest_wait_s` ends the attempts."""

    attempts: int = 4
    first_wait_s: float = 0.25
    longest_wait_s: float = 15.0


def wait_s(policy: Retries, attempt: int, error: CrucibleError, *, repeatable: bool, jitter: float) -> float | None:
    """Seconds until the next attempt after the failed number `attempt` (from 1), or None to give up.

    `repeatable` says that the request may safely arrive twice; `jitter` is in [0, 1).
    """
    if attempt >= policy.attempts or not _worth(error, repeatable):
        return None
    backoff = min(policy.longest_wait_s, policy.first_wait_s * 2.0 ** (attempt - 1)) * (0.5 + jitter / 2)
    wanted = retry_after(error)
    if wanted is None:
        return backoff
    return None if wanted > policy.longest_wait_s else wanted + backoff / 4


def retry_after(error: CrucibleError) -> float | None:
    """Seconds that the gateway asked to wait."""
    found = error.extra.get("retry_after")
    return max(0.0, float(found)) if isinstance(found, int | float) else None


def _worth(error: CrucibleError, repeatable: bool) -> bool:
    if isinstance(error, UnreachableError):
        return repeatable and error.sent  # the transport has tried to connect again already
    return isinstance(error, LimitedError) or (isinstance(error, UnavailableError) and repeatable)


_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 5.0


class Backoff:
    """Counts the time that the other side has been away; None as `patience_s` is no limit.

    A call that never went well fails at once; with `from_start` only where nothing listens at all.
    """

    def __init__(self, patience_s: float | None, *, from_start: bool = False) -> None:
        self._patience_s = patience_s
        self._from_start = from_start
        self._went_well = False
        self._away_since: float | None = None
        self._failures = 0

    def succeeded(self) -> None:
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
