"""Two replicas of each role on one nats-server, each a process that may be killed and started again."""

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from bench.running import free_base
from crucible_cli.up.fork import Child, Forker
from crucible_cli.up.stack import look

ROLES = {
    "events append": "crucible_events",
    "events query": "crucible_events",
    "hooks": "crucible_hooks",
    "webhooks": "crucible_webhooks",
    "memory": "crucible_memory",
    "gateway": "crucible_gateway",
}
"""The module of each."""
KEY = "ck_bench"
_READY_S = 60.0


class Replica:
    """One process of a role. `kill` sends SIGKILL."""

    def __init__(self, role: str, number: int, nats_url: str, root: Path, port: int, forker: Forker) -> None:
        self.role = role
        self.name = f"{role} {number}"
        self.port = port
        self.log = root / f"{self.name}.log"
        self._forker = forker
        self._environ = os.environ | {
            "CRUCIBLE_NATS_URL": nats_url,
            "CRUCIBLE_DATA_DIR": str(root / self.name),
            "CRUCIBLE_PORT": str(port),
            "CRUCIBLE_EVENTS_ROLE": role.removeprefix("events ") if role.startswith("events ") else "all",
            "CRUCIBLE_EVENTS_SNAPSHOT_EVERY": "500",
            "CRUCIBLE_EGRESS_ALLOW": "127.0.0.0/8",
            "CRUCIBLE_ADMIN_KEY": KEY,
        }
        self._process: Child | None = None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = await self._forker.fork(ROLES[self.role], self._environ, log.fileno())

    async def kill(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    async def until_ready(self) -> None:
        deadline = time.monotonic() + _READY_S
        while not (await look(self.port)).ready:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} is not ready: {self.log.read_text()[-2000:]}")
            await asyncio.sleep(0.05)


class Cluster:
    def __init__(self, nats_url: str, replicas: list[Replica]) -> None:
        self.nats_url = nats_url
        self.replicas = replicas
        self.gateways = [f"http://127.0.0.1:{one.port}" for one in replicas if one.role == "gateway"]

    async def settled(self) -> None:
        for replica in self.replicas:
            await replica.until_ready()


@contextlib.asynccontextmanager
async def cluster(nats_url: str) -> AsyncIterator[Cluster]:
    """All of them, once they are ready."""
    root = Path(tempfile.mkdtemp(prefix="crucible-replicas-"))
    forker = Forker(sorted(set(ROLES.values())))
    try:
        ports = itertools.count(free_base(2 * len(ROLES)))
        replicas = [Replica(role, n, nats_url, root, next(ports), forker) for n in (1, 2) for role in ROLES]
        for replica in replicas:
            await replica.start()
        made = Cluster(nats_url, replicas)
        await made.settled()
        yield made
    finally:
        await forker.close()
        shutil.rmtree(root, ignore_errors=True)
