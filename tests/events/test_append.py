import asyncio
import contextlib

import nats
import pytest
from starlette.applications import Starlette

from crucible_core.errors import ConflictError, InvalidError
from crucible_core.protocol.events import NewEvent
from crucible_core.subjects import MSG_ID, TTL
from crucible_events.settings import Settings
from tests.places import make_world

from .conftest import Asker, Running, delete_index, new


def memory(event: str = "Updated", id: str = "mem_1", **fields: object) -> NewEvent:
    payload = {"id": id, "content": "x"} if event == "Created" else {"id": id}
    return new(f"Memory.{event}", payload, **fields)


async def test_an_append_is_in_the_log_before_it_is_answered(service: Starlette, ask: Asker) -> None:
    done = await ask.one(new("memory.created", {"id": "mem_1", "content": "hello"}, actor="user:alice"))
    assert (done.type, done.duplicate, done.error) == ("Memory.Created", False, None)
    stored = await ask.bus.get(ask.bus.names.events, done.sequence or 0)
    assert stored is not None
    assert stored.subject == ask.bus.names.event("default", "main", "Memory", "Created", "mem_1")
    assert stored.headers[MSG_ID] == done.id
    event = await ask.get(done.id or "")
    assert event.sequence == done.sequence
    assert event.data.payload == {"id": "mem_1", "content": "hello"}
    assert event.metadata.correlation_id == done.correlation_id
    assert event.metadata.traceparent


async def test_a_refused_event_leaves_the_others_of_its_batch(service: Starlette, ask: Asker) -> None:
    results = await ask.append(new(), new("Memory.Creatd"), new(hop=9), new())
    assert [result.error is None for result in results] == [True, False, False, True]
    assert results[1].error is not None
    assert results[1].error.errors[0].suggestion == "Memory.Created"
    assert results[2].error is not None
    assert results[2].error.errors[0].path == "hop"
    assert (results[3].sequence or 0) - (results[0].sequence or 0) == 1


async def test_nothing_to_append_is_no_event(service: Starlette, ask: Asker) -> None:
    assert await ask.append() == []
    assert await ask.append(atomic=True) == []


async def test_the_same_id_again_gets_the_first_answer(service: Starlette, ask: Asker) -> None:
    first = await ask.one(new(id="evt_mine", payload={"n": 1}))
    again = await ask.one(new(id="evt_mine", payload={"n": 2}))
    assert again.duplicate
    assert (again.id, again.sequence, again.correlation_id) == ("evt_mine", first.sequence, first.correlation_id)
    assert (await ask.get("evt_mine")).data.payload == {"n": 1}


async def test_an_idempotency_key_is_one_event_for_each_actor(service: Starlette, ask: Asker) -> None:
    first = await ask.one(new(idempotency_key="k", actor="user:a"))
    again = await ask.one(new(idempotency_key="k", actor="user:a"))
    other = await ask.one(new(idempotency_key="k", actor="user:b"))
    assert (again.id, again.sequence, again.duplicate) == (first.id, first.sequence, True)
    assert not other.duplicate


async def test_duplicates_are_known_after_jetstream_has_forgotten(
    running: Running, ask: Asker, settings: Settings
) -> None:
    events = new(id="evt_old"), new(idempotency_key="k")
    async with running():
        first = await ask.append(*events)
        # The window is shortened behind the service's back: the index must have them before.
        await ask.query(min_sequence=first[-1].sequence)
        await forget(settings.nats_url, ask.bus.names.events)
        again = await ask.append(*events)
        assert [result.duplicate for result in again] == [True, True]
        assert [result.sequence for result in again] == [result.sequence for result in first]
    delete_index(settings)
    async with running():
        again = await ask.append(*events)
        assert [result.sequence for result in again] == [result.sequence for result in first]


