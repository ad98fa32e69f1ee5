import asyncio
import time
from pathlib import Path

import msgspec
import pytest
from starlette.applications import Starlette

from crucible_core.access import OPERATOR
from crucible_core.errors import ConflictError, InvalidError
from crucible_core.protocol.retention import PutRetention, RetentionRule, RetentionRules, RetentionView
from crucible_core.subjects import KEEP, TTL
from crucible_core.times import format_keep, parse_keep
from crucible_events import store
from crucible_events.append.lifetime import DEFAULT, FOREVER, Lifetime, expiry_of, lifetime_of
from crucible_events.retention import RetentionRequest
from crucible_events.settings import Settings
from crucible_kit.buckets import open_bucket
from crucible_kit.index.index import open_index
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.streams import DAY_S, declare_streams
from crucible_kit.rpc import call
from tests.places import make_world

from .conftest import Asker, Running, delete_index, eventually, new, starter


def rule(type: str, keep: str, world: str | None = None) -> RetentionRule:
    return RetentionRule(type=type, keep=keep, world_id=world)


async def put(bus: Bus, *rules: RetentionRule, revision: int | None = None) -> RetentionView:
    request = PutRetention(rules=list(rules), revision=revision)
    return await call(bus, OPERATOR, "events", "put_retention", request, RetentionView)


async def shown(bus: Bus) -> RetentionView:
    return await call(bus, OPERATOR, "events", "get_retention", RetentionRequest(), RetentionView)


async def told(ask: Asker, sequence: int | None) -> tuple[str | None, str | None]:
    """What JetStream was told of an event."""
    stored = await ask.bus.get(ask.bus.names.events, sequence or 0)
    assert stored is not None
    return stored.headers.get(TTL), stored.headers.get(KEEP)


# ---- what is written


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("forever", None), ("1s", 1), ("90d", 90 * 86_400), ("12h", 43_200), ("30m", 1800), ("2w", 1_209_600)],
)
def test_a_time_to_keep(text: str, seconds: int | None) -> None:
    assert parse_keep(text, "keep") == seconds


@pytest.mark.parametrize(
    "text", ["", "0s", "1", "d", "1.5h", "-1d", "1y", "99999999d", "٣d", "forevr", "1d ", "9" * 500]
)
def test_no_time_to_keep(text: str) -> None:
    with pytest.raises(InvalidError) as error:
        parse_keep(text, "rules.0.keep")
    assert error.value.errors[0].path == "rules.0.keep"


def test_times_are_written_the_short_way() -> None:
    assert [format_keep(s) for s in (30 * DAY_S, 3600, 90, 61, 7200, 0.2)] == ["30d", "1h", "90s", "61s", "2h", "1s"]


def test_what_jetstream_is_told() -> None:
    assert lifetime_of(None, 60) == FOREVER
    assert lifetime_of(60, 60) == Lifetime("60s")
    assert lifetime_of(61, 60) == Lifetime("never", 61)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, (False, None)),
        ({TTL: "never"}, (True, None)),
        ({TTL: "5s"}, (False, 6_000)),
        ({TTL: "never", KEEP: "5"}, (True, 6_000)),
        ({KEEP: "5"}, (False, None)),
        ({TTL: "nonsense"}, (False, None)),
        ({TTL: "never", KEEP: "9" * 99}, (True, None)),
    ],
)
def test_what_the_index_reads(headers: dict[str, str], expected: tuple[bool, int | None]) -> None:
    assert expiry_of(headers, 1_000) == expected


# ---- the rules


async def test_rules_by_type_and_world(service: Starlette, ask: Asker) -> None:
    await make_world(ask.bus, "acme")
    await put(
        ask.bus,
        rule("Task.*", "12h", "acme"),
        rule("task.claimed", "forever"),
        rule("custom.*", "90d"),
        rule("*", "7d", "acme"),
    )
    results = await ask.append(
        new("Task.Claimed", {"id": "t"}, world_id="acme"),
        new("Task.Claimed", {"id": "t"}),
        new("Custom.any"),
        new("Memory.Created", {"id": "mem_1", "content": "x"}, world_id="acme"),
        new("Memory.Created", {"id": "mem_1", "content": "x"}),
        new("Task.Claimed", {"id": "t"}, world_id="acme", retention="forever"),
    )
    assert [await told(ask, result.sequence) for result in results] == [
        ("43200s", None),
        ("never", None),
        ("never", str(90 * 86_400)),
        ("604800s", None),
        (None, None),
        ("never", None),
    ]


