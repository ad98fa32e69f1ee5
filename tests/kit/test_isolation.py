"""Worker processes: what takes too much is killed, and takes nothing with it."""

import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator

import pytest

from crucible_kit.isolation import ExhaustedError, WorkerPool, open_worker_pool


@pytest.fixture
async def isolated() -> AsyncIterator[WorkerPool]:
    async with open_worker_pool(2, cpu_s=0.5, memory_mb=512) as opened:
        yield opened


async def test_result_and_exception_come_back(isolated: WorkerPool) -> None:
    assert await isolated.run("a", json.loads, "[1]") == [1]
    with pytest.raises(json.JSONDecodeError):
        await isolated.run("a", json.loads, "[")


async def test_arguments_of_what_failed_are_let_go(isolated: WorkerPool) -> None:
    await isolated.run("a", abs, 1)
    text = "[1," * 100
    gc.disable()
    try:
        before = sys.getrefcount(text)
        for _ in range(3):
            with contextlib.suppress(ValueError):
                await isolated.run("a", json.loads, text)
        assert sys.getrefcount(text) == before
    finally:
        gc.enable()


async def test_worker_is_used_again(isolated: WorkerPool) -> None:
    assert await isolated.run("a", os.getpid) == await isolated.run("b", os.getpid)


async def test_worker_holds_no_settings(isolated: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRUCIBLE_NATS_URL", "nats://user:secret@host")
    assert await isolated.run("a", os.getenv, "CRUCIBLE_NATS_URL") is None


async def test_processor_time_is_bounded_while_the_lock_is_held(isolated: WorkerPool) -> None:
    with pytest.raises(ExhaustedError, match="processor time"):
        await isolated.run("a", pow, 7, 10**9)
    assert await isolated.run("a", abs, -1) == 1


async def test_memory_is_bounded(isolated: WorkerPool) -> None:
    with pytest.raises(ExhaustedError, match="memory"):
        await isolated.run("a", bytearray, 1 << 30)
    assert await isolated.run("a", abs, -1) == 1


async def test_large_result_is_refused(isolated: WorkerPool) -> None:
    with pytest.raises(ExhaustedError, match="MiB"):
        await isolated.run("a", bytes, 20 << 20)


async def test_work_that_kills_its_process_is_told(isolated: WorkerPool) -> None:
    with pytest.raises(ExhaustedError, match="SIGSEGV"):
        await isolated.run("a", signal.raise_signal, signal.SIGSEGV)


async def test_cancelled_work_is_really_stopped(isolated: WorkerPool) -> None:
    async with isolated.worker("a") as worker:
        pid = await worker.run(os.getpid)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await worker.run(time.sleep, 30)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_busy_key_leaves_a_worker_to_others(isolated: WorkerPool) -> None:
    slow = [asyncio.create_task(isolated.run("slow", time.sleep, 30)) for _ in range(4)]
    try:
        async with asyncio.timeout(20):
            assert await isolated.run("quick", abs, -1) == 1
    finally:
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
