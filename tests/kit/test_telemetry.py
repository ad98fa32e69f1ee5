"""Trace contexts, and spans as a real OTLP collector receives them."""

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_core.errors import InvalidError, UnavailableError
from crucible_kit.nats.frames import Outgoing
from crucible_kit.telemetry.logs import LineFormatter
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.telemetry.spans import (
    MAX_LINKS,
    Telemetry,
    TraceContext,
    current_traceparent,
    exporters,
    fresh_context,
    open_telemetry,
    parse_traceparent,
)
from tests.collector import CLIENT, CONSUMER, PRODUCER, SERVER, Collector, attributes_of

HTTP = "otlp http/protobuf"
GRPC = """
from pathlib import Path
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

class Exporter(SpanExporter):
    def export(self, spans):
        Path(__file__).with_name("exported").write_text(" ".join(span.name for span in spans))
        return SpanExportResult.SUCCESS
"""
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_span_without_exporter_carries_its_parent_on() -> None:
    with open_telemetry("events", environ={}).span("append", PARENT, "server", {"n": 1}) as span:
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
    ("environ", "traces", "metrics", "logs"),
    [
        ({}, [], [], []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, [HTTP], [HTTP], [HTTP]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318"}, [HTTP], [], []),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c"}, [], [HTTP], []),
        ({"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://c"}, [], [], [HTTP]),
        ({"OTEL_TRACES_EXPORTER": "otlp, console,otlp"}, [HTTP, "console"], [], []),
        ({"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_LOGS_EXPORTER": "console"}, [], [], ["console"]),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, [], [HTTP], [HTTP]),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "TRUE"}, [], [], []),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ["otlp grpc"], [], []),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "x", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
            | {"OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "http/protobuf"},
            ["otlp grpc"],
            ["otlp grpc"],
            [HTTP],
        ),
    ],
)
def test_the_standard_variables_choose_the_exporters(
    environ: dict[str, str], traces: list[str], metrics: list[str], logs: list[str]
) -> None:
    assert exporters(environ) == {"traces": traces, "metrics": metrics, "logs": logs}


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "consol"}, ["OTEL_TRACES_EXPORTER", 'did you mean "console"', "traces are not"]),
        ({"OTEL_METRICS_EXPORTER": "zipkin"}, ["OTEL_METRICS_EXPORTER", "zipkin", "metrics are not exported"]),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/jsn"}, ["OTEL_EXPORTER_OTLP_PROTOCOL=http/jsn", "http/protobuf"]),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, ["OTLP_TIMEOUT=soon is no number; the default holds"]),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "-1"}, ["OTEL_METRIC_EXPORT_INTERVAL", "metrics are not exported"]),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "many"}, ["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "exported"]),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "::no url::"},
            ["=::no url:: is no URL", "http://HOST:4318"],
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4317"}, ["localhost:4317 is no URL", "traces, metrics and logs"]),
        ({"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://[::1"}, ["OTLP_LOGS_ENDPOINT=http://[::1 is", ": logs are not"]),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "Bearer secret"}, ["OTEL_EXPORTER_OTLP_HEADERS is no list of name=value"]),
        ({"OTEL_RESOURCE_ATTRIBUTES": "no=,pair"}, ["OTEL_RESOURCE_ATTRIBUTES=no=,pair is no list of name=value"]),
        ({"OTEL_TRACES_SAMPLER": "always"}, ["OTEL_TRACES_SAMPLER=always is no sampler", "always_o", "is sampled"]),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "half"},
            ["_ARG=half is not between 0 and 1"],
        ),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "7"}, ["_ARG=7 is not between 0 and 1"]),
        ({"OTEL_SDK_DISABLED": "yes"}, ["OTEL_SDK_DISABLED=yes is neither true nor false; nothing is disabled"]),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "brotli"}, ["_COMPRESSION=brotli is none of none, gzip, deflate"]),
        ({"OTEL_EXPORTER_OTLP_CERTIFICATE": "/nowhere"}, ["_CERTIFICATE=/nowhere is no file that can be read"]),
        ({"OTEL_BSP_SCHEDULE_DELAY": "x"}, ["OTEL_BSP_SCHEDULE_DELAY=x is no number"]),
        ({"OTEL_BLRP_SCHEDULE_DELAY": "y"}, ["OTEL_BLRP_SCHEDULE_DELAY=y is no number"]),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "-3"}, ["max_queue_size", "traces are not exported"]),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_variable_is_one_warning(
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    environ: dict[str, str],
    words: list[str],
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    telemetry = open_telemetry("events", Metrics("events"))
    with telemetry.span("append") as span:
        assert parse_traceparent(span.traceparent)
    telemetry.close()
    [warning] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.name.startswith("crucible")
    assert all(word in warning.getMessage() for word in words)
    assert "secret" not in warning.getMessage()


@pytest.mark.parametrize("name", ["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_ATTRIBUTE_COUNT_LIMIT"])
def test_a_variable_that_keeps_the_sdk_from_loading_keeps_nothing_from_starting(name: str) -> None:
    code = (
        "from crucible_kit.telemetry.logs import setup_logging;"
        "from crucible_kit.telemetry.spans import open_telemetry;"
        "setup_logging('events'); open_telemetry('events').span('append'); print('started')"
    )
    environ = {**os.environ, "OTEL_TRACES_EXPORTER": "console", name: "many"}
    process = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert process.stdout == "started\n"
    [line] = process.stderr.splitlines()
    assert name in line
    assert "exported" in line


def test_grpc_works_where_its_exporter_is_installed(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A package that says that it is the exporter; it writes what it is given into a file."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4317")
    (tmp_path / "grpc_stand_in.py").write_text(GRPC)
    about = tmp_path / "opentelemetry_exporter_otlp_proto_grpc-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: opentelemetry-exporter-otlp-proto-grpc\nVersion: 1\n")
    (about / "entry_points.txt").write_text(
        "[opentelemetry_traces_exporter]\notlp_proto_grpc = grpc_stand_in:Exporter\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    telemetry = open_telemetry("events", Metrics("events"))
    with telemetry.span("append"):
        pass
    telemetry.close()
    assert (tmp_path / "exported").read_text() == "append"
    assert not caplog.records


def test_grpc_is_refused_with_what_to_set_where_its_exporter_is_missing(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    telemetry = open_telemetry("events", Metrics("events"))
    telemetry.close()
    [message] = [record.getMessage() for record in caplog.records]
    for word in ("opentelemetry-exporter-otlp-proto-grpc", "http/protobuf", "4318", "traces, metrics and logs"):
        assert word in message


def test_spans_arrive_at_the_collector_as_one_trace(collector: Collector) -> None:
    telemetry = open_telemetry("events")
    with (
        telemetry.span("append", PARENT, "server", {"event.type": "Memory.Created", "absent": None}) as outer,
        telemetry.span("commit", outer.traceparent, "client") as inner,
    ):
        inner.set("batch", 3)
    telemetry.close()
    append, commit = collector.spans()["append"], collector.spans()["commit"]
    assert collector.resource()["service.name"] == "crucible-events"
    assert collector.resource()["service.version"] == version("crucible-events")
    assert collector.resource()["service.instance.id"]
    assert append.trace_id == commit.trace_id == bytes.fromhex(PARENT[3:35])
    assert append.parent_span_id == bytes.fromhex(PARENT[36:52])
    assert commit.parent_span_id == append.span_id == bytes.fromhex(outer.traceparent[36:52])
    assert (append.kind, commit.kind) == (SERVER, CLIENT)
    assert [attribute.key for attribute in append.attributes] == ["event.type"]
    assert commit.attributes[0].value.int_value == 3


def test_an_exception_marks_the_span_failed_and_goes_on(collector: Collector) -> None:
    telemetry = open_telemetry("events")
    with pytest.raises(ValueError, match="no good"), telemetry.span("append"):
        raise ValueError("no good")
    telemetry.close()
    span = collector.spans()["append"]
    assert (span.status.code, span.status.message) == (2, "no good")
    assert attributes_of(span)["error.type"] == "ValueError"
    assert span.events[0].name == "exception"


def test_a_refusal_of_a_bad_request_is_no_failure_and_an_outage_is(collector: Collector) -> None:
    telemetry = open_telemetry("events")
    for name, error in (("refused", InvalidError("bad")), ("away", UnavailableError("no NATS"))):
        with pytest.raises(type(error)), telemetry.span(name):
            raise error
    telemetry.close()
    refused, away = collector.spans()["refused"], collector.spans()["away"]
    assert (refused.status.code, attributes_of(refused)["error.type"]) == (0, "invalid")
    assert (away.status.code, attributes_of(away)["error.type"]) == (2, "unavailable")


def test_a_span_can_be_failed_and_linked(collector: Collector) -> None:
    telemetry = open_telemetry("events")
    assert telemetry.recording
    with telemetry.span("send EVENTS", kind="producer", links=[PARENT, None, "nonsense", PARENT]) as span:
        span.fail("503", "the endpoint is away")
    telemetry.close()
    sent = collector.spans()["send EVENTS"]
    assert sent.kind == PRODUCER
    assert (sent.status.code, sent.status.message) == (2, "the endpoint is away")
    assert attributes_of(sent) == {"error.type": "503"}
    assert [link.span_id.hex() for link in sent.links] == [PARENT[36:52]]


def test_an_exception_after_a_failure_leaves_its_type(collector: Collector) -> None:
    telemetry = open_telemetry("events")

    def call() -> None:
        with telemetry.span("POST") as span:
            span.fail("timeout", "no answer within 1 s")
            raise ValueError("told to the caller")

    with pytest.raises(ValueError, match="told"):
        call()
    telemetry.close()
    failed = collector.spans()["POST"]
    assert (failed.status.code, failed.status.message) == (2, "no answer within 1 s")
    assert attributes_of(failed) == {"error.type": "timeout"}


def outgoing(number: int, flags: int = 1, payload: dict[str, str] | None = None) -> Outgoing:
    """The first of two carries its trace among its headers, the second in the event that it holds."""
    traceparent = str(TraceContext(number + 1, number + 1, flags))
    if number % 2:
        return Outgoing("s", b"no event", {"traceparent": traceparent})
    return Outgoing("s", msgspec.json.encode({"payload": payload or {}, "metadata": {"traceparent": traceparent}}))


def test_a_batch_is_linked_to_the_trace_of_each_message(collector: Collector) -> None:
    telemetry = open_telemetry("events")
    messages = [outgoing(n, payload={"traceparent": PARENT}) for n in range(5)]
    messages += [messages[0], Outgoing("s", b"{}"), Outgoing("s", b"\xff"), outgoing(7, flags=0)]
    with telemetry.batch("process", "EVENTS", messages, count=len(messages), group="hooks-dispatch"):
        pass
    telemetry.close()
    span = collector.spans()["process EVENTS"]
    assert (span.kind, span.parent_span_id) == (CONSUMER, b"")
    assert [int.from_bytes(link.trace_id) for link in span.links] == [1, 2, 3, 4, 5]
    assert attributes_of(span) == {
        "messaging.system": "nats",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "EVENTS",
        "messaging.consumer.group.name": "hooks-dispatch",
        "messaging.batch.message_count": 9,
    }


def test_a_large_batch_has_links_to_the_first_of_its_traces(collector: Collector) -> None:
    telemetry = open_telemetry("events")
    with telemetry.batch("send", "EVENTS", map(outgoing, range(1000)), count=1000):
        pass
    with telemetry.span("many", links=[str(TraceContext(n, n, 1)) for n in range(1, 1000)]):
        pass
    telemetry.close()
    for name in ("send EVENTS", "many"):
        assert len(collector.spans()[name].links) == MAX_LINKS
    assert collector.spans()["send EVENTS"].kind == PRODUCER
    assert attributes_of(collector.spans()["send EVENTS"])["messaging.batch.message_count"] == 1000


def test_a_message_that_comes_alone_is_in_its_own_trace(collector: Collector) -> None:
    telemetry = open_telemetry("events")
    with telemetry.batch("send", "EVENTS", [outgoing(6)], count=1):
        pass
    telemetry.close()
    span = collector.spans()["send EVENTS"]
    assert int.from_bytes(span.trace_id) == 7
    assert [int.from_bytes(link.trace_id) for link in span.links] == [7]


def test_a_batch_of_which_nothing_is_sampled_is_not_exported(collector: Collector) -> None:
    telemetry = open_telemetry("events")
    with telemetry.batch("send", "EVENTS", [outgoing(n, flags=0) for n in range(9)], count=9):
        pass
    telemetry.close()
    assert not collector.spans()


def test_without_an_exporter_the_messages_of_a_batch_are_not_looked_at() -> None:
    def messages() -> Iterator[Outgoing]:
        raise AssertionError("looked at")
        yield

    with open_telemetry("events", environ={}).batch("send", "EVENTS", messages(), count=1) as span:
        assert span is None
        assert current_traceparent() is None


def test_the_sampler_and_the_headers_are_those_of_the_variables(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "x-tenant=one")
    telemetry = open_telemetry("events")
    with telemetry.span("append") as span:
        assert span.traceparent.endswith("-00")
    logging.getLogger("crucible_test").warning("hello")
    telemetry.close()
    assert not collector.spans()
    [headers] = [headers for path, headers, _ in collector.requests if path == "/v1/logs"]
    assert headers["x-tenant"] == "one"


# ---- logs and metrics


def test_log_lines_carry_their_trace(collector: Collector) -> None:
    log, shown = logging.getLogger("crucible_test"), LineFormatter("events")
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(shown.format(record))

    log.addHandler(kept := Kept())
    try:
        for telemetry in (Telemetry(), open_telemetry("events")):
            with telemetry.span("append", PARENT) as span:
                log.warning("within", extra={"n": 1})
                assert lines[-1].endswith(f"within n=1 trace_id={PARENT[3:35]} span_id={span.traceparent[36:52]}")
            log.warning("outside")
            assert "trace_id" not in lines[-1]
            telemetry.close()
    finally:
        log.removeHandler(kept)


async def test_each_task_has_its_own_trace() -> None:
    async def traced(number: int) -> None:
        context = TraceContext(number, number, 1)
        with Telemetry().span("x", str(context)):
            await asyncio.sleep(0.001 * (number % 3))
            assert current_traceparent() == str(context)
            with Telemetry().span("y", str(TraceContext(number, 99, 1))):
                await asyncio.sleep(0)
            assert current_traceparent() == str(context)

    await asyncio.gather(*(traced(number) for number in range(1, 20)))
    assert current_traceparent() is None


def test_log_records_arrive_at_the_collector_with_their_trace(collector: Collector) -> None:
    log = logging.getLogger("crucible_test")
    telemetry = open_telemetry("events")
    with telemetry.span("append", PARENT) as span:
        log.warning("took %d ms", 7, extra={"event": "evt_1", "odd": {1}})
    try:
        raise ValueError("no good")
    except ValueError:
        log.exception("failed")
    logging.getLogger("somebody.else").info("chatter")
    logging.getLogger("opentelemetry.sdk").warning("about exporting")
    telemetry.close()
    log.warning("after the end")
    first, second = collector.logs()
    assert (first.body.string_value, first.severity_text, first.severity_number) == ("took 7 ms", "WARNING", 13)
    assert (first.trace_id.hex(), first.span_id.hex()) == (PARENT[3:35], span.traceparent[36:52])
    assert attributes_of(first)["event"] == "evt_1"
    assert attributes_of(first)["odd"] == "{1}"
    assert attributes_of(first)["code.function.name"] == "test_log_records_arrive_at_the_collector_with_their_trace"
    assert (second.severity_number, second.trace_id) == (17, b"")
    assert attributes_of(second)["exception.type"] == "ValueError"
    assert "no good" in attributes_of(second)["exception.stacktrace"]


def test_metrics_arrive_at_the_collector_by_their_conventions(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    metrics = Metrics("gateway")
    metrics.counter("appends", "Appends", ("category",)).labels("Memory").inc(3)
    metrics.gauge("queue_bytes", "What waits").set(17)
    seconds = metrics.histogram("http_request_seconds", "How long", ("method", "route", "status"), (0.1, 1.0))
    for took in (0.05, 0.06, 0.5, 7.0):
        seconds.labels("GET", "/x", 200).observe(took)
    telemetry = open_telemetry("gateway", metrics)
    while not collector.metrics():
        time.sleep(0.01)
    metrics.counter("appends", "Appends", ("category",)).labels("Memory").inc()
    telemetry.close()
    found = collector.metrics()
    appends = found["crucible.appends"].sum
    assert (appends.is_monotonic, appends.aggregation_temporality) == (True, 2)
    assert (appends.data_points[0].as_double, attributes_of(appends.data_points[0])) == (4, {"category": "Memory"})
    assert appends.data_points[0].start_time_unix_nano < appends.data_points[0].time_unix_nano
    assert (found["crucible.queue"].unit, found["crucible.queue"].gauge.data_points[0].as_double) == ("By", 17)
    duration = found["http.server.request.duration"]
    [point] = duration.histogram.data_points
    assert (duration.unit, duration.description) == ("s", "How long")
    assert (point.count, list(point.bucket_counts), list(point.explicit_bounds)) == (4, [2, 1, 1], [0.1, 1.0])
    assert point.sum == pytest.approx(7.61)
    assert attributes_of(point) == {
        "http.request.method": "GET",
        "http.route": "/x",
        "http.response.status_code": 200,
    }
    assert found["process.memory.usage"].unit == "By"
    assert "process.cpu.time" in found


def test_an_unsampled_trace_is_not_exported_but_carried_on(collector: Collector) -> None:
    telemetry = open_telemetry("events")
    with telemetry.span("append", PARENT[:-2] + "00") as span:
        assert span.traceparent.startswith(PARENT[:35])
        assert span.traceparent.endswith("-00")
    telemetry.close()
    assert not collector.spans()


def test_the_service_name_can_be_set(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "our-events")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.name=other")
    telemetry = open_telemetry("events")
    with telemetry.span("append"):
        pass
    telemetry.close()
    assert collector.resource()["service.name"] == "our-events"
    assert collector.resource()["deployment.environment.name"] == "test"


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


def test_a_collector_that_is_away_leaves_few_words_at_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    telemetry = open_telemetry("events", Metrics("events"))
    with telemetry.span("append"):
        pass
    telemetry.close()
    assert not [record.getMessage() for record in caplog.records if "shutdown" in record.getMessage().lower()]


def test_without_exporter_no_part_of_opentelemetry_is_loaded() -> None:
    code = (
        "import sys; from crucible_kit.telemetry.spans import open_telemetry;"
        "open_telemetry('events', environ={}).span('append');"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