async def forget(url: str, stream: str) -> None:
    """Shortens the duplicate window, until JetStream has no message id left."""
    client = await nats.connect(url)
    config = (await client.jetstream().stream_info(stream)).config
    await client.jetstream().update_stream(config.evolve(duplicate_window=0.1))
    await asyncio.sleep(0.3)
    await client.close()


async def test_of_two_at_once_with_one_id_one_is_the_duplicate(service: Starlette, ask: Asker) -> None:
    results = await asyncio.gather(*(ask.one(new(id=f"evt_{n // 4}")) for n in range(100)))
    for n in range(0, 100, 4):
        assert len({result.sequence for result in results[n : n + 4]}) == 1
        assert sorted(result.duplicate for result in results[n : n + 4]) == [False, True, True, True]
    assert await ask.last() == 25


async def test_one_id_twice_in_a_batch(service: Starlette, ask: Asker) -> None:
    first, second, third = await ask.append(new(id="evt_a"), new(id="evt_a"), new(id="evt_b"))
    assert (first.duplicate, second.duplicate, third.duplicate) == (False, True, False)
    assert first.sequence == second.sequence


async def test_a_stale_expectation_conflicts_and_tells_the_version(service: Starlette, ask: Asker) -> None:
    await make_world(ask.bus, "default", "other")
    first = await ask.one(memory("Created", expected_sequence=0))
    second = await ask.one(memory(expected_sequence=first.sequence))
    assert second.error is None
    stale = await ask.one(memory(expected_sequence=first.sequence))
    assert stale.error is not None
    assert stale.error.code == "conflict"
    assert stale.error.extra == {"current_sequence": second.sequence}
    other_room = await ask.one(memory(expected_sequence=second.sequence, room_id="other"))
    assert other_room.error is None


async def test_an_expectation_repeated_with_its_id_is_a_duplicate(service: Starlette, ask: Asker) -> None:
    first = await ask.one(memory("Created"))
    for _ in range(3):
        again = await ask.one(
            NewEvent(type="Memory.Updated", payload=memory().payload, id="evt_u", expected_sequence=first.sequence)
        )
        assert again.error is None
        assert again.sequence == 2


async def test_no_update_is_lost_among_concurrent_writers(service: Starlette, ask: Asker) -> None:
    """Each writer reads the version and appends on it; every success is on a version that nobody else built on."""
    await ask.one(memory("Created"))
    bus, wins = ask.bus, []

    async def write() -> None:
        for _ in range(10):
            last = await bus.last(bus.names.events, bus.names.versions("default", "Memory", "mem_1"))
            assert last is not None
            event = "Updated" if len(wins) % 2 else "Pruned"
            result = await ask.one(memory(event, expected_sequence=last.sequence))
            if result.error is None:
                wins.append((last.sequence, result.sequence))

    await asyncio.gather(*(write() for _ in range(12)))
    assert len({base for base, _ in wins}) == len(wins)
    chain = sorted(wins)
    assert [base for base, _ in chain[1:]] == [made for _, made in chain[:-1]]


async def test_an_expectation_of_an_entity_that_shares_its_subject(service: Starlette, ask: Asker) -> None:
    await make_world(ask.bus, "other")
    first = await ask.one(new(expected_sequence=0, entity="n"))
    assert first.error is None
    for n in range(200):  # some of them share its bucket
        await ask.one(new(entity=f"neighbour-{n}"))
    stale = await ask.one(new(expected_sequence=0, entity="n"))
    assert stale.error is not None
    assert (stale.error.code, stale.error.extra) == ("conflict", {"current_sequence": first.sequence})
    other_world = await ask.one(new(expected_sequence=0, entity="n", world_id="other"))
    assert other_world.error is None
    second, third = await ask.append(new(expected_sequence=first.sequence, entity="n"), new(entity="n"))
    assert second.error is None
    again = await ask.one(new(expected_sequence=third.sequence, entity="n", id="evt_n"))
    repeated = await ask.one(new(expected_sequence=third.sequence, entity="n", id="evt_n"))
    assert (again.duplicate, repeated.duplicate) == (False, True)


