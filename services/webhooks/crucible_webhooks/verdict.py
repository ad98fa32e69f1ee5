"""What an attempt's outcome means: delivered, try again and when, give up, or stop the webhook. Pure."""

from collections.abc import Sequence
from typing import Literal

import msgspec

_RETRIED = frozenset({408, 425, 429})
GONE = 410
_NOT_SENT = "the event was redacted before it was sent"


class Response(msgspec.Struct, frozen=True):
    """An endpoint's answer, or `error` where there was none. `body` is its beginning; `retry_after_s` its own
    wish, at most a day."""

    status: int | None = None
    body: str = ""
    error: str | None = None
    retry_after_s: float | None = None


class Verdict(msgspec.Struct, frozen=True):
    """`outcome` is delivered, retrying, failed (for good, by its answer), exhausted (no attempt is left), dry (there
    was none to make) or skipped (its event was redacted, or is out of its owner's sight)."""

    outcome: Literal["delivered", "retrying", "failed", "exhausted", "dry", "skipped"]
    delay_s: float = 0.0
    reason: str | None = None


SKIPPED = Verdict("skipped", reason=_NOT_SENT)
HIDDEN = Verdict("skipped", reason="the webhook's owner may not see the event any more")


def judge(response: Response, attempt: int, delays_s: Sequence[float]) -> Verdict:
    """`attempt` counts from 1; `delays_s` are the waits between attempts, so there is one attempt more than waits."""
    status = response.status
    if status is not None and 200 <= status < 300:
        return Verdict("delivered")
    reason = response.error or f"the endpoint answered {status}"
    if status == GONE:
        return Verdict("failed", reason="the endpoint answered 410 Gone")
    if status is not None and status < 500 and status not in _RETRIED:
        return Verdict("failed", reason=reason)
    if attempt > len(delays_s):
        return Verdict("exhausted", reason=reason)
    return Verdict("retrying", max(delays_s[attempt - 1], response.retry_after_s or 0.0), reason=reason)
