"""What comes again is known: by its id or its key, at once or much later, by any replica, in any form."""

import asyncio
import sqlite3
from pathlib import Path

import msgspec
import pytest
from starlette.applications import Starlette

from crucible_core.errors import ConflictError, InvalidError
from crucible_core.protocol.events import Appended, NewEvent
from crucible_events.settings import Settings

from .conftest import Asker, Replicas, delete_index, new, starter

FORGETFUL_S = 0.2
KEYED = {"idempotency_key": "k", "fingerprint": "f"}


def requests() -> dict[str, tuple[list[NewEvent], bool]]:
    """(events, atomic) by what they are; a batch has more than are committed one by one."""
    many = range(20)
    return {
        "id": ([new(id="evt_a")], False),
        "key": ([new(**KEYED)], False),
        "id and key": ([new(id="evt_b", idempotency_key="k2")], False),
        "version": ([new("Memory.Accessed", {"id": "m"}, id="evt_c", expected_sequence=0)], False),
        "unversioned": ([new(entity="n", idempotency_key="k3", expected_sequence=0)], False),
        "batch of ids": ([new(id=f"evt_d{n}") for n in many], False),
        "batch of keys": ([new(idempotency_key=f"k4/{n}", fingerprint=str(n)) for n in many], False),
        "atomic ids": ([new(id=f"evt_e{n}") for n in many], True),
        "atomic keys": ([new(idempotency_key=f"k5/{n}") for n in many], True),
        "atomic versions": (
            [
                new("Memory.Accessed", {"id": "v"}, id="evt_f", expected_sequence=0),
                new(id="evt_g"),
                new(entity="o", id="evt_h", expected_sequence=0),
            ],
            True,
        ),
    }


async def send_all(ask: Asker) -> dict[str, list[Appended]]:
    return {name: await ask.append(*events, atomic=atomic) for name, (events, atomic) in requests().items()}


def check_repeated(first: dict[str, list[Appended]], again: dict[str, list[Appended]]) -> None:
    for name, results in again.items():
        assert all(result.duplicate for result in results), name
        assert [(one.id, one.sequence, one.type, one.correlation_id) for one in results] == [
            (one.id, one.sequence, one.type, one.correlation_id) for one in first[name]
        ], name


@pytest.mark.parametrize("window_s", [FORGETFUL_S, 120.0])
@pytest.mark.parametrize("lost", [False, True])
async def test_what_comes_again_gets_the_first_answer(
    settings: Settings, ask: Asker, window_s: float, lost: bool
) -> None:
    """At once, later, and after a restart, where the index may have been lost; JetStream forgets soon, or does not."""
    settings = msgspec.structs.replace(settings, duplicate_window_s=window_s)
    async with starter(settings)():
        first = await send_all(ask)
        assert not any(result.duplicate or result.error for results in first.values() for result in results)
        check_repeated(first, await send_all(ask))
        await asyncio.sleep(2 * FORGETFUL_S)
        check_repeated(first, await send_all(ask))
    if lost:
        delete_index(settings)
    async with starter(settings)():
        check_repeated(first, await send_all(ask))
    assert await ask.last() == sum(len(results) for results in first.values())


@pytest.mark.parametrize("count", [1, 2])
async def test_of_equal_requests_at_once_one_is_the_first(replicas: Replicas, ask: Asker, count: int) -> None:
    async with replicas(count):
        sent = [request for request in requests().values() for _ in range(6)]
        answers = await asyncio.gather(*(ask.append(*events, atomic=atomic) for events, atomic in sent))
        for place in range(0, len(sent), 6):
            same = answers[place : place + 6]
            assert len({tuple((one.id, one.sequence) for one in results) for results in same}) == 1
            for results in zip(*same, strict=True):
                assert sorted(result.duplicate for result in results) == [False] + [True] * 5
        assert await ask.last() == sum(len(events) for events, _ in requests().values())


async def test_what_jetstream_forgets_is_waited_for_in_the_index(settings: Settings, ask: Asker) -> None:
    """An index that cannot be written for a while must not make new events of old ones."""
    settings = msgspec.structs.replace(settings, duplicate_window_s=FORGETFUL_S)
    async with starter(settings)():
        await ask.one(new(id="evt_before"))
        holder = sqlite3.connect(Path(settings.data_dir) / "events.sqlite")
        holder.execute("BEGIN IMMEDIATE")
        first = await ask.append(new(id="evt_a"), new(**KEYED))
        await asyncio.sleep(3 * FORGETFUL_S)
        asking = asyncio.create_task(ask.append(new(id="evt_a"), new(**KEYED)))
        await asyncio.sleep(FORGETFUL_S)
        holder.close()
        again = await asking
        assert [one.sequence for one in again] == [one.sequence for one in first]
        assert await ask.last() == 3


