"""Redaction: what is erased where, and that nothing else is, whenever a process dies and whoever asks twice."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import msgspec
import pytest
from starlette.applications import Starlette

from crucible_core.access import OPERATOR
from crucible_core.envelope import Event, Redaction, decode
from crucible_core.errors import ConflictError, DeniedError, InvalidError, NotFoundError
from crucible_core.ids import derive_id
from crucible_core.protocol.events import NewEvent, RedactRequest
from crucible_core.protocol.hooks import HookRecord
from crucible_core.protocol.worlds import ChangeWorld
from crucible_core.redaction import StoredEvent, mark, tombstone
from crucible_core.subjects import MSG_ID, NO_REACTION, REDACTS
from crucible_events import store
from crucible_events.app import create_app
from crucible_events.redaction import Eraser
from crucible_events.settings import Settings
from crucible_kit.buckets import open_bucket
from crucible_kit.index.index import open_index
from crucible_kit.nats.bus import Message
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.reader import read
from crucible_kit.rpc import call
from crucible_kit.telemetry.metrics import Metrics
from tests.places import make_world

from .conftest import Asker, Running, delete_index, eventually, index_files, new, until
from .test_prehooks import allow, change, definition, deny, hooks
from .test_retention import put, rule, told

SECRET = "the colour of the vault is vermilion"


async def redact(ask: Asker, event_id: str, reason: str | None = None) -> Event:
    request = RedactRequest(id=event_id, reason=reason, actor="user:alice")
    return decode(await call(ask.bus, OPERATOR, "events", "redact", request, bytes))


async def stored(ask: Asker) -> list[Message]:
    found: list[Message] = []
    async with contextlib.aclosing(read(ask.bus, ask.bus.names.events)) as batches:
        async for messages in batches:
            found += messages
            if not messages:
                break
    return found


def secret_is_in_files(settings: Settings) -> bool:
    return any(SECRET.encode() in file.read_bytes() for file in index_files(settings))


async def test_a_redacted_event_keeps_its_envelope_and_place(service: Starlette, ask: Asker) -> None:
    await ask.append(new(), new(payload={"text": SECRET}, id="evt_a", entity="vault"), new())
    before = await ask.get("evt_a")
    after = await redact(ask, "evt_a", "asked for by Bob")
    assert after == await ask.get("evt_a") == (await ask.found(entity="vault", type=["Custom.note"]))[0]
    assert after.redacted
    assert msgspec.structs.replace(after, redacted=msgspec.UNSET) == msgspec.structs.replace(
        before, data=msgspec.structs.replace(before.data, payload={})
    )
    stone = (await ask.found(type=["System.Redacted"]))[0]
    assert (after.redacted.tombstone, after.redacted.at) == (stone.metadata.id, stone.metadata.timestamp)
    assert (after.redacted.by, after.redacted.reason) == ("user:alice", "asked for by Bob")
    assert (stone.metadata.causation_id, stone.metadata.entity) == ("evt_a", "vault")
    assert stone.data.payload["sequence"] == before.sequence == 2
    assert not any(SECRET.encode() in message.data for message in await stored(ask))
    assert await ask.found(filter={"text": {"exists": True}}, type=["Custom.note"]) == []


async def test_the_payload_is_nowhere_in_the_index_file(service: Starlette, ask: Asker, settings: Settings) -> None:
    await ask.append(*(new(payload={"text": SECRET * size}, id=f"evt_{size}") for size in (1, 3, 40, 900)))
    await ask.append(*(new() for _ in range(300)))
    await ask.query(min_sequence=304)
    assert secret_is_in_files(settings)
    for size in (40, 1, 900, 3):
        await redact(ask, f"evt_{size}")

    async def gone() -> bool:
        return not secret_is_in_files(settings)

    await eventually(gone)


async def test_an_index_that_is_built_anew_shows_the_same(running: Running, ask: Asker, settings: Settings) -> None:
    forever = {"retention": "forever", "idempotency_key": "k"}
    keyed = {"idempotency_key": "k2"}
    async with running():
        await ask.one(new(payload={"text": SECRET}, id="evt_a", **keyed))
        await ask.one(new("Memory.Created", memory("m"), **forever))
        memory_event = (await ask.found(type=["Memory.Created"], min_sequence=2))[0].metadata.id
        await redact(ask, "evt_a")
        await redact(ask, memory_event, "old")
        before = await ask.query(with_retention=True)
    delete_index(settings)
    async with running():
        assert await ask.query(with_retention=True) == before
        assert len(before.events) == 4
        assert (await ask.one(new("Memory.Created", memory("m"), **forever))).duplicate
        assert (await ask.one(new(**keyed))).id == "evt_a"
        assert (await redact(ask, "evt_a")).redacted


def memory(id: str) -> dict[str, str]:
    return {"id": id, "content": SECRET}


async def test_the_same_request_again_is_answered_the_same(service: Starlette, ask: Asker) -> None:
    await ask.one(new(payload={"text": SECRET}, id="evt_a"))
    first = await redact(ask, "evt_a", "one reason")
    assert await redact(ask, "evt_a", "another reason") == first
    assert len(await stored(ask)) == 1


async def test_what_cannot_be_redacted_is_refused(service: Starlette, ask: Asker) -> None:
    with pytest.raises(NotFoundError):
        await redact(ask, "evt_nobody")
    await ask.one(new(payload={"text": SECRET}, id="evt_a"))
    with pytest.raises(InvalidError):
        await redact(ask, "evt_a", "x" * 1001)
    marked = (await redact(ask, "evt_a")).redacted
    assert marked
    with pytest.raises(InvalidError, match="tombstone"):
        await redact(ask, marked.tombstone)


async def test_an_event_that_only_looks_like_a_tombstone_erases_nothing(service: Starlette, ask: Asker) -> None:
    await ask.one(new(payload={"text": SECRET}, id="evt_a"))
    event = await ask.get("evt_a")
    payload = msgspec.to_builtins(tombstone(event, None))
    forged = await ask.one(new("System.Redacted", payload))
    assert forged.error is None
    await ask.query(min_sequence=forged.sequence)
    assert await ask.get("evt_a") == event
    assert (await redact(ask, forged.id or "")).redacted, "so it can be redacted as any other"


async def test_who_has_taken_the_tombstones_id_does_not_make_an_event_vanish(service: Starlette, ask: Asker) -> None:
    await ask.one(new(payload={"text": SECRET}, id="evt_a"))
    message = await ask.bus.get(ask.bus.names.events, 1)
    assert message is not None
    await ask.one(new(id=derive_id("evt", message.time_ms, "redaction", "evt_a")))
    with pytest.raises(ConflictError):
        await redact(ask, "evt_a")
    assert (await ask.get("evt_a")).data.payload == {"text": SECRET}


async def test_a_hook_may_deny_a_redaction_and_not_change_it(running: Running, ask: Asker) -> None:
    gate = HookRecord(name="gate", definition=definition("System"), enabled=True)
    await (await open_bucket(ask.bus, "hooks")).put("gate", msgspec.json.encode(gate))
    async with running():
        await ask.one(new(payload={"text": SECRET}, id="evt_a"))
        async with hooks(ask.bus, deny):
            with pytest.raises(DeniedError):
                await redact(ask, "evt_a")
        async with hooks(ask.bus, change({"event_id": "evt_a", "sequence": 1, "type": "x", "envelope": {}})):
            with pytest.raises(InvalidError, match="not change it"):
                await redact(ask, "evt_a")
        assert (await ask.get("evt_a")).data.payload == {"text": SECRET}
        async with hooks(ask.bus, allow):
            assert (await redact(ask, "evt_a")).data.payload == {}


# ---- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("type", "payload"), [("Memory.Updated", {"id": "e"}), ("Custom.note", {"id": "e"})])
async def test_versions_go_on_where_an_entitys_last_event_is_redacted(
    service: Starlette, ask: Asker, type: str, payload: dict[str, str]
) -> None:
    for n in (1, 2):
        await ask.one(new(type, payload, id=f"evt_{n}"))
    await redact(ask, "evt_2")
    versioned = type.startswith("Memory")
    refused = await ask.append(*(new(type, payload, expected_sequence=n) for n in (0, 1)))
    assert [result.error.code for result in refused if result.error] == ["conflict"] * 2
    last = 3 if versioned else 2
    assert refused[0].error is not None
    assert refused[0].error.extra["current_sequence"] == last
    assert (await ask.one(new(type, payload, expected_sequence=last))).sequence == 4


async def test_no_update_is_lost_to_redactions(service: Starlette, ask: Asker) -> None:
    """Writers that read, count on and write with the version that they have read, while what they write is redacted."""

    async def write() -> None:
        for _ in range(8):
            while (await ask.one(await counted_on(ask))).error is not None:
                pass

    async def erase(until_done: asyncio.Event) -> None:
        while not until_done.is_set():
            events = await ask.found(type=["Memory.Updated"], order="desc", limit=2)
            for event in events:
                await redact(ask, event.metadata.id)

    done = asyncio.Event()
    eraser = asyncio.create_task(erase(done))
    await asyncio.gather(*(write() for _ in range(4)))
    done.set()
    await eraser
    found = await ask.found(type=["Memory.Updated"], limit=1000, min_sequence=await ask.last())
    written = [event.metadata.correlation_id for event in found]
    assert written == [f"count-{n}" for n in range(1, 33)]


async def counted_on(ask: Asker) -> NewEvent:
    last = await ask.bus.last(ask.bus.names.events, ask.bus.names.versions("default", "Memory", "e"))
    sequence = last.sequence if last else 0
    told = await ask.query(type=["Memory.Updated"], order="desc", limit=1, min_sequence=sequence)
    count = int(decode(bytes(told.events[0])).metadata.correlation_id.removeprefix("count-")) if told.events else 0
    return new("Memory.Updated", {"id": "e"}, correlation_id=f"count-{count + 1}", expected_sequence=sequence)


# ---- crashes and replicas --------------------------------------------------------------------------------------------


async def only_tell(ask: Asker, sequence: int) -> None:
    """The first half of a redaction, as a process leaves it that dies then."""
    message = await ask.bus.get(ask.bus.names.events, sequence)
    assert message is not None
    event = decode(message.data, sequence)
    payload = msgspec.to_builtins(tombstone(event, None))
    about = {"id": "evt_tombstone", "timestamp": event.metadata.timestamp, "actor": "user:alice"}
    data = {"event": "Redacted", "payload": payload}
    raw = {"type": "System", "data": data, "metadata": msgspec.to_builtins(event.metadata) | about}
    headers = mark(StoredEvent(sequence, message.time_ms, message.headers[MSG_ID]))
    subject = ask.bus.names.event("default", "main", "System", "Redacted", None)
    await ask.bus.store(Outgoing(subject, msgspec.json.encode(raw), headers))


@pytest.mark.parametrize("rebuilt", [False, True])
async def test_a_redaction_that_was_interrupted_is_completed_at_the_next_start(
    running: Running, ask: Asker, settings: Settings, rebuilt: bool
) -> None:
    async with running():
        await ask.append(new(payload={"text": SECRET}, id="evt_a"), new())
    await only_tell(ask, 1)
    if rebuilt:
        delete_index(settings)
    async with running():
        assert (await ask.found(min_sequence=3))[0].redacted
        await eventually(lambda: gone_from(ask, 1))
        await until(lambda: not secret_is_in_files(settings))


async def gone_from(ask: Asker, sequence: int) -> bool:
    return await ask.bus.get(ask.bus.names.events, sequence) is None


async def test_what_the_index_was_told_before_a_crash_is_erased_after_it(
    running: Running, ask: Asker, settings: Settings
) -> None:
    async with running():
        await ask.append(new(payload={"text": SECRET}, id="evt_a"), new())
        await redact(ask, "evt_a")
        restored = {**(await stored(ask))[-1].headers, "x": "y"}
    # As though the process had died before the erasure: its index has the tombstone already.
    with contextlib.closing(sqlite3.connect(Path(settings.data_dir) / "events.sqlite")) as connection, connection:
        connection.execute("INSERT OR REPLACE INTO erasures VALUES (2, 'evt_other', 0), (1, 'evt_a', 0)")
    assert restored[REDACTS].startswith("1 ")
    async with running():
        await until(lambda: erasures(settings) == 0)
        assert not await gone_from(ask, 2), "another event has that sequence"


def erasures(settings: Settings) -> int:
    with contextlib.closing(sqlite3.connect(Path(settings.data_dir) / "events.sqlite")) as connection:
        return int(connection.execute("SELECT count(*) FROM erasures WHERE NOT done").fetchone()[0])


async def test_every_replica_has_forgotten_when_it_is_answered(
    service: Starlette, ask: Asker, settings: Settings, tmp_path: Path
) -> None:
    other = msgspec.structs.replace(settings, data_dir=str(tmp_path / "other"))
    app = create_app(other)
    async with app.router.lifespan_context(app):
        await until(lambda: not app.state.ready())
        await ask.one(new(payload={"text": SECRET}, id="evt_a"))
        first = await redact(ask, "evt_a")
        for _ in range(20):  # whichever answers
            assert await ask.get("evt_a") == first
        await until(lambda: not secret_is_in_files(settings) and not secret_is_in_files(other))


# ---- retention -------------------------------------------------------------------------------------------------------


async def test_a_tombstone_is_kept_as_its_event_was(service: Starlette, ask: Asker) -> None:
    await put(ask.bus, rule("Custom.a", "12h"), rule("Custom.b", "90d"), rule("System.*", "1h"))
    await ask.append(new("Custom.a"), new("Custom.b"), new("Custom.c"), new("Custom.d", retention="forever"))
    for event in await ask.found(type=["Custom.*"], min_sequence=5):
        await redact(ask, event.metadata.id)
    kept = [("43200s", None), ("never", str(90 * 86_400)), (None, None), ("never", None)]
    assert [await told(ask, sequence) for sequence in range(6, 10)] == kept


async def test_what_a_new_index_learns_late_expires_in_time(service: Starlette, ask: Asker, tmp_path: Path) -> None:
    await ask.append(new(id="evt_a"), new(id="evt_b", retention="forever"))
    for event_id in ("evt_a", "evt_b"):
        await redact(ask, event_id)
    bus = ask.bus
    async with open_index(tmp_path / "x.sqlite", bus, bus.names.log_streams, store.VERSION, store.SCHEMA) as index:
        following = asyncio.create_task(index.follow(bus, store.Projection(Metrics("t")).apply))
        await index.reach(4)
        removed: list[bool] = []

        async def remove_copies() -> None:
            removed.append(True)

        assert (await Eraser(bus, index, remove_copies).once(), removed) == (2, [True])
        assert await store.forget_redacted(index, 0) == 0
        assert await store.forget_redacted(index, 2**62) == 1
        assert await store.find_by_id(index, "evt_a") is None
        following.cancel()


async def test_what_is_in_a_room_that_is_gone_can_be_redacted(service: Starlette, ask: Asker) -> None:
    await make_world(ask.bus, "acme")
    await ask.one(new(payload={"text": SECRET}, id="evt_a", world_id="acme"))
    await call(ask.bus, OPERATOR, "events", "delete_world", ChangeWorld(id="acme"), bytes)
    assert (await ask.one(new(world_id="acme"))).error is not None
    assert (await redact(ask, "evt_a")).redacted


# ---- moving ----------------------------------------------------------------------------------------------------------


async def test_a_redacted_event_can_be_imported_as_such(service: Starlette, ask: Asker) -> None:
    given = Redaction("evt_t", "2026-11-21T10:00:00.000000Z", "user:alice")
    done = await ask.one(new("Memory.Created", entity="m", id="evt_a", redacted=given))
    found = await ask.get("evt_a")
    assert (found.redacted, found.data.payload) == (given, {})
    assert await redact(ask, "evt_a") == found, "there is nothing left to erase"
    message = await ask.bus.get(ask.bus.names.events, done.sequence or 0)
    assert message is not None
    assert NO_REACTION in message.headers
    refused = await ask.one(new("Memory.Created", {"id": "m", "content": "x"}, entity="m", redacted=given))
    assert refused.error is not None
    assert refused.error.errors[0].path == "payload"