async def test_one_of_many_concurrent_expectations_holds(service: Starlette, ask: Asker) -> None:
    async def noise() -> None:
        for n in range(200):
            await ask.one(new(entity=f"neighbour-{n}"))

    writers = (ask.one(new(expected_sequence=0, entity=f"n{n % 5}")) for n in range(50))
    *results, _ = await asyncio.gather(*writers, noise())
    assert sum(result.error is None for result in results if result is not None) == 5


async def test_an_atomic_append_with_expectations_of_a_shared_subject(service: Starlette, ask: Asker) -> None:
    a, b = await ask.append(new(entity="a"), new(entity="b"))
    expecting = [new(entity="a", expected_sequence=a.sequence), new(entity="b", expected_sequence=b.sequence)]
    same_bucket = [new(entity="n", expected_sequence=0), new(entity="c"), new(entity="n")]
    results = await ask.append(*expecting, *same_bucket, memory("Created", expected_sequence=0), atomic=True)
    assert [one.sequence for one in results] == [3, 4, 5, 6, 7, 8]
    with pytest.raises(ConflictError) as error:
        await ask.append(new(entity="new", expected_sequence=0), expecting[1], atomic=True)
    assert error.value.detail.startswith("events.1")
    assert error.value.extra == {"current_sequence": 4}
    with pytest.raises(ConflictError):
        await ask.append(new(entity="new", expected_sequence=0), memory(expected_sequence=1), atomic=True)
    assert await ask.last() == 8


async def test_atomic_commits_all_in_order(service: Starlette, ask: Asker) -> None:
    results = await ask.append(*(new(payload={"n": n}) for n in range(1000)), atomic=True)
    first = results[0].sequence or 0
    assert [result.sequence for result in results] == list(range(first, first + 1000))


async def test_atomic_refuses_all_with_the_path_of_each_mistake(service: Starlette, ask: Asker) -> None:
    bad = new("Memory.Created", {"id": "m", "content": 5})
    with pytest.raises(InvalidError) as error:
        await ask.append(new(), bad, new(), bad, atomic=True)
    assert [field.path for field in error.value.errors] == ["events.1.payload.content", "events.3.payload.content"]
    with pytest.raises(InvalidError):
        await ask.append(*(new() for _ in range(1001)), atomic=True)
    assert await ask.last() == 0


async def test_an_atomic_append_again_is_a_duplicate_as_a_whole(service: Starlette, ask: Asker) -> None:
    events = [new(id="evt_a"), new(idempotency_key="k"), new(id="evt_c")]
    first = await ask.append(*events, atomic=True)
    again = await ask.append(*events, atomic=True)
    assert [result.sequence for result in again] == [result.sequence for result in first]
    assert all(result.duplicate for result in again)
    with pytest.raises(ConflictError, match=r"events\.0"):
        await ask.append(new(id="evt_a"), new(), atomic=True)
    with pytest.raises(InvalidError):
        await ask.append(new(id="evt_x"), new(id="evt_x"), atomic=True)
    assert await ask.last() == 3


async def test_atomic_appends_of_one_request_at_once_are_one(service: Starlette, ask: Asker) -> None:
    events = [new(id=f"evt_{n}") for n in range(5)]
    results = await asyncio.gather(*(ask.append(*events, atomic=True) for _ in range(8)))
    assert {tuple(one.sequence for one in result) for result in results} == {(1, 2, 3, 4, 5)}
    assert sorted(all(one.duplicate for one in result) for result in results) == [False] + [True] * 7


