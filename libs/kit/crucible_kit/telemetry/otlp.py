"""Telemetry that leaves the process: the OpenTelemetry SDK behind `telemetry`, which loads this only when needed."""

import contextlib
import logging
import secrets
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version
from types import TracebackType
from typing import Any

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)
from opentelemetry.trace import Span as SdkSpan

from crucible_core.errors import CrucibleError, InvalidError
from crucible_core.suggest import did_you_mean
from crucible_kit.http.asgi import STATUS
from crucible_kit.telemetry.bridge import MetricsExport
from crucible_kit.telemetry.logs import extra_of, is_ours
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.telemetry.spans import (
    MAX_LINKS,
    Attribute,
    Kind,
    Operation,
    Signal,
    Span,
    Telemetry,
    TraceContext,
    Traced,
    current_traceparent,
    message_attributes,
    parse_traceparent,
    traceparent_of,
)
from crucible_kit.telemetry.variables import endpoint_mistake, mistakes

log = logging.getLogger(__name__)

FLUSH_S = 3.0
"""Time that closing waits for a collector that does not answer."""
SCOPE = "crucible"
_OTLP = {"otlp http/protobuf": "otlp_proto_http", "otlp grpc": "otlp_proto_grpc"}
_SERVER_FAULT = 500
_LEVELS = (
    (logging.CRITICAL, SeverityNumber.FATAL),
    (logging.ERROR, SeverityNumber.ERROR),
    (logging.WARNING, SeverityNumber.WARN),
    (logging.INFO, SeverityNumber.INFO),
    (0, SeverityNumber.DEBUG),
)


class ExportedSpan(Span):
    __slots__ = ("_failed", "_span")

    def __init__(self, span: SdkSpan) -> None:
        context = span.get_span_context()
        super().__init__(str(TraceContext(context.trace_id, context.span_id, int(context.trace_flags) & 1)))
        self._span = span
        self._failed = False

    def set(self, key: str, value: Attribute | None) -> None:
        if value is not None:
            self._span.set_attribute(key, value)

    def fail(self, error_type: str, message: str = "") -> None:
        self._failed = True
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(Status(StatusCode.ERROR, message or None))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        # A cancelled task (a BaseException) has not failed. Nor has what refuses a bad request.
        if isinstance(error, CrucibleError) and STATUS.get(error.code, _SERVER_FAULT) < _SERVER_FAULT:
            self._span.set_attribute("error.type", error.code)
        elif isinstance(error, Exception) and not self._failed:  # a span that failed has its reason
            self._span.record_exception(error)
            self.fail(error.code if isinstance(error, CrucibleError) else _qualified(type(error)), str(error))
        self._span.end()


class ExportingTelemetry(Telemetry):
    """The open parts of the SDK; `closers` flush and end them, `_give_up` ends an export under way."""

    def __init__(self, tracer: Tracer | None, closers: Sequence[Callable[[], Any]], exporters: Sequence[Any]) -> None:
        self._tracer = tracer
        self._closers = closers
        self._exporters = exporters

    @property
    def recording(self) -> bool:
        return self._tracer is not None

    def span(
        self,
        name: str,
        parent: str | None = None,
        kind: Kind = "internal",
        attributes: Mapping[str, Attribute | None] | None = None,
        links: Sequence[str | None] = (),
    ) -> Span:
        if self._tracer is None:
            return super().span(name, parent)
        known = {key: value for key, value in (attributes or {}).items() if value is not None}
        linked = [Link(context) for each in list(dict.fromkeys(links))[:MAX_LINKS] if (context := _remote(each))]
        return ExportedSpan(self._tracer.start_span(name, _context(parent), SpanKind[kind.upper()], known, linked))

    def batch(
        self,
        operation: Operation,
        destination: str,
        messages: Iterable[Traced],
        *,
        count: int,
        group: str | None = None,
        parent: str | None = None,
    ) -> contextlib.AbstractContextManager[Span | None]:
        if self._tracer is None:
            return contextlib.nullcontext()
        links, unsampled = _find_links(messages)
        # A message that comes alone has the span in its own trace; a batch of which nothing is sampled has none.
        parent = parent or (links[0] if links and count == 1 else unsampled if not links else None)
        about = message_attributes(operation, destination, group=group, count=count)
        kind: Kind = "producer" if operation == "send" else "consumer"
        return self.span(f"{operation} {destination}", parent, kind, about, links)

    def close(self) -> None:
        with _quiet(logging.ERROR):
            self._close()

    def _close(self) -> None:
        # The SDK waits through its exporters' retries, 30 s and more; an exporter that is shut down gives up its retry.
        timer = threading.Timer(FLUSH_S, self._give_up)
        timer.start()
        try:
            for close in self._closers:
                close()
        finally:
            timer.cancel()
            timer.join()

    def _give_up(self) -> None:
        for exporter in self._exporters:
            exporter.shutdown()


