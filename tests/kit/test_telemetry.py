"""Trace contexts, and spans as a real OTLP collector receives them."""

import http.server
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan

from crucible_core.errors import InvalidError
from crucible_kit.telemetry import Telemetry, TraceContext, exporters, fresh_context, open_telemetry, parse_traceparent

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Collector(http.server.ThreadingHTTPServer):
    """An OTLP/HTTP endpoint that keeps what it is sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), CollectorHandler)
        self.requests: list[ExportTraceServiceRequest] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> dict[str, ProtoSpan]:
        scopes = [scope for request in self.requests for part in request.resource_spans for scope in part.scope_spans]
        return {span.name: span for scope in scopes for span in scope.spans}

    def service_names(self) -> set[str]:
        attributes = [a for r in self.requests for part in r.resource_spans for a in part.resource.attributes]
        return {attribute.value.string_value for attribute in attributes if attribute.key == "service.name"}


class CollectorHandler(http.server.BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_span_without_exporter_carries_its_parent_on() -> None:
    with open_telemetry("events", {}).span("append", PARENT, "server", {"n": 1}) as span:
        span.set("type", "Memory.Created")
        assert span.traceparent == PARENT


@pytest.mark.parametrize(
    "parent",
    [
        None,
        "",
        "nonsense",
        PARENT.upper(),
        PARENT + "-more",
        PARENT + "\n",
        "ff" + PARENT[2:],
        "00-" + "0" * 32 + "-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01",
    ],
)
def test_an_invalid_parent_starts_a_new_sampled_trace(parent: str | None) -> None:
    made = Telemetry().span("append", parent).traceparent
    found = parse_traceparent(made)
    assert found is not None
    assert found.flags == 1
    assert Telemetry().span("append", parent).traceparent != made


def test_a_later_version_is_read_as_ours() -> None:
    assert str(parse_traceparent("01" + PARENT[2:] + "-more")) == PARENT


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.integers(0, 1))
def test_contexts_round_trip(trace: int, span: int, flags: int) -> None:
    context = TraceContext(trace, span, flags)
    assert parse_traceparent(str(context)) == context


def test_fresh_contexts_differ() -> None:
    assert len({fresh_context() for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ["otlp_proto_http"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318"}, ["otlp_proto_http"]),
        ({"OTEL_TRACES_EXPORTER": "otlp,console"}, ["otlp_proto_http", "console"]),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, []),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "TRUE"}, []),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ["otlp_proto_grpc"]),
    ],
)
def test_the_standard_variables_choose_the_exporters(environ: dict[str, str], names: list[str]) -> None:
    assert exporters(environ) == names


def test_an_unknown_exporter_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidError, match=r'OTEL_TRACES_EXPORTER.*did you mean "console"'):
        open_telemetry("events", {"OTEL_TRACES_EXPORTER": "consol"})


def test_spans_arrive_at_the_collector_as_one_trace(collector: Collector) -> None:
    telemetry = open_telemetry("events")
    with (
        telemetry.span("append", PARENT, "server", {"event.type": "Memory.Created", "absent": None}) as outer,
        telemetry.span("commit", outer.traceparent, "client") as inner,
    ):
        inner.set("batch", 3)
    telemetry.close()
    append, commit = collector.spans()["append"], collector.spans()["commit"]
    assert collector.service_names() == {"crucible-events"}
    assert append.trace_id == commit.trace_id == bytes.fromhex(PARENT[3:35])
    assert append.parent_span_id == bytes.fromhex(PARENT[36:52])
    assert commit.parent_span_id == append.span_id == bytes.fromhex(outer.traceparent[36:52])
    assert (append.kind, commit.kind) == (ProtoSpan.SPAN_KIND_SERVER, ProtoSpan.SPAN_KIND_CLIENT)
    assert [attribute.key for attribute in append.attributes] == ["event.type"]
    assert commit.attributes[0].value.int_value == 3


def test_an_exception_marks_the_span_failed_and_goes_on(collector: Collector) -> None:
    telemetry = open_telemetry("events")
    with pytest.raises(ValueError, match="no good"), telemetry.span("append"):
        raise ValueError("no good")
    telemetry.close()
    span = collector.spans()["append"]
    assert (span.status.code, span.status.message) == (2, "no good")
    assert span.events[0].name == "exception"


def test_an_unsampled_trace_is_not_exported_but_carried_on(collector: Collector) -> None:
    telemetry = open_telemetry("events")
    with telemetry.span("append", PARENT[:-2] + "00") as span:
        assert span.traceparent.startswith(PARENT[:35])
        assert span.traceparent.endswith("-00")
    telemetry.close()
    assert not collector.spans()


def test_the_service_name_can_be_set(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "our-events")
    telemetry = open_telemetry("events")
    with telemetry.span("append"):
        pass
    telemetry.close()
    assert collector.service_names() == {"our-events"}


def test_closing_leaves_no_thread_and_does_not_wait_for_a_lost_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    before = set(threading.enumerate())
    telemetry = open_telemetry("events")
    with telemetry.span("append"):
        pass
    started = time.monotonic()
    telemetry.close()
    assert time.monotonic() - started < 6
    assert set(threading.enumerate()) == before


def test_without_exporter_no_part_of_opentelemetry_is_loaded() -> None:
    code = (
        "import sys; from crucible_kit.telemetry import open_telemetry; open_telemetry('events', {}).span('append');"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
