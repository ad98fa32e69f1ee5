"""Export of a service's metrics over OTLP: reads the Prometheus registry at intervals, and converts it."""

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Sample

from crucible_kit.telemetry.metrics import PREFIX, Metrics

log = logging.getLogger(__name__)

INTERVAL_VARIABLE = "OTEL_METRIC_EXPORT_INTERVAL"
_INTERVAL_MS = 60_000.0
_TIMEOUT_MS = 10_000.0
_JOIN_S = 10.0
_UNITS = {"seconds": "s", "bytes": "By"}
_CUMULATIVE = AggregationTemporality.CUMULATIVE

Labels = tuple[tuple[str, str], ...]


class Convention(NamedTuple):
    """The names of a metric and its labels in OpenTelemetry's semantic conventions."""

    name: str
    unit: str
    labels: Mapping[str, str] = {}


CONVENTIONS = {
    "crucible_http_request_seconds": Convention(
        "http.server.request.duration",
        "s",
        {"method": "http.request.method", "route": "http.route", "status": "http.response.status_code"},
    ),
    "process_resident_memory_bytes": Convention("process.memory.usage", "By"),
    "process_virtual_memory_bytes": Convention("process.memory.virtual", "By"),
    "process_cpu_seconds": Convention("process.cpu.time", "s"),
    "process_open_fds": Convention("process.unix.file_descriptor.count", "{file_descriptor}"),
}
_NUMBERS = frozenset({"http.response.status_code"})
_SKIPPED = frozenset({"process_start_time_seconds", "process_max_fds"})


class MetricsExport:
    """Exports every OTEL_METRIC_EXPORT_INTERVAL (ms), and once more at the end."""

    def __init__(self, exporter: Any, metrics: Metrics, resource: Resource, version: str) -> None:
        self._exporter = exporter
        self._metrics = metrics
        self._resource = resource
        self._scope = InstrumentationScope(PREFIX, version)
        self._began = time.time_ns()
        self._interval_s = _interval_ms() / 1000
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics-export", daemon=True)
        self._thread.start()

    def shutdown(self) -> None:
        self._ended.set()
        self._thread.join(_JOIN_S)
        self._exporter.shutdown()

    def _run(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(self._interval_s)
            try:
                self._exporter.export(self._data(), timeout_millis=_TIMEOUT_MS)
            except Exception as error:  # a gauge's function, or the exporter: the next time may be better
                log.warning("metrics were not exported: %r", error)

    def _data(self) -> MetricsData:
        found = convert(self._metrics.collect(), self._began, time.time_ns())
        scope = ScopeMetrics(self._scope, found, "")
        return MetricsData([ResourceMetrics(self._resource, [scope], "")])


def convert(families: Iterable[Family], began_ns: int, now_ns: int) -> list[Metric]:
    """Converts Prometheus families; `began_ns` is the start of the counters."""
    found = []
    for family in families:
        if family.name in _SKIPPED:
            continue
        convention = CONVENTIONS.get(family.name) or _ours(family)
        data = _data(family, convention, began_ns, now_ns)
        if data is not None:
            found.append(Metric(convention.name, family.documentation, convention.unit, data))
    return found


def _ours(family: Family) -> Convention:
    name = family.name.removeprefix(f"{PREFIX}_")
    stem, _, last = name.rpartition("_")
    unit = _UNITS.get(last, "")
    return Convention(f"{PREFIX}.{stem if unit else name}", unit or "1")


def _data(family: Family, convention: Convention, began_ns: int, now_ns: int) -> Sum | Gauge | Histogram | None:
    if family.type == "histogram":
        points = [
            HistogramDataPoint(attributes, began_ns, now_ns, *_distribution(samples), None, None)  # type: ignore[arg-type]
            for attributes, samples in _series(family, convention)
        ]
        return Histogram(points, _CUMULATIVE)
    values = [
        NumberDataPoint(_attributes(sample.labels, convention), began_ns, now_ns, sample.value)
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
    if family.type == "counter":
        return Sum(values, _CUMULATIVE, is_monotonic=True)
    return Gauge(values) if family.type == "gauge" else None


def _series(family: Family, convention: Convention) -> list[tuple[dict[str, Any], list[Sample]]]:
    """The samples of each histogram of a family, with its attributes."""
    series: dict[Labels, list[Sample]] = {}
    for sample in family.samples:
        labels = tuple((name, value) for name, value in sorted(sample.labels.items()) if name != "le")
        series.setdefault(labels, []).append(sample)
    return [(_attributes(dict(labels), convention), samples) for labels, samples in series.items()]


def _distribution(samples: list[Sample]) -> tuple[int, float, list[int], list[float]]:
    """Count, sum, the count of each bucket by itself, and the bounds of the buckets."""
    upto = [(float(sample.labels["le"]), int(sample.value)) for sample in samples if sample.name.endswith("_bucket")]
    total = next(sample.value for sample in samples if sample.name.endswith("_sum"))
    counts = [count - before for (_, count), before in zip(upto, (0, *(count for _, count in upto)), strict=False)]
    return upto[-1][1], total, counts, [bound for bound, _ in upto[:-1]]


def _attributes(labels: Mapping[str, str], convention: Convention) -> dict[str, Any]:
    named = {convention.labels.get(name, name): value for name, value in labels.items()}
    return {name: int(value) if name in _NUMBERS and value.isdecimal() else value for name, value in named.items()}


def _interval_ms() -> float:
    """Raises ValueError."""
    text = os.environ.get(INTERVAL_VARIABLE, "").strip()
    interval = float(text) if text else _INTERVAL_MS
    if not interval > 0:
        raise ValueError(f"{INTERVAL_VARIABLE} must be more than 0")
    return interval
