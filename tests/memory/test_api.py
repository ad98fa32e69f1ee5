import asyncio
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from crucible_core import subjects
from crucible_core.access import OPERATOR, Grant, Principal
from crucible_core.envelope import Source
from crucible_core.errors import ConflictError, InvalidError, MalformedError, NotFoundError, TooLargeError
from crucible_core.ids import moment_of
from crucible_core.limits import MEMORY_TAGS
from crucible_core.protocol.memory import Cause, CreateMemory, Link, UpdateMemory, WriteMemory, WrittenMemory
from crucible_core.protocol.worlds import ChangeWorld
from crucible_kit.clock import now_ms
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import call
from crucible_memory.notes.note import IN_PLACE
from tests.places import make_world

from .conftest import Memories, Running, until

pytestmark = pytest.mark.usefixtures("service")


async def test_created_memory_is_there_at_once(memory: Memories) -> None:
    wanted = CreateMemory(
        content="Vector clocks order events.",
        tags=["research", " #time ", "#research"],
        entities=["Lamport"],
        links=[Link(target="Lamport clocks")],
        metadata={"n": 1, "deep": {"x": [1]}},
    )
    written = await memory.write("create", create=wanted)
    assert written.id.startswith("mem_")
    found = await memory.get(written.id)
    assert (found.content, found.tags, found.entities) == (
        "Vector clocks order events.",
        ["#research", "#time"],
        ["Lamport"],
    )
    assert found.links == [Link(target="Lamport clocks")]
    assert found.metadata == {"n": 1, "deep": {"x": [1]}}
    assert found.sequence == written.sequence
    assert found.created_at == found.updated_at
    assert [one.id for one in await memory.query("vector")] == [written.id]


async def test_tags_and_links_in_a_text_count(memory: Memories) -> None:
    text = "# Heading\n#idée about [[Lamport clocks|clocks]], `#code` and #Research, not #1984 #日本語"
    links = [Link(target="Lamport clocks"), Link(target="Lamport clocks", type="wikilink")]
    id = await memory.create(text, tags=["#mine", "#research"], links=links[:1])
    found = await memory.get(id)
    assert (found.content, found.tags, found.links) == (text, ["#mine", "#research", "#idée", "#日本語"], links)
    assert [one.id for one in await memory.query(tags=["#IDEE"])] == [id]
    plain = await memory.get(await memory.create(text, extract=False))
    assert (plain.tags, plain.links) == ([], [])


async def test_tags_and_links_come_and_go_with_the_text(memory: Memories) -> None:
    id = await memory.create("#draft #kept [[One]]", tags=["#mine"], links=[Link(target="Other")])
    await memory.update(id, content="#kept #done [[Two]]")
    found = await memory.get(id)
    assert found.tags == ["#mine", "#kept", "#done"]
    assert [link.target for link in found.links] == ["Other", "Two"]
    await memory.update(id, content="#quiet", extract=False)
    assert (await memory.get(id)).tags == ["#mine", "#kept", "#done"]
    await memory.update(id, content="#said", tags=["#given"])
    assert (await memory.get(id)).tags == ["#given", "#said"]
    await memory.update(id, tags=None)
    assert (await memory.get(id)).tags == []


async def test_more_tags_in_a_text_than_there_may_be_are_cut(memory: Memories) -> None:
    text = " ".join(f"#t{number}" for number in range(3 * MEMORY_TAGS)) + "x" * IN_PLACE
    found = await memory.get(await memory.create(text, tags=["#mine"]))
    assert (len(found.tags), found.tags[:2]) == (MEMORY_TAGS, ["#mine", "#t0"])


