"""The test of a webhook: a synthetic event is matched and signed as a real one is, and sent unless it is a dry run."""

import time
from typing import Any

from crucible_core.envelope import DEFAULT_WORLD, Data, Event, Metadata, Source, encode
from crucible_core.errors import CrucibleError, InvalidError
from crucible_core.filters.matcher import CompiledFilters
from crucible_core.protocol.parts import Check, CheckStep, TestRequest
from crucible_core.protocol.webhooks import WebhookRecord
from crucible_core.types.catalogue import Catalogue
from crucible_kit.clock import fresh_id, timestamp
from crucible_kit.deadline import check_deadline
from crucible_kit.http.egress import parse_target
from crucible_kit.http.exchange import ExchangeError, Exchanger
from crucible_webhooks.delivery import request_headers
from crucible_webhooks.outcome import classify, post
from crucible_webhooks.records import compile_record_filters, state
from crucible_webhooks.signing import encode_body

_FALLBACK = "Custom.Test"
_CONNECT_S = 5.0


async def check(
    record: WebhookRecord,
    request: TestRequest,
    exchanger: Exchanger,
    inert: str | None,
    catalogue: Catalogue,
    world: str = DEFAULT_WORLD,
) -> Check:
    """Live when the event matches the webhook's types, can be signed, and the endpoint answers 2xx; a dry run only
    connects to it. A disabled or inert webhook is only reported. Raises InvalidError for a type
    that there is not."""
    if inert or not record.enabled:
        state_name = "inert" if inert else "disabled"
        return Check(name=record.name, verdict=state_name, reason=inert or state(record))
    began = time.perf_counter()
    steps = [CheckStep(step="registered", ok=True, detail=record.id)]
    filters = compile_record_filters(record, catalogue)
    event = synthetic(filters, request.payload, catalogue, request.type, world)
    steps.append(_match_step(filters, event))
    if not steps[-1].ok:
        return _result(record, steps, began)
    try:
        body = encode_body(encode(event))
        headers = request_headers(record, event, fresh_id("dlv"), body, int(time.time()))
        steps.append(CheckStep(step="signed", ok=True, detail=headers["webhook-signature"][:16] + "…"))
    except CrucibleError as error:
        return _result(record, [*steps, CheckStep(step="signed", ok=False, detail=error.detail)], began)
    if request.dry_run:
        steps.append(await _connection_step(record, exchanger))
        return _result(record, steps, began, "accepts connections")
    steps.append(await _delivery_step(record, exchanger, headers, body))
    return _result(record, steps, began)


def synthetic(
    filters: CompiledFilters,
    payload: dict[str, Any] | None,
    catalogue: Catalogue,
    type: str | None = None,
    world: str = DEFAULT_WORLD,
) -> Event:
    """An event of a type, by default the first that the webhook wants, with an example payload unless one is given."""
    types = next((a.types for a in filters.alternatives if a.types), ())
    wanted = min((t for t in catalogue.members(types) if not t.endswith(".*")), default=_FALLBACK)
    name = wanted if type is None else catalogue.resolve(type)
    category, _, event = name.partition(".")
    metadata = Metadata(
        id=fresh_id("evt"),
        timestamp=timestamp(),
        source=Source("system", "webhooks"),
        actor="system:test",
        correlation_id=fresh_id("cor"),
        world_id=world,
    )
    return Event(category, Data(event, payload if payload is not None else catalogue.example(name)), metadata)


def _match_step(filters: CompiledFilters, event: Event) -> CheckStep:
    if filters.matches(event):
        return CheckStep(step="matches", ok=True, detail=f"a synthetic {event.dotted}")
    if not filters.wants_type(event):
        return CheckStep(step="matches", ok=False, detail=f"the webhook is not for {event.dotted}")
    # A filter can ask for what no example has; its types are known to be right all the same.
    return CheckStep(step="matches", ok=True, detail=f"{event.dotted}: the type; the filter wants other values")


async def _connection_step(record: WebhookRecord, exchanger: Exchanger) -> CheckStep:
    step = "endpoint accepts connections"
    try:
        target = parse_target(record.url)
        await exchanger.check_reachable(target, min(record.options.timeout_ms / 1000, _CONNECT_S))
    except ExchangeError as error:
        return CheckStep(step=step, ok=False, detail=str(error))
    except InvalidError as error:
        return CheckStep(step=step, ok=False, detail=error.detail)
    return CheckStep(step=step, ok=True, detail=f"{target.host}:{target.port}")


async def _delivery_step(
    record: WebhookRecord, exchanger: Exchanger, headers: dict[str, str], body: bytes
) -> CheckStep:
    check_deadline("the delivery")
    response = await post(exchanger, record.url, headers, body, record.options.timeout_ms / 1000)
    delivered = classify(response, 1, []).outcome == "delivered"
    return CheckStep(
        step="delivered", ok=delivered, detail=response.error or f"the endpoint answered {response.status}"
    )


def _result(record: WebhookRecord, steps: list[CheckStep], began: float, good: str = "live") -> Check:
    broken = next((step for step in steps if not step.ok), None)
    took = round((time.perf_counter() - began) * 1000, 3)
    if broken is None:
        return Check(name=record.name, verdict=good, duration_ms=took, steps=steps)
    return Check(
        name=record.name, verdict="inert", reason=f"{broken.step}: {broken.detail}", duration_ms=took, steps=steps
    )
