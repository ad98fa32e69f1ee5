"""Metrics: a Prometheus registry for each service.

Names are `crucible_<what>_<unit>`; a counter's ends in `_total`. The same name means the same thing in every service:
the scrape's target says whose it is, and `crucible_service_info` joins the two.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric as Family

__all__ = ["BUCKETS_S", "CONTENT_TYPE", "Counter", "Gauge", "Histogram", "Metrics"]

PREFIX = "crucible"
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds for durations, in seconds."""

M = TypeVar("M", bound=MetricWrapperBase)


class Metrics:
    """Makes metrics and renders them. The same name always gives the same metric."""

    def __init__(self, service: str) -> None:
        self.service = service
        self._registry = CollectorRegistry()
        self._metrics: dict[str, MetricWrapperBase] = {}
        # process_resident_memory_bytes, process_cpu_seconds_total and the like, read from /proc when rendered.
        ProcessCollector(registry=self._registry)
        self.gauge("service_info", "The service of this process", ("service",)).labels(service).set(1)

    def counter(self, name: str, doc: str, labels: Sequence[str] = ()) -> Counter:
        """`appends` becomes `crucible_appends_total`."""
        return self._make(Counter, name, lambda: Counter(name, doc, labels, PREFIX, registry=self._registry))

    def gauge(self, name: str, doc: str, labels: Sequence[str] = ()) -> Gauge:
        return self._make(Gauge, name, lambda: Gauge(name, doc, labels, PREFIX, registry=self._registry))

    def histogram(
        self, name: str, doc: str, labels: Sequence[str] = (), buckets: Sequence[float] = BUCKETS_S
    ) -> Histogram:
        return self._make(
            Histogram, name, lambda: Histogram(name, doc, labels, PREFIX, registry=self._registry, buckets=buckets)
        )

    def collect(self) -> Iterable[Family]:
        """Everything as it is now."""
        return self._registry.collect()

    def render(self) -> bytes:
        """Everything in Prometheus's text format, whose media type is `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def _make(self, kind: type[M], name: str, create: Callable[[], M]) -> M:
        metric = self._metrics.get(name)
        if metric is None:
            metric = self._metrics[name] = create()
        if not isinstance(metric, kind):
            raise ValueError(f"metric {name} is a {type(metric).__name__} already")
        return metric