def open_exporters(
    service: str, exporters: Mapping[Signal, Sequence[str]], metrics: Metrics | None, environ: Mapping[str, str]
) -> Telemetry:
    """Opens providers of our own, never the global ones, so that two apps in one process stay apart. An exporter that
    cannot be opened, or a variable that is not understood, is one warning."""
    for mistake in mistakes(environ):
        log.warning("%s", mistake)
    opening = _Opening(service, metrics, environ)
    with _quiet(logging.CRITICAL):
        for signal, names in exporters.items():
            for name in names:
                opening.open(signal, name)
    return opening.done()


@contextlib.contextmanager
def _quiet(level: int) -> Iterator[None]:
    """Silences the SDK: it would repeat our own warnings, and report its end."""
    theirs = logging.getLogger("opentelemetry")
    before = theirs.level
    theirs.setLevel(level)
    try:
        yield
    finally:
        theirs.setLevel(before)


class _Opening:
    def __init__(self, service: str, metrics: Metrics | None, environ: Mapping[str, str]) -> None:
        self._service = service
        self._environ = environ
        self._metrics = metrics
        self._version = _version(service)
        self._tracers: TracerProvider | None = None
        self._loggers: LoggerProvider | None = None
        self._exporters: list[Any] = []
        self._closers: list[Callable[[], Any]] = []
        self._refusals: dict[str, list[str]] = {}
        self._resource: Resource | None = None

    def open(self, signal: Signal, name: str) -> None:
        try:
            if self._resource is None:
                self._resource = _resource(self._service, self._version)
            exporter = _exporter(signal, name, self._environ)
            getattr(self, f"_open_{signal}")(exporter, self._resource)
            self._exporters.append(exporter)
        except InvalidError as error:
            self._refusals.setdefault(error.detail, []).append(signal)
        except Exception as error:  # whatever an exporter says of its variables
            reason = f"OTEL_* variables: the exporter {name} refuses them ({type(error).__name__}: {error})"
            self._refusals.setdefault(reason, []).append(signal)

    def done(self) -> Telemetry:
        for reason, signals in self._refusals.items():
            log.warning("%s: %s are not exported", reason, " and ".join(", ".join(signals).rsplit(", ", 1)))
        tracer = None if self._tracers is None else self._tracers.get_tracer(SCOPE, self._version)
        if self._loggers is not None:
            handler = ExportingHandler(self._loggers, self._version)
            logging.getLogger().addHandler(handler)
            self._closers.insert(0, lambda: logging.getLogger().removeHandler(handler))
        return ExportingTelemetry(tracer, self._closers, self._exporters)

    def _open_traces(self, exporter: Any, resource: Resource) -> None:
        provider = self._tracers or TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        if self._tracers is None:
            self._tracers = provider
            self._closers.append(provider.shutdown)

    def _open_logs(self, exporter: Any, resource: Resource) -> None:
        provider = self._loggers or LoggerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_log_record_processor(BatchLogRecordProcessor(exporter))
        if self._loggers is None:
            self._loggers = provider
            self._closers.append(provider.shutdown)

    def _open_metrics(self, exporter: Any, resource: Resource) -> None:
        if self._metrics is not None:
            self._closers.append(MetricsExport(exporter, self._metrics, resource, self._version).shutdown)


