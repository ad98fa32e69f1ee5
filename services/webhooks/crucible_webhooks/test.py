"""The test of a webhook: a synthetic event is matched and signed as a real one is, and sent unless it is a dry run."""

import time

from crucible_core.envelope import Event, encode
from crucible_core.errors import CrucibleError, InvalidError
from crucible_core.filters.matcher import CompiledFilters
from crucible_core.protocol.parts import Check, CheckStep, TestRequest
from crucible_core.protocol.webhooks import WebhookRecord
from crucible_core.types.catalogue import Catalogue
from crucible_kit.clock import fresh_id
from crucible_kit.deadline import check_deadline
from crucible_kit.handlers.test import summarize, synthetic_event
from crucible_kit.http.egress import parse_target
from crucible_kit.http.exchange import ExchangeError, Exchanger
from crucible_webhooks.delivery import request_headers
from crucible_webhooks.outcome import classify, post
from crucible_webhooks.records import compile_record_filters, state
from crucible_webhooks.registry import Registry
from crucible_webhooks.signing import encode_body

_FALLBACK = "Custom.Test"
_CONNECT_S = 5.0


async def test_webhook(registry: Registry, exchanger: Exchanger, record: WebhookRecord, request: TestRequest) -> Check:
    """Live when the event matches the webhook's types, can be signed, and the endpoint answers 2xx; a dry run only
    connects to it. A disabled or inert webhook is only reported. Raises InvalidError for an unknown type."""
    inert, catalogue = registry.inert_reason(record), registry.types.catalogue
    if inert or not record.enabled:
        return Check(name=record.name, verdict="inert" if inert else "disabled", reason=inert or state(record))
    began = time.perf_counter()
    steps = [CheckStep(step="registered", ok=True, detail=record.id)]
    filters = compile_record_filters(record, catalogue)
    event = _synthetic(filters, request, catalogue, registry.home_of(record))
    steps.append(_match_step(filters, event))
    if not steps[-1].ok:
        return summarize(record.name, began, steps)
    try:
        body = encode_body(encode(event))
        headers = request_headers(record, event, fresh_id("dlv"), body, int(time.time()))
        steps.append(CheckStep(step="signed", ok=True, detail=headers["webhook-signature"][:16] + "…"))
    except CrucibleError as error:
        return summarize(record.name, began, [*steps, CheckStep(step="signed", ok=False, detail=error.detail)])
    if request.dry_run:
        steps.append(await _connection_step(record, exchanger))
        return summarize(record.name, began, steps, "accepts connections")
    steps.append(await _delivery_step(record, exchanger, headers, body))
    return summarize(record.name, began, steps)


def _synthetic(filters: CompiledFilters, request: TestRequest, catalogue: Catalogue, world: str) -> Event:
    """An event of the requested type, by default the first that the webhook wants, with its payload or an example."""
    types = next((a.types for a in filters.alternatives if a.types), ())
    first = min((t for t in catalogue.members(types) if not t.endswith(".*")), default=_FALLBACK)
    type = first if request.type is None else catalogue.resolve(request.type)
    payload = catalogue.example(type) if request.payload is None else request.payload
    return synthetic_event("webhooks", type, payload, world)


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
