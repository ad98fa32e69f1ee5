"""What an attempt's outcome means: delivered, try again and when, give up, or stop the webhook. Pure."""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from crucible_core.errors import InvalidError
from crucible_core.times import parse_retry_after
from crucible_kit.clock import now_ms
from crucible_kit.http.egress import parse_target
from crucible_kit.http.exchange import ExchangeError, Exchanger

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


KEPT_BYTES = 2048
"""How much of an answer is kept with its attempt."""


async def post(exchanger: Exchanger, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> Response:
    """Never raises: what went wrong is the answer's `error`. `timeout_s` bounds the whole exchange."""
    try:
        answer = await exchanger.send("POST", parse_target(url), headers, body, timeout_s)
    except ExchangeError as error:
        return Response(error=str(error))
    except InvalidError as error:
        return Response(error=error.detail)
    kept = answer.body[:KEPT_BYTES].decode("utf-8", "replace")
    return Response(answer.status, kept, None, parse_retry_after(answer.headers.get("retry-after"), now_ms() / 1000))
