"""All of Crucible as it is for users: `crucible up` as a process, its services below it, and clients outside."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest

from crucible_client import Crucible

CRUCIBLE = str(Path(sys.executable).with_name("crucible"))
EXAMPLES = Path(__file__).parents[2] / "examples" / "hooks"
SERVICES = ("gateway", "events", "hooks", "webhooks", "memory")


class Stack:
    """A running `crucible up` on a data directory; `start` again finds the data again."""

    def __init__(self, data: Path, environ: Mapping[str, str]) -> None:
        self.data = data
        self.environ = {**os.environ, "PYTHONUNBUFFERED": "1", **environ}
        self.url = ""
        self.key = ""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        base = free_base()
        with (self.data.parent / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                [CRUCIBLE, "up", "--data", str(self.data), "--port-base", str(base)],
                stdout=log,
                stderr=log,
                env=self.environ,
            )
        until(self._up, 60, lambda: (self.data.parent / "up.log").read_text())
        state = msgspec.json.decode((self.data / "up.json").read_bytes())
        self.url = state["url"]
        self.key = (self.data / "admin.key").read_text().strip()

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            assert self.process.wait(30) == 0
            self.process = None

    def kill(self, service: str) -> None:
        """SIGKILL to one service, or to nats; the supervisor starts it again."""
        self.pid(service).kill()

    def pid(self, service: str) -> psutil.Process:
        assert self.process is not None
        mark = "nats-server" if service == "nats" else f"crucible_{service}"

        def found() -> psutil.Process | None:
            assert self.process is not None
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if any(mark in part for part in child.cmdline()):
                        return child
            return None

        return until(found, 15)

    def ready(self) -> bool:
        """Whether every service answers that it is."""
        state = msgspec.json.decode((self.data / "up.json").read_bytes())
        with contextlib.suppress(httpx.HTTPError):
            return all(
                httpx.get(f"http://127.0.0.1:{state['ports'][service]}/readyz", timeout=2).status_code == 200
                for service in SERVICES
            )
        return False

    def client(self) -> Crucible:
        return Crucible(self.url, self.key)

    def nats_url(self) -> str:
        """Where its NATS is, with the secret."""
        state = msgspec.json.decode((self.data / "up.json").read_bytes())
        token = (self.data / "nats" / "token").read_text().strip()
        return f"nats://{token}@127.0.0.1:{state['ports']['nats']}"

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=20)

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A `crucible` command against this stack."""
        done = subprocess.run(
            [CRUCIBLE, *arguments, "--data", str(self.data)],
            capture_output=True,
            text=True,
            timeout=120,
            env=self.environ,
            check=False,
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def install_hooks(self) -> None:
        """The hooks of examples/, without the debounce that would make tests wait."""
        for file in EXAMPLES.iterdir():
            text = file.read_text().replace("debounce_ms: 5000", "debounce_ms: 0")
            (self.data / "hooks" / file.name).write_text(text)
        names = {file.stem for file in EXAMPLES.glob("*.md")}
        until(lambda: names <= {hook["name"] for hook in self._hooks() if hook["state"] == "active"}, 10)

    def _hooks(self) -> list[dict[str, Any]]:
        with self.http() as http:
            hooks: list[dict[str, Any]] = http.get("/api/v1/hooks").raise_for_status().json()["hooks"]
            return hooks

    def _up(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError((self.data.parent / "up.log").read_text())
        return (self.data / "up.json").exists()


@contextlib.contextmanager
def running(root: Path, **environ: str) -> Iterator[Stack]:
    """A stack with extra environment variables, whose data is gone at the end."""
    stack = Stack(root / "data", environ)
    try:
        stack.start()
        yield stack
    finally:
        if stack.process is not None and stack.process.poll() is None:
            stack.process.send_signal(signal.SIGTERM)
            try:
                stack.process.wait(20)
            except subprocess.TimeoutExpired:
                stack.process.kill()
        shutil.rmtree(stack.data, ignore_errors=True)


@pytest.fixture
def make_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Stack]]:
    """Starts a stack with extra environment variables; all of them end with the test."""
    with contextlib.ExitStack() as stacks:
        yield lambda **environ: stacks.enter_context(running(tmp_path_factory.mktemp("stack"), **environ))


@pytest.fixture
def stack(make_stack: Callable[..., Stack]) -> Stack:
    return make_stack()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One for all tests of a module, which do not disturb one another."""
    with running(tmp_path_factory.mktemp("shared")) as stack:
        yield stack


def free_base() -> int:
    """Five free ports in a row."""
    for base in range(21000 + os.getpid() % 500 * 20, 60000, 10):
        if all(_is_free(base + offset) for offset in range(5)):
            return base
    raise AssertionError("no free ports")


def until(condition: Callable[[], Any], seconds: float, context: Callable[[], str] = lambda: "") -> Any:
    """What `condition` gives once that is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.03)
    raise AssertionError(f"not within {seconds} s: {context()}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
