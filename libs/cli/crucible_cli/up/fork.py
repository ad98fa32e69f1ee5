"""The process that the services are forked from (`crucible_kit.prefork`), as the supervisor uses it."""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence

import msgspec

from crucible_cli.up.processes import spawn

_MOST_BYTES = 128 * 1024
_KILLED = -int(signal.SIGKILL)


class Child:
    """A forked service, as `asyncio.subprocess.Process` has it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def wait(self) -> int:
        return await self.code


class Forker:
    """Starts its process with the first service, and anew should it die: then its services have died with it."""

    available = sys.platform == "linux"

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = modules
        self._control: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._numbers = itertools.count()
        self._pending: dict[int, asyncio.Future[Child]] = {}
        self._children: dict[int, Child] = {}

    async def fork(self, module: str, environ: Mapping[str, str], output: int, umask: int = -1, nice: int = 0) -> Child:
        """Runs `python -m module` with its output on the descriptor `output`. Raises OSError."""
        control = await self._open(environ, output)
        number = next(self._numbers)
        born: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        order = {"type": "Fork", "number": number, "module": module, "environ": dict(environ)}
        message = msgspec.json.encode(order | {"umask": umask, "nice": nice})
        if len(message) > _MOST_BYTES:
            raise OSError(f"an environment of more than {_MOST_BYTES // 1024} KiB")
        self._pending[number] = born
        try:
            socket.send_fds(control, [message], [output])
        except OSError:
            self._lose_process()
        return await born

    async def close(self) -> None:
        """Its process ends, and with it what it has forked."""
        self._lose_process()
        if self._process is not None:
            await self._process.wait()

    async def _open(self, environ: Mapping[str, str], output: int) -> socket.socket:
        async with self._turn:
            if self._control is None:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with theirs:
                    command = [sys.executable, "-P", "-m", "crucible_kit.prefork", str(theirs.fileno())]
                    if self._process is not None:
                        await self._process.wait()
                    self._process = await spawn(command, environ, output, pass_fds=(theirs.fileno(),))
                ours.setblocking(False)
                ours.send(msgspec.json.encode(self._modules))
                self._control = ours
                asyncio.get_running_loop().add_reader(ours, self._receive)
            return self._control

    def _receive(self) -> None:
        assert self._control is not None
        try:
            message = self._control.recv(_MOST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._lose_process()
            return
        report = msgspec.json.decode(message)
        if report["type"] == "Forked":
            child = self._children[report["pid"]] = Child(report["pid"])
            born = self._pending.pop(report["number"])
            if not born.done():
                born.set_result(child)
        elif (ended := self._children.pop(report["pid"], None)) is not None:
            ended.code.set_result(report["code"])

    def _lose_process(self) -> None:
        if self._control is None:
            return
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        self._control = None
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
            child.code.set_result(_KILLED)
        for born in self._pending.values():
            if not born.done():
                born.set_exception(OSError("the process that services are forked from has died"))
        self._children.clear()
        self._pending.clear()
