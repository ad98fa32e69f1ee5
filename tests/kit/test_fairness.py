"""Places that many share: fair, never all for one, given back whatever happens."""

import asyncio

import pytest

from crucible_kit.fairness import Slots


class Holders:
    """Takes places in tasks, which hold theirs until they are released."""

    def __init__(self, places: Slots) -> None:
        self.places = places
        self.inside: list[str] = []
        self._ends: dict[str, list[asyncio.Event]] = {}
        self.tasks: list[asyncio.Task[None]] = []

    async def come(self, *keys: str) -> None:
        for key in keys:
            end = asyncio.Event()
            self._ends.setdefault(key, []).append(end)
            self.tasks.append(asyncio.create_task(self._hold(key, end)))
            await settle()

    async def leave(self, key: str) -> None:
        self._ends[key].pop(0).set()
        await settle()

    async def _hold(self, key: str, end: asyncio.Event) -> None:
        async with self.places.take(key):
            self.inside.append(key)
            try:
                await end.wait()
            finally:
                self.inside.remove(key)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
async def holders() -> Holders:
    return Holders(Slots(4, 2))


async def test_one_key_never_holds_all(holders: Holders) -> None:
    await holders.come("a", "a", "a", "b")
    assert holders.inside == ["a", "a", "b"]
    await holders.leave("a")
    assert holders.inside == ["a", "b", "a"]


async def test_who_holds_the_fewest_is_next(holders: Holders) -> None:
    await holders.come("a", "a", "b", "b", "a", "a", "b", "c")
    assert holders.inside == ["a", "a", "b", "b"]
    await holders.leave("b")
    assert sorted(holders.inside) == ["a", "a", "b", "c"]


async def test_who_gives_up_waiting_takes_nothing(holders: Holders) -> None:
    await holders.come("a", "a", "b", "b", "c", "d")
    holders.tasks[4].cancel()
    await settle()
    await holders.leave("a")
    assert sorted(holders.inside) == ["a", "b", "b", "d"]


async def test_who_is_cancelled_at_the_moment_of_its_turn_gives_it_back(holders: Holders) -> None:
    await holders.come("a", "a", "b", "b", "c", "d")
    holders._ends["a"].pop(0).set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    holders.tasks[4].cancel()
    await settle()
    assert sorted(holders.inside) == ["a", "b", "b", "d"]


async def test_greedy_keys_leave_half_to_the_others(holders: Holders) -> None:
    for key in ("x", "y", "z"):
        holders.places.record_turn(key, greedy=True)
    await holders.come("x", "x", "y", "z", "good", "better")
    assert holders.inside == ["x", "y", "good", "better"]
    await holders.leave("good")
    assert holders.inside == ["x", "y", "better"]
    holders.places.record_turn("z", greedy=False)
    await settle()
    assert holders.inside == ["x", "y", "better", "z"]
