"""Keeps programs running: starts them all at once, starts again those that die, and stops them in order."""

import asyncio
import contextlib
import itertools
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from crucible_core.errors import UnavailableError

from .output import Output
from .processes import describe_exit, kill_group, record, send, spawn

FIRST_DELAY_S = 0.2
LAST_DELAY_S = 5.0
STEADY_S = 5.0
"""A process that lived this long is started again at once; one that dies sooner than that only the first time."""
CALM_S = 10.0
"""How often a program's warnings are let through to the screen again."""
GRACE_S = 12.0
"""How long a process may take to end when asked to: a little more than the services give their requests."""
HOPELESS = 5
"""Deaths before a program was ever ready, after which nothing more is expected of it."""
_POLL_S = 0.05

State = Literal["starting", "ready", "died", "stopping", "stopped"]


class Program(msgspec.Struct, frozen=True):
    """What to run. `ready` says whether it does its work yet; the higher its `rank`, the earlier it is stopped."""

    name: str
    command: tuple[str, ...]
    environ: Mapping[str, str]
    log: Path
    ready: Callable[[], Awaitable[bool]]
    rank: int = 0


class Notice(msgspec.Struct, frozen=True):
    """Something the user may want to know: a program's new state, or, where `state` is None, a warning it printed."""

    name: str
    state: State | None
    text: str = ""


Report = Callable[[Notice], None]


def next_delay(delay: float) -> float:
    """The wait before the next restart, after a wait of `delay` that did not help."""
    return min(max(delay * 2, FIRST_DELAY_S), LAST_DELAY_S)


class Supervisor:
    """`start` them, wait for `ready`, then `stop`; `kill` at any time ends all at once.

    `noted` is the file where the running processes are noted, for `processes.end_stale`.
    """

    def __init__(self, programs: Sequence[Program], noted: Path, report: Report, grace: float = GRACE_S) -> None:
        self._noted = noted
        self._report = report
        self._grace = grace
        self._keepers = [_Keeper(program, report, self._note) for program in programs]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start every program, and keep it running. Call it once, in the main thread."""
        self._tasks = [asyncio.create_task(keeper.keep()) for keeper in self._keepers]

    async def ready(self) -> None:
        """Wait until each program has been ready once. Raises UnavailableError for one that only dies."""
        while self.unready():
            for keeper in self._keepers:
                if keeper.hopeless:
                    raise UnavailableError(f"{keeper.program.name} cannot start: see {keeper.program.log}")
            await asyncio.sleep(_POLL_S)

    def unready(self) -> list[str]:
        """The programs that have not been ready yet."""
        return [keeper.program.name for keeper in self._keepers if not keeper.was_ready]

    async def stop(self) -> None:
        """Stop them, the highest rank first, each rank together and wholly before the next."""
        ranks = sorted(self._keepers, key=lambda keeper: -keeper.program.rank)
        for _, group in itertools.groupby(ranks, key=lambda keeper: keeper.program.rank):
            await asyncio.gather(*(keeper.stop(self._grace) for keeper in group))
        await asyncio.gather(*self._tasks)
        for keeper in self._keepers:
            keeper.output.close()
        self._noted.unlink(missing_ok=True)

    def kill(self) -> None:
        """End every process now; `stop` then returns soon."""
        for keeper in self._keepers:
            keeper.kill()

    def _note(self) -> None:
        with contextlib.suppress(OSError):  # a full disk must not end the supervision
            record(self._noted, {keeper.program.name: keeper.pid for keeper in self._keepers if keeper.pid})


class _Keeper:
    """One program's life: its process, or the wait for the next one."""

    def __init__(self, program: Program, report: Report, note: Callable[[], None]) -> None:
        self.program = program
        self.was_ready = False
        self._deaths = 0
        self.pid: int | None = None
        self.output = Output(program.log, lambda line: report(Notice(program.name, None, line)))
        self._report = report
        self._note = note
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()

    @property
    def hopeless(self) -> bool:
        return not self.was_ready and self._deaths >= HOPELESS

    async def keep(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self.output, self.output.drain)
        delay = 0.0
        try:
            while not self._stopping.is_set():
                began = loop.time()
                end = await self._live()
                if self._stopping.is_set():
                    break
                if loop.time() - began >= STEADY_S:
                    delay = 0.0
                self._deaths += 1
                self._tell("died", f"died ({end}), restarting")
                await self._pause(delay)
                delay = next_delay(delay)
        finally:
            loop.remove_reader(self.output)

    async def stop(self, grace: float) -> None:
        """Ask the process to end, and kill it when it has not after `grace` seconds."""
        self._stopping.set()
        if self.pid:
            self._tell("stopping", "stopping")
            send(self.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                await self._ended.wait()
        except TimeoutError:
            self._tell("stopping", f"does not stop in {grace:g} s, killed")
            self.kill()
            await self._ended.wait()
        self._tell("stopped", "stopped")

    def kill(self) -> None:
        self._stopping.set()
        if self.pid:
            kill_group(self.pid)

    async def _live(self) -> str:
        """One process from start to end; how it ended."""
        self._tell("starting", "starting")
        self._ended.clear()
        try:
            process = await spawn(self.program.command, self.program.environ, self.output.write_end)
        except OSError as error:
            self._ended.set()
            return f"cannot start: {error.strerror or error}"
        self.pid = process.pid
        self._note()
        if self._stopping.is_set():  # asked while it was being started
            send(process.pid, signal.SIGTERM)
        watch = asyncio.create_task(self._watch())
        try:
            code = await process.wait()
        finally:
            watch.cancel()
            kill_group(process.pid)  # what it started, such as a hook's shell command, ends with it
            self.pid = None
            self._ended.set()
        self.output.drain()
        return describe_exit(code)

    async def _watch(self) -> None:
        """Say when it is ready; later allow its warnings on the screen again, every so often."""
        while True:
            if await self.program.ready():
                break
            await asyncio.sleep(_POLL_S)
        self._tell("ready", "is ready again" if self.was_ready else "is ready")
        self.was_ready = True
        while True:
            await asyncio.sleep(CALM_S)
            self.output.calm()

    async def _pause(self, delay: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._stopping.wait()

    def _tell(self, state: State, text: str) -> None:
        self._report(Notice(self.program.name, state, text))
