"""Child processes of this machine: starting one that dies with us, ending it, and finding those a dead parent left."""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec

from .state import write_private

_PR_SET_PDEATHSIG = 1
_STALE_GRACE_S = 5.0
_POLL_S = 0.02


class Born(msgspec.Struct, frozen=True):
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
    """When a process was born, in the system's own words; None if there is none (or only its remains)."""
    try:
        # proc(5): the state is the first field after the name in brackets, the time of birth the twentieth.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _birth_from_ps(pid)
    return None if fields[0] in "ZX" else fields[19]


def record(file: Path, running: Mapping[str, int]) -> None:
    """Note in `file` the processes that run, for the next start's `end_stale`."""
    born = {name: Born(pid, at) for name, pid in running.items() if (at := birth(pid))}
    write_private(file, msgspec.json.encode(born).decode())


def end_stale(file: Path) -> list[str]:
    """End the processes that `file` notes and that are alive still; blocks until they are gone. Their names."""
    try:
        noted = msgspec.json.decode(file.read_bytes(), type=dict[str, Born])
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


def _lives(born: Born) -> bool:
    return birth(born.pid) == born.birth


def _await_end(processes: Iterable[Born], grace: float) -> None:
    deadline = time.monotonic() + grace
    while any(_lives(born) for born in processes) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
