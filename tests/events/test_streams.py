"""A log in three streams: what is one to whoever asks, whichever stream holds a world."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette

from crucible_core.access import OPERATOR
from crucible_core.errors import ConflictError, InvalidError
from crucible_core.position import stream_number
from crucible_core.protocol.events import (
    CountReply,
    CountRequest,
    QueryRequest,
    RedactRequest,
    TraceReply,
    TraceRequest,
)
from crucible_core.protocol.retention import PutRetention, RetentionRule, RetentionView
from crucible_core.protocol.worlds import ChangeWorld
from crucible_core.subjects import Names
from crucible_core.types.catalogue import CATALOGUE
from crucible_events.app import create_app
from crucible_events.audit import lost_ends
from crucible_events.query import counts, query
from crucible_events.settings import Settings
from crucible_kit.eventlog import event_at, log_end, read_log
from crucible_kit.nats.bus import Bus, open_bus
from crucible_kit.nats.streams import declare_streams
from crucible_kit.rpc import call
from tests.conftest import delete_streams
from tests.places import make_world

from .conftest import Asker, Replicas, Running, delete_index, eventually, new

WORLDS = ("default", "red", "pink", "blue", "acme")


@pytest.fixture
async def names(nats_url: str) -> AsyncIterator[Names]:
    mine = Names(f"t{secrets.token_hex(5)}", 3)
    yield mine
    await delete_streams(nats_url, mine.prefix)


@pytest.fixture
def settings(nats_url: str, names: Names, tmp_path: Path) -> Settings:
    return Settings(nats_url=nats_url, bus_prefix=names.prefix, data_dir=str(tmp_path / "data"), streams=3)


@pytest.fixture
async def log(service: Starlette, ask: Asker) -> Asker:
    """Thirty events, one after another, of worlds in all streams."""
    await fill(ask)
    return ask


async def fill(ask: Asker) -> None:
    for world in WORLDS[1:]:
        await make_world(ask.bus, world)
    for number in range(30):
        world = WORLDS[number % len(WORLDS)]
        await ask.one(new(payload={"n": number}, id=f"evt_{number}", world_id=world, correlation_id="cor_all"))
        await asyncio.sleep(0.002)
    await settled(ask)


async def settled(ask: Asker) -> None:
    """Returns once a replica's index holds all that is committed."""
    await ask.query(limit=1, min_sequence=(await log_end(ask.bus)).encoded)


def numbers(events: list[Any]) -> list[int]:
    return [event.data.payload["n"] for event in events]


async def pages(ask: Asker, **asked: Any) -> list[int]:
    found, cursor = [], None
    while True:
        reply = await ask.query(type=["Custom.note"], cursor=cursor, **asked)
        found += [msgspec.json.decode(raw)["data"]["payload"]["n"] for raw in reply.events]
        cursor = reply.next_cursor
        if cursor is None:
            return found


async def test_each_world_is_in_one_stream(log: Asker, names: Names) -> None:
    assert len({names.stream_of(world) for world in WORLDS}) == 3
    events = await log.found(type=["Custom.note"], limit=100)
    sequences = [event.sequence or 0 for event in events]
    assert len(set(sequences)) == 30
    assert all(sequence < 2**53 for sequence in sequences)
    for event in events:
        assert stream_number(event.sequence or 0) == names.number_of(event.metadata.world_id)
        message = await event_at(log.bus, event.sequence or 0)
        assert message is not None
        assert event.metadata.id.encode() in message.data
    for world in WORLDS:
        mine = [event.sequence or 0 for event in events if event.metadata.world_id == world]
        assert mine == sorted(mine)


@pytest.mark.parametrize("limit", [1, 4, 100])
async def test_a_query_over_all_worlds_merges_in_the_order_of_the_commits(log: Asker, limit: int) -> None:
    everything = list(range(30))
    assert await pages(log, limit=limit) == everything
    assert await pages(log, limit=limit, order="desc") == everything[::-1]
    assert await pages(log, limit=limit, world_id="red") == everything[1::5]
    assert await pages(log, limit=limit, filter={"n": {"gte": 12}}, order="desc") == everything[:11:-1]


async def test_after_until_and_min_sequence(log: Asker) -> None:
    places = {event.data.payload["n"]: event.sequence for event in await log.found(type=["Custom.note"], limit=100)}
    assert await pages(log, after=places[11]) == list(range(12, 30))
    assert await pages(log, after=places[11], until=places[20], order="desc") == list(range(20, 11, -1))
    appended = await log.one(new(payload={"n": 30}, world_id="pink"))
    assert await pages(log, after=places[29], min_sequence=appended.sequence) == [30]
    for beyond in ((appended.sequence or 0) + 5000, (9 << 47) + 5):
        with pytest.raises(InvalidError, match="past the end"):
            await log.query(min_sequence=beyond)


