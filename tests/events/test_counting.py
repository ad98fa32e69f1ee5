"""Counts, by every key and every way of reading, against a plain count; and that a budget ends them."""

from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from crucible_core.access import OPERATOR
from crucible_core.errors import InvalidError
from crucible_core.protocol.events import CountReply, CountRequest, QueryRequest
from crucible_core.types.catalogue import CATALOGUE
from crucible_events import store
from crucible_events.query import counts, query
from crucible_events.settings import Settings
from crucible_kit.index.index import open_index
from crucible_kit.rpc import call
from tests.cases import each_of
from tests.places import make_world

from .conftest import Asker, new


@pytest.fixture
async def log(service: Starlette, ask: Asker) -> Asker:
    """Thirty events; the day changes after the tenth and the twentieth."""
    await make_world(ask.bus, "default", "attic")
    await make_world(ask.bus, "mars")
    await ask.append(
        *(
            new(
                ("Memory.Created", "Custom.note", "File.Modified")[n % 3],
                [{"id": f"mem_{n}", "content": "c"}, {"n": n}, {"path": "p"}][n % 3],
                actor=f"user:{'ab'[n % 2]}",
                room_id=("main", "attic")[n // 15],
                world_id="default",
                timestamp=f"2026-11-{21 + n // 10}T10:00:00Z",
            )
            for n in range(30)
        )
    )
    await ask.query(min_sequence=30)
    return ask


async def counted(log: Asker, **asked: Any) -> CountReply:
    return await call(log.bus, OPERATOR, "events", "count", CountRequest(**asked), CountReply)


def groups(reply: CountReply) -> dict[str, int]:
    return {group.key: group.count for group in reply.groups}


@each_of(
    ("asked", "count"),
    [
        ({}, 30),
        ({"type": ["Memory.*"]}, 10),
        ({"type": ["Memory.*", "Custom.note"]}, 20),
        ({"type": ["Custom.*"], "room_id": "attic"}, 5),
        ({"actor": "user:a", "after": 20}, 5),
        ({"until": 7}, 7),
        ({"from_time": "2026-11-22T00:00:00Z", "to_time": "2026-11-23T00:00:00Z"}, 10),
        ({"filter": {"n": {"gte": 10}}}, 7),
        ({"filter": {"content": "none"}, "type": ["Memory.*"]}, 0),
        ({"world_id": "mars"}, 0),
    ],
)
async def test_counts(log: Asker, asked: dict[str, Any], count: int) -> None:
    reply = await counted(log, **asked)
    assert (reply.count, reply.groups, reply.complete) == (count, [], True)
    assert reply.counted_to == asked.get("until", 30)


@pytest.mark.parametrize("filter", [None, {"event.metadata.actor": {"exists": True}}])
async def test_groups(log: Asker, filter: Any) -> None:
    by_type = await counted(log, by="type", filter=filter)
    assert groups(by_type) == {"Custom.note": 10, "File.Modified": 10, "Memory.Created": 10}
    assert groups(await counted(log, by="room_id", filter=filter)) == {"attic": 15, "main": 15}
    assert groups(await counted(log, by="world_id", filter=filter)) == {"default": 30}
    days = await counted(log, by="day", filter=filter, type=["Custom.*"])
    assert groups(days) == {"2026-11-21": 3, "2026-11-22": 4, "2026-11-23": 3}
    assert days.groups[0].key == "2026-11-22", "the largest first"
    actors = await counted(log, by="actor", filter=filter, after=29)
    assert groups(actors) == {"user:b": 1}


@pytest.mark.parametrize("asked", [{}, {"type": ["Memory.*", "Custom.*"]}, {"filter": {"n": {"gte": 0}}}])
async def test_a_count_beyond_its_budget_goes_on_where_it_ended(
    log: Asker, settings: Settings, asked: dict[str, Any]
) -> None:
    path = Path(settings.data_dir) / "events.sqlite"
    total, after, parts, complete = 0, 0, 0, False
    async with open_index(path, log.bus, log.bus.names.log_streams, store.VERSION, store.SCHEMA) as index:
        while not complete:
            checked = query.read_query(QueryRequest(**asked, after=after), CATALOGUE)
            part = await counts.count(index, checked, None, budget_s=0.0, window=4)
            total, after, parts, complete = total + part.count, part.counted_to, parts + 1, part.complete
    assert (total, after) == ((await counted(log, **asked)).count, 30)
    assert parts > 2


@pytest.mark.parametrize(
    ("source", "sequences"),
    [("agent", [1, 2]), ("agent:bob", [2]), ("agent:nobody", []), ("user", [3]), ("external:a:b", [4])],
)
async def test_query_by_source(service: Starlette, ask: Asker, source: str, sequences: list[int]) -> None:
    for actor in ("agent:alice", "agent:bob", "user:alice"):
        await ask.one(new(actor=actor))
    last = await ask.one(new(actor="external:a:b"))
    found = await ask.found(source=source, min_sequence=last.sequence)
    assert [event.sequence for event in found] == sequences


async def test_query_by_cause(service: Starlette, ask: Asker) -> None:
    await ask.append(new(id="evt_1"), new(causation_id="evt_1"), new(causation_id="evt_2"))
    assert [event.sequence for event in await ask.found(causation_id="evt_1", min_sequence=3)] == [2]


@pytest.mark.parametrize("source", ["agnet", "agnet:alice", ""])
async def test_unknown_source_is_refused(service: Starlette, ask: Asker, source: str) -> None:
    with pytest.raises(InvalidError) as caught:
        await ask.found(source=source)
    assert caught.value.errors[0].path == "source"
    assert caught.value.errors[0].suggestion == ("agent" if source else None)


async def test_retention_is_told_where_it_is_asked_for(service: Starlette, ask: Asker) -> None:
    await ask.append(new(), new(retention="forever"))
    plain = await ask.query(min_sequence=2)
    assert not any(b"retention" in bytes(raw) for raw in plain.events)
    marked = await ask.query(min_sequence=2, with_retention=True)
    assert [bytes(raw).endswith(b',"sequence":2,"retention":"forever"}') for raw in marked.events] == [False, True]


async def test_until_is_inclusive_and_part_of_the_cursor(log: Asker) -> None:
    page = await log.query(until=5, limit=3)
    assert (len(page.events), page.next_cursor is None) == (3, False)
    rest = await log.query(until=5, limit=3, cursor=page.next_cursor)
    assert (len(rest.events), rest.next_cursor) == (2, None)
    with pytest.raises(InvalidError):
        await log.query(until=6, limit=3, cursor=page.next_cursor)
