"""The spans of a commit that serves many appends, and of the index that reads them, at a real collector."""

import asyncio

import pytest

from crucible_core.errors import UnavailableError
from crucible_core.subjects import Names
from crucible_events.append.committer import FEW, Committer
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.frames import Outgoing
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.telemetry.spans import TraceContext, open_telemetry
from tests.collector import CONSUMER, ERROR, PRODUCER, Collector, attributes_of

from .conftest import Asker, Running, new

MANY = 5 * FEW


def trace(number: int) -> str:
    return str(TraceContext(number, number, 1))


async def test_one_commit_of_many_appends_is_linked_to_the_trace_of_each(
    collector: Collector, running: Running, ask: Asker, names: Names
) -> None:
    async with running() as app:
        appends = [ask.append(new(id=f"evt_{n}", traceparent=trace(n))) for n in range(1, MANY + 1)]
        committed = await asyncio.gather(*appends)
        last = max(results[0].sequence or 0 for results in committed)
        await app.state.audit._index.reach(last)
    sent, processed = (collector.named(f"{operation} {names.events}") for operation in ("send", "process"))
    for spans, kind in ((sent, PRODUCER), (processed, CONSUMER)):
        assert {span.kind for span in spans} == {kind}
        assert sum(attributes_of(span)["messaging.batch.message_count"] for span in spans) >= MANY
        linked = {int.from_bytes(link.trace_id) for span in spans for link in span.links}
        assert linked >= set(range(1, MANY + 1))
        assert any(len(span.links) > 1 and not span.parent_span_id for span in spans)
    assert attributes_of(processed[-1])["messaging.consumer.group.name"] == "events"
    assert all(attributes_of(span)["messaging.destination.name"] == names.events for span in sent)


async def test_a_commit_that_could_not_be_stored_is_an_error(collector: Collector, bus: Bus, names: Names) -> None:
    telemetry = open_telemetry("events")
    committer = Committer(bus, telemetry, Metrics("events"), 10, 1_000_000)
    committing = asyncio.create_task(committer.run())
    message = Outgoing(names.event("w", "r", "Custom", "x", None), b"{}", {"traceparent": trace(1)})
    with pytest.raises(UnavailableError):  # there is no stream
        await committer.submit([message])
    committing.cancel()
    await asyncio.wait([committing])
    telemetry.close()
    span = collector.spans()[f"send {names.events}"]
    assert (span.status.code, span.trace_id) == (ERROR, (1).to_bytes(16))
    assert attributes_of(span)["error.type"] == "unavailable"
