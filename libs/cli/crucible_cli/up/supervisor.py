"""Keeps programs running: starts them all at once, starts again those that die, and stops them in order."""

import asyncio
import contextlib
import itertools
import os
import signal
import time
from asyncio.subprocess import Process
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from crucible_cli.up.fork import Child, Forker
from crucible_cli.up.processes import Output, describe_exit, kill_group, record, send, spawn
from crucible_cli.up.state import write_private
from crucible_core.errors import UnavailableError

FIRST_DELAY_S = 0.2
LAST_DELAY_S = 5.0
STEADY_S = 5.0
"""A process that lived this long is started again at once; one that dies sooner than that only the first time."""
CALM_S = 10.0
"""The interval at which a program's warnings reach the screen again."""
GRACE_S = 12.0
"""The time a process has to end when asked to: a little more than the services give their requests."""
HOPELESS = 5
"""Deaths before a program was ever ready, after which nothing more is expected of it."""
LOOK_S = 2.0
"""The interval at which a ready program is looked at again."""
SILENT_LOOKS = 2
"""Looks without an answer after which a program is said to hang."""
LOOP_DEATHS, LOOP_S = 3, 60.0
"""So many deaths within so many seconds are a crash loop."""
_POLL_S = 0.05

State = Literal["starting", "ready", "hangs", "died", "failing", "stopping", "stopped"]


class Health(msgspec.Struct, frozen=True):
    """A program's word on itself when it is looked at: that it does its work, or, where it `answers`, that it does
    not yet, and what it waits for; and what is wrong and does not pass by itself."""

    answers: bool = False
    ready: bool = False
    waits_for: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


class Program(msgspec.Struct, frozen=True):
    """A program to run: a `module` of Python is forked where that can be done. `look` asks for its health; the higher
    its `rank`, the earlier it is stopped. Once it has printed a line that is `stuck`, it is started again as soon as
    `mended` says that this helps. `nice` is added to its niceness."""

    name: str
    command: tuple[str, ...]
    environ: Mapping[str, str]
    log: Path
    look: Callable[[], Awaitable[Health]]
    rank: int = 0
    stuck: Callable[[str], bool] = lambda line: False
    mended: Callable[[], bool] = lambda: False
    umask: int = -1
    module: str = ""
    nice: int = 0