async def test_a_change_is_an_event_with_its_cause(memory: Memories) -> None:
    await make_world(memory.bus, "default", "lab")
    cause = Cause(
        source=Source("agent", "a1"),
        actor="agent:a1",
        correlation_id="cor_x",
        causation_id="evt_x",
        hop=3,
        room_id="lab",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    id = await memory.create("text", cause=cause)
    [event] = await memory.log()
    about = event.metadata
    assert (event.dotted, about.entity, about.room_id) == ("Memory.Created", id, "lab")
    assert (about.actor, about.correlation_id, about.causation_id, about.hop) == ("agent:a1", "cor_x", "evt_x", 3)
    assert about.source == Source("agent", "a1")
    assert about.traceparent
    assert about.traceparent.split("-")[1] == "0af7651916cd43dd8448eb211c80319c"


async def test_update_changes_what_is_given_and_keeps_the_rest(memory: Memories) -> None:
    await make_world(memory.bus, "default", "lab")
    id = await memory.create("text", tags=["#a"], metadata={"n": 1}, cause=Cause(room_id="lab"))
    first = await memory.get(id)
    written = await memory.update(id, content="new", tags=[])
    found = await memory.get(id)
    assert (found.content, found.tags, found.metadata, found.room_id) == ("new", [], {"n": 1}, "lab")
    assert (found.sequence, found.created_at) == (written.sequence, first.created_at)
    assert found.updated_at > first.updated_at
    event = (await memory.log())[-1]
    assert event.metadata.room_id == "lab"
    assert event.data.payload == {
        "id": id,
        "content": "new",
        "tags": [],
        "entities": [],
        "links": [],
        "metadata": {"n": 1},
        "changes": ["content", "tags"],
        "previous_hash": sha256(b"text").hexdigest(),
        "new_hash": sha256(b"new").hexdigest(),
    }


async def test_an_update_is_a_merge_patch(memory: Memories) -> None:
    id = await memory.create("text", tags=["#a"], entities=["e"], metadata={"a": 1, "deep": {"x": 1, "y": 2}, "l": [1]})
    await memory.update(id, metadata={"a": None, "deep": {"y": None, "z": {"n": None, "m": 1}}, "l": [None], "b": 2})
    found = await memory.get(id)
    assert found.metadata == {"deep": {"x": 1, "z": {"m": 1}}, "l": [None], "b": 2}
    await memory.update(id, metadata=None, tags=None, entities=None)
    found = await memory.get(id)
    assert (found.content, found.metadata, found.tags, found.entities) == ("text", {}, [], [])


async def test_what_changes_nothing_is_no_event(memory: Memories) -> None:
    id = await memory.create("text", tags=["#a"], links=[Link(target="mem_x", weight=0.5)])
    for written in (
        await memory.update(id, content="text", tags=["a"]),
        await memory.update(id),
        await memory.tag(id, "a"),
        await memory.link(id, "mem_x"),
        await memory.link(id, "mem_x", weight=0.5),
    ):
        assert not written.changed
    assert await memory.kinds() == ["Created"]


async def test_tag_and_link_are_events_of_their_own(memory: Memories) -> None:
    id, other = await memory.create("one"), await memory.create("two")
    await memory.tag(id, "new")
    await memory.link(id, other, type="similar", weight=0.7)
    changed = await memory.link(id, other, type="similar", weight=0.8)
    assert changed.changed
    found = await memory.get(id)
    assert found.tags == ["#new"]
    assert found.links == [Link(target=other, type="similar", weight=0.8)]
    assert await memory.kinds() == ["Created", "Created", "Tagged", "Linked", "Linked"]


async def test_deleted_memory_is_gone_and_may_be_made_again(memory: Memories) -> None:
    id = await memory.create("text", id="mem_mine")
    await memory.delete(id)
    for attempt in (memory.get(id), memory.delete(id), memory.tag(id, "#a"), memory.update(id, content="x")):
        with pytest.raises(NotFoundError):
            await attempt
    assert await memory.query("text") == []
    await memory.create("again", id="mem_mine")
    assert (await memory.get(id)).content == "again"


async def test_expected_sequence_guards_a_change(memory: Memories) -> None:
    id = await memory.create("text")
    first = (await memory.get(id)).sequence
    await memory.update(id, content="second", expected=first)
    with pytest.raises(ConflictError) as refused:
        await memory.update(id, content="third", expected=first)
    assert refused.value.extra["current_sequence"] > first
    with pytest.raises(ConflictError):
        await memory.create("other", id=id)
    assert (await memory.get(id)).content == "second"


async def test_same_key_is_the_same_memory(memory: Memories) -> None:
    cause = Cause(key="k1", actor="user:a")
    first, again = [await memory.write("create", create=CreateMemory(content="text"), cause=cause) for _ in range(2)]
    assert (again.id, again.sequence, again.duplicate) == (first.id, first.sequence, True)
    other = await memory.write("create", create=CreateMemory(content="text"), cause=Cause(key="k1", actor="user:b"))
    assert other.id != first.id
    assert not other.duplicate
    with pytest.raises(InvalidError, match="Idempotency-Key"):
        await memory.write("create", create=CreateMemory(content="another"), cause=cause)


async def test_a_key_is_answered_as_the_first_time_whatever_became_of_the_memory(memory: Memories) -> None:
    before = now_ms()
    cause, create = Cause(key="k1", actor="user:a"), CreateMemory(content="text")
    first = await memory.write("create", create=create, cause=cause)
    assert before <= (moment_of(first.id) or 0) <= now_ms()
    await memory.update(first.id, content="changed")
    again = await memory.write("create", create=create, cause=cause)
    assert (again.id, again.sequence, again.duplicate) == (first.id, first.sequence, True)
    await memory.delete(first.id)
    again = await memory.write("create", create=create, cause=cause)
    assert (again.id, again.sequence, again.duplicate) == (first.id, first.sequence, True)
    assert await memory.kinds() == ["Created", "Updated", "Deleted"]


async def test_same_key_at_once_makes_one_memory(memory: Memories) -> None:
    asked = [memory.write("create", create=CreateMemory(content="text"), cause=Cause(key="k")) for _ in range(10)]
    written = await asyncio.gather(*asked)
    assert len({(one.id, one.sequence) for one in written}) == 1
    assert [one.duplicate for one in written].count(False) == 1
    assert await memory.kinds() == ["Created"]


async def test_repeated_update_with_key_and_expectation_is_the_first_one(memory: Memories) -> None:
    id = await memory.create("text")
    seen = (await memory.get(id)).sequence
    fields = {"id": id, "update": UpdateMemory(content="new"), "expected_sequence": seen, "cause": Cause(key="u")}
    first = await memory.write("update", **fields)
    await memory.tag(id, "#later")
    again = await memory.write("update", **fields)
    assert (again.sequence, again.duplicate) == (first.sequence, True)
    fields["update"] = UpdateMemory(content="new", tags=[])
    with pytest.raises(InvalidError, match="Idempotency-Key"):
        await memory.write("update", **fields)
    assert (await memory.get(id)).tags == ["#later"]


async def test_of_fifty_tags_at_once_none_is_lost(memory: Memories) -> None:
    id = await memory.create("text")
    await asyncio.gather(*(memory.tag(id, f"#t{number}") for number in range(50)))
    assert sorted((await memory.get(id)).tags) == sorted(f"#t{number}" for number in range(50))


async def test_two_replicas_lose_no_update(memory: Memories, running: Running, tmp_path: Path) -> None:
    id = await memory.create("text")
    async with running(tmp_path / "second"):

        async def annotate(number: int) -> None:
            while True:
                seen = await memory.get(id)
                try:
                    await memory.update(id, metadata={**seen.metadata, str(number): True}, expected=seen.sequence)
                except ConflictError:
                    continue
                return

        await asyncio.gather(*(annotate(number) for number in range(8)), *(memory.tag(id, f"#r{n}") for n in range(20)))
        found = await memory.get(id)
    assert len(found.metadata) == 8
    assert len(found.tags) == 20


async def test_a_new_version_is_read_from_any_replica(memory: Memories, running: Running, tmp_path: Path) -> None:
    async with running(tmp_path / "second"):
        id = await memory.create("0")
        for number in range(1, 20):
            await memory.update(id, content=str(number))
            assert (await memory.get(id)).content == str(number)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"content": "  "}, "content"),
        ({"content": "x", "tags": ["#ok", " # "]}, "tags.1"),
        ({"content": "x", "tags": ["x" * 100]}, "tags.0"),
        ({"content": "x", "tags": [f"t{n}" for n in range(101)]}, "tags"),
        ({"content": "x", "entities": [""]}, "entities.0"),
        ({"content": "x", "entities": ["x" + "\u0300\u0316" * 10_000]}, "entities.0"),
        ({"content": "x", "tags": ["x" + "\u0300\u0316" * 10_000]}, "tags.0"),
        ({"content": "x", "links": [Link(target=" ")]}, "links.0.target"),
        ({"content": "x", "links": [Link(target="a", type="")]}, "links.0.type"),
        ({"content": "x", "links": [Link(target=f"a{n}") for n in range(1001)]}, "links"),
    ],
)
async def test_bad_fields_are_refused_by_name(memory: Memories, fields: dict[str, object], path: str) -> None:
    with pytest.raises(InvalidError) as refused:
        await memory.create(**fields)  # type: ignore[arg-type]
    assert [error.path for error in refused.value.errors] == [path]


