"""When a failed request is sent again, and after how long."""

import msgspec

from crucible_core.errors import CrucibleError, LimitedError, UnavailableError

from .errors import UnreachableError

CONNECT_RETRIES = 2
"""How often the transport itself tries to connect again."""


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
