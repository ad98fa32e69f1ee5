"""A `crucible up` of its own for a benchmark, on a data directory that goes away."""

import contextlib
import json
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

CRUCIBLE = str(Path(sys.executable).with_name("crucible"))
EXAMPLES = Path(__file__).parents[1] / "examples" / "hooks"


class Running:
    """`began` is `time.perf_counter()` at the moment of the start."""

    def __init__(self, process: subprocess.Popen[bytes], data: Path, began: float) -> None:
        self.process = process
        self.data = data
        self.began = began
        state = json.loads((data / "up.json").read_text())
        self.url: str = state["url"]
        self.ports: dict[str, int] = state["ports"]
        self.key = (data / "admin.key").read_text().strip()

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=20)


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


def free_base() -> int:
    for base in range(31000, 60000, 10):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(base, base + 5):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return base
    raise RuntimeError("no free ports")