async def test_an_atomic_append_with_expectations(service: Starlette, ask: Asker) -> None:
    a, b = await ask.append(memory("Created", "mem_a"), memory("Created", "mem_b"))
    batch = [memory(id="mem_a", expected_sequence=a.sequence), memory(id="mem_b", expected_sequence=b.sequence)]
    assert [one.sequence for one in await ask.append(*batch, memory(id="mem_b"), atomic=True)] == [3, 4, 5]
    with pytest.raises(ConflictError) as error:
        await ask.append(memory(id="mem_a", expected_sequence=3), batch[1], atomic=True)
    assert error.value.detail.startswith("events.1")
    assert error.value.extra == {"current_sequence": 5}
    with pytest.raises(InvalidError) as twice:
        await ask.append(memory(id="mem_a", expected_sequence=3), memory(id="mem_a", expected_sequence=3), atomic=True)
    assert twice.value.errors[0].path == "events.1.expected_sequence"
    assert await ask.last() == 5


async def test_kept_for_ever_is_a_ttl(service: Starlette, ask: Asker) -> None:
    results = await ask.append(new(retention="forever"), new())
    stored = [await ask.bus.get(ask.bus.names.events, result.sequence or 0) for result in results]
    assert [message is not None and message.headers.get(TTL) for message in stored] == ["never", None]


async def test_five_hundred_at_once_get_a_sequence_each(service: Starlette, ask: Asker) -> None:
    results = await asyncio.gather(*(ask.one(new(payload={"n": n})) for n in range(500)))
    assert {result.sequence for result in results} == set(range(1, 501))
    for result in results[::50]:
        assert (await ask.get(result.id or "")).sequence == result.sequence


async def test_the_order_of_a_request_is_kept(service: Starlette, ask: Asker) -> None:
    async def writer(name: str) -> None:
        for start in range(0, 60, 20):
            batch = [new(payload={"n": n}, entity=name, id=f"evt_{name}{n // 2}") for n in range(start, start + 20)]
            await ask.append(*batch)

    await asyncio.gather(*(writer(f"w{n}") for n in range(6)))
    for n in range(6):
        events = await ask.found(entity=f"w{n}", min_sequence=await ask.last(), limit=1000)
        assert [event.data.payload["n"] for event in events] == list(range(0, 60, 2))


async def test_a_caller_that_gives_up_does_not_harm_others(service: Starlette, ask: Asker) -> None:
    async def hasty() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.001):
                await ask.one(new())

    results, *_ = await asyncio.gather(
        asyncio.gather(*(ask.one(new()) for _ in range(50))), *(hasty() for _ in range(50))
    )
    assert len({result.sequence for result in results}) == 50


async def test_what_crucible_alone_writes_is_forbidden_to_others(service: Starlette, ask: Asker) -> None:
    sent = [
        ("System.Started", {"service": "events"}),
        ("system:error", {"error": "x"}),
        ("hook_executed", {"hook": "h", "run_id": "run_1"}),
        ("Webhook.Failing", {"id": "whk_1"}),
        ("Approval.Granted", {"id": "apr_1"}),
    ]
    refused = await ask.append(*(new(type, payload, outside=True) for type, payload in sent), new(outside=True))
    assert [result.error.code if result.error else None for result in refused] == ["forbidden"] * 5 + [None]
    assert refused[0].error is not None
    assert refused[0].error.errors[0].path == "type"
    imported = new("System.Started", {"service": "events"}, outside=True, react=False)
    assert [result.error for result in await ask.append(imported, new("System.Started", {}))] == [None, None]


async def test_an_event_of_very_many_values_is_taken_and_refused_as_any_other(service: Starlette, ask: Asker) -> None:
    """It is checked in a thread, so that its steps do not follow one another at a stretch."""
    many = {"id": "a", "t": [[]] * 200_000}
    first, wrong, last = await ask.append(
        new("Custom.Many", many), new("Memory.Tagged", {**many, "id": 1}), new("Custom.Many", many)
    )
    assert (first.error, last.error) == (None, None)
    assert (first.sequence or 0) < (last.sequence or 0)
    assert wrong.error is not None
    assert wrong.error.errors[0].path == "payload.id"