async def test_rules_hold_for_batches_too(service: Starlette, ask: Asker) -> None:
    await put(ask.bus, rule("Custom.*", "12h"))
    atomic = await ask.append(*(new() for _ in range(50)), atomic=True)
    many = await ask.append(*(new() for _ in range(50)))
    for result in (atomic[0], atomic[-1], many[0], many[-1]):
        assert await told(ask, result.sequence) == ("43200s", None)


async def test_an_editor_does_not_overwrite_another(service: Starlette, ask: Asker) -> None:
    before = await shown(ask.bus)
    assert (before.rules, before.revision, before.default) == ([], 0, "30d")
    first = await put(ask.bus, rule("*", "1d"), revision=0)
    assert await shown(ask.bus) == first
    with pytest.raises(ConflictError) as error:
        await put(ask.bus, rule("*", "2d"), revision=0)
    assert error.value.extra == {"current_revision": first.revision}
    assert (await put(ask.bus, revision=first.revision)).rules == []
    await put(ask.bus, rule("*", "3d"))


@pytest.mark.parametrize(
    ("wrong", "path", "suggestion"),
    [
        (rule("Task.Clamed", "1d"), "rules.1.type", "Task.Claimed"),
        (rule("Tsk.*", "1d"), "rules.1.type", "Task.*"),
        (rule("*", "0s"), "rules.1.keep", None),
        (rule("*", "Forever"), "rules.1.keep", "forever"),
        (rule("*", "1d", "acmee"), "rules.1.world_id", "acme"),
    ],
)
async def test_wrong_rules_are_refused(
    service: Starlette, ask: Asker, wrong: RetentionRule, path: str, suggestion: str | None
) -> None:
    await make_world(ask.bus, "acme")
    with pytest.raises(InvalidError) as error:
        await put(ask.bus, rule("*", "1d"), wrong)
    [field] = error.value.errors
    assert (field.path, field.suggestion) == (path, suggestion)
    assert (await shown(ask.bus)).rules == []


async def test_very_many_rules(service: Starlette, ask: Asker) -> None:
    with pytest.raises(InvalidError):
        await put(ask.bus, *[rule("*", "1d")] * 1001)
    with pytest.raises(InvalidError) as error:
        await put(ask.bus, *[rule("nothing", "x", "nowhere")] * 1000)
    assert len(error.value.errors) < 50
    await put(ask.bus, *[rule(f"Custom.n{n}", f"{n + 1}h") for n in range(1000)])
    assert await told(ask, (await ask.one(new("Custom.n999"))).sequence) == ("never", "3600000")


async def test_rules_survive_a_restart_and_nonsense(running: Running, ask: Asker) -> None:
    async with running():
        await put(ask.bus, rule("*", "1d"))
    async with running():
        assert await told(ask, (await ask.one(new())).sequence) == ("86400s", None)
        bucket = await open_bucket(ask.bus, "retention")
        later = RetentionRules(rules=[rule("Future.Type", "1s"), rule("*", "2d")])
        await bucket.put("rules", msgspec.json.encode(later))

        async def later_holds() -> bool:
            return await told(ask, (await ask.one(new())).sequence) == ("172800s", None)

        await eventually(later_holds)
        await bucket.put("rules", b"{nonsense")
        assert await later_holds()


# ---- what becomes of events


@pytest.fixture
def brief(settings: Settings) -> Settings:
    """Events are kept for two and a half seconds."""
    return msgspec.structs.replace(settings, retention_days=2.5 / DAY_S)


@pytest.fixture
def start(brief: Settings) -> Running:
    return starter(brief)


