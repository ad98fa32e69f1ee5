"""One trace joins everything that one request caused: read from the spans that the services export."""

import contextlib
import gzip
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from .conftest import Stack, until
from .receiver import Server, endpoint

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
    with collector() as (url, spans), endpoint() as receiver:
        stack = make_stack(OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_BSP_SCHEDULE_DELAY="200")
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
            lambda: all(
                any(s == f"crucible-{k}" and v in n for s, n, t in spans if t == TRACE) for k, v in joined.items()
            ),
            20,
            lambda: str(sorted(set(spans))),
        )
        assert receiver.requests[0][0]["traceparent"].split("-")[1] == TRACE


@contextlib.contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """A collector for OTLP over HTTP; gives (service, span name, trace id) of all that it got."""
    spans: list[tuple[str, str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
                spans.extend((service, s.name, s.trace_id.hex()) for g in resource.scope_spans for s in g.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", spans
    finally:
        server.shutdown()
        server.server_close()
