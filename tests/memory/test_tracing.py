"""Spans of the batches that memory's index and its graph take from the log, as a real collector receives them."""

import asyncio

from crucible_core.subjects import Names
from crucible_kit.telemetry.spans import TraceContext
from tests.collector import CONSUMER, Collector, attributes_of

from .conftest import Memories, Running, until

MANY = 40


def trace(number: int) -> str:
    return str(TraceContext(number, number, 1))


async def create(memory: Memories, number: int) -> None:
    await memory.append("Memory.Created", {"id": f"mem_{number}", "content": "x"}, traceparent=trace(number))


async def test_batches_of_the_index_and_the_graph_are_linked_to_the_trace_of_each_event(
    collector: Collector, running_events: Running, running: Running, memory: Memories, names: Names
) -> None:
    async with running_events(), running(memory_graph_events=True):
        await asyncio.gather(*(create(memory, n) for n in range(1, MANY + 1)))

        async def told() -> bool:
            return len(await memory.log("Graph")) == MANY

        await until(told)
    groups = {"memory": set(), names.durable("memory-graph"): set()}  # type: dict[str, set[int]]
    for service, span in collector.all_spans():
        about = attributes_of(span)
        if service == "crucible-memory" and span.name == f"process {names.events}":
            assert span.kind == CONSUMER
            groups[about["messaging.consumer.group.name"]] |= {int.from_bytes(link.trace_id) for link in span.links}
    assert all(linked == set(range(1, MANY + 1)) for linked in groups.values())