async def test_cursors_hold_on_every_replica(replicas: Replicas, ask: Asker) -> None:
    async with replicas(2):
        await fill(ask)
        end = (await log_end(ask.bus)).encoded
        for order in ("asc", "desc"):
            asked = {"limit": 3, "order": order, "min_sequence": end}
            assert await pages(ask, **asked) == list(range(30))[:: 1 if order == "asc" else -1]


async def test_counts_go_on_where_they_ended(service: Starlette, log: Asker) -> None:
    async def count(**asked: Any) -> CountReply:
        asked = {"type": ["Custom.note"], **asked}
        return await call(log.bus, OPERATOR, "events", "count", CountRequest(**asked), CountReply)

    whole = await count(by="world_id")
    assert (whole.count, {group.key: group.count for group in whole.groups}) == (30, dict.fromkeys(WORLDS, 6))
    assert (await count(filter={"n": {"lt": 7}})).count == 7
    assert (await count(after=whole.counted_to)).count == 0
    more = await log.one(new(payload={"n": 30}, world_id="blue"))
    assert (await count(after=whole.counted_to, min_sequence=more.sequence)).count == 1
    index, total, after, parts = service.state.audit._index, 0, 0, 0
    while True:
        asked = query.read_query(QueryRequest(type=["Custom.note"], after=after), CATALOGUE)
        part = await counts.count(index, asked, None, budget_s=0, window=4)
        total, after, parts = total + part.count, part.counted_to, parts + 1
        if part.complete:
            break
    assert (total, parts > 5) == (31, True)


async def test_an_atomic_append_is_of_one_stream(service: Starlette, ask: Asker, names: Names) -> None:
    for world in WORLDS[1:]:
        await make_world(ask.bus, world)
    other = next(world for world in WORLDS if names.stream_of(world) != names.stream_of("default"))
    with pytest.raises(InvalidError, match=r"events.1.world_id: its world is in another stream"):
        await ask.append(new(), new(world_id=other), atomic=True)
    assert await ask.found(type=["Custom.note"]) == []
    stored = await ask.append(new(world_id=other), new(world_id=other), atomic=True)
    assert stored[1].sequence == (stored[0].sequence or 0) + 1


async def test_batches_are_committed_to_every_stream_in_order(service: Starlette, ask: Asker) -> None:
    for world in WORLDS[1:]:
        await make_world(ask.bus, world)
    events = [new(payload={"n": n}, world_id=WORLDS[n % 5], entity="e", expected_sequence=None) for n in range(500)]
    results = await ask.append(*events)
    for world in range(5):
        mine = [one.sequence for one in results[world::5]]
        assert None not in mine
        assert mine == sorted(mine)  # type: ignore[type-var]
    again = await ask.append(*(new(id=one.id or "", world_id=WORLDS[n % 5]) for n, one in enumerate(results)))
    assert [(one.sequence, one.duplicate) for one in again] == [(one.sequence, True) for one in results]


@pytest.mark.parametrize("type", ["Memory.Updated", "Custom.note"])
async def test_versions_are_checked_in_the_world_of_the_entity(service: Starlette, ask: Asker, type: str) -> None:
    await make_world(ask.bus, "red")
    await make_world(ask.bus, "pink")
    payload = {"id": "mem_x"} if type.startswith("Memory") else {}
    last: dict[str, int] = {}
    for world in ("default", "red", "pink"):
        first = await ask.one(new(type, payload, entity="mem_x", world_id=world, expected_sequence=0))
        second = await ask.one(new(type, payload, entity="mem_x", world_id=world, expected_sequence=first.sequence))
        last[world] = second.sequence or 0
    for world, other in (("default", "red"), ("red", "pink"), ("pink", "default")):
        refused = await ask.one(new(type, payload, entity="mem_x", world_id=world, expected_sequence=last[other]))
        assert refused.error is not None
        assert refused.error.code == ConflictError.code
        assert refused.error.extra["current_sequence"] == last[world]


async def test_a_trace_leads_through_all_streams(service: Starlette, ask: Asker) -> None:
    for world in WORLDS[1:]:
        await make_world(ask.bus, world)
    for n in range(8):
        cause = {"causation_id": f"evt_{n - 1}", "hop": n} if n else {}
        await ask.one(new(id=f"evt_{n}", correlation_id="cor_x", world_id=WORLDS[n % 5], **cause))
    await settled(ask)
    trace = await call(ask.bus, OPERATOR, "events", "trace", TraceRequest(correlation_id="cor_x"), TraceReply)
    depth, nodes = 0, trace.roots
    while nodes:
        assert len(nodes) == 1
        depth, nodes = depth + 1, nodes[0].effects
    assert depth == 8