async def test_stream_and_index_forget_together(start: Running, ask: Asker, brief: Settings) -> None:
    async with start():
        await make_world(ask.bus, "acme")
        await put(
            ask.bus,
            rule("Task.*", "1s", "acme"),
            rule("Task.Claimed", "forever"),
            rule("Custom.longer", "6s"),
        )
        began = time.monotonic()
        appended = await ask.append(
            new("Task.Claimed", {"id": "a"}, world_id="acme", id="evt_brief"),
            new("Task.Claimed", {"id": "b"}, id="evt_rule"),
            new("Custom.longer", id="evt_longer"),
            new("Custom.other", id="evt_default"),
            new("Custom.other", id="evt_forever", retention="forever"),
        )
        assert not [result.error for result in appended if result.error]
        await ask.query(min_sequence=await ask.last())
        assert await names(ask) == {"evt_brief", "evt_rule", "evt_longer", "evt_default", "evt_forever"}
        gone: dict[str, float] = {}

        async def settled() -> bool:
            left = await names(ask)
            for id in ("evt_brief", "evt_default", "evt_longer", "evt_rule", "evt_forever"):
                if id not in left:
                    gone.setdefault(id, time.monotonic() - began)
            return left == {"evt_rule", "evt_forever"}

        await eventually(settled, 30)
        assert list(gone) == ["evt_brief", "evt_default", "evt_longer"]
        assert gone["evt_brief"] > 0.9
        assert gone["evt_default"] > 2.4
        assert gone["evt_longer"] > 5.9
        assert await stream(ask) == {"evt_rule", "evt_forever"}
    delete_index(brief)
    async with start():
        assert await names(ask) == {"evt_rule", "evt_forever"}


async def test_an_index_that_was_away_forgets_as_the_stream_did(start: Running, ask: Asker, brief: Settings) -> None:
    async with start():
        await ask.append(*(new(id=f"evt_{n}") for n in range(20)), new(id="evt_kept", retention="forever"))
        await ask.query(min_sequence=21)

    async def dropped() -> bool:
        return await stream(ask) == {"evt_kept"}

    await eventually(dropped)
    async with start():

        async def forgotten() -> bool:
            return await names(ask) == {"evt_kept"}

        await eventually(forgotten)
        # What the stream's end was is gone; a new event comes all the same.
        assert len(await ask.found(min_sequence=(await ask.one(new())).sequence)) == 2


async def test_an_end_that_has_expired_is_not_waited_for(start: Running, ask: Asker) -> None:
    async with start():
        last = (await ask.one(new())).sequence or 0

        async def dropped() -> bool:
            return not await stream(ask)

        await eventually(dropped)
        await ask.query(min_sequence=last)


async def names(ask: Asker) -> set[str]:
    found = await ask.found(type=["Custom.*", "Task.*"])
    return {event.metadata.id for event in found}


async def stream(ask: Asker) -> set[str]:
    """The ids of the events that the stream has."""
    found: set[str] = set()
    sequence = 1
    names = ask.bus.names
    while (message := await ask.bus.next(names.events, sequence, names.all_events)) is not None:
        found.add(msgspec.json.decode(message.data)["metadata"]["id"])
        sequence = message.sequence + 1
    return found


async def test_default_keeping_costs_no_header(service: Starlette, ask: Asker) -> None:
    assert Lifetime() == DEFAULT
    assert await told(ask, (await ask.one(new())).sequence) == (None, None)


async def test_what_arrives_while_the_index_is_looked_through_has_not_expired(bus: Bus, tmp_path: Path) -> None:
    await declare_streams(bus, Settings())
    async with open_index(tmp_path / "index", bus, bus.names.log_streams, store.VERSION, store.SCHEMA) as index:
        looking = asyncio.ensure_future(store.first_since(index, 0, -1))
        await asyncio.sleep(0)
        time.sleep(0.1)  # noqa: ASYNC251 - the file has been read, and its answer waits for the event loop
        index.position = index.position.at(1000)  # as `follow` says it meanwhile
        assert await looking == 1
