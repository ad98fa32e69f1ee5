"""When a failed run is tried again."""

from crucible_core.hooks import Retry

MAX_DELAY_MS = 3_600_000


def next_delay_ms(retry: Retry, attempt: int) -> int | None:
    """The wait after failed attempt number `attempt` (from 1) in milliseconds; None where there is no other."""
    if attempt >= retry.max_attempts:
        return None
    factor = 2 ** (attempt - 1) if retry.backoff == "exponential" else 1
    return min(retry.delay_ms * factor, MAX_DELAY_MS)
