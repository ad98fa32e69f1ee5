"""The process that services are forked from: what it gives them, and what becomes of them when it is killed."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from crucible_cli.up.fork import Forker
from tests.kit.outage import until

MODULE = "tests.cli.forked"

pytestmark = pytest.mark.skipif(not Forker.available, reason="forks are tied to their parent on Linux only")


class Forks:
    def __init__(self, file: Path) -> None:
        self.forker = Forker([MODULE, "no.such.module"])
        self._file = file
        self._output = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def fork(self, module: str = MODULE, umask: int = -1, **environ: str) -> "asyncio.Future[int]":
        """What its exit code will be."""
        path = {"PYTHONPATH": str(Path(__file__).parents[2])}
        child = await self.forker.fork(module, path | environ, self._output, umask)
        return child.code

    def said(self) -> list[list[str]]:
        return [line.split(" ", 4) for line in self._file.read_text().splitlines()]

    async def pid(self) -> int:
        await until(self.said)
        return int(self.said()[0][0])


@pytest.fixture
async def forks(tmp_path: Path) -> AsyncIterator[Forks]:
    made = Forks(tmp_path / "said")
    yield made
    await made.forker.close()


async def test_a_fork_has_its_own_environment_group_and_umask(forks: Forks) -> None:
    assert await (await forks.fork(umask=0o027, CODE="3")) == 3
    assert await (await forks.fork(CODE="0")) == 0
    (_, shared, leads, mask, environ), (*_, default, _) = forks.said()
    assert (shared, leads, mask, environ) == ("True", "True", "0o27", "['CODE', 'PYTHONPATH']")
    assert default != mask


async def test_the_end_of_a_fork_is_told_by_its_signal(forks: Forks) -> None:
    code = await forks.fork(LIVE="1")
    os.kill(await forks.pid(), signal.SIGKILL)
    assert await code == -signal.SIGKILL


async def test_a_module_that_is_not_there_fails_alone(forks: Forks) -> None:
    assert await (await forks.fork("no.such.module")) == 1
    assert await (await forks.fork()) == 0


async def test_forks_die_with_the_process_and_the_next_one_starts_another(forks: Forks) -> None:
    code = await forks.fork(LIVE="1")
    child = psutil.Process(await forks.pid())
    parent = child.parent()
    assert parent is not None
    parent.kill()
    assert await code == -signal.SIGKILL
    await asyncio.to_thread(child.wait, 10)
    assert await (await forks.fork()) == 0


async def test_an_environment_that_is_too_large_harms_no_other(forks: Forks) -> None:
    code = await forks.fork(LIVE="1")
    with pytest.raises(OSError, match="KiB"):
        await forks.fork(LARGE="x" * 200_000)
    os.kill(await forks.pid(), signal.SIGTERM)
    assert await code == -signal.SIGTERM


async def test_it_ends_with_whoever_started_it(forks: Forks) -> None:
    code = await forks.fork(LIVE="1")
    await forks.pid()
    await forks.forker.close()
    assert await code == -signal.SIGKILL
