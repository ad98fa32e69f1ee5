"""Worker processes for untrusted work, which the kernel kills when it exceeds its limits.

A worker calls a function of a module, with arguments that can be pickled, and holds nothing: no connection, no
settings, no event loop. It ends when it exceeds its processor time or memory, or when its caller is cancelled, so that
no work can stop the event loop that serves others.
"""

import asyncio
import contextlib
import os
import pickle
import signal
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

from crucible_core.limits import SCRIPT_RESULT_BYTES
from crucible_kit.fairness import Slots

try:
    import resource
except ImportError:  # Windows: only cancelling bounds the work there
    resource = None  # type: ignore[assignment]

_START_S = 60.0
_IDLE_S = 60.0
_LENGTH = 8
_SECRET = "CRUCIBLE_"
_SIGNALS = {"SIGPROF": "processor time", "SIGKILL": "memory", "SIGABRT": "memory"}


class ExhaustedError(Exception):
    """The work exceeded its processor time or memory, or ended its process."""


class WorkerPool:
    """A pool of at most `workers` processes, which start on demand and end when they idle.

    A call may use `cpu_s` seconds of processor time and, with the interpreter, `memory_mb` MiB. One key, such as a
    hook's name, holds at most half of the workers, so that others never wait for long.
    """

    def __init__(self, workers: int = 2, *, cpu_s: float = 1.0, memory_mb: int = 768) -> None:
        self._slots = Slots(workers, workers // 2)
        self._cpu_s = cpu_s
        self._memory_mb = memory_mb
        self._idle: list[Worker] = []
        self._ending: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def worker(self, key: str) -> AsyncIterator["Worker"]:
        """A ready process, for as long as the context is open. The wait for it does not count as work."""
        async with self._slots.take(key):
            worker = self._idle.pop() if self._idle else await self._start()
            try:
                yield worker
            finally:
                self._slots.record_turn(key, greedy=worker.exhausted)
                if worker.usable:
                    self._idle.append(worker)
                    worker.idle = asyncio.get_running_loop().call_later(_IDLE_S, self._retire, worker)
                else:
                    await worker.end()

    async def run(self, key: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's result, or the exception that it raised. Raises Exhausted."""
        async with self.worker(key) as worker:
            return await worker.run(function, *arguments)

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().end()
        await asyncio.gather(*self._ending)

    async def _start(self) -> "Worker":
        code = f"from {__name__} import serve; serve({self._cpu_s!r}, {self._memory_mb!r})"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            code,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if not name.startswith(_SECRET)},
        )
        worker = Worker(process)
        try:
            async with asyncio.timeout(_START_S):
                await worker.run(_ready)
        except BaseException:
            await worker.end()
            raise
        return worker

    def _retire(self, worker: "Worker") -> None:
        self._idle.remove(worker)
        task = asyncio.create_task(worker.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


@contextlib.asynccontextmanager
async def open_worker_pool(workers: int = 2, *, cpu_s: float = 1.0, memory_mb: int = 768) -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(workers, cpu_s=cpu_s, memory_mb=memory_mb)
    try:
        yield pool
    finally:
        await pool.close()


class Worker:
    """One process, which does one call at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.usable = True
        self.exhausted = False
        self.idle: asyncio.TimerHandle | None = None

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self.idle is not None:
            self.idle.cancel()
        self.usable = False
        try:
            data = pickle.dumps((function, arguments), pickle.HIGHEST_PROTOCOL)
            self._process.stdin.write(len(data).to_bytes(_LENGTH) + data)
            await self._process.stdin.drain()
            length = int.from_bytes(await self._process.stdout.readexactly(_LENGTH))
            failed, result = pickle.loads(await self._process.stdout.readexactly(length))
        except asyncio.CancelledError:
            self.exhausted = True
            raise
        except (OSError, EOFError):
            self.exhausted = True
            raise ExhaustedError(await self._cause()) from None
        self.usable = True
        if failed:
            try:
                raise result
            finally:
                del result  # its traceback leads to this frame, and to the arguments
        return result

    async def end(self) -> None:
        if self.idle is not None:
            self.idle.cancel()
        self.usable = False
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        # There is no public way to close the pipes, and an open one warns when it is collected.
        self._process._transport.close()  # type: ignore[attr-defined]

    async def _cause(self) -> str:
        code = await self._process.wait()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        what = _SIGNALS.get(name)
        return f"it needs more {what} than it may use" if what else f"it ended its process with {name}"


def _ready() -> None:
    """The first call of each worker, which shows that it has started."""


# ---- inside the worker ----------------------------------------------------------------------------------------------


def serve(cpu_s: float, memory_mb: int) -> None:
    """Answers calls until standard input ends."""
    calls, answers = os.fdopen(0, "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _set_limits(memory_mb)
    while length := calls.read(_LENGTH):
        function, arguments = pickle.loads(calls.read(int.from_bytes(length)))
        data = _call(cpu_s, function, arguments)
        answers.write(len(data).to_bytes(_LENGTH) + data)
        answers.flush()


def _set_limits(memory_mb: int) -> None:
    if hasattr(signal, "SIGPROF"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the terminal is for those who started this
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, whatever holds the interpreter's lock
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))


def _call(cpu_s: float, function: Callable[..., Any], arguments: tuple[Any, ...]) -> bytes:
    timed = hasattr(signal, "setitimer")
    if timed:
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        answer = pickle.dumps((False, function(*arguments)), pickle.HIGHEST_PROTOCOL)
        if len(answer) > SCRIPT_RESULT_BYTES:
            raise ExhaustedError(f"its result has more than {SCRIPT_RESULT_BYTES >> 20} MiB")
    except MemoryError:
        answer = pickle.dumps((True, ExhaustedError("it needs more memory than it may use")))
    except Exception as error:
        answer = pickle.dumps((True, error.with_traceback(None)))
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return answer
