"""The exchange of one attempt with an endpoint, and the classification of its response: delivered, retried and when,
failed for good, or exhausted."""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from crucible_core.errors import InvalidError
from crucible_core.limits import WEBHOOK_ANSWER_BYTES
from crucible_core.times import parse_retry_after
from crucible_kit.clock import now_ms
from crucible_kit.http.egress import parse_target
from crucible_kit.http.exchange import ExchangeError, Exchanger

_RETRIED = frozenset({408, 425, 429})
GONE = 410
_REDACTED = "the event was redacted before it was sent"


class Response(msgspec.Struct, frozen=True):
    """An endpoint's answer, or `error` where there was none. `body` is its beginning; `retry_after_s` is the wait that
    it asks for, at most a day."""

    status: int | None = None
    body: str = ""
    error: str | None = None
    retry_after_s: float | None = None


class Result(msgspec.Struct, frozen=True):
    """The result of an attempt. `outcome` is delivered, retrying, failed (for good, by its answer), exhausted (no
    attempt is left), dry (none was made) or skipped (the event was redacted, or its owner may not see it)."""

    outcome: Literal["delivered", "retrying", "failed", "exhausted", "dry", "skipped"]
    delay_s: float = 0.0
    reason: str | None = None


SKIPPED = Result("skipped", reason=_REDACTED)
HIDDEN = Result("skipped", reason="the webhook's owner may not see the event any more")


def classify(response: Response, attempt: int, delays_s: Sequence[float]) -> Result:
    """The result of attempt number `attempt`, from 1 on; `delays_s` are the waits between attempts, so there is one
    attempt more than waits."""
    status = response.status
    if status is not None and 200 <= status < 300:
        return Result("delivered")
    reason = response.error or f"the endpoint answered {status}"
    if status == GONE:
        return Result("failed", reason="the endpoint answered 410 Gone")
    if status is not None and status < 500 and status not in _RETRIED:
        return Result("failed", reason=reason)
    if attempt > len(delays_s):
        return Result("exhausted", reason=reason)
    return Result("retrying", max(delays_s[attempt - 1], response.retry_after_s or 0.0), reason=reason)


async def post(exchanger: Exchanger, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> Response:
    """Never raises: a failure is the response's `error`. `timeout_s` bounds the whole exchange."""
    try:
        answer = await exchanger.send("POST", parse_target(url), headers, body, timeout_s)
    except ExchangeError as error:
        return Response(error=str(error))
    except InvalidError as error:
        return Response(error=error.detail)
    beginning = answer.body[:WEBHOOK_ANSWER_BYTES].decode("utf-8", "replace")
    return Response(
        answer.status, beginning, None, parse_retry_after(answer.headers.get("retry-after"), now_ms() / 1000)
    )
