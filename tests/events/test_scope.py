"""What is asked and appended on behalf of somebody who may not see all: worlds, rooms, types and `where`."""

from typing import Any

import pytest
from starlette.applications import Starlette

from crucible_core.access import Grant, Principal
from crucible_core.envelope import decode
from crucible_core.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError
from crucible_core.protocol.events import (
    Appended,
    AppendReply,
    AppendRequest,
    CountReply,
    CountRequest,
    NewEvent,
    QueryReply,
    QueryRequest,
    RedactRequest,
    TypesReply,
    TypesRequest,
)
from crucible_core.protocol.parts import GetRequest
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import call
from tests.places import make_world

from .conftest import Asker, new

OWN = {"event.metadata.actor": "agent:bea"}


class Somebody:
    def __init__(self, bus: Bus, *grants: Grant) -> None:
        self.bus = bus
        self.who = Principal("agent:bea", list(grants))

    async def ask(self, operation: str, request: Any, reply: Any) -> Any:
        return await call(self.bus, self.who, "events", operation, request, reply)

    async def append(self, *events: NewEvent, atomic: bool = False) -> list[Appended]:
        reply = await self.ask("append", AppendRequest(events=list(events), atomic=atomic), AppendReply)
        return list(reply.results)

    async def refused(self, event: NewEvent) -> str | None:
        [result] = await self.append(event)
        return result.error.code if result.error else None

    async def seen(self, **asked: Any) -> list[str]:
        """The ids of what a query finds, page by page; count and types must say the same."""
        found: list[str] = []
        cursor: str | None = None
        while True:
            page = await self.ask("query", QueryRequest(**asked, limit=2, cursor=cursor), QueryReply)
            found += [decode(bytes(raw)).metadata.id for raw in page.events]
            if (cursor := page.next_cursor) is None:
                break
        counted = await self.ask("count", CountRequest(**asked, by="world_id"), CountReply)
        assert counted.count == sum(group.count for group in counted.groups) == len(found)
        return found


@pytest.fixture
async def log(service: Starlette, ask: Asker) -> Asker:
    await make_world(ask.bus, "acme", "lab")
    await make_world(ask.bus, "mars")
    note, tick = "Custom.note", "Custom.tick"
    done = await ask.append(
        new(note, {"n": 1}, id="evt_a1", world_id="acme"),
        new(note, {"n": 2}, id="evt_m1", world_id="mars"),
        new(tick, {"n": 3}, id="evt_a2", world_id="acme", room_id="lab", actor="agent:bea"),
        new(note, {"n": 4}, id="evt_d1"),
        new("Memory.Created", {"id": "mem_1", "content": "x"}, id="evt_a3", world_id="acme", room_id="lab"),
        new(note, {"n": 5}, id="evt_a4", world_id="acme", actor="agent:bea"),
    )
    await ask.query(min_sequence=max(one.sequence or 0 for one in done))
    return ask


@pytest.mark.parametrize(
    ("grants", "expected"),
    [
        ([], []),
        ([Grant(worlds=("acme",))], ["a1", "a2", "a3", "a4"]),
        ([Grant(worlds=("mars",)), Grant(worlds=("acme",), rooms=("lab",))], ["m1", "a2", "a3"]),
        ([Grant(worlds=("acme",), types=("Memory.*", "Custom.tick"))], ["a2", "a3"]),
        ([Grant(worlds=("acme",), where=OWN)], ["a2", "a4"]),
        ([Grant(rooms=("main",), types=("Custom.*",), where={"n": {"lt": 5}})], ["a1", "m1", "d1"]),
        ([Grant(worlds=("acme",), where={"n": 1}), Grant(worlds=("mars",))], ["a1", "m1"]),
        ([Grant(worlds=("acme",), where={"no": {"operator": 1}})], []),
    ],
)
async def test_a_scope_is_a_part_of_every_question(log: Asker, grants: list[Grant], expected: list[str]) -> None:
    bea, ids = Somebody(log.bus, *grants), [f"evt_{name}" for name in expected]
    about = {"type": ["Custom.note", "Custom.tick", "Memory.*"]}
    assert await bea.seen(**about) == ids
    for id in ("evt_a1", "evt_a2", "evt_a3", "evt_a4", "evt_m1", "evt_d1"):
        if id in ids:
            assert decode(await bea.ask("get", GetRequest(id=id), bytes)).metadata.id == id
            continue
        for operation, request in (("get", GetRequest(id=id)), ("redact", RedactRequest(id=id))):
            with pytest.raises(NotFoundError, match=f"there is no event {id}$"):
                await bea.ask(operation, request, bytes)
    assert await bea.seen(**about, filter={"n": {"gte": 2}}) == [id for id in ids if id not in ("evt_a1", "evt_a3")]


