"""Metrics of one service."""

import pytest

from crucible_kit.telemetry.metrics import Metrics


def test_metrics_render_with_our_prefix() -> None:
    metrics = Metrics("events")
    metrics.counter("appends", "Events appended").inc(2)
    metrics.gauge("pending", "Waiting", ("durable",)).labels("runs").set(3)
    metrics.histogram("append_seconds", "Time").observe(0.02)
    lines = metrics.render().decode().splitlines()
    assert "crucible_appends_total 2.0" in lines
    assert 'crucible_pending{durable="runs"} 3.0' in lines
    assert 'crucible_append_seconds_bucket{le="0.025"} 1.0' in lines
    assert 'crucible_service_info{service="events"} 1.0' in lines


def test_the_process_is_measured() -> None:
    assert b"process_resident_memory_bytes" in Metrics("events").render()


def test_two_registries_do_not_meet() -> None:
    first, second = Metrics("a"), Metrics("b")
    first.counter("appends", "Events appended").inc()
    second.counter("appends", "Events appended")
    assert b"crucible_appends_total 0.0" in second.render()


def test_the_same_name_is_the_same_metric() -> None:
    metrics = Metrics("events")
    assert metrics.counter("appends", "Events appended") is metrics.counter("appends", "Events appended")
    with pytest.raises(ValueError, match="appends is a Counter"):
        metrics.gauge("appends", "Events appended")
