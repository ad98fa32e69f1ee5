"""Child processes of this machine: starting one that dies with us, ending it, finding those of a dead parent, and their
output and logs."""

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from io import FileIO
from pathlib import Path

import msgspec

from crucible_cli.up.state import write_private
from crucible_core.limits import LOG_FILE_BYTES, LOG_FILES

_PR_SET_PDEATHSIG = 1
_STALE_GRACE_S = 5.0
_POLL_S = 0.02
_CHUNK = 64 * 1024
_MAX_LINE = 400
_BURST = 20
# A line of our services (`time level service message`), the end of a Python traceback, or one of nats-server's.
_GRAVE = re.compile(
    r"\S+ (?:warning|error|critical) "
    r"|[A-Za-z_][\w.]*(?:Error|Exception)\b|\S+: No module "
    r"|.*\[(?:WRN|ERR|FTL)\]|nats-server: "
)


class Identity(msgspec.Struct, frozen=True):
    """A process for certain: numbers come again, so its time of birth belongs to it."""

    pid: int
    birth: str


async def spawn(
    command: Sequence[str],
    environ: Mapping[str, str],
    output: int,
    umask: int = -1,
    pass_fds: Sequence[int] = (),
    nice: int = 0,
) -> asyncio.subprocess.Process:
    """Start `command` with its output on the descriptor `output`, in a process group of its own. `umask` is its own
    too, unless it is -1; `nice` is added to its niceness.

    Its own group keeps the terminal's Ctrl-C from it, so that we choose the order of stopping. On Linux the kernel
    kills it when we die; elsewhere `end_stale` does at the next start.
    """
    return await asyncio.create_subprocess_exec(
        *command,
        env=environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        umask=umask,
        pass_fds=pass_fds,
        preexec_fn=partial(_prepare, _tie_to_parent(), nice),
    )


def send(pid: int, number: signal.Signals) -> None:
    """Signal one process; one that is gone is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def kill_group(leader: int) -> None:
    """Kill a process of `spawn` and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def describe_exit(code: int) -> str:
    """`killed by SIGKILL`, `exit code 3`: for people."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def birth(pid: int) -> str | None:
    """A process's time of birth, in the system's own words; None if there is none (or only its remains)."""
    try:
        # proc(5): the state is the first field after the name in brackets, the time of birth the twentieth.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _birth_from_ps(pid)
    return None if fields[0] in "ZX" else fields[19]


def record(file: Path, running: Mapping[str, int]) -> None:
    """Note in `file` the processes that run, for the next start's `end_stale`."""
    born = {name: Identity(pid, at) for name, pid in running.items() if (at := birth(pid))}
    write_private(file, msgspec.json.encode(born).decode())


def end_stale(file: Path) -> list[str]:
    """End the processes that `file` notes and that are alive still; blocks until they are gone. Their names."""
    try:
        noted = msgspec.json.decode(file.read_bytes(), type=dict[str, Identity])
    except (OSError, msgspec.DecodeError):
        return []
    stale = {name: born for name, born in noted.items() if _lives(born)}
    for born in stale.values():
        send(born.pid, signal.SIGTERM)
    _await_end(stale.values(), _STALE_GRACE_S)
    for born in stale.values():
        if _lives(born):
            kill_group(born.pid)
    _await_end(stale.values(), _STALE_GRACE_S)
    file.unlink(missing_ok=True)
    return sorted(stale)


def _tie_to_parent() -> Callable[[], None] | None:
    """The child's last act before it becomes the program: it asks the kernel (prctl(2)) to be killed when we die."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return tie


def _prepare(tie: Callable[[], None] | None, nice: int) -> None:
    if tie is not None:
        tie()
    os.nice(nice)


def _birth_from_ps(pid: int) -> str | None:
    asked = ["ps", "-o", "lstart=", "-p", str(pid)]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    except OSError:
        return None
    return answer.stdout.strip() or None


def _lives(born: Identity) -> bool:
    return birth(born.pid) == born.birth


def _await_end(processes: Iterable[Identity], grace: float) -> None:
    deadline = time.monotonic() + grace
    while any(_lives(born) for born in processes) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


class Output:
    """One process's pipe and log. `write_end` is what the process prints to; it outlives the process's restarts.

    `warn` gets each line that is a warning or worse, at most 20 of them until `calm` is called; `heard` gets all.
    """

    def __init__(
        self,
        file: Path,
        warn: Callable[[str], None],
        max_bytes: int = LOG_FILE_BYTES,
        heard: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.file = file
        self.last_grave = ""
        """The last line that was a warning or worse."""
        self._warn = warn
        self._heard = heard
        self._max_bytes = max_bytes
        self._rest = b""
        self._warned = 0
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._log = self._open()

    def fileno(self) -> int:
        """The end to watch: `drain` when it is readable."""
        return self._read_end

    def drain(self) -> None:
        """Take in what was printed; never blocks. A full disk costs the log its lines, and nothing else."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._read_end, _CHUNK):
                self._pass_on(chunk)
                with contextlib.suppress(OSError):
                    self._keep(chunk)
                if len(chunk) < _CHUNK:
                    break

    def calm(self) -> None:
        """Allow warnings again after a burst."""
        self._warned = 0

    def close(self) -> None:
        self.drain()
        os.close(self.write_end)
        os.close(self._read_end)
        with contextlib.suppress(OSError):
            self._log.close()

    def _open(self) -> FileIO:
        with contextlib.suppress(OSError):
            if self.file.stat().st_size > self._max_bytes:
                rotate(self.file)
        return FileIO(self.file, "ab", opener=_private)

    def _keep(self, chunk: bytes) -> None:
        self._log.write(chunk)
        if self._log.tell() > self._max_bytes:
            self._log.close()
            self._log = self._open()

    def _pass_on(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        self._rest = self._rest[-_CHUNK:]
        for line in lines:
            text = line.decode("utf-8", "replace").rstrip()
            self._heard(text)
            if not _GRAVE.match(text):
                continue
            self.last_grave = text[:_MAX_LINE]
            if self._warned <= _BURST:
                self._warned += 1
                more = f"(more of this in {self.file})"
                self._warn(more if self._warned > _BURST else text[:_MAX_LINE])


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def rotate(file: Path, kept: int = LOG_FILES) -> None:
    """`x.log` becomes `x.log.1`, `x.log.1` becomes `x.log.2`, …; what is beyond `kept` goes."""
    for number in range(kept - 1, 0, -1):
        older = file.with_name(f"{file.name}.{number}")
        if older.exists():
            older.replace(file.with_name(f"{file.name}.{number + 1}"))
    if file.exists():
        file.replace(file.with_name(f"{file.name}.1"))
