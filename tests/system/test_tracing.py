"""One trace joins everything that one request caused: read from the spans that the services export."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.collector import CLIENT, SERVER, Collector, collecting

from .conftest import Stack, until
from .receiver import endpoint

TRACE = "0af7651916cd43dd8448eb211c80319c"
HOOK = """---
name: tagger
trigger: {events: [{type: Memory, event: Created}], timing: Post}
action:
  type: Script
  script: |
    memory_tag(inputs["id"], "#seen")
  inputs: {id: "{{event.payload.id}}"}
---
"""


def test_one_trace_joins_request_append_hook_and_webhook(make_stack: Callable[..., Stack]) -> None:
    with collecting() as collector, endpoint() as receiver:
        stack = make_stack(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="200")
        with stack.http() as http:
            (stack.data / "hooks" / "tagger.md").write_text(HOOK)
            until(lambda: any(h["name"] == "tagger" for h in http.get("/api/v1/hooks").json()["hooks"]), 10)
            wanted = {"name": "w", "url": receiver.url, "event_filters": [{"event_type": "Memory.Tagged"}]}
            assert http.post("/api/v1/webhooks", json=wanted).status_code == 201
            headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
            assert http.post("/api/v1/memory", json={"content": "hello"}, headers=headers).status_code == 201
        until(lambda: receiver.requests, 20)
        joined = {"gateway": "POST", "events": "events.append", "hooks": "process HOOK_RUNS"}
        joined["webhooks"] = "process DELIVERIES"
        until(
            lambda: all(any(s == f"crucible-{k}" and v in n for s, n in traced(collector)) for k, v in joined.items()),
            20,
            lambda: str(sorted(traced(collector))),
        )
        assert receiver.requests[0][0]["traceparent"].split("-")[1] == TRACE
        stack.stop()
        assert {_documented(span) for _, span in collector.all_spans()} <= listed_spans()
        assert {"crucible.work_waiting", "crucible.events_appended", "http.server.request.duration"} <= set(
            collector.metrics()
        )
        assert collector.logs()


def listed_spans() -> set[str]:
    """Those of the table on the page on operations."""
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    table = page[page.index("| span | kind |") :].split("\n\n")[0]
    return {name for line in table.splitlines() for name in re.findall(r"`([^`]+)`", line.split("|")[1])}


def _documented(span: Any) -> str:
    """Its name, as that page has it."""
    if span.kind == CLIENT:
        return "METHOD"
    if span.kind == SERVER:
        return "METHOD /route" if " " in span.name else "service.operation"
    return str(span.name)


def traced(collector: Collector) -> set[tuple[str, str]]:
    """The services and spans of the trace."""
    return {(service, span.name) for service, span in collector.all_spans() if span.trace_id.hex() == TRACE}
