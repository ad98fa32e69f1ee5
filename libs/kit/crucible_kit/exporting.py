"""Spans that leave the process: the OpenTelemetry SDK behind `telemetry`, which loads this module only when needed."""

import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from types import TracebackType

from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace import Span as SdkSpan

from crucible_core.errors import InvalidError
from crucible_core.suggest import did_you_mean

from .telemetry import Attribute, Kind, Span, Telemetry, TraceContext, parse_traceparent

GROUP = "opentelemetry_traces_exporter"
FLUSH_S = 3.0
"""How long closing waits for a collector that does not answer."""


class ExportedSpan(Span):
    __slots__ = ("_span",)

    def __init__(self, span: SdkSpan) -> None:
        context = span.get_span_context()
        super().__init__(str(TraceContext(context.trace_id, context.span_id, int(context.trace_flags) & 1)))
        self._span = span

    def set(self, key: str, value: Attribute | None) -> None:
        if value is not None:
            self._span.set_attribute(key, value)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A cancelled task (a BaseException) has not failed.
        if isinstance(error, Exception):
            self._span.record_exception(error)
            self._span.set_status(Status(StatusCode.ERROR, str(error)))
        self._span.end()


class ExportingTelemetry(Telemetry):
    """Its own tracer provider, never the global one: two apps in one process do not meet."""

    def __init__(self, service: str, exporters: Sequence[str]) -> None:
        self._exporters = [_exporter(name) for name in exporters]
        self._provider = TracerProvider(resource=_resource(service))
        for exporter in self._exporters:
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("crucible")

    def span(
        self,
        name: str,
        parent: str | None = None,
        kind: Kind = "internal",
        attributes: Mapping[str, Attribute | None] | None = None,
    ) -> Span:
        known = {key: value for key, value in (attributes or {}).items() if value is not None}
        return ExportedSpan(self._tracer.start_span(name, _context(parent), SpanKind[kind.upper()], known))

    def close(self) -> None:
        # The SDK waits through its exporters' retries, 30 s and more; an exporter that is shut down gives up its retry.
        timer = threading.Timer(FLUSH_S, self._give_up)
        timer.start()
        try:
            self._provider.shutdown()
        finally:
            timer.cancel()
            timer.join()

    def _give_up(self) -> None:
        for exporter in self._exporters:
            exporter.shutdown()


def _context(parent: str | None) -> Context:
    """The context to start a span in: never the ambient one, so that nothing but `parent` decides."""
    found = parse_traceparent(parent)
    if found is None:
        return Context()
    remote = SpanContext(found.trace_id, found.span_id, is_remote=True, trace_flags=TraceFlags(found.flags))
    return set_span_in_context(NonRecordingSpan(remote), Context())


def _exporter(name: str) -> SpanExporter:
    installed = entry_points(group=GROUP)
    if name not in installed.names:
        hint = did_you_mean(name, installed.names)
        raise InvalidError(f"OTEL_TRACES_EXPORTER: no exporter {name} is installed{hint}")
    try:
        exporter: SpanExporter = installed[name].load()()
    except ValueError as error:
        raise InvalidError(f"OTEL_* variables: the exporter {name} refuses them: {error}") from error
    return exporter


def _resource(service: str) -> Resource:
    """OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before our own name."""
    return Resource.create({"service.name": f"crucible-{service}"}).merge(OTELResourceDetector().detect())
