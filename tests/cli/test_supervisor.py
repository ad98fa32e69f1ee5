import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from crucible_cli.up.nats_server import free_port
from crucible_cli.up.processes import Identity, Output, birth, describe_exit, end_stale, record, rotate
from crucible_cli.up.supervisor import FIRST_DELAY_S, LAST_DELAY_S, Health, Notice, Program, Supervisor, next_delay
from crucible_core.errors import UnavailableError
from tests.cli.children import server, until, wait

SLEEPER = (sys.executable, "-S", "-c", "import time; time.sleep(600)")
SUPERVISE = """
import asyncio, sys
from pathlib import Path
from crucible_cli.up.supervisor import Supervisor
from tests.cli.children import server
async def main(directory, ports):
    programs = [server(f"child{port}", port, directory) for port in ports]
    supervisor = Supervisor(programs, directory / "processes.json", lambda notice: None)
    supervisor.start()
    await supervisor.ready()
    print("ready", flush=True)
    await asyncio.Event().wait()
asyncio.run(main(Path(sys.argv[1]), [int(port) for port in sys.argv[2:]]))
"""


class Outcome:
    """A supervisor, and what it reported."""

    def __init__(self, directory: Path, programs: list[Program], grace: float = 10.0) -> None:
        self.noted = directory / "processes.json"
        self.notices: list[Notice] = []
        self.supervisor = Supervisor(programs, self.noted, self.notices.append, grace)

    def texts(self, name: str) -> list[str]:
        return [notice.text for notice in self.notices if notice.name == name and notice.state]

    def pid(self, name: str) -> int:
        return msgspec.json.decode(self.noted.read_bytes(), type=dict[str, Identity])[name].pid


async def test_programs_start_together_and_become_ready(tmp_path: Path) -> None:
    watched = Outcome(tmp_path, [server("one", free_port(), tmp_path), server("two", free_port(), tmp_path)])
    watched.supervisor.start()
    assert list(watched.supervisor.unready()) == ["one", "two"]
    await watched.supervisor.ready()
    assert watched.supervisor.unready() == {}
    await watched.supervisor.stop()
    assert watched.texts("one") == ["starting", "is ready", "stopping", "stopped"]
    assert not watched.noted.exists()


async def test_killed_process_is_reported_and_started_again(tmp_path: Path) -> None:
    watched = Outcome(tmp_path, [server("events", free_port(), tmp_path)])
    watched.supervisor.start()
    await watched.supervisor.ready()
    first = watched.pid("events")
    os.kill(first, signal.SIGKILL)
    await until(lambda: "is ready again" in watched.texts("events"))
    assert "died (killed by SIGKILL), restarting" in watched.texts("events")
    assert watched.pid("events") != first
    await watched.supervisor.stop()


async def test_highest_rank_stops_first_and_wholly(tmp_path: Path) -> None:
    ranks = {"bus": 0, "events": 1, "hooks": 1, "gateway": 2}
    watched = Outcome(tmp_path, [server(name, free_port(), tmp_path, rank) for name, rank in ranks.items()])
    watched.supervisor.start()
    await watched.supervisor.ready()
    await watched.supervisor.stop()
    journal = (tmp_path / "journal").read_text().split()
    assert [journal[0], sorted(journal[1:3]), journal[3]] == ["gateway", ["events", "hooks"], "bus"]


async def test_process_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    watched = Outcome(tmp_path, [server("stubborn", free_port(), tmp_path)], grace=0.3)
    watched.supervisor.start()
    await watched.supervisor.ready()
    pid = watched.pid("stubborn")
    await watched.supervisor.stop()
    assert "does not stop in 0.3 s, killed" in watched.texts("stubborn")
    assert birth(pid) is None


async def test_kill_ends_a_stop_that_waits(tmp_path: Path) -> None:
    watched = Outcome(tmp_path, [server("stubborn", free_port(), tmp_path)], grace=60)
    watched.supervisor.start()
    await watched.supervisor.ready()
    stopping = asyncio.create_task(watched.supervisor.stop())
    await until(lambda: "stopping" in watched.texts("stubborn"))
    watched.supervisor.kill()
    async with asyncio.timeout(10):
        await stopping


async def test_stop_before_anything_has_started(tmp_path: Path) -> None:
    watched = Outcome(tmp_path, [server("one", free_port(), tmp_path)])
    watched.supervisor.start()
    async with asyncio.timeout(10):
        await watched.supervisor.stop()


@pytest.mark.parametrize("command", [("/nowhere/program",), (sys.executable, "-S", "-c", "raise SystemExit(3)")])
async def test_program_that_only_dies_is_given_up_at_the_start(tmp_path: Path, command: tuple[str, ...]) -> None:
    async def never() -> Health:
        return Health()

    watched = Outcome(tmp_path, [Program("broken", command, {}, tmp_path / "broken.log", never)])
    watched.supervisor.start()
    with pytest.raises(UnavailableError, match=r"broken cannot start: .*; its log is .*broken\.log"):
        await watched.supervisor.ready()
    await watched.supervisor.stop()
    assert watched.texts("broken")[1] in (
        "died (exit code 3), restarting",
        "died (cannot start: No such file or directory), restarting",
    )