class Condition(msgspec.Struct, frozen=True):
    """A program's condition, for `crucible doctor`. `since` is Unix seconds; `deaths` are those within a minute."""

    state: State
    since: float
    restarts: int = 0
    deaths: int = 0
    last_end: str = ""
    last_error: str = ""
    pid: int | None = None


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

    `processes` is the file that lists the running processes, for `end_stale`, and `conditions` one that says how
    they do.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        processes: Path,
        report: Report,
        grace: float = GRACE_S,
        conditions: Path | None = None,
    ) -> None:
        self._processes = processes
        self._conditions = conditions
        self._report = report
        self._grace = grace
        modules = [program.module for program in programs if program.module]
        self._forker = Forker(modules) if modules and Forker.available else None
        self._keepers = [
            _Keeper(program, report, self._note, self._report_errors, self._forker) for program in programs
        ]
        self._errors: dict[str, set[str]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start every program, and keep it running. Call it once, in the main thread."""
        self._tasks = [asyncio.create_task(keeper.keep()) for keeper in self._keepers]

    async def ready(self) -> None:
        """Wait until each program has been ready once. Raises UnavailableError for one that only dies."""
        while self.unready():
            for keeper in self._keepers:
                if keeper.hopeless:
                    raise UnavailableError(f"{keeper.program.name} cannot start: {keeper.reason}")
            await asyncio.sleep(_POLL_S)

    def unready(self) -> dict[str, tuple[str, ...]]:
        """The programs that have not been ready yet, and what each says that it waits for."""
        return {keeper.program.name: keeper.health.waits_for for keeper in self._keepers if not keeper.was_ready}

    async def stop(self) -> None:
        """Stop them, the highest rank first, each rank together and wholly before the next."""
        ranks = sorted(self._keepers, key=lambda keeper: -keeper.program.rank)
        for _, group in itertools.groupby(ranks, key=lambda keeper: keeper.program.rank):
            await asyncio.gather(*(keeper.stop(self._grace) for keeper in group))
        await asyncio.gather(*self._tasks)
        if self._forker is not None:
            await self._forker.close()
        for keeper in self._keepers:
            keeper.output.close()
        for file in (self._processes, self._conditions):
            if file is not None:
                file.unlink(missing_ok=True)

    def kill(self) -> None:
        """End every process now; `stop` then returns soon."""
        for keeper in self._keepers:
            keeper.kill()

    def _note(self) -> None:
        with contextlib.suppress(OSError):  # a full disk must not end the supervision
            record(self._processes, {keeper.program.name: keeper.pid for keeper in self._keepers if keeper.pid})
            if self._conditions is not None:
                conditions = {keeper.program.name: keeper.condition() for keeper in self._keepers}
                write_private(self._conditions, msgspec.json.encode(conditions).decode())

    def _report_errors(self, name: str, errors: Sequence[str]) -> None:
        """Says each error once, whoever finds it, and once that it is over."""
        for error in errors:
            if not self._errors.setdefault(error, set()):
                self._report(Notice(name, None, f"error: {error}"))
            self._errors[error].add(name)
        for error, names in list(self._errors.items()):
            if name in names and error not in errors:
                names.remove(name)
                if not names:
                    self._report(Notice(name, None, f"over: {error}"))


class _Keeper:
    """One program's life: its process, or the wait for the next one."""

    def __init__(
        self,
        program: Program,
        report: Report,
        note: Callable[[], None],
        wrong: Callable[[str, Sequence[str]], None],
        forker: Forker | None,
    ) -> None:
        self.program = program
        self._forker = forker
        self.was_ready = False
        self.health = Health()
        self.pid: int | None = None
        self.output = Output(
            program.log, lambda line: report(Notice(program.name, None, line)), heard=self._receive_line
        )
        self._report = report
        self._note = note
        self._report_errors = wrong
        self._condition = Condition("starting", time.time())
        self._deaths: deque[float] = deque(maxlen=100)
        self._bad_setting = False
        self._is_stuck = False
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()

    @property
    def hopeless(self) -> bool:
        return not self.was_ready and (self._bad_setting or len(self._deaths) >= HOPELESS)

    @property
    def reason(self) -> str:
        """Why it died, in its own words where it said something."""
        words = self.output.last_grave or self._condition.last_end
        return f"{words.partition(' cannot start: ')[2] or words}; its log is {self.program.log}"

    def condition(self) -> Condition:
        recent = sum(time.monotonic() - death < LOOP_S for death in self._deaths)
        state = self._condition.state
        if recent >= LOOP_DEATHS and state in ("died", "starting"):
            state = "failing"
        last_error = self.output.last_grave if self._deaths else ""
        return msgspec.structs.replace(self._condition, state=state, deaths=recent, last_error=last_error, pid=self.pid)

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
                self._record_death(end, delay)
                if self._bad_setting and self.hopeless:
                    await self._stopping.wait()
                    break
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
            process = await self._begin()
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
        self._bad_setting = code == os.EX_CONFIG
        return describe_exit(code)

    async def _begin(self) -> Process | Child:
        program, output = self.program, self.output.write_end
        if program.module and self._forker is not None:
            with contextlib.suppress(OSError):
                return await self._forker.fork(program.module, program.environ, output, program.umask, program.nice)
        return await spawn(program.command, program.environ, output, program.umask, nice=program.nice)

    def _record_death(self, end: str, delay: float) -> None:
        self._deaths.append(time.monotonic())
        restarts = self._condition.restarts + 1
        self._condition = msgspec.structs.replace(self._condition, last_end=end, restarts=restarts)
        if self._bad_setting and not self.was_ready:
            return  # it is given up, and `ready` says why
        recent = self.condition().deaths
        again = f" for the {recent}th time within a minute" if recent > LOOP_DEATHS else ""
        when = f" in {delay:g} s" if again else ""
        self._tell("died", f"died ({end}){again}, restarting{when}")

    def _receive_line(self, line: str) -> None:
        self._is_stuck = self._is_stuck or self.program.stuck(line)

    async def _watch(self) -> None:
        """Say when it is ready, and from then on when it hangs, and what it finds wrong."""
        self._is_stuck = False
        while True:
            self.health = await self.program.look()
            if _is_at_work(self.health):
                break
            await asyncio.sleep(_POLL_S)
        self._tell("ready", "is ready again" if self.was_ready else "is ready")
        self.was_ready = True
        silent, calm_at = 0, time.monotonic() + CALM_S
        try:
            while True:
                health = await self.program.look()
                silent = 0 if health.answers else silent + 1
                self._assess(health, silent)
                if time.monotonic() >= calm_at:
                    self.output.calm()
                    calm_at += CALM_S
                await asyncio.sleep(LOOK_S)
        finally:
            self._report_errors(self.program.name, ())

    def _assess(self, health: Health, silent: int) -> None:
        hangs = self._condition.state == "hangs"
        if silent == SILENT_LOOKS:
            self._tell("hangs", "does not answer: it is stopped, or has too much to do")
        elif hangs and not silent:
            self._tell("ready", "answers again")
        if health.answers:
            self._report_errors(self.program.name, health.errors)
        if self._is_stuck and self.pid and self.program.mended():
            self._is_stuck = False
            self._tell("starting", "cannot write any more, and there is room again: starting it anew")
            send(self.pid, signal.SIGTERM)

    async def _pause(self, delay: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._stopping.wait()

    def _tell(self, state: State, text: str) -> None:
        self._condition = msgspec.structs.replace(self._condition, state=state, since=time.time())
        self._note()
        self._report(Notice(self.program.name, state, text))


def _is_at_work(health: Health) -> bool:
    """True if it does all it can: lasting errors are not waited for."""
    return health.ready or bool(health.answers and health.errors and not health.waits_for)
