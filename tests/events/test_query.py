import asyncio
import contextlib
import sqlite3
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette

from crucible_core.access import OPERATOR
from crucible_core.envelope import decode
from crucible_core.errors import InvalidError, NotFoundError
from crucible_core.position import Position
from crucible_core.protocol.events import CountReply, CountRequest, QueryRequest, TypesReply
from crucible_core.types.catalogue import CATALOGUE
from crucible_events import store
from crucible_events.api import TypesRequest
from crucible_events.query import query, scan
from crucible_kit.rpc import call
from tests.cases import each_of
from tests.places import make_world

from .conftest import Asker, new


@pytest.fixture
async def log(service: Starlette, ask: Asker) -> Asker:
    """Twelve events: sequence n is n minutes after ten."""
    await make_world(ask.bus, "mars", "attic", "cellar")
    await make_world(ask.bus, "default", "attic", "cellar")
    await ask.append(
        *(
            new(
                ("Memory.Created", "Memory.Deleted", "File.Modified", "Custom.note")[n % 4],
                [{"id": f"mem_{n}", "content": f"c{n}"}, {"id": f"mem_{n}"}, {"path": f"p{n}"}, {"n": n}][n % 4],
                actor=f"user:{'ab'[n % 2]}",
                correlation_id=f"cor_{n // 6}",
                room_id=("main", "attic", "cellar")[n % 3],
                world_id="default" if n < 10 else "mars",
                timestamp=f"2026-11-21T10:{n + 1:02}:00Z",
            )
            for n in range(12)
        )
    )
    await ask.query(min_sequence=12)
    return ask


async def sequences(log: Asker, **asked: Any) -> list[int | None]:
    return [event.sequence for event in await log.found(**asked)]


@each_of(
    ("asked", "expected"),
    [
        ({}, range(1, 13)),
        ({"order": "desc"}, range(12, 0, -1)),
        ({"type": ["Memory.Created"]}, (1, 5, 9)),
        ({"type": ["memory:created", "File.*"]}, (1, 3, 5, 7, 9, 11)),
        ({"type": ["memory:created", "File.*"], "order": "desc"}, (11, 9, 7, 5, 3, 1)),
        ({"type": ["Memory.*"]}, (1, 2, 5, 6, 9, 10)),
        ({"type": ["Custom.*"]}, (4, 8, 12)),
        ({"type": ["Custom.other"]}, ()),
        ({"type": ["*", "Custom.note"]}, range(1, 13)),
        ({"actor": "user:a"}, range(1, 13, 2)),
        ({"actor": "user:b", "type": ["Memory.*"]}, (2, 6, 10)),
        ({"correlation_id": "cor_1"}, range(7, 13)),
        ({"correlation_id": "cor_1", "type": ["Custom.*", "Memory.Created"]}, (8, 9, 12)),
        ({"entity": "p2"}, (3,)),
        ({"entity": "mem_0", "order": "desc"}, (1,)),
        ({"world_id": "mars"}, (11, 12)),
        ({"room_id": "attic"}, (2, 5, 8, 11)),
        ({"room_id": "attic", "world_id": "default"}, (2, 5, 8)),
        ({"from_time": "2026-11-21T10:11:00Z"}, (11, 12)),
        ({"to_time": "2026-11-21T10:03:00Z"}, (1, 2)),
        ({"from_time": "2026-11-21T11:04:00+01:00", "to_time": "2026-11-21T10:06:00Z"}, (4, 5)),
        ({"from_time": "2027-01-01T00:00:00Z"}, ()),
        ({"after": 10}, (11, 12)),
        ({"after": 10, "order": "desc"}, (12, 11)),
        ({"after": 12}, ()),
        ({"filter": {"content": {"in": ["c4", "c8"]}}}, (5, 9)),
        ({"filter": {"n": {"gt": 3}}, "type": ["Custom.note"]}, (8, 12)),
        ({"filter": {"event.metadata.room_id": "cellar"}, "order": "desc"}, (12, 9, 6, 3)),
        ({"filter": {}}, range(1, 13)),
        ({"limit": 3}, (1, 2, 3)),
        ({"limit": 2, "order": "desc", "type": ["File.*"]}, (11, 7)),
    ],
)
async def test_each_parameter_narrows(log: Asker, asked: dict[str, Any], expected: Any) -> None:
    assert await sequences(log, **asked) == list(expected)


