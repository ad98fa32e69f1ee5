"""The programs of `crucible up`: NATS and the services, with their ports, their environment and their order."""

import asyncio
import contextlib
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import msgspec

from crucible_cli.up import nats_server
from crucible_cli.up.state import DataDir
from crucible_cli.up.supervisor import Health, Program
from crucible_core.errors import ConflictError, InvalidError, UnavailableError
from crucible_core.limits import FIRST_PORT
from crucible_core.protocol.parts import Readiness

SERVICES = ("gateway", "events", "hooks", "webhooks", "memory")
"""In the order of their ports, from the port base on."""
HOST = nats_server.HOST
_NATS_PORT = 4222
LOOK_S = 2.0
"""The time a service has to answer a look."""
_MOST_BYTES = 64 * 1024
_OURS = ("NATS_URL", "NATS_STORE", "PORT", "HOST", "DATA_DIR", "ADMIN_KEY", "HOOKS_DIR", "EVENTS_ROLE")
"""Settings, less their prefix, that `up` decides; a user's own values of these do not reach the services."""
_RANKS = {"gateway": 3, "events": 1}
"""The gateway ends first, `events` after all that append to it, NATS last."""
_NICE = {"gateway": 5, "events": 5}
"""Those that accept give way to those that work on what was accepted, where all want the processors: more that waits
helps nobody. On a machine that has time for both, it changes nothing."""
_SECRET = "CRUCIBLE_API_KEY"  # the CLI's; no service needs it
_SNAPSHOTS = "CRUCIBLE_EVENTS_SNAPSHOT_EVERY"
_EGRESS = "CRUCIBLE_EGRESS_ALLOW"
_THIS_MACHINE = "127.0.0.0/8,::1"


class Stack(msgspec.Struct, frozen=True):
    """`ports` are by name, `nats` among them; `hooks` is the directory of the users' hook files."""

    url: str
    ports: dict[str, int]
    hooks: Path
    programs: list[Program]


def plan(data: DataDir, hooks: Path, base: int, admin_key: str, environ: Mapping[str, str]) -> Stack:
    """Everything that is to run, with NATS's configuration written. Raises ConflictError for a port that is taken."""
    sync = nats_server.sync_interval(environ)
    ports = service_ports(base)
    nats = nats_server.prepare(data.nats, _nats_port(base), sync)
    shared = {key: value for key, value in environ.items() if key != _SECRET and key not in own_variables()}
    shared.setdefault(_SNAPSHOTS, "0")  # the index is on the disk that the snapshots would be on
    # On a laptop, endpoints are mostly here, too.
    shared[_EGRESS] = ",".join(filter(None, (_THIS_MACHINE, environ.get(_EGRESS))))
    reserve = nats_server.reserve_mib(environ)
    programs = [
        Program(
            "nats",
            nats.command,
            nats_server.environment(environ),
            data.log("nats"),
            nats.look,
            stuck=nats_server.is_stuck,
            mended=partial(nats_server.has_space, data.nats, reserve),
            umask=0o077,
        )
    ]
    for service, port in ports.items():
        own = _environ(service, port, data, nats.url)
        if service == "gateway":
            own["CRUCIBLE_ADMIN_KEY"] = admin_key
        if service == "hooks":
            own["CRUCIBLE_HOOKS_DIR"] = str(hooks)
        # -P: a file of the current directory must not pass for a module of the service.
        module = f"crucible_{service}"
        programs.append(
            Program(
                service,
                (sys.executable, "-P", "-m", module),
                shared | own,
                data.log(service),
                partial(look, port),
                _RANKS.get(service, 2),
                module=module,
                nice=_NICE.get(service, 0),
            )
        )
    return Stack(f"http://{HOST}:{ports['gateway']}", ports | {"nats": nats.port}, hooks, programs)


def own_variables() -> list[str]:
    """The variables that `up` sets itself."""
    return [f"CRUCIBLE_{name}" for name in _OURS]


def service_ports(base: int) -> dict[str, int]:
    """A port for each service. Raises InvalidError or ConflictError, both of which name the option."""
    if not 1 <= base <= 65535 - len(SERVICES) + 1:
        raise InvalidError(f"--port-base must be from 1 to {65535 - len(SERVICES) + 1}, not {base}")
    ports = {service: base + place for place, service in enumerate(SERVICES)}
    taken = [f"{port} ({service})" for service, port in ports.items() if not nats_server.is_free(port, HOST)]
    if taken:
        what = f"port {taken[0]} is taken" if len(taken) == 1 else f"ports {', '.join(taken)} are taken"
        raise ConflictError(f"{what}: choose others with --port-base, such as --port-base {_other_base(base)}")
    return ports


async def look(port: int, timeout: float = LOOK_S) -> Health:
    """The health of the service on a port of this machine, by its /readyz. Never raises."""
    with contextlib.suppress(OSError, ValueError, TimeoutError):
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(f"GET /readyz HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
                return health_of(await reader.read(_MOST_BYTES))
            finally:
                writer.close()
    return Health()


def health_of(answer: bytes) -> Health:
    """The health that an HTTP answer of a /readyz tells."""
    if answer[8:13] == b" 200 ":
        return Health(answers=True, ready=True)
    try:
        found = msgspec.json.decode(answer.partition(b"\r\n\r\n")[2], type=Readiness)
    except msgspec.DecodeError:
        return Health(answers=bool(answer))
    errors = tuple(error.message for error in found.errors)
    return Health(answers=True, waits_for=tuple(found.waiting_for), errors=errors)


def _environ(service: str, port: int, data: DataDir, nats_url: str) -> dict[str, str]:
    index = data.index(service)
    try:
        index.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UnavailableError(f"cannot make {index}: {error.strerror}") from error
    return {
        "CRUCIBLE_NATS_URL": nats_url,
        "CRUCIBLE_NATS_STORE": str(data.nats),
        "CRUCIBLE_HOST": HOST,
        "CRUCIBLE_PORT": str(port),
        "CRUCIBLE_DATA_DIR": str(index),
    }


def _nats_port(base: int) -> int:
    wanted = _NATS_PORT - FIRST_PORT + base
    return nats_server.choose_port(wanted) if 1 <= wanted <= 65535 else nats_server.free_port()


def _other_base(base: int) -> int:
    return next(
        (other for other in range(base + 1000, 65000, 1000) if all(map(nats_server.is_free, range(other, other + 5)))),
        20000,
    )