async def test_what_a_dead_process_started_ends_with_it(tmp_path: Path) -> None:
    inner = "import subprocess,sys,time; p=subprocess.Popen(['sleep','600']); print(p.pid,flush=True); time.sleep(600)"
    program = server("parent", free_port(), tmp_path)
    program = msgspec.structs.replace(program, command=(sys.executable, "-S", "-c", inner))
    watched = Outcome(tmp_path, [program])
    watched.supervisor.start()
    log = tmp_path / "parent.log"
    await until(lambda: log.exists() and log.read_text().strip())
    grandchild = int(log.read_text().split()[0])
    os.kill(watched.pid("parent"), signal.SIGKILL)
    await until(lambda: birth(grandchild) is None)
    await watched.supervisor.stop()


async def test_output_goes_to_the_log_and_its_warnings_to_the_report(tmp_path: Path) -> None:
    watched = Outcome(tmp_path, [server("memory", free_port(), tmp_path)])
    watched.supervisor.start()
    await watched.supervisor.ready()
    line = "2026-01-01T00:00:00Z warning memory hello"
    await until(lambda: Notice("memory", None, line) in watched.notices)
    await watched.supervisor.stop()
    assert (tmp_path / "memory.log").read_text() == line + "\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_killed_supervisor_leaves_no_orphans(tmp_path: Path) -> None:
    ports = [str(free_port()), str(free_port())]
    command = [sys.executable, "-c", SUPERVISE, str(tmp_path), *ports]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        children = msgspec.json.decode((tmp_path / "processes.json").read_bytes(), type=dict[str, Identity])
        assert len(children) == 2
        process.kill()
    wait(lambda: all(birth(child.pid) is None for child in children.values()))


def test_stale_processes_are_ended_and_strangers_are_not(tmp_path: Path) -> None:
    noted = tmp_path / "processes.json"
    with (
        subprocess.Popen(SLEEPER, start_new_session=True) as ours,
        subprocess.Popen(SLEEPER, start_new_session=True) as stranger,
    ):
        record(noted, {"events": ours.pid})
        known = msgspec.json.decode(noted.read_bytes(), type=dict[str, Identity])
        noted.write_bytes(msgspec.json.encode(known | {"hooks": Identity(stranger.pid, "another birth")}))
        assert end_stale(noted) == ["events"]
        assert ours.wait() == -signal.SIGTERM
        assert stranger.poll() is None
        stranger.kill()
    assert end_stale(noted) == []


def test_delays_grow_to_a_limit() -> None:
    delays = [0.0]
    while len(delays) < 9:
        delays.append(next_delay(delays[-1]))
    assert delays == [0, FIRST_DELAY_S, 0.4, 0.8, 1.6, 3.2, LAST_DELAY_S, LAST_DELAY_S, LAST_DELAY_S]


@pytest.mark.parametrize(("code", "words"), [(0, "exit code 0"), (3, "exit code 3"), (-9, "killed by SIGKILL")])
def test_exits_are_described(code: int, words: str) -> None:
    assert describe_exit(code) == words


def test_log_is_rotated_by_size(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    output = Output(log, lambda line: None, max_bytes=100)
    for letter in b"abcdef":
        os.write(output.write_end, bytes([letter]) * 150)
        output.drain()
    output.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.log", "x.log.1", "x.log.2", "x.log.3"]
    assert (tmp_path / "x.log.1").read_bytes() == b"f" * 150


def test_rotation_without_a_log_is_nothing(tmp_path: Path) -> None:
    rotate(tmp_path / "x.log")
    assert list(tmp_path.iterdir()) == []


def test_burst_of_warnings_is_cut_short(tmp_path: Path) -> None:
    warned: list[str] = []
    output = Output(tmp_path / "x.log", warned.append)
    grave = ["[1] 2026/01/01 [ERR] no", "ValueError: no", "nats-server: no", "2026Z error events no"]
    fine = ["2026Z info events 3 errors", "Traceback (most recent call last):", '  File "x.py"']
    os.write(output.write_end, "\n".join(grave * 10 + fine + [""]).encode())
    output.drain()
    assert len(warned) == 21
    assert warned[:4] == grave
    assert warned[-1].startswith("(more of this in ")
    output.calm()
    os.write(output.write_end, b"ValueError: again\n")
    output.drain()
    assert warned[-1] == "ValueError: again"
    output.close()


def test_birth_tells_processes_apart() -> None:
    mine = birth(os.getpid())
    assert mine is not None
    with subprocess.Popen(SLEEPER) as other:
        time.sleep(0.02)  # births are counted in hundredths of a second
        assert birth(other.pid) not in (None, mine)
        other.kill()
    assert birth(other.pid) is None