class ExportingHandler(logging.Handler):
    """The log lines that go to stderr, as OTLP's records."""

    def __init__(self, provider: LoggerProvider, scope_version: str) -> None:
        super().__init__()
        self._logger = provider.get_logger(SCOPE, scope_version)
        self.addFilter(lambda record: is_ours(record) and not record.name.startswith("opentelemetry"))

    def emit(self, record: logging.LogRecord) -> None:
        moment = int(record.created * 1e9)
        self._logger.emit(
            LogRecord(
                timestamp=moment,
                observed_timestamp=moment,
                context=_context(current_traceparent()),
                severity_text=record.levelname,
                severity_number=next(number for level, number in _LEVELS if record.levelno >= level),
                body=record.getMessage(),
                attributes=_log_attributes(record),
            )
        )


def _log_attributes(record: logging.LogRecord) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "code.file.path": record.pathname,
        "code.function.name": record.funcName,
        "code.line.number": record.lineno,
    }
    for key, value in extra_of(record):
        attributes[key] = value if isinstance(value, str | bool | int | float) else str(value)
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        attributes["exception.type"] = _qualified(type(error))
        attributes["exception.message"] = str(error)
        attributes["exception.stacktrace"] = "".join(traceback.format_exception(error))
    return attributes


def _qualified(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _find_links(messages: Iterable[Traced]) -> tuple[list[str], str | None]:
    """The sampled traces of messages, each once, and beside them one that is not sampled."""
    links: dict[str, None] = {}
    unsampled: str | None = None
    for message in messages:
        context = parse_traceparent(traceparent_of(message))
        if context is not None and context.flags:
            links[str(context)] = None
        elif context is not None:
            unsampled = str(context)
        if len(links) == MAX_LINKS:
            break
    return list(links), unsampled


def _remote(traceparent: str | None) -> SpanContext | None:
    found = parse_traceparent(traceparent)
    if found is None:
        return None
    return SpanContext(found.trace_id, found.span_id, is_remote=True, trace_flags=TraceFlags(found.flags))


def _context(parent: str | None) -> Context:
    """The context to start a span in: never the ambient one, so that nothing but `parent` decides."""
    remote = _remote(parent)
    return Context() if remote is None else set_span_in_context(NonRecordingSpan(remote), Context())


def _exporter(signal: Signal, name: str, environ: Mapping[str, str]) -> Any:
    """Raises InvalidError, and whatever the exporter raises."""
    protocol = name.removeprefix("otlp ")
    if name != protocol and name not in _OTLP:
        raise InvalidError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not supported; set it to http/protobuf")
    if protocol == "http/protobuf" and (wrong := endpoint_mistake(signal, environ)):
        raise InvalidError(wrong)
    group = f"opentelemetry_{signal}_exporter"
    installed = entry_points(group=group)
    entry = _OTLP.get(name, name)
    if entry in installed.names:
        return installed[entry].load()()
    if protocol == "grpc":
        raise InvalidError(
            "OTEL_EXPORTER_OTLP_PROTOCOL=grpc needs the package opentelemetry-exporter-otlp-proto-grpc, which is not"
            " installed; set it to http/protobuf, and the endpoint to the collector's port for HTTP (mostly 4318)"
        )
    hint = did_you_mean(name, ["otlp", "none", *(each for each in installed.names if "_" not in each)])
    raise InvalidError(f"OTEL_{signal.upper()}_EXPORTER: no exporter {name} is installed{hint}")


def _resource(service: str, service_version: str) -> Resource:
    """OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before our own names."""
    ours = {
        "service.name": f"crucible-{service}",
        "service.namespace": "crucible",
        "service.version": service_version,
        "service.instance.id": secrets.token_hex(8),
    }
    return Resource.create(ours).merge(OTELResourceDetector().detect())


def _version(service: str) -> str:
    try:
        return version(f"crucible-{service}")
    except PackageNotFoundError:
        return version("crucible-kit")