async def test_places_that_are_not_seen_never_were(log: Asker) -> None:
    bea = Somebody(log.bus, Grant(worlds=("acme",), rooms=("lab",)))
    assert await bea.seen(world_id="acme", room_id="lab") == await bea.seen(room_id="lab") == ["evt_a2", "evt_a3"]
    for place in ({"world_id": "mars"}, {"world_id": "default"}, {"room_id": "main"}):
        asked = {**place, "world_id": place.get("world_id", "acme")}
        with pytest.raises(InvalidError) as hidden:
            await bea.seen(**asked)
        with pytest.raises(InvalidError) as unknown:
            await bea.seen(**{name: value if value == "acme" else f"{value}x" for name, value in asked.items()})
        assert unknown.value.detail.replace('x"', '"') == hidden.value.detail
        assert hidden.value.errors[0].suggestion is None


async def test_types_are_counted_as_far_as_they_are_seen(log: Asker) -> None:
    seen = ((Grant(worlds=("acme",)), (1, 3)), (Grant(worlds=("mars",)), (0, 1)), (Grant(where=OWN), (0, 2)))
    for grant, expected in seen:
        reply = await Somebody(log.bus, grant).ask("types", TypesRequest(), TypesReply)
        counts = {one.type: one.count for one in reply.types}
        assert (counts["Memory.Created"], counts["Custom.*"]) == expected


async def test_nothing_is_written_outside_of_a_scope(log: Asker) -> None:
    bea = Somebody(
        log.bus, Grant(worlds=("acme",), rooms=("lab",), types=("Custom.*", "Memory.*"), where={"n": {"lt": 9}})
    )
    place = {"world_id": "acme", "room_id": "lab"}
    assert await bea.refused(new("Custom.x", {"n": 1}, **place)) is None
    for event in (
        new("Custom.x", {"n": 9}, **place),
        new("Custom.x", {"n": 1}, world_id="acme"),
        new("Custom.x", {"n": 1}, world_id="mars", room_id="lab"),
        new("Custom.x", {"n": 1}, world_id="no such", room_id="lab"),
        new("File.Created", {"path": "p"}, **place),
    ):
        assert await bea.refused(event) == "forbidden", event
    with pytest.raises(ForbiddenError) as refused:
        await bea.append(new("Custom.x", {"n": 1}, **place), new("Custom.x", {"n": 9}, **place), atomic=True)
    assert refused.value.extra["required"] == "events:write"
    assert await bea.seen(type=["Custom.x"]) == await log_ids(log, "Custom.x")


async def log_ids(log: Asker, type: str) -> list[str]:
    return [event.metadata.id for event in await log.found(type=[type])]


async def test_a_memory_of_a_room_that_is_not_seen_is_not_changed_from_another(log: Asker) -> None:
    """A memory's events have one subject, whatever room they say."""
    bea = Somebody(log.bus, Grant(worlds=("acme",), rooms=("main",)))
    assert await bea.refused(new("Memory.Deleted", {"id": "mem_1"}, world_id="acme")) == "forbidden"
    assert await bea.refused(new("Memory.Deleted", {"id": "mem_2"}, world_id="acme")) is None
    with pytest.raises(ForbiddenError):
        await bea.append(new("Memory.Deleted", {"id": "mem_1"}, world_id="acme"), atomic=True)


async def test_an_id_or_a_cause_of_another_world_says_nothing_of_it(log: Asker) -> None:
    bea = Somebody(log.bus, Grant(worlds=("acme",)))
    [taken] = await bea.append(new(id="evt_m1", world_id="acme"))
    assert taken.error is not None
    assert (taken.error.code, taken.id, taken.sequence) == ("conflict", None, None)
    with pytest.raises(ConflictError) as refused:
        await bea.append(new(id="evt_m1", world_id="acme"), atomic=True)
    assert (refused.value.detail, refused.value.extra) == ("there is another event of that id", {})
    [again] = await bea.append(new("Custom.note", {"n": 1}, id="evt_a1", world_id="acme"))
    assert (again.id, again.duplicate) == ("evt_a1", True)
    chain = {"world_id": "acme", "outside": True}
    await log.one(new(id="evt_deep", world_id="mars", hop=3, correlation_id="cor_m"))
    await log.one(new(id="evt_near", world_id="acme", hop=3, correlation_id="cor_a"))
    [unknown, known] = await bea.append(new(causation_id="evt_deep", **chain), new(causation_id="evt_near", **chain))
    assert unknown.correlation_id != "cor_m"
    assert known.correlation_id == "cor_a"
    assert [(await log.get(one.id or "")).metadata.hop for one in (unknown, known)] == [0, 4]
