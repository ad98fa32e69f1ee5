"""Spans, log lines and metrics of runs, as a real collector receives them."""

import asyncio
from typing import Any

from crucible_core.limits import HOPS
from crucible_core.subjects import Names
from crucible_kit.telemetry.spans import TraceContext
from tests.collector import CLIENT, CONSUMER, ERROR, Collector, attributes_of

from .conftest import HttpEndpoint, System, until

MANY = 20


def trace(number: int) -> str:
    return str(TraceContext(number, number, 1))


def traces_of(spans: Any) -> set[int]:
    return {int.from_bytes(span.trace_id) for span in spans}


async def test_a_dispatched_batch_is_linked_to_the_trace_of_each_event(
    collector: Collector, stopped: System, names: Names
) -> None:
    async with stopped.running():
        await stopped.register("counter", "log('seen')")
    await asyncio.gather(*(stopped.append(traceparent=trace(n)) for n in range(1, MANY + 1)))
    async with stopped.running():

        async def done() -> bool:
            return len(await stopped.runs("counter")) == MANY

        await until(done)
    batches = collector.named(f"process {names.events}")
    dispatched = [b for b in batches if attributes_of(b)["messaging.consumer.group.name"].endswith("hooks")]
    assert any(len(span.links) > 1 for span in dispatched)
    assert {span.kind for span in dispatched} == {CONSUMER}
    assert traces_of(link for span in dispatched for link in span.links) >= set(range(1, MANY + 1))
    runs = collector.named(f"process {names.hook_runs}")
    assert traces_of(runs) == set(range(1, MANY + 1))
    assert all(span.kind == CONSUMER and len(span.links) == 1 for span in runs)


async def test_a_hooks_http_call_has_a_client_span_in_the_events_trace(
    collector: Collector, stopped: System, endpoint: HttpEndpoint, names: Names
) -> None:
    async with stopped.running():
        await stopped.register("caller", action={"type": "HTTP", "url": f"{endpoint.url}/x?token=secret"})
        await stopped.append(traceparent=trace(7))
        await stopped.run_of("caller", "ok")
    [call] = collector.named("POST")
    [run] = collector.named(f"process {names.hook_runs}")
    assert (call.kind, call.parent_span_id) == (CLIENT, run.span_id)
    assert int.from_bytes(call.trace_id) == int.from_bytes(run.trace_id) == 7
    assert attributes_of(call) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": int(endpoint.url.rpartition(":")[2]),
        "url.full": endpoint.url,
    }
    [(request, _)] = endpoint.requests
    assert request.headers["traceparent"] == f"00-{7:032x}-{call.span_id.hex()}-01"


async def test_a_run_that_fails_is_an_error(collector: Collector, stopped: System, names: Names) -> None:
    async with stopped.running():
        await stopped.register("broken", "1 / 0")
        await stopped.register("nowhere", action={"type": "HTTP", "url": "http://127.0.0.1:1/"})
        await stopped.append(traceparent=trace(9))
        await stopped.run_of("broken", "failed")
        await stopped.run_of("nowhere", "failed")
    failed = {attributes_of(span)["crucible.hook.name"]: span for span in collector.named(f"process {names.hook_runs}")}
    for name in ("broken", "nowhere"):
        assert failed[name].status.code == ERROR
        assert attributes_of(failed[name])["error.type"] == "run_failed"
        assert attributes_of(failed[name])["crucible.outcome"] == "failed"
    [call] = collector.named("POST")
    assert call.status.code == ERROR
    assert attributes_of(call)["error.type"] == "ClientConnectorError"
    assert "crucible.hook_runs" in collector.metrics()


async def test_log_lines_of_a_dispatch_arrive_with_the_events_trace(collector: Collector, stopped: System) -> None:
    async with stopped.running():
        await stopped.register("deep", "log('seen')")
        await stopped.append(traceparent=trace(3), hop=HOPS)
        await stopped.run_of("deep", "stopped")
    # Each service of this process exports it.
    lines = [record for record in collector.logs() if record.body.string_value.startswith("hook deep: not run")]
    assert {int.from_bytes(line.trace_id) for line in lines} == {3}
    assert {line.span_id for line in lines} <= {span.span_id for _, span in collector.all_spans()}
