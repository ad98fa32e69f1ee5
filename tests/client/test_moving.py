"""Many events at once: appended from iterators, exported and counted, whatever breaks on the way."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from crucible_client import AsyncCrucible, BatchItem, Count, Crucible, Retries
from crucible_client.batches import BATCH_BYTES, Packer, PendingBatch, packed
from crucible_client.calls.events import line_of
from crucible_client.export import Export
from crucible_client.results import Batch
from crucible_core.errors import InvalidError, UnavailableError
from tests.client.playing import BROKEN, KEY, Played, trouble


def numbered(count: int) -> Iterator[dict[str, Any]]:
    return ({"type": "Custom.Counted", "payload": {"n": n}} for n in range(count))


def test_append_many_sends_batches_and_tells_each_outcome(crucible: Crucible, played: Played) -> None:
    items = list(crucible.events.append_many(numbered(7), batch_size=3))
    assert [item.sequence for item in items] == list(range(1, 8))
    assert [len(body.splitlines()) for _, _, _, body in played.requests] == [3, 3, 1]


def test_append_many_takes_only_what_a_batch_needs(crucible: Crucible, played: Played) -> None:
    events = numbered(100)
    outcomes = crucible.events.append_many(events, batch_size=5)
    assert next(outcomes).sequence == 1
    assert next(events)["payload"] == {"n": 6}, "the batch, and the event that did not fit into it"


def test_append_many_goes_on_past_what_is_refused(crucible: Crucible) -> None:
    items = list(crucible.events.append_many([b'{"type": "Custom.A"}', b"{no json", {"type": "Memory.Denied"}]))
    assert [item.sequence for item in items] == [1, None, None]
    assert [type(item.exception).__name__ for item in items] == ["NoneType", "MalformedError", "DeniedError"]


def test_append_many_survives_a_lost_answer(crucible: Crucible, played: Played) -> None:
    played.after_commit = [BROKEN]
    assert [item.duplicate for item in crucible.events.append_many(numbered(3))] == [True] * 3
    assert len(played.log) == 3


def test_append_many_waits_for_a_gateway_that_goes_away(crucible: Crucible, played: Played) -> None:
    """More often than one request is sent again. One that was never there is told at once."""
    items = crucible.events.append_many(numbered(4), batch_size=2)
    assert next(items).sequence == 1
    played.troubles = [trouble(503, "unavailable", "0") for _ in range(5)]
    assert [item.sequence for item in items] == [2, 3, 4]
    with Crucible("http://127.0.0.1:1", KEY, environ={}) as nowhere, pytest.raises(UnavailableError):
        next(nowhere.events.append_many(numbered(1)))


async def test_async_append_many_waits_for_a_gateway_that_goes_away(
    async_crucible: AsyncCrucible, played: Played
) -> None:
    played.troubles = [trouble(503, "unavailable", "0") for _ in range(5)]
    assert [item.sequence async for item in async_crucible.events.append_many(numbered(2))] == [1, 2]


def test_nobody_waits_longer_than_patience_lasts() -> None:
    with pytest.raises(UnavailableError):
        Export((), {}).failed(UnavailableError("for an hour", retry_after=3600.0), 0.0)


async def test_append_many_from_an_async_iterator(async_crucible: AsyncCrucible) -> None:
    async def events() -> AsyncIterator[bytes]:
        for n in range(5):
            yield b'{"type": "Custom.Counted", "payload": {"n": %d}}' % n

    found = [item.sequence async for item in async_crucible.events.append_many(events(), batch_size=2)]
    assert found == [1, 2, 3, 4, 5]
    assert [item.sequence async for item in async_crucible.events.append_many(numbered(2))] == [6, 7]


def test_without_reaction_is_said() -> None:
    assert PendingBatch([b"{}"], react=False).call().params == (("react", "false"),)
    assert PendingBatch([b"{}"], react=True).call().params == ()


@pytest.mark.parametrize(
    "line",
    [
        b'{"type": "Custom.A", "payload": {"n": 1.50, "big": 12345678901234567890123}}',
        b'{"type": "Custom", "data": {"event": "A", "payload": {"n": 1.50}}, "metadata": {"actor": "user:a"}}',
        b'{"type": "Custom.A", "id": null}',
        b'{"type": "Custom.A",\n "metadata": null}',
    ],
)
def test_a_line_gets_an_id_and_keeps_its_bytes(line: bytes) -> None:
    made = line_of(line)
    found = json.loads(made)
    identified = found["metadata"] if "data" in found else found
    assert identified["id"].startswith("evt_")
    assert b"\n" not in made
    assert (b"1.50" in line) == (b"1.50" in made)
    assert (b"12345678901234567890123" in line) == (b"12345678901234567890123" in made)


@pytest.mark.parametrize(
    "line", [b'{"id": "evt_1", "type": "Custom.A"}', b'{"metadata": {"id": "evt_1"}}', b"{", b"[1]", b'"x"', b"\xff"]
)
def test_a_line_that_has_an_id_or_is_no_event_stays(line: bytes) -> None:
    assert line_of(b" %b \n" % line) == line


def test_batches_are_bounded_in_bytes() -> None:
    lines = [b'{"id": "evt_%d", "pad": "%b"}' % (n, b"x" * (BATCH_BYTES // 3)) for n in range(7)]
    assert [len(batch) for batch in packed(lines, 500)] == [2, 2, 2, 1]
    assert Packer(10).rest() is None


def test_a_shipment_sends_again_only_what_was_away() -> None:
    away = {"type": "x/unavailable", "detail": "away", "retry_after": 0.0}
    shipment = PendingBatch([b"a", b"b", b"c"], react=True)
    answer = Batch(1, [BatchItem("evt_1", 1), BatchItem(error=away), BatchItem(error={"type": "x/invalid"})])
    policy = Retries(attempts=2, first_wait_s=0.0)
    assert shipment.take(answer, policy, 0.0) is not None
    assert shipment.call().content == b"b"
    assert shipment.take(Batch(0, [BatchItem(error=away)]), policy, 0.0) is None, "it does not go on for ever"
    assert [item.error and item.error["type"] for item in shipment.results] == [None, "x/unavailable", "x/invalid"]


def test_export_gives_lines(crucible: Crucible, played: Played) -> None:
    list(crucible.events.append_many([*numbered(3), {"type": "Custom.Other"}]))
    lines = list(crucible.events.export("Custom.Counted"))
    assert [json.loads(line)["sequence"] for line in lines] == [1, 2, 3]


def test_a_broken_export_goes_on_after_its_last_event(crucible: Crucible, played: Played) -> None:
    list(crucible.events.append_many(numbered(7)))
    played.export_limit = 3
    assert [json.loads(line)["sequence"] for line in crucible.events.export()] == list(range(1, 8))


async def test_async_export(async_crucible: AsyncCrucible, played: Played) -> None:
    for n in range(4):
        played.append({"type": "Custom.Counted", "payload": {"n": n}})
    played.export_limit = 2
    assert [json.loads(line)["sequence"] async for line in async_crucible.events.export()] == [1, 2, 3, 4]


def test_an_export_without_its_end_is_not_complete() -> None:
    export = Export((), {})
    assert list(export.take(b' {"sequence": 1}\n{"sequ')) == [b'{"sequence": 1}']
    assert list(export.take(b'ence": 2}\n  ')) == [b'{"sequence": 2}']
    with pytest.raises(UnavailableError):
        export.ended()
    assert dict(export.call().params) == {"after": "2"}
    assert list(export.take(b" \n")) == []
    export.ended()


def test_an_export_waits_for_a_service_but_not_for_another_answer() -> None:
    export = Export((), {})
    assert export.failed(UnavailableError("behind", retry_after=1.0), 0.0) == 1.0
    with pytest.raises(UnavailableError):
        export.failed(UnavailableError("still"), 61.0)
    with pytest.raises(InvalidError):
        Export((), {}).failed(InvalidError("no such type"), 0.0)


def test_count_adds_up_the_parts(crucible: Crucible, played: Played) -> None:
    list(crucible.events.append_many([{"type": "Custom.Other"}, *numbered(4)]))
    played.requests.clear()
    assert crucible.events.count() == Count(5, {})
    assert len(played.requests) == 3
    found = crucible.events.count(by="type")
    assert list(found.groups.items()) == [("Custom.Counted", 4), ("Custom.Other", 1)]


async def test_async_count(async_crucible: AsyncCrucible, played: Played) -> None:
    played.append({"type": "Custom.Counted"})
    assert await async_crucible.events.count("Custom.Counted", after=0) == Count(1, {})


def test_a_refused_export_raises(crucible: Crucible, played: Played) -> None:
    played.troubles = [trouble(422, "invalid")]
    with pytest.raises(InvalidError):
        next(crucible.events.export("Nothing"))
