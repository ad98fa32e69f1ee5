import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette

from crucible_core.access import OPERATOR
from crucible_core.envelope import Data, Event, Metadata, Source, encode
from crucible_core.errors import DeniedError, NotFoundError
from crucible_core.protocol.events import AppendReply, AppendRequest, NewEvent
from crucible_core.protocol.hooks import HookRecord, InterceptReply, InterceptRequest
from crucible_core.protocol.memory import Link, MemoryView
from crucible_kit.buckets import open_bucket
from crucible_kit.nats.bus import Bus, Message
from crucible_kit.nats.consumer import work
from crucible_kit.nats.frames import Outgoing
from crucible_kit.rpc import Context, Endpoint, call, serve
from crucible_kit.telemetry.spans import Telemetry
from crucible_memory.state import note_id
from tests.places import make_world

from .conftest import Memories, Running, until

PATH = "notes/clocks.md"
ID = note_id("default", PATH)
NOTE = "---\ntitle: Clocks\ntags: [time]\nstatus: draft\n---\nAbout [[Lamport]] #clocks\n"


async def file(memory: Memories, event: str, path: str = PATH, content: str | None = None, **fields: Any) -> int:
    """Appends a File event and returns its sequence, once the service is done with it."""
    metadata = {name: fields.pop(name) for name in ("world_id", "room_id", "correlation_id", "hop") if name in fields}
    payload = {"path": path, **({} if content is None else {"content": content}), **fields}
    appended = await memory.append(f"File.{event}", payload, **metadata)
    await handled(memory)
    return appended.sequence or 0


async def handled(memory: Memories) -> None:
    """Returns once no File event waits, and the index has what came of them."""

    async def nothing_waits() -> bool:
        done, log = await position(memory.bus), await memory.log("File")
        told = {event.metadata.causation_id for event in log if event.data.event == "Processed"}
        asked = [event for event in log if event.data.event != "Processed" and event.sequence > done]
        return all(event.metadata.id in told for event in asked)

    await until(nothing_waits)
    await memory.query(limit=1, min_sequence=await memory.bus.last_sequence(memory.bus.names.events))


async def position(bus: Bus) -> int:
    """Up to where File events are done, as their owner has told."""
    entry = await (await open_bucket(bus, "shards")).get("memory.00")
    return msgspec.json.decode(entry.value)["position"] if entry else 0


async def processed(memory: Memories) -> list[dict[str, Any]]:
    """The payloads of File.Processed, without how long it took."""
    told = [event.data.payload for event in await memory.log("File") if event.data.event == "Processed"]
    return [{name: value for name, value in payload.items() if name != "duration_ms"} for payload in told]


