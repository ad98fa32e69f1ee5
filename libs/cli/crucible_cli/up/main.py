"""NATS and the services on this machine: starts them, shows how they do, and stops them at Ctrl-C.

It is what `crucible up` becomes once its options are read: in the interpreter that reads them, typer, pydantic and what
they import would stay in memory as long as it runs.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.console import Console

from crucible_cli.up.processes import end_stale
from crucible_cli.up.screen import Screen, open_screen
from crucible_cli.up.stack import Stack, own_variables, plan
from crucible_cli.up.state import (
    DataDir,
    UpState,
    admin_key,
    default_root,
    lock,
    not_usable,
    open_data_dir,
    remove_up,
    write_up,
)
from crucible_cli.up.supervisor import Supervisor
from crucible_core.errors import CrucibleError, UnavailableError
from crucible_core.limits import READY_S

_PROGRESS_S = 10.0


class Options(msgspec.Struct, frozen=True):
    """`crucible` is how the command was called."""

    data: str
    hooks: str | None
    port_base: int
    json: bool
    crucible: str


def main() -> None:
    options = msgspec.json.decode(sys.argv[1], type=Options)
    try:
        data = open_data_dir(Path(options.data))
        with lock(data):
            _up(data, options)
    except (CrucibleError, OSError) as error:
        Console(stderr=True, markup=False, highlight=False, soft_wrap=True).print(
            f"error: {_error_text(error)}", style="red"
        )
        raise SystemExit(1) from error


def _error_text(error: CrucibleError | OSError) -> str:
    if isinstance(error, CrucibleError):
        return error.detail
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def _up(data: DataDir, options: Options) -> None:
    stale = end_stale(data.processes_file)
    hooks = _directory(Path(options.hooks) if options.hooks else data.hooks)
    stack = plan(data, hooks, options.port_base, admin_key(data), os.environ)
    screen = open_screen(options.json, {program.name: stack.ports[program.name] for program in stack.programs})
    try:
        if stale:
            screen.say(f"ended what a killed `crucible up` had left: {', '.join(stale)}")
        for name in own_variables():
            if name in os.environ:
                screen.say(f"{name} is not used: `crucible up` sets it itself", "yellow")
        asyncio.run(_run(data, stack, screen, options.crucible))
    finally:
        screen.close()


async def _run(data: DataDir, stack: Stack, screen: Screen, crucible: str) -> None:
    """Run `stack` until a signal. Raises UnavailableError when it does not get ready."""
    supervisor = Supervisor(stack.programs, data.processes_file, screen.notice, conditions=data.conditions_file)
    stopping = asyncio.Event()

    def stop() -> None:
        if stopping.is_set():
            screen.say("killing all", "bold red")
            supervisor.kill()
            return
        screen.close()
        screen.say("stopping; press Ctrl-C again to kill")
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    supervisor.start()
    try:
        if await _ready(supervisor, stopping, data, screen):
            state = _state(data, stack)
            write_up(data, state)
            screen.up(msgspec.to_builtins(state) | _places(data, stack), _welcome(data, stack, crucible))
            await stopping.wait()
    finally:
        screen.close()
        remove_up(data)
        await supervisor.stop()
    screen.say("stopped; the data is in " + str(data.root))


async def _ready(supervisor: Supervisor, stopping: asyncio.Event, data: DataDir, screen: Screen) -> bool:
    """True once all are ready, False when asked to stop before that."""
    ready = asyncio.create_task(supervisor.ready())
    stop = asyncio.create_task(stopping.wait())
    began = asyncio.get_running_loop().time()
    try:
        while not ready.done() and not stopping.is_set():
            await asyncio.wait((ready, stop), timeout=_PROGRESS_S, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done() and not stopping.is_set():
                _say_unready(supervisor.unready(), asyncio.get_running_loop().time() - began, data, screen)
        if stopping.is_set():
            return False
        await ready
        return True
    finally:
        ready.cancel()
        stop.cancel()


def _say_unready(unready: Mapping[str, Sequence[str]], seconds: float, data: DataDir, screen: Screen) -> None:
    """Raises UnavailableError where one that says nothing has had its time."""
    silent = [name for name, waits_for in unready.items() if not waits_for]
    if silent and seconds >= READY_S:
        raise UnavailableError(f"not ready after {READY_S:g} s: {', '.join(silent)}; the logs are in {data.logs}")
    for name, waits_for in unready.items():
        screen.say(f"{name} waits for {', '.join(waits_for) or 'its start'}", "dim")


def _state(data: DataDir, stack: Stack) -> UpState:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return UpState(stack.url, stack.ports, os.getpid(), str(data.root), now)


def _places(data: DataDir, stack: Stack) -> dict[str, str]:
    return {"key_file": str(data.key_file), "logs": str(data.logs), "hooks": str(stack.hooks)}


def _directory(path: Path) -> Path:
    made = path.expanduser().absolute()
    try:
        made.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UnavailableError(f"cannot use the hooks directory {made}: {not_usable(error, made)}") from error
    return made


def _welcome(data: DataDir, stack: Stack, crucible: str) -> list[str]:
    event = '{"type": "Custom.Hello", "payload": {"text": "hello"}}'
    option = "" if data.root == default_root(os.environ).absolute() else f" --data {data.root}"
    return [
        "",
        f"Crucible is up at {stack.url}",
        f"  API key  {data.key_file}",
        f"  data     {data.root}",
        f"  logs     {data.logs}",
        f"  hooks    {stack.hooks}",
        "  events   both of its roles, append and query, are one process",
        "  egress   webhooks and hooks may send to public addresses and to this machine (127.0.0.1, ::1);",
        "           CRUCIBLE_EGRESS_ALLOW opens more",
        "",
        "Try next:",
        f"  {crucible} demo{option}       the whole chain on a real file",
        f"  {crucible} doctor{option}     what is wired, and whether it works",
        f'  curl -H "Authorization: Bearer $(cat {data.key_file})" -H "Content-Type: application/json" \\',
        f"    -d '{event}' {stack.url}/api/v1/events",
        f"  {stack.url}/docs            the API, to read and try",
        "",
        "Ctrl-C stops everything.",
    ]


if __name__ == "__main__":
    main()