@pytest.mark.parametrize(
    ("asked", "paths"),
    [
        ({"limit": 0}, ["limit"]),
        ({"limit": 1001}, ["limit"]),
        ({"after": -1}, ["after"]),
        ({"after": 2**63}, ["after"]),
        ({"min_sequence": -1, "limit": -1}, ["limit", "min_sequence"]),
        ({"type": ["Memory.Creatd"]}, ["type"]),
        ({"type": ["*"] * 101}, ["type"]),
        ({"from_time": "today", "to_time": ""}, ["from_time", "to_time"]),
        ({"filter": {"content": {"cnotains": "x"}}}, ["filter.content.cnotains"]),
        ({"filter": {"contnt": "x"}, "type": ["Memory.Created"]}, ["filter.contnt"]),
        ({"cursor": "x"}, ["cursor"]),
        ({"cursor": ""}, ["cursor"]),
        ({"cursor": "ä" * 10_000}, ["cursor"]),
    ],
)
async def test_what_makes_no_sense_is_refused(service: Starlette, ask: Asker, asked: Any, paths: list[str]) -> None:
    with pytest.raises(InvalidError) as error:
        await ask.query(**asked)
    assert [field.path for field in error.value.errors] == paths


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("asked", [{}, {"type": ["Memory.*"]}, {"filter": {"event.metadata.actor": "user:a"}}])
async def test_pages_join_without_hole_or_repeat(log: Asker, order: str, asked: dict[str, Any]) -> None:
    whole = await sequences(log, order=order, **asked)
    for limit in (1, 2, 5, len(whole), 1000):
        found, cursor, pages = [], None, 0
        while pages == 0 or cursor:
            page = await log.query(order=order, limit=limit, cursor=cursor, **asked)
            found += page.events
            cursor, pages = page.next_cursor, pages + 1
        assert len(found) == len(whole)
        assert pages == -(-len(whole) // limit)
        assert await sequences(log, order=order, limit=limit, **asked) == whole[:limit]


async def test_a_cursor_belongs_to_its_query(log: Asker) -> None:
    page = await log.query(limit=2, type=["Memory.*"])
    assert page.next_cursor
    await log.query(limit=5, type=["Memory.*"], cursor=page.next_cursor)
    for other in ({"type": ["File.*"]}, {"type": ["Memory.*"], "order": "desc"}, {}):
        with pytest.raises(InvalidError):
            await log.query(cursor=page.next_cursor, **other)  # type: ignore[arg-type]


async def test_a_costly_query_is_answered_in_parts(log: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "QUERY_STEPS", 5)
    page = await log.query(actor="user:a", room_id="attic")
    assert page.next_cursor
    found = list(page.events)
    while page.next_cursor:
        page = await log.query(actor="user:a", room_id="attic", cursor=page.next_cursor)
        found += page.events
    assert len(found) == 2


async def test_answers_are_bounded_in_bytes(service: Starlette, ask: Asker) -> None:
    for _ in range(6):
        await ask.one(new(payload={"x": "y" * 1_000_000}))
    page = await ask.query(min_sequence=6)
    assert len(page.events) == 4
    rest = await ask.query(cursor=page.next_cursor)
    assert (len(rest.events), rest.next_cursor) == (2, None)


async def test_reads_wait_for_a_sequence(service: Starlette, ask: Asker) -> None:
    waiting = asyncio.create_task(ask.query(min_sequence=3))
    await ask.append(new(), new(), new())
    assert len((await waiting).events) == 3


@pytest.mark.parametrize("sequence", [10, 2**63 - 1])
async def test_a_sequence_that_the_log_has_not_is_refused(service: Starlette, ask: Asker, sequence: int) -> None:
    with pytest.raises(InvalidError, match="past the end of the log, which is at 0"):
        await ask.query(min_sequence=sequence)


async def test_an_unknown_event_is_not_found(service: Starlette, ask: Asker) -> None:
    for text in ("evt_nope", "", "x" * 10_000, "a\x00b'\"; DROP TABLE events"):
        with pytest.raises(NotFoundError):
            await ask.get(text)


async def test_types_are_listed(service: Starlette, ask: Asker) -> None:
    reply = await call(ask.bus, OPERATOR, "events", "types", TypesRequest(), TypesReply)
    assert {"Memory.Created", "Custom.*"} <= {kind.type for kind in reply.types}


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize(
    "asked",
    [
        {"correlation_id": "x", "actor": "a"},
        {"entity": "x", "world_id": "w"},
        {"type": ["Memory.Created"]},
        {"type": ["Memory.*", "File.Created", "Custom.x"], "room_id": "r"},
        {"actor": "x"},
        {"room_id": "x", "world_id": "w"},
        {"world_id": "x"},
        {},
    ],
)
def test_no_query_sorts(order: Any, asked: dict[str, Any]) -> None:
    """Rows come in the log's order from one index, or from several that are merged."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(store.SCHEMA)
        checked = query.read_query(QueryRequest(order=order, from_time="2026-11-21T10:00:00Z", **asked), CATALOGUE)
        statement, values = scan.rows_statement(
            scan.make_scan(checked, (((1, 10),),), Position((0,))), scan.SIZE, 1, 10, 5
        )
        steps = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
    assert not [step for step in steps if "TEMP B-TREE" in step], steps


@given(st.text(max_size=400))
def test_no_text_is_a_cursor(text: str) -> None:
    with pytest.raises(InvalidError):
        query._position("0" * 16, text)


async def test_a_time_that_comes_and_goes_in_the_log_is_found_in_stretches(service: Starlette, ask: Asker) -> None:
    """As where old events are imported: what stands between is not read."""
    for day in (1, 20, 1):
        for _ in range(2):
            await ask.append(
                *(new("Custom.note", {"n": n}, timestamp=f"2026-11-{day:02}T10:00:00Z") for n in range(1100))
            )
    await ask.query(min_sequence=6600)
    asked = {"from_time": "2026-11-01T00:00:00Z", "to_time": "2026-11-02T00:00:00Z"}
    index = service.state.audit._index
    from_us, to_us = 1793491200000000, 1793577600000000
    found = await store.stretches(index, from_us, to_us)
    assert [(low // 1024, high // 1024) for low, high in found] == [(0, 2), (4, 6)]
    wanted = [*range(1, 2201), *range(4401, 6601)]
    assert await _all_pages(ask, **asked, limit=1000) == wanted
    assert await _all_pages(ask, **asked, limit=900, order="desc") == wanted[::-1]
    counted = await call(ask.bus, OPERATOR, "events", "count", CountRequest(**asked), CountReply)
    assert (counted.count, counted.complete) == (4400, True)


async def _all_pages(ask: Asker, **asked: Any) -> list[int | None]:
    found, cursor = [], None
    while True:
        page = await ask.query(**asked, cursor=cursor)
        found += [decode(bytes(raw)).sequence for raw in page.events]
        cursor = page.next_cursor
        if cursor is None:
            return found
