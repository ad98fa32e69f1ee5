"""A `crucible up` of its own for a benchmark, on a data directory that goes away."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil

CRUCIBLE = str(Path(sys.executable).with_name("crucible"))
Row = dict[str, object]
EXAMPLES = Path(__file__).parents[1] / "examples" / "hooks"


class Running:
    """`began` is `time.perf_counter()` at the moment of the start."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        data: Path,
        began: float,
        services: dict[str, subprocess.Popen[bytes]] | None = None,
    ) -> None:
        self.process = process
        self._services = services
        self.data = data
        self.began = began
        state = json.loads((data / "up.json").read_text())
        self.url: str = state["url"]
        self.ports: dict[str, int] = state["ports"]
        self.key = (data / "admin.key").read_text().strip()

    def processes(self) -> dict[str, psutil.Process]:
        """By service, `nats` and `up` among them where `crucible up` runs them."""
        if self._services is not None:
            return {name: psutil.Process(process.pid) for name, process in self._services.items()}
        found = {"up": psutil.Process(self.process.pid)}
        for child in found["up"].children(recursive=True):
            line = " ".join(child.cmdline())
            module = re.search(r"crucible_(\w+)", line)
            forker = "forks" if "services are forked from" in line else str(child.pid)
            found["nats" if "nats-server" in line else module[1] if module else forker] = child
        return found

    def cpu(self) -> dict[str, float]:
        """The seconds of processor time that each process has used."""
        return {name: sum(process.cpu_times()[:2]) for name, process in self.processes().items()}

    def row(
        self,
        what: str,
        value: float,
        floor: float | None,
        unit: str,
        at_least: float | None = None,
        at_most: float | None = None,
        before: dict[str, float] | None = None,
    ) -> Row:
        """A line of the table: the figure, its floor and ratio, and what each process holds (MiB, RSS)."""
        digits = 0 if value >= 100 else 2
        ratio = value / floor if floor else None
        good = (at_least is None or (ratio or 0) >= at_least) and (at_most is None or (ratio or value) <= at_most)
        wanted = f"≥ {at_least:g}" if at_least is not None else f"≤ {at_most:g}" if at_most is not None else ""
        memory = {name: round(process.memory_info().rss / 2**20) for name, process in self.processes().items()}
        used = self.cpu() if before else {}
        return {
            "what": what,
            "crucible": f"{value:,.{digits}f} {unit}",
            "floor": f"{floor:,.{digits}f} {unit}" if floor else "-",
            "ratio": f"{ratio:.2f}" if ratio else "-",
            "wanted": wanted,
            "": "ok" if good else "MISSED",
            "MiB": " ".join(f"{name} {size}" for name, size in sorted(memory.items())),
            "cpu s": " ".join(
                f"{name} {used[name] - before[name]:.1f}" for name in sorted(used) if before and name in before
            ),
        }

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=20)


@contextlib.contextmanager
def alone(url: str, *services: str) -> Iterator[Running]:
    """Some services, each a process without a supervisor, on a nats-server that is there already."""
    root = Path(tempfile.mkdtemp(prefix="crucible-bench-"))
    base = free_base()
    (root / "admin.key").write_text("ck_bench")
    ports = {service: base + place for place, service in enumerate(services)}
    state = {"url": f"http://127.0.0.1:{ports.get('gateway', base)}", "ports": ports}
    (root / "up.json").write_text(json.dumps(state))
    started: dict[str, subprocess.Popen[bytes]] = {}
    for service, port in ports.items():
        own = {"CRUCIBLE_NATS_URL": url, "CRUCIBLE_DATA_DIR": str(root), "CRUCIBLE_PORT": str(port)}
        environ = os.environ | own | {"CRUCIBLE_ADMIN_KEY": "ck_bench"}
        started[service] = subprocess.Popen([sys.executable, "-m", f"crucible_{service}"], env=environ)
    try:
        for port in ports.values():
            until(lambda port=port: _answers(port), 60)
        yield Running(next(iter(started.values())), root, time.perf_counter(), started)
    finally:
        for process in started.values():
            process.terminate()
            process.wait(30)
        shutil.rmtree(root, ignore_errors=True)


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/metrics").status_code == 200
    except httpx.TransportError:
        return False


@contextlib.contextmanager
def running(data: Path | None = None) -> Iterator[Running]:
    root = data or Path(tempfile.mkdtemp(prefix="crucible-bench-"))
    began = time.perf_counter()
    command = [CRUCIBLE, "up", "--data", str(root), "--port-base", str(free_base())]
    with (root.parent / f"{root.name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(lambda: (root / "up.json").exists(), 60)
        yield Running(process, root, began)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        if data is None:
            shutil.rmtree(root, ignore_errors=True)


def until(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.005)


def free_base(count: int = 5) -> int:
    """The first of so many free ports in a row; another bench, which runs beside this one, begins elsewhere."""
    for base in range(20000 + os.getpid() % 500 * 20, 60000, 20):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(base, base + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return base
    raise RuntimeError("no free ports")