async def test_other_bad_requests_are_refused(memory: Memories, bus: Bus) -> None:
    id = await memory.create("text")
    with pytest.raises(InvalidError, match="link"):
        await memory.link(id, id)
    with pytest.raises(InvalidError, match="id"):
        await memory.create("x", id="not an id")
    with pytest.raises(InvalidError, match="create"):
        await memory.write("create")
    with pytest.raises(InvalidError, match="id"):
        await memory.write("delete")
    with pytest.raises(TooLargeError):
        await memory.create("x" * 1024 * 1024)
    with pytest.raises(NotFoundError):
        await memory.get("mem_none")
    with pytest.raises(NotFoundError):
        await memory.get("x" * 5000 + "\n*.>")
    headers = {subjects.PRINCIPAL: OPERATOR.header}
    with pytest.raises(MalformedError):
        await bus.request(bus.names.rpc("memory", "query"), b'{"mode": "vectors"}', headers=headers)
    deep: dict[str, object] = {}
    for _ in range(100):
        deep = {"x": deep}
    with pytest.raises(MalformedError):
        await memory.create("x", metadata=deep)


async def test_an_unknown_world_is_the_callers_mistake(memory: Memories) -> None:
    for cause, path in ((Cause(world_id="nowhere"), "world_id"), (Cause(room_id="nowhere"), "room_id")):
        with pytest.raises(InvalidError) as error:
            await memory.create("text", cause=cause)
        assert error.value.errors[0].path == path