async def test_an_index_is_built_anew_from_all_streams(running: Running, ask: Asker, settings: Settings) -> None:
    async with running():
        await fill(ask)
        before = await ask.found(limit=100)
    delete_index(settings)
    async with running():
        assert await ask.found(limit=100) == before
    async with running():
        assert await ask.found(limit=100) == before


async def test_redaction_purge_and_audit(log: Asker, service: Starlette, names: Names) -> None:
    request = RedactRequest(id="evt_7")
    redacted = msgspec.json.decode(await call(log.bus, OPERATOR, "events", "redact", request, bytes))
    assert redacted["redacted"]
    assert stream_number(redacted["sequence"]) == names.number_of(WORLDS[7 % 5])
    assert await event_at(log.bus, redacted["sequence"]) is None
    await call(log.bus, OPERATOR, "events", "delete_world", ChangeWorld(id="red", purge=True), bytes, timeout=30)
    assert await pages(log, world_id="red") == []
    left = [n for n in range(30) if n % 5 != 1]
    assert [n for n in await pages_of_ids(log) if n % 5 != 1] == left
    assert await service.state.audit.once() == []


async def pages_of_ids(ask: Asker) -> list[int]:
    found = await ask.found(type=["Custom.note"], limit=100)
    return [int(event.metadata.id.removeprefix("evt_")) for event in found]


async def test_what_each_stream_has_lost_is_told(
    running: Running, ask: Asker, settings: Settings, names: Names
) -> None:
    async with running() as service:
        await fill(ask)
        lost = [event.sequence or 0 for event in await ask.found(type=["Custom.note"], limit=100)][10:15]
        for sequence in lost:
            await ask.bus.remove(names.stream_at(sequence), sequence)
        found = await service.state.audit.once()
        assert sorted(one for loss in found for one in range(loss.first, loss.last + 1)) == sorted(lost)
        assert await service.state.audit.once() == []
    for number, stream in enumerate(names.log_streams):
        await ask.bus.delete_stream(stream)
        await declare_streams(ask.bus, settings)
        gone = await lost_ends(Path(settings.data_dir) / "events.sqlite", ask.bus)
        assert [(loss.kind, stream_number(loss.first)) for loss in gone] == [("log", n) for n in range(number + 1)]
    async with running():
        assert await ask.found(type=["Custom.note"]) == []


async def test_what_expires_is_forgotten_in_each_stream(log: Asker) -> None:
    rules = PutRetention(rules=[RetentionRule(type="Custom.short", keep="1s")])
    await call(log.bus, OPERATOR, "events", "put_retention", rules, RetentionView)
    for world in WORLDS:
        await log.one(new("Custom.short", world_id=world))

    async def gone() -> bool:
        return await log.found(type=["Custom.short"]) == []

    await eventually(gone)
    assert len(await pages(log)) == 30


async def test_the_whole_log_is_read_as_one(log: Asker, bus: Bus, names: Names) -> None:
    seen: list[int] = []
    async with contextlib.aclosing(read_log(bus, after=names.start, filters=[names.events_of("Custom")])) as batches:
        async for messages in batches:
            seen += [msgspec.json.decode(message.data)["data"]["payload"]["n"] for message in messages]
            if not messages:
                break
    assert seen == list(range(30))
    assert (await log_end(bus)).count >= 30


async def test_another_number_of_streams_is_refused(
    running: Running, ask: Asker, settings: Settings, names: Names, nats_url: str
) -> None:
    async with running():
        await ask.one(new())
    for streams in (1, 2, 4):
        other = msgspec.structs.replace(settings, streams=streams)
        with pytest.raises(InvalidError, match=r"CRUCIBLE_STREAMS is \d, and .* in 3 streams"):
            async with create_app(other).router.lifespan_context(create_app(other)):
                pass
    async with running():
        assert len(await ask.found(type=["Custom.note"])) == 1
    async with open_bus(nats_url, names) as again:
        assert len(await again.stream_names()) >= 3


async def test_the_number_may_change_while_the_log_is_empty(settings: Settings, names: Names, nats_url: str) -> None:
    for streams in (1, 3, 2, 3):
        some = Names(names.prefix, streams)
        async with open_bus(nats_url, some) as bus:
            await declare_streams(bus, msgspec.structs.replace(settings, streams=streams))
            assert set(await bus.stream_names()) >= set(some.log_streams)
            assert not set(Names(names.prefix, 9).log_streams[streams:]).intersection(await bus.stream_names())
