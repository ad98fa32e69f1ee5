"""Forking of services from one process that has imported them: they share its memory, and start at once.

`python -m crucible_kit.prefork FD`, where FD is a Unix socket (`SOCK_SEQPACKET`). The first message is the modules to
import. Each further one is a `Fork`, with the descriptor for its output; the answers are `Forked`, and `Ended` once a
service has ended. A forked service dies with this process, which needs Linux.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import runpy
import select
import signal
import socket
import sys

import msgspec
from setproctitle import setproctitle

MOST_BYTES = 128 * 1024
"""Size limit of one message, near the limit of Linux for a socket."""
_PR_SET_PDEATHSIG = 1
_LATE = (
    "crucible_kit.http.server",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.loops.uvloop",
    "uvloop",
    "anyio._backends._asyncio",
    "encodings.idna",
)
"""Modules that a service imports once it runs: each service would hold 2 MB of its own."""


class Fork(msgspec.Struct, tag=True):
    """Runs `python -m MODULE` with this environment and no other. `umask` is -1 to leave it as it is; `nice` is added
    to the niceness."""

    number: int
    module: str
    environ: dict[str, str]
    umask: int = -1
    nice: int = 0


class Forked(msgspec.Struct, tag=True):
    number: int
    pid: int


class Ended(msgspec.Struct, tag=True):
    """`code` is negative for a signal, as that of `subprocess`."""

    pid: int
    code: int


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    setproctitle("crucible: the process that services are forked from")
    services = msgspec.json.decode(control.recv(MOST_BYTES), type=list[str])
    for module in (*(f"{service}.app" for service in services), *_LATE):
        with contextlib.suppress(Exception):  # one that cannot be imported says so itself when it is run
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # the collector writes into each object that it looks at, and what is written is shared no more
    fork = _serve(control)
    if fork is not None:  # in the child
        runpy.run_module(fork.module, run_name="__main__", alter_sys=True)


def _serve(control: socket.socket) -> Fork | None:
    """Forks services on request, and reports those that end, until the socket is closed. Returns its request in each
    child, None in the parent."""
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    while True:
        ready, _, _ = select.select([control.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _report_ends(control)
        if control.fileno() in ready:
            message, descriptors, _, _ = socket.recv_fds(control, MOST_BYTES, 1)
            if not message:
                return None
            fork = msgspec.json.decode(message, type=Fork)
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for descriptor in (control.detach(), woken, wake):
                    os.close(descriptor)
                _prepare_child(fork, descriptors[0], parent)
                return fork
            os.close(descriptors[0])
            control.send(msgspec.json.encode(Forked(fork.number, pid)))


def _report_ends(control: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        control.send(msgspec.json.encode(Ended(pid, os.waitstatus_to_exitcode(status))))


def _prepare_child(fork: Fork, output: int, parent: int) -> None:
    """Prepares the child as `subprocess` does between fork and exec."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    if fork.umask != -1:
        os.umask(fork.umask)
    os.nice(fork.nice)
    os.environ.clear()
    os.environ.update(fork.environ)
    sys.argv = [fork.module]
    setproctitle(f"{sys.executable} -P -m {fork.module}")


if __name__ == "__main__":
    main()
