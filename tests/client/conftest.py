"""The client's fixtures: a gateway that is played, and clients of it."""

from collections.abc import AsyncIterator, Iterator

import pytest

from crucible_client import AsyncCrucible, Crucible, Retries
from tests.client.playing import KEY, Played, playing

QUICK = Retries(attempts=3, first_wait_s=0.01, longest_wait_s=1.0)


@pytest.fixture
def played() -> Iterator[Played]:
    with playing() as played:
        yield played


@pytest.fixture
def crucible(played: Played) -> Iterator[Crucible]:
    with Crucible(played.url, KEY, retries=QUICK, environ={}) as crucible:
        yield crucible


@pytest.fixture
async def async_crucible(played: Played) -> AsyncIterator[AsyncCrucible]:
    async with AsyncCrucible(played.url, KEY, retries=QUICK, environ={}) as crucible:
        yield crucible