async def results(service: Starlette) -> dict[str, int]:
    """The File events that were handled, by what came of them."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service), base_url="http://memory") as client:
        lines = (await client.get("/metrics")).text.splitlines()
    counted = [line for line in lines if line.startswith("crucible_memory_files_total{")]
    return {line.split('"')[1]: int(float(line.rpartition(" ")[2])) for line in counted}


async def test_note_becomes_a_memory(service: Starlette, memory: Memories) -> None:
    await make_world(memory.bus, "default", "lab")
    await file(memory, "Created", content=NOTE, room_id="lab")
    found = await memory.get(ID)
    assert (found.title, found.path, found.content) == ("Clocks", PATH, "About [[Lamport]] #clocks\n")
    assert (found.tags, found.metadata, found.room_id) == (["#time", "#clocks"], {"status": "draft"}, "lab")
    assert found.links == [Link(target="Lamport", type="wikilink")]


@pytest.mark.parametrize("name", ["two\nlines", "a\ttab", "\x01\x7f", "\u2028\u0085", "\u202ertl", "n" * 240])
async def test_a_note_of_any_name_becomes_a_memory(service: Starlette, memory: Memories, name: str) -> None:
    path = f"{name}.md"
    await file(memory, "Created", path, "Found.", root="/notes")
    [found] = await memory.query(text="found")
    assert found.path == path
    assert [(told["path"], told["status"]) for told in await processed(memory)] == [(path, "created")]
    await file(memory, "Renamed", path, root="/notes", **{"from": path, "to": f"x{path}"})
    await file(memory, "Deleted", f"x{path}", root="/notes")
    assert [told["status"] for told in await processed(memory)] == ["created", "moved", "removed"]


async def test_a_file_event_that_is_only_recorded_makes_no_memory(service: Starlette, memory: Memories) -> None:
    await memory.append("File.Created", {"path": PATH, "content": NOTE}, react=False)
    await handled(memory)
    assert await results(service) == {"ignored": 1}
    assert await memory.log() == []


async def test_memory_is_the_files_effect(service: Starlette, memory: Memories) -> None:
    sequence = await file(memory, "Created", content=NOTE, correlation_id="cor_note", hop=2)
    [caused], [cause, _] = await memory.log(), await memory.log("File")
    assert caused.metadata.correlation_id == "cor_note"
    assert caused.metadata.causation_id == cause.metadata.id
    assert (caused.metadata.hop, caused.metadata.entity) == (3, ID)
    assert trace_of(caused) == trace_of(cause)
    assert caused.sequence == sequence + 1


async def test_modified_note_changes_its_memory(service: Starlette, memory: Memories) -> None:
    await file(memory, "Created", content=NOTE)
    await file(memory, "Modified", content=NOTE.replace("time", "order").replace("[[Lamport]]", "no one"))
    found = await memory.get(ID)
    assert (found.tags, found.links) == (["#order", "#clocks"], [])
    assert await memory.kinds() == ["Created", "Updated"]
    assert (await memory.log())[-1].data.payload["changes"] == ["content", "tags", "links"]


async def test_modified_note_without_a_memory_makes_one(service: Starlette, memory: Memories) -> None:
    await file(memory, "Modified", content=NOTE)
    assert await memory.kinds() == ["Created"]


async def test_unchanged_note_is_no_event(service: Starlette, memory: Memories) -> None:
    for event in ("Created", "Modified", "Created"):
        await file(memory, event, content=NOTE)
    assert await memory.kinds() == ["Created"]
    assert await results(service) == {"created": 1, "unchanged": 2}


async def test_what_others_put_on_a_note_stays(service: Starlette, memory: Memories) -> None:
    await file(memory, "Created", content=NOTE)
    await memory.tag(ID, "#by-hook")
    await memory.link(ID, "mem_other", type="similar", weight=0.9)
    await file(memory, "Modified", content="only text now")
    found = await memory.get(ID)
    assert found.tags == ["#by-hook"]
    assert found.links == [Link(target="mem_other", type="similar", weight=0.9)]


async def test_deleted_note_is_forgotten_and_may_come_back(service: Starlette, memory: Memories) -> None:
    await file(memory, "Created", content=NOTE)
    await file(memory, "Deleted")
    with pytest.raises(NotFoundError):
        await memory.get(ID)
    await file(memory, "Deleted")
    await file(memory, "Created", content=NOTE)
    assert (await memory.get(ID)).title == "Clocks"
    assert await memory.kinds() == ["Created", "Deleted", "Created"]


@pytest.mark.parametrize("content", [None, NOTE])
async def test_renamed_note_keeps_its_memory(service: Starlette, memory: Memories, content: str | None) -> None:
    await file(memory, "Created", content=NOTE)
    await file(memory, "Created", "other.md", "[[clocks]] [[notes/clocks.md]]")
    await memory.tag(ID, "#by-hook")
    await memory.link(ID, "mem_other", type="similar", weight=0.9)
    before = await memory.get(ID)
    await file(memory, "Renamed", "new.md", content, old_path=PATH)
    found = await memory.get(ID)
    assert (found.path, found.created_at) == ("new.md", before.created_at)
    assert (found.tags, found.links) == (before.tags, before.links)
    other = await memory.get(note_id("default", "other.md"))
    assert [link.target for link in other.links] == [ID]
    await file(memory, "Modified", "new.md", "edited")
    assert ((await memory.get(ID)).content, (await memory.get(ID)).tags) == ("edited", ["#by-hook"])
    assert await memory.kinds() == ["Created", "Created", "Tagged", "Linked", "Updated", "Updated"]


async def test_a_rename_in_the_words_of_the_contract(service: Starlette, memory: Memories) -> None:
    await file(memory, "Created", "Note.md", "text", root="/n")
    id = note_id("default", "Note.md", "/n")
    for old, new in (("Note.md", "note.md"), ("note.md", "deep/er/note.md"), ("deep/er/note.md", "Note.md")):
        payload = {"from": old, "to": new, "root": "/n"}
        await memory.append("File.Renamed", payload)
        await handled(memory)
        found = await memory.get(id)
        assert (found.path, found.title) == (new, new.rpartition("/")[2].removesuffix(".md"))


async def test_a_new_note_at_a_renamed_ones_path_is_another(service: Starlette, memory: Memories) -> None:
    await file(memory, "Created", "a.md", "first")
    await file(memory, "Created", "links.md", "[[a]] [[b]]")
    await file(memory, "Renamed", "b.md", "first", old_path="a.md")
    await file(memory, "Created", "a.md", "second")
    [second] = await memory.query("second")
    assert second.id != note_id("default", "a.md")
    links = await memory.get(note_id("default", "links.md"))
    assert [link.target for link in links.links] == [second.id, note_id("default", "a.md")]
    await file(memory, "Modified", "a.md", "second, edited")
    assert (await memory.get(second.id)).content == "second, edited"
    await file(memory, "Renamed", "c.md", "second, edited", old_path="a.md")
    await file(memory, "Created", "a.md", "third")
    assert len(await memory.query()) == 4


async def test_a_note_renamed_over_another_takes_its_place(service: Starlette, memory: Memories) -> None:
    await file(memory, "Created", "a.md", "of a")
    await file(memory, "Created", "b.md", "of b")
    await memory.tag(note_id("default", "a.md"), "#by-hook")
    await file(memory, "Renamed", "b.md", "of a", old_path="a.md")
    [found] = await memory.query()
    assert (found.id, found.path, found.content, found.tags) == (
        note_id("default", "a.md"),
        "b.md",
        "of a",
        ["#by-hook"],
    )


async def test_a_renamed_folder_takes_its_notes_along(service: Starlette, memory: Memories) -> None:
    for path in ("old/a.md", "old/deep/b.md", "older/c.md", "old.md"):
        await file(memory, "Created", path, path, root="/n")
    await file(memory, "Renamed", "new", old_path="old", root="/n")
    paths = {found.id: found.path for found in await memory.query()}
    assert paths == {
        note_id("default", "old/a.md", "/n"): "new/a.md",
        note_id("default", "old/deep/b.md", "/n"): "new/deep/b.md",
        note_id("default", "older/c.md", "/n"): "older/c.md",
        note_id("default", "old.md", "/n"): "old.md",
    }
    await file(memory, "DirectoryDeleted", "new", root="/n")
    assert sorted(found.path or "" for found in await memory.query()) == ["old.md", "older/c.md"]


async def test_a_note_that_is_gone_and_there_again_under_another_name_is_the_same(
    service: Starlette, memory: Memories
) -> None:
    await file(memory, "Created", content=NOTE)
    await memory.tag(ID, "#by-hook")
    await file(memory, "Deleted")
    await file(memory, "Created", "other.md", "another text")
    await file(memory, "Created", "new.md", NOTE)
    found = await memory.get(ID)
    assert (found.path, found.tags) == ("new.md", ["#time", "#clocks", "#by-hook"])


async def test_a_note_moved_after_a_restart_keeps_its_memory(
    events: None, running: Running, memory: Memories, tmp_path: Path
) -> None:
    async with running():
        await file(memory, "Created", content=NOTE)
        await file(memory, "Renamed", "b.md", NOTE, old_path=PATH)
    async with running(tmp_path / "another"):
        await file(memory, "Renamed", "c.md", NOTE, old_path="b.md")
        assert (await memory.get(ID)).path == "c.md"
        await file(memory, "Created", "d.md", "[[clocks]]")
        assert [link.target for link in (await memory.get(note_id("default", "d.md"))).links] == [ID]


async def test_an_edit_keeps_what_others_have_changed(service: Starlette, memory: Memories) -> None:
    await file(memory, "Created", content=NOTE)
    await memory.update(
        ID,
        tags=["#time", "#clocks", "#by-agent"],
        links=[Link(target="mem_x", type="cites")],
        entities=["Lamport"],
        metadata={"reviewed": True, "status": "done"},
    )
    await file(memory, "Modified", content=NOTE.replace("#clocks", "#order"))
    found = await memory.get(ID)
    assert found.tags == ["#time", "#order", "#by-agent"]
    assert [(link.target, link.type) for link in found.links] == [("Lamport", "wikilink"), ("mem_x", "cites")]
    assert (found.entities, found.metadata) == (["Lamport"], {"reviewed": True, "status": "draft"})
    await memory.update(ID, tags=["#time"])
    await file(memory, "Modified", content=NOTE)
    assert (await memory.get(ID)).tags == ["#time", "#clocks"]


async def test_renaming_from_and_to_other_files(service: Starlette, memory: Memories) -> None:
    await file(memory, "Created", content=NOTE)
    await file(memory, "Renamed", "notes/clocks.txt", old_path=PATH)
    assert await memory.kinds() == ["Created", "Deleted"]
    await file(memory, "Renamed", PATH, old_path="notes/clocks.txt")
    await file(memory, "Renamed", PATH, NOTE, old_path="notes/clocks.txt")
    await file(memory, "Renamed", PATH, NOTE, old_path=PATH)
    assert await memory.kinds() == ["Created", "Deleted", "Created"]


async def test_other_files_are_ignored(service: Starlette, memory: Memories) -> None:
    await file(memory, "Created", "picture.png", content="x")
    await file(memory, "Deleted", "a.txt")
    await file(memory, "DirectoryDeleted", "dir.md")
    await file(memory, "Renamed", "b.txt", old_path="a.txt")
    assert await memory.log() == []
    assert await results(service) == {"ignored": 4}
    assert [event.data.event for event in await memory.log("File")] == [
        "Created",
        "Deleted",
        "DirectoryDeleted",
        "Renamed",
    ]


async def test_a_note_without_its_text_is_not_answered_with_the_old_one(service: Starlette, memory: Memories) -> None:
    await file(memory, "Created", content=NOTE)
    await memory.tag(ID, "#by-hook")
    await file(memory, "Modified", reason="the content is left out: it is over 900 KiB", size=2_000_000)
    found = await memory.get(ID)
    assert (found.content, found.title, found.tags) == ("", "clocks", ["#by-hook"])
    assert found.problems == ["the content is left out: it is over 900 KiB"]
    assert await memory.query("Lamport") == []
    told = (await processed(memory))[-1]
    assert told["error"] == f"{PATH}: the content is left out: it is over 900 KiB"
    await file(memory, "Modified", content=NOTE)
    found = await memory.get(ID)
    assert (found.content, found.problems) == ("About [[Lamport]] #clocks\n", [])
    assert (await processed(memory))[-1]["status"] == "updated"
    await file(memory, "Modified", content="caf\ufffd", reason="byte 3 is not UTF-8")
    found = await memory.get(ID)
    assert (found.content, found.problems) == ("caf\ufffd", ["byte 3 is not UTF-8"])
    await file(memory, "Created", "long.md", reason="too long")
    assert (await processed(memory))[-1] == {"path": "long.md", "status": "refused", "error": "long.md: too long"}


async def test_what_becomes_of_each_note_is_an_event(service: Starlette, memory: Memories) -> None:
    await file(memory, "Created", content=NOTE, root="/n", correlation_id="cor_note")
    id = note_id("default", PATH, "/n")
    await file(memory, "Modified", content="---\ntitle: Plan: part two\n---\ntext", root="/n")
    await file(memory, "Modified", content="---\ntitle: Plan: part two\n---\ntext", root="/n")
    await file(memory, "Renamed", "b.md", old_path=PATH, root="/n")
    await file(memory, "Deleted", "b.md", root="/n")
    told = await processed(memory)
    assert {event.pop("root") for event in told} == {"/n"}
    problem = (
        'front matter, line 2: mapping values are not allowed in this context: put a value that contains ": " in quotes'
    )
    assert told == [
        {"path": PATH, "memory_id": id, "status": "created"},
        {"path": PATH, "memory_id": id, "status": "updated", "error": f"{PATH}: {problem}"},
        {"path": PATH, "memory_id": id, "status": "unchanged", "error": f"{PATH}: {problem}"},
        {"path": "b.md", "memory_id": id, "status": "moved", "error": f"b.md: {problem}"},
        {"path": "b.md", "memory_id": id, "status": "removed"},
    ]
    [created, *_] = [event for event in await memory.log("File") if event.data.event == "Processed"]
    assert created.metadata.correlation_id == "cor_note"


async def test_a_note_with_broken_front_matter_is_kept_and_found(service: Starlette, memory: Memories) -> None:
    await file(memory, "Created", content=NOTE)
    await file(memory, "Modified", content="---\ntitle: Plan: part two\ntags: [time]\n---\nthe zebra")
    found = await memory.get(ID)
    assert (found.title, found.content, found.tags) == ("Plan: part two", "the zebra", ["#time"])
    assert [one.id for one in await memory.query("zebra")] == [ID]
    assert await memory.query("Lamport") == []


async def test_chain_that_is_too_deep_ends(service: Starlette, memory: Memories) -> None:
    await file(memory, "Created", content=NOTE, hop=8)
    assert await memory.log() == []
    assert await results(service) == {"refused": 1}


async def test_denied_note_is_passed_over(service: Starlette, memory: Memories) -> None:
    async with denying(memory.bus, "draft"):
        await file(memory, "Created", content=NOTE)
        await file(memory, "Created", "next.md", content="text")
    assert [event.metadata.entity for event in await memory.log()] == [note_id("default", "next.md")]
    assert await results(service) == {"created": 1, "denied": 1}


async def test_denial_reaches_the_caller(service: Starlette, memory: Memories) -> None:
    async with denying(memory.bus, "secret"):
        with pytest.raises(DeniedError) as denied:
            await memory.create("a secret")
        assert denied.value.extra == {"hook": "gate", "reason": "no secret"}
        assert await memory.create("nothing of the kind")


async def test_event_that_cannot_be_read_does_not_block(service: Starlette, memory: Memories) -> None:
    names = memory.bus.names
    subject = names.event("default", "main", "File", "Created", PATH)
    for raw in (b"{", b"{}", b"\xff", b'{"type":"File","data":{"event":"Created","payload":{}}}'):
        await memory.bus.store(Outgoing(subject, raw))
    await memory.append("File.Created", {"path": PATH, "content": NOTE})
    await until(lambda: _holds(memory, "About [[Lamport]] #clocks\n"))
    assert await memory.bus.last(names.attempts, names.parked(names.durable("memory-files")))


async def test_order_of_a_note_holds(service: Starlette, memory: Memories) -> None:
    for number in range(30):
        await memory.append("File.Modified", {"path": PATH, "content": f"version {number}"})
    await handled(memory)
    assert [event.data.payload["content"] for event in await memory.log()] == [f"version {n}" for n in range(30)]
    assert (await memory.get(ID)).content == "version 29"


async def test_file_event_waits_until_it_can_be_committed(
    memory: Memories, running: Running, running_events: Running, caplog: pytest.LogCaptureFixture
) -> None:
    payload = {"path": PATH, "content": NOTE}
    about = Metadata(
        id="evt_early",
        timestamp="2026-11-21T10:00:00.000000Z",
        source=Source("user", "a"),
        actor="a",
        correlation_id="c",
    )
    async with running():
        names = memory.bus.names
        subject = names.event("default", "main", "File", "Created", PATH)
        await memory.bus.store(Outgoing(subject, encode(Event("File", Data("Created", payload), about))))
        await until(lambda: "notes wait" in caplog.text)
        async with running_events():
            await handled(memory)
            assert (await memory.get(ID)).title == "Clocks"


async def test_events_that_are_read_again_make_nothing_twice(events: None, memory: Memories, running: Running) -> None:
    """As where a process was killed before it had told how far it had come."""
    async with running():
        for content in (NOTE, NOTE, "later"):
            await file(memory, "Modified", content=content)
        told = await processed(memory)
    await (await open_bucket(memory.bus, "shards")).put("memory.00", b'{"owner": "another", "position": 0}')
    async with running():
        await file(memory, "Created", "another.md", "text")
        contents = [event.data.payload["content"] for event in await memory.log()]
    # Each event's effect is known by its cause, so that the second one is not made over the third.
    assert contents == ["About [[Lamport]] #clocks\n", "later", "text"]
    assert (await processed(memory))[:-1] == told


async def test_the_place_of_the_version_before_is_kept(events: None, memory: Memories, running: Running) -> None:
    names = memory.bus.names
    durable = names.durable("memory-files")
    await memory.append("File.Created", {"path": PATH, "content": NOTE})
    done = asyncio.Event()

    async def handle(message: Message) -> None:
        done.set()

    filters = [names.events_of("File")]
    working = asyncio.create_task(work(memory.bus, names.events, durable, handle, filters=filters, concurrency=1))
    await done.wait()
    working.cancel()
    await asyncio.wait([working])
    async with running():
        await file(memory, "Created", "another.md", "text")
        assert [event.data.payload["path"] for event in await memory.log()] == ["another.md"]
        with pytest.raises(NotFoundError):
            await memory.bus.consumer_backlog(names.events, durable)


async def test_from_file_to_memory_is_quick(service: Starlette, memory: Memories) -> None:
    taken = []
    for number in range(20):
        started = time.perf_counter()
        await memory.append("File.Modified", {"path": PATH, "content": f"version {number}"})
        await until(lambda number=number: _holds(memory, f"version {number}"))
        taken.append(time.perf_counter() - started)
    assert sorted(taken)[10] < 0.2


async def test_wikilinks_lead_to_notes_once_they_exist(service: Starlette, memory: Memories) -> None:
    await file(memory, "Created", "a.md", "[[Lamport Clocks]] [[deep/b]] [[the alias]] [[d.md]] [[nowhere]]")
    notes = {
        "x/lamport clocks.md": "text",
        "notes/deep/b.md": "text",
        "c.md": "---\naliases: [The  Alias]\n---\n",
        "other/d.md": "text",
    }
    for path, content in notes.items():
        await file(memory, "Created", path, content)
    found = await memory.get(note_id("default", "a.md"))
    assert [link.target for link in found.links] == [*(note_id("default", path) for path in notes), "nowhere"]
    again = await memory.link(found.id, note_id("default", "c.md"), type="wikilink")
    assert not again.changed


async def test_links_lead_to_notes_by_any_spelling(service: Starlette, memory: Memories) -> None:
    text = '---\nup: "[[cafe\u0301 strasse]]"\n---\n[[Cafe]] [[café]] [[CAFE]] [[none]] [[None]]'
    await file(memory, "Created", "a.md", text)
    for path in ("Café Straße.md", "café.md", "Cafe.md"):
        await file(memory, "Created", path, "text")
    found = await memory.get(note_id("default", "a.md"))
    street, accent, plain = (note_id("default", path) for path in ("Café Straße.md", "café.md", "Cafe.md"))
    links = [(link.target, link.type) for link in found.links]
    assert links[:3] == [(street, "up"), (plain, "wikilink"), (accent, "wikilink")]
    assert [target for target, _ in links[3:]] == ["none", "None"]
    assert not (await memory.link(found.id, "NONE", type="wikilink")).changed


async def _holds(memory: Memories, content: str) -> bool:
    with contextlib.suppress(NotFoundError):
        found: MemoryView = await memory.get(ID)
        return found.content == content
    return False


def trace_of(event: Event) -> str:
    assert event.metadata.traceparent
    return event.metadata.traceparent.split("-")[1]


@contextlib.asynccontextmanager
async def denying(bus: Bus, word: str) -> AsyncIterator[list[bytes]]:
    """A Pre hook on Memory events, and a hooks service that denies those with a word in their payload; yields the
    Memory events that it was asked about."""
    asked: list[bytes] = []

    async def intercept(request: InterceptRequest, context: Context) -> InterceptReply:
        if b'"type":"Memory"' in bytes(request.event):
            asked.append(bytes(request.event))
        if word.encode() in bytes(request.event):
            raise DeniedError(f"gate: no {word}", hook="gate", reason=f"no {word}")
        return InterceptReply()

    definition = {
        "name": "gate",
        "trigger": {"events": [{"type": "Memory.*"}, {"type": "Custom.probe"}], "timing": "Pre"},
        "action": {"type": "Script", "script": "None"},
    }
    async with serve(bus, "hooks", {"intercept": Endpoint(InterceptRequest, intercept)}, Telemetry()):
        bucket = await open_bucket(bus, "hooks")
        await bucket.put("gate", msgspec.json.encode(HookRecord(name="gate", definition=definition)))
        probe = NewEvent(type="Custom.probe", payload=msgspec.Raw(msgspec.json.encode({"word": word})))

        async def watched() -> bool:
            request = AppendRequest(events=[probe])
            return (await call(bus, OPERATOR, "events", "append", request, AppendReply)).results[0].error is not None

        await until(watched)
        yield asked


async def test_same_path_in_two_folders_is_two_memories(service: Starlette, memory: Memories) -> None:
    roots = ("/home/a/notes", "/home/b/notes")
    for root in roots:
        await file(memory, "Created", content=f"of {root}", root=root)
    found = [await memory.get(note_id("default", PATH, root)) for root in roots]
    assert [one.content for one in found] == ["of /home/a/notes", "of /home/b/notes"]
