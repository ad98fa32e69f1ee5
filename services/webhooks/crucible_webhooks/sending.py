"""One attempt's request: sent through the egress guard, with its answer as `verdict` judges it."""

from collections.abc import Mapping

from crucible_core.errors import InvalidError
from crucible_core.times import parse_retry_after
from crucible_kit.clock import now_ms
from crucible_kit.egress import parse_target
from crucible_kit.exchange import ExchangeError, Exchanger

from .verdict import Response

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