async def test_the_key_goes_before_the_id(service: Starlette, ask: Asker) -> None:
    first = await ask.one(new(id="evt_a", idempotency_key="k"))
    other_id = await ask.one(new(id="evt_b", idempotency_key="k"))
    assert (other_id.id, other_id.sequence, other_id.duplicate) == ("evt_a", first.sequence, True)
    other_key = await ask.one(new(id="evt_a", idempotency_key="other"))
    assert (other_key.id, other_key.sequence, other_key.duplicate) == ("evt_a", first.sequence, True)


@pytest.mark.parametrize("count", [1, 2])
async def test_an_id_is_known_whatever_key_comes_with_it(replicas: Replicas, ask: Asker, count: int) -> None:
    """One after the other without a pause, and at once: before any index has the first of them."""
    keys = [{}, {"idempotency_key": "a", "fingerprint": "a"}, {"idempotency_key": "b", "fingerprint": "b"}]
    async with replicas(count):
        for first in range(3):
            for n in range(20):
                ordered = keys[first:] + keys[:first]
                one_by_one = [
                    await ask.one(new(id=f"evt_{first}_{n}", **suffixed(key, f"{first}.{n}"))) for key in ordered
                ]
                assert [one.duplicate for one in one_by_one] == [False, True, True]
                assert len({one.sequence for one in one_by_one}) == 1
        for n in range(20):
            at_once = await asyncio.gather(*(ask.one(new(id=f"evt_{n}", **suffixed(key, str(n)))) for key in keys))
            assert sorted(one.duplicate for one in at_once) == [False, True, True]
        assert await ask.last() == 80


def suffixed(key: dict[str, str], suffix: str) -> dict[str, str]:
    return {name: f"{value}.{suffix}" for name, value in key.items()}


async def test_a_key_is_known_by_the_index_where_an_id_came_with_it(settings: Settings, ask: Asker) -> None:
    async with starter(settings)():
        first = await ask.one(new(id="evt_a", idempotency_key="k", fingerprint="one"))
    delete_index(settings)
    async with starter(settings)():
        again = await ask.one(new(id="evt_a", idempotency_key="k", fingerprint="one"))
        assert (again.sequence, again.duplicate) == (first.sequence, True)
        other = await ask.one(new(idempotency_key="k", fingerprint="two"))
        assert other.error is not None
        assert other.error.errors[0].path == "Idempotency-Key"


async def test_a_key_does_not_serve_for_another_request(service: Starlette, ask: Asker) -> None:
    first = await ask.one(new(idempotency_key="k", fingerprint="one"))
    for _ in range(2):  # by JetStream's word, then by the index
        other = await ask.one(new(idempotency_key="k", fingerprint="two"))
        assert other.error is not None
        assert (other.error.code, other.error.errors[0].path) == ("invalid", "Idempotency-Key")
        assert f"{first.id} at sequence {first.sequence}" in other.error.detail
        with pytest.raises(InvalidError):
            await ask.append(new(idempotency_key="k", fingerprint="two"), atomic=True)
        await ask.query(min_sequence=first.sequence)
    without = await ask.one(new(idempotency_key="k"))
    assert (without.sequence, without.duplicate) == (first.sequence, True)
    elsewhere = await ask.one(new(idempotency_key="k", fingerprint="two", world_id="default", actor="user:b"))
    assert not elsewhere.duplicate


async def test_a_key_that_was_refused_is_free(service: Starlette, ask: Asker) -> None:
    assert (await ask.one(new("Memory.Creatd", idempotency_key="k", fingerprint="one"))).error is not None
    stale = new("Memory.Accessed", {"id": "m"}, idempotency_key="k", fingerprint="two", expected_sequence=9)
    assert (await ask.one(stale)).error is not None
    assert (await ask.one(new(idempotency_key="k", fingerprint="three"))).sequence == 1


async def test_the_name_of_an_event_does_not_depend_on_its_place(service: Starlette, ask: Asker) -> None:
    first = await ask.append(new(), new(idempotency_key="a"), new(idempotency_key="b"), new(idempotency_key="a"))
    assert [one.duplicate for one in first] == [False, False, False, True]
    again = await ask.append(new(idempotency_key="b"), new(idempotency_key="c"), new(idempotency_key="a"))
    assert [one.sequence for one in again] == [3, 4, 2]


async def test_a_part_of_an_atomic_request_cannot_come_again(service: Starlette, ask: Asker) -> None:
    await ask.append(new(id="evt_a"), new(id="evt_b"), atomic=True)
    for _ in range(2):
        with pytest.raises(ConflictError, match=r"^events\.1: known already"):
            await ask.append(new(id="evt_new"), new(id="evt_a"), atomic=True)
        await ask.query(min_sequence=2)
    assert await ask.last() == 2
