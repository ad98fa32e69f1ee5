"""A collector for OTLP over HTTP on loopback, which keeps what it is sent."""

import contextlib
import gzip
import http.server
import threading
from collections.abc import Iterator
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER = range(1, 6)
"""The kinds of spans."""
ERROR = 2
"""The status of a span that failed."""


class Collector(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def all_spans(self) -> list[tuple[str, Span]]:
        """With the service that each is of."""
        return [
            (attributes_of(part.resource)["service.name"], span)
            for part in self._parts("traces", ExportTraceServiceRequest, "resource_spans")
            for scope in part.scope_spans
            for span in scope.spans
        ]

    def spans(self) -> dict[str, Span]:
        """The last of each name."""
        return {span.name: span for _, span in self.all_spans()}

    def named(self, name: str) -> list[Span]:
        return [span for _, span in self.all_spans() if span.name == name]

    def metrics(self) -> dict[str, Metric]:
        """The last of each name."""
        parts = self._parts("metrics", ExportMetricsServiceRequest, "resource_metrics")
        return {metric.name: metric for part in parts for scope in part.scope_metrics for metric in scope.metrics}

    def logs(self) -> list[LogRecord]:
        parts = self._parts("logs", ExportLogsServiceRequest, "resource_logs")
        return [record for part in parts for scope in part.scope_logs for record in scope.log_records]

    def resource(self) -> dict[str, Any]:
        """Of the spans that came last."""
        parts: list[Resource] = [
            part.resource for part in self._parts("traces", ExportTraceServiceRequest, "resource_spans")
        ]
        return attributes_of(parts[-1])

    def _parts(self, signal: str, request: Any, field: str) -> list[Any]:
        bodies = [body for path, _, body in list(self.requests) if path == f"/v1/{signal}"]
        return [part for body in bodies for part in getattr(request.FromString(body), field)]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.requests.append((self.path, dict(self.headers.items()), body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def attributes_of(kept: Any) -> dict[str, Any]:
    """What a resource, a span, a point or a log record has."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in kept.attributes}


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