async def test_the_memories_of_a_purged_world_are_gone(memory: Memories, service: Starlette) -> None:
    bus = memory.bus
    await make_world(bus, "acme")
    made = await memory.create("a secret", tags=["#t"], cause=Cause(world_id="acme"))
    kept = await memory.create("a secret")
    assert len(await memory.query("secret", world_id="acme")) == 1
    purge = ChangeWorld(id="acme", purge=True)
    await call(bus, OPERATOR, "events", "delete_world", purge, bytes)

    async def forgotten() -> bool:
        return not await memory.query("secret", world_id="acme")

    await until(forgotten)
    with pytest.raises(NotFoundError):
        await memory.get(made)
    assert [one.id for one in await memory.query("secret")] == [kept]


async def test_worlds_are_apart(memory: Memories) -> None:
    await make_world(memory.bus, "other")
    here = await memory.create("shared words", id="mem_same")
    there = await memory.create("shared words too", id="mem_same", cause=Cause(world_id="other"))
    assert here == there
    assert [one.content for one in await memory.query("shared")] == ["shared words"]
    assert [one.content for one in await memory.query("shared", world_id="other")] == ["shared words too"]
    await memory.delete("mem_same")
    assert (await memory.get("mem_same")).content == "shared words too"


async def test_a_memory_is_changed_by_its_id_in_the_world_where_it_is(memory: Memories) -> None:
    await make_world(memory.bus, "other")
    made = await memory.create("there", cause=Cause(world_id="other"))
    with pytest.raises(NotFoundError):  # a hook acts in the world of its event
        await memory.write("tag", id=made, tag="#x")
    await memory.write("update", id=made, update=UpdateMemory(content="there still"), anywhere=True)
    assert [one.content for one in await memory.query("still", world_id="other")] == ["there still"]
    bea = Principal("agent:bea", [Grant(worlds=("default",))])
    asked = WriteMemory(id=made, update=UpdateMemory(content="mine"), anywhere=True)
    with pytest.raises(NotFoundError):
        await call(memory.bus, bea, "memory", "update", asked, WrittenMemory)
    await memory.write("delete", id=made, anywhere=True)
    with pytest.raises(NotFoundError):
        await memory.get(made)
    with pytest.raises(NotFoundError):
        await memory.write("delete", id=made, anywhere=True)


async def test_events_of_others_become_memories(memory: Memories) -> None:
    payload = {"id": "mem_a", "content": "from outside", "tags": ["plain", "#plain"]}
    await memory.append("Memory.Created", payload)
    await memory.append("Memory.Tagged", {"id": "mem_a", "tag": "x"})
    await memory.append("Memory.Untagged", {"id": "mem_a", "tag": "#plain"})
    await memory.append("Memory.Linked", {"source": "mem_a", "target": "mem_b", "weight": 1.0})
    unlinked = await memory.append("Memory.Unlinked", {"id": "mem_a", "target": "mem_b"})
    await memory.append("Memory.Accessed", {"id": "mem_a"})
    found = await memory.get("mem_a")
    assert (found.content, found.tags, found.links) == ("from outside", ["#x"], [])
    assert found.sequence == unlinked.sequence  # to read is not to change
    await memory.append("Memory.Pruned", {"id": "mem_a"})
    with pytest.raises(NotFoundError):
        await memory.get("mem_a")


async def test_metrics_and_readiness(memory: Memories, service: Starlette) -> None:
    await memory.create("text")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service), base_url="http://memory") as client:
        assert (await client.get("/readyz")).json() == {"ready": True}
        metrics = (await client.get("/metrics")).text
    assert 'crucible_memory_writes_total{operation="create",outcome="changed"} 1.0' in metrics
