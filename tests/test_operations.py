"""The page on operations: the metrics and the spans that it lists are those that there are, with names that Prometheus
would choose, and its `nats` commands find what they name."""

import re
import shlex
from pathlib import Path

import pytest

from crucible_core.subjects import Names, kv_stream
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.consumer import ensure_durable
from crucible_kit.nats.streams import BUCKETS, declare_bucket, declare_streams
from crucible_kit.settings import KitSettings

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "operations.md").read_text()
MADE = re.compile(r"\bmetrics\.(counter|gauge|histogram)\(\s*\"(\w+)\"[^()]*(?:\(([^()]*)\))?", re.DOTALL)
LABELS = {
    *("category", "operation", "outcome", "reason", "result", "target", "timing", "verdict"),
    *("method", "route", "service", "status"),
}
"""All of few values: types, codes and words of our own, and what the gateway's own routes have."""


def made() -> dict[str, tuple[str, set[str]]]:
    """By name as Prometheus has it, the kind of each metric and its labels."""
    sources = [file for folder in ("libs", "services") for file in (ROOT / folder).rglob("*.py")]
    found = [
        match for file in sources for match in MADE.findall(file.read_text().replace("self.gauge(", "metrics.gauge("))
    ]
    return {
        f"crucible_{name}{'_total' if kind == 'counter' else ''}": (kind, set(re.findall(r'"(\w+)"', labels)))
        for kind, name, labels in found
    }


def test_the_page_lists_every_metric() -> None:
    listed = set(re.findall(r"`(crucible_\w+)`", PAGE[PAGE.index("### Metrics") : PAGE.index("### OpenTelemetry")]))
    assert listed == set(made())


def test_metrics_have_names_that_prometheus_would_choose() -> None:
    for name, (kind, _) in made().items():
        assert re.fullmatch(r"crucible_[a-z]+(_[a-z]+)*", name)
        assert name.endswith("_total") == (kind == "counter"), name
        assert kind != "histogram" or name.endswith(("_seconds", "_bytes", "_events")), name


def test_no_label_has_as_many_values_as_there_are_hooks() -> None:
    assert {label for _, labels in made().values() for label in labels} <= LABELS


def commands() -> list[list[str]]:
    section = PAGE[PAGE.index("### With the `nats` command") :]
    block = section[section.index("```sh") :].split("```")[1]
    return [shlex.split(line, comments=True) for line in block.splitlines() if line.startswith("nats ")]


@pytest.fixture
async def declared(bus: Bus) -> Bus:
    await declare_streams(bus, KitSettings())
    for bucket in BUCKETS:
        await declare_bucket(bus, bucket)
    durable = bus.names.durable("memory-graph")
    await ensure_durable(bus, bus.names.events, durable, [bus.names.all_events])
    return bus


@pytest.mark.parametrize("words", commands(), ids=" ".join)
async def test_what_a_command_asks_for_is_there(declared: Bus, words: list[str]) -> None:
    """The requests that the command sends, with the names that it is given."""
    bus, names = declared, Names()
    match words[1:]:
        case ["context", "save", "crucible", *_]:
            assert "--select" in words
        case ["stream", "ls", "--all"]:
            assert {"EVENTS", "HOOK_RUNS", "DELIVERIES", "ATTEMPTS"} == {
                names.events,
                names.hook_runs,
                names.deliveries,
                names.attempts,
            }
        case ["stream" | "consumer", "info" | "report" | "subjects" | "get", stream, *rest]:
            options = await bus.stream_options(prefixed(bus, stream))
            assert options["description"].startswith("Crucible: ")
            if rest and rest[0] == "memory-graph":
                consumer = await bus.consumer_options(prefixed(bus, stream), bus.names.durable(rest[0]))
                assert consumer["description"].startswith("Crucible: ")
            if "--last-for" in rest:
                assert rest[-1] == names.parked("x").removesuffix("x") + ">"
        case ["kv", "ls"]:
            for bucket in BUCKETS:
                about = await bus.stream_options(kv_stream(bus.names.bucket(bucket)))
                assert about["description"].startswith(f"Crucible: the bucket {bucket}: ")
        case ["kv", "ls" | "get", bucket, *_]:
            assert bucket in BUCKETS
        case _:
            pytest.fail(f"nothing is known of {words}")


def prefixed(bus: Bus, stream: str) -> str:
    return f"{bus.names.prefix}_{stream}"
