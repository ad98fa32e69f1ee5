"""`crucible up` as a process, with a real nats-server and stand-ins for the services: they have their own tests."""

import contextlib
import io
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crucible_cli.up.main import _say_unready
from crucible_cli.up.nats_server import free_port
from crucible_cli.up.processes import birth
from crucible_cli.up.screen import PlainScreen
from crucible_cli.up.stack import SERVICES, health_of, service_ports
from crucible_cli.up.state import DataDir, open_data_dir
from crucible_cli.up.supervisor import Health
from crucible_core.errors import ConflictError, InvalidError, UnavailableError
from crucible_core.limits import READY_S
from tests.cli.children import wait

SERVICE = """
import json, os, signal, socket, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
server = socket.create_server((os.environ["CRUCIBLE_HOST"], int(os.environ["CRUCIBLE_PORT"])))
body = json.dumps({"pid": os.getpid(), **{k: v for k, v in os.environ.items() if k[:8] in ("CRUCIBLE", "OTEL_X")}})
while True:
    client, _ = server.accept()
    client.recv(4096)
    client.sendall(f"HTTP/1.1 200 OK\\r\\ncontent-length: {len(body)}\\r\\n\\r\\n{body}".encode())
    client.close()
"""


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    for service in SERVICES:
        package = tmp_path / "fakes" / f"crucible_{service}"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(SERVICE)
    return tmp_path / "fakes"


@pytest.fixture
def base() -> int:
    """A port base with room for all."""
    while True:
        with contextlib.suppress(ConflictError, InvalidError):
            return service_ports(free_port())["gateway"]


def start(fakes: Path, data: Path, base: int, *options: str, **environ: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from crucible_cli.main import main; main()", "up", "--data", str(data)]
    return subprocess.Popen(
        [*command, "--port-base", str(base), *options],
        env=os.environ | {"PYTHONPATH": str(fakes)} | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def running(fakes: Path, data: Path, base: int, **environ: str) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """An `up` that is ready, and what it said of itself."""
    with start(fakes, data, base, "--json", **environ) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)


def ask(port: int) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
        return json.load(answer)


def test_up_runs_everything_and_ctrl_c_stops_it(fakes: Path, base: int, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running(fakes, data, base) as (process, facts):
        assert facts["url"] == f"http://127.0.0.1:{base}"
        assert [facts["ports"][service] for service in SERVICES] == list(range(base, base + 5))
        written = json.loads((data / "up.json").read_bytes())
        assert written == {name: facts[name] for name in ("url", "ports", "pid", "data", "started_at")}
        assert written["pid"] == process.pid
        assert stat.S_IMODE((data / "admin.key").stat().st_mode) == 0o600
        assert (data / "hooks").is_dir()
        pids = [ask(base + place)["pid"] for place in range(5)]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert all(birth(pid) is None for pid in pids)
    assert not (data / "up.json").exists()
    assert not (data / "processes.json").exists()


def test_services_get_their_settings_and_no_others_secrets(fakes: Path, base: int, tmp_path: Path) -> None:
    theirs = {"CRUCIBLE_LOG_LEVEL": "debug", "CRUCIBLE_API_KEY": "mine", "CRUCIBLE_PORT": "1", "OTEL_X": "y"}
    theirs["CRUCIBLE_EGRESS_ALLOW"] = "10.0.0.0/8"
    with running(fakes, tmp_path / "data", base, **theirs) as (process, facts):
        got = {service: ask(facts["ports"][service]) for service in SERVICES}
        process.send_signal(signal.SIGTERM)
        assert "CRUCIBLE_PORT is not used" in process.communicate(timeout=30)[1]
    key = (tmp_path / "data" / "admin.key").read_text().strip()
    assert key.startswith("ck_")
    assert got["gateway"]["CRUCIBLE_ADMIN_KEY"] == key
    assert got["hooks"]["CRUCIBLE_HOOKS_DIR"] == str(tmp_path / "data" / "hooks")
    for service, environ in got.items():
        assert environ["CRUCIBLE_PORT"] == str(facts["ports"][service])
        assert environ["CRUCIBLE_NATS_URL"].endswith(f"@127.0.0.1:{facts['ports']['nats']}")
        assert environ["CRUCIBLE_LOG_LEVEL"] == "debug"
        assert environ["OTEL_X"] == "y"
        assert environ["CRUCIBLE_EGRESS_ALLOW"] == "127.0.0.0/8,::1,10.0.0.0/8"
        assert "CRUCIBLE_API_KEY" not in environ
        assert ("CRUCIBLE_ADMIN_KEY" in environ) == (service == "gateway")
    assert len({environ["CRUCIBLE_DATA_DIR"] for environ in got.values()}) == 5


def test_second_up_on_the_same_data_is_refused(fakes: Path, base: int, tmp_path: Path) -> None:
    with running(fakes, tmp_path / "data", base) as (process, _):
        with start(fakes, tmp_path / "data", base + 1000) as second:
            out, err = second.communicate(timeout=30)
        assert second.returncode == 1
        assert f"already (process {process.pid})" in err
        assert "--data" in err
        assert out == ""


def test_taken_port_is_named_with_the_option(fakes: Path, base: int, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", base + 2)), start(fakes, tmp_path / "data", base) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"port {base + 2} (hooks) is taken" in err
    assert "--port-base" in err


def test_port_base_beyond_the_last_port_is_refused() -> None:
    with pytest.raises(InvalidError, match="--port-base"):
        service_ports(65535)


def test_start_after_a_killed_up_works_and_keeps_the_key(fakes: Path, base: int, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running(fakes, data, base) as (process, _):
        key = (data / "admin.key").read_text()
        process.kill()
    with running(fakes, data, base) as (process, facts):
        assert facts["pid"] == process.pid
        assert (data / "admin.key").read_text() == key


def test_killed_nats_and_service_come_back_on_their_ports(fakes: Path, base: int, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running(fakes, data, base) as (process, facts):
        os.kill(int((data / "nats" / "nats.pid").read_text()), signal.SIGKILL)
        os.kill(ask(base + 1)["pid"], signal.SIGKILL)
        seen: list[str] = []
        assert process.stderr is not None
        while not {"nats is ready again\n", "events is ready again\n"} <= set(seen):
            seen.append(process.stderr.readline())
        assert "nats died (killed by SIGKILL), restarting\n" in seen
        assert "events died (killed by SIGKILL), restarting\n" in seen
        assert ask(facts["ports"]["events"])["pid"]
        with socket.create_connection(("127.0.0.1", facts["ports"]["nats"])) as connection:
            assert connection.recv(5) == b"INFO "


def test_without_a_terminal_the_output_is_plain_lines(fakes: Path, base: int, tmp_path: Path) -> None:
    with start(fakes, tmp_path / "data", base) as process:
        wait((tmp_path / "data" / "up.json").exists)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert err == ""
    assert "\x1b" not in out
    lines = out.splitlines()
    assert f"Crucible is up at http://127.0.0.1:{base}" in lines
    stops = [line for line in lines if line.endswith(" stopped")]
    assert [stops[0], stops[-1]] == ["gateway stopped", "nats stopped"]


def test_service_that_cannot_start_ends_the_start(fakes: Path, base: int, tmp_path: Path) -> None:
    main = fakes / "crucible_memory" / "__main__.py"
    main.write_text("raise SystemExit('2026 error memory cannot start: no')")
    with start(fakes, tmp_path / "data", base) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "memory: 2026 error memory cannot start: no" in out
    assert f"error: memory cannot start: no; its log is {tmp_path / 'data' / 'logs' / 'memory.log'}\n" == err
    assert not (tmp_path / "data" / "up.json").exists()


def test_a_bad_setting_is_told_once_and_tried_once(fakes: Path, base: int, tmp_path: Path) -> None:
    main = fakes / "crucible_memory" / "__main__.py"
    main.write_text("print('2026 error memory cannot start: CRUCIBLE_X: wrong'); raise SystemExit(78)")
    with start(fakes, tmp_path / "data", base) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    log = tmp_path / "data" / "logs" / "memory.log"
    assert err == f"error: memory cannot start: CRUCIBLE_X: wrong; its log is {log}\n"
    assert out.count("memory starting") == 1
    assert "memory died" not in out


def test_a_full_disk_at_the_start_is_one_line(fakes: Path, base: int, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=True)
    try:
        with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))
        with start(fakes, disk / "data", base) as process:
            _, err = process.communicate(timeout=30)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
    assert process.returncode == 1
    assert err.endswith("No space left on device\n")
    assert err.count("\n") == 1


def test_second_ctrl_c_kills_what_does_not_stop(fakes: Path, base: int, tmp_path: Path) -> None:
    main = fakes / "crucible_gateway" / "__main__.py"
    main.write_text(SERVICE.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN"))
    with running(fakes, tmp_path / "data", base) as (process, _):
        pids = [ask(base + place)["pid"] for place in range(5)]
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        while process.stderr.readline() != "gateway stopping\n":
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(8) == 0
    assert all(birth(pid) is None for pid in pids)


def test_what_hangs_and_what_keeps_dying_is_said(fakes: Path, base: int, tmp_path: Path) -> None:
    """On the screen, and in the file that `crucible doctor` reads."""
    data = tmp_path / "data"

    def condition(name: str) -> Any:
        return json.loads((data / "conditions.json").read_bytes())[name]

    with running(fakes, data, base) as (process, _):
        pid = ask(base + 4)["pid"]
        os.kill(pid, signal.SIGSTOP)
        assert process.stderr is not None
        while process.stderr.readline() != "memory does not answer: it is stopped, or has too much to do\n":
            pass
        assert condition("memory")["state"] == "hangs"
        os.kill(pid, signal.SIGCONT)
        while process.stderr.readline() != "memory answers again\n":
            pass
        assert condition("memory")["state"] == "ready"
        (fakes / "crucible_hooks" / "__main__.py").write_text("raise SystemExit('hooks: No module named x')")
        os.kill(ask(base + 2)["pid"], signal.SIGKILL)
        wait(lambda: condition("hooks")["state"] == "failing")
        found = condition("hooks")
        assert found["deaths"] >= 3
        assert (found["last_end"], found["last_error"]) == ("exit code 1", "hooks: No module named x")
        while " for the 4th time within a minute, restarting in " not in process.stderr.readline():
            pass
    assert not (data / "conditions.json").exists()


def test_what_a_service_finds_wrong_is_said_once_and_once_that_it_is_over(
    fakes: Path, base: int, tmp_path: Path
) -> None:
    """It is no reason to wait at the start: what is wrong does not pass by itself."""
    lost = tmp_path / "lost"
    lost.touch()
    body = '{"ready": false, "errors": [{"code": "losses", "message": "the log has lost 3 events"}]}'
    for service in ("events", "gateway"):
        text = SERVICE.replace("200 OK", "{status}").replace("{body}", "{said}")
        text = text.replace("    client.recv(4096)\n", TROUBLED.format(lost=str(lost), body=body))
        (fakes / f"crucible_{service}" / "__main__.py").write_text(text)
    with running(fakes, tmp_path / "data", base) as (process, _):
        assert process.stderr is not None
        seen: list[str] = []
        lost.unlink()
        while not any("over: " in line for line in seen):
            seen.append(process.stderr.readline())
        process.send_signal(signal.SIGINT)
        seen += process.communicate(timeout=30)[1].splitlines(keepends=True)
    assert sum("error: the log has lost 3 events" in line for line in seen) == 1
    assert sum("over: the log has lost 3 events" in line for line in seen) == 1


TROUBLED = """
    client.recv(4096)
    wrong = os.path.exists({lost!r})
    status, said = ("503 Service Unavailable", {body!r}) if wrong else ("200 OK", body)
    body = said
"""


# ---- whose the data is


def test_everything_in_the_data_directory_is_its_owners_alone(fakes: Path, base: int, tmp_path: Path) -> None:
    """Also what was there before with other modes, whatever the umask says; the users' own hooks stay as they are."""
    data = tmp_path / "data"
    for folder in ("logs", "index/events", "nats/store/x", "hooks", "demo/world"):
        (data / folder).mkdir(parents=True)
        (data / folder / "file").touch()
    script = data / "hooks" / "run.sh"
    script.touch()
    script.chmod(0o755)
    outside = tmp_path / "outside"
    outside.touch()
    (data / "index" / "link").symlink_to(outside)
    before = os.umask(0)
    try:
        for path in (data, *data.rglob("*")):
            if not path.is_symlink() and path != script:
                path.chmod(0o777 if path.is_dir() else 0o666)
        with running(fakes, data, base) as (process, _):
            open_to_others = _open_to_others(data)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
    finally:
        os.umask(before)
    assert open_to_others == []
    assert _open_to_others(data) == []
    assert stat.S_IMODE(script.stat().st_mode) == 0o755
    assert stat.S_IMODE(outside.stat().st_mode) & 0o077


@pytest.mark.parametrize("name", ["notes.txt", "bin"])
def test_a_directory_with_other_things_is_not_taken_for_the_data(tmp_path: Path, name: str) -> None:
    """As with `--data ~`, or `--data "$UNSET"`: nothing in it is touched."""
    (tmp_path / "logs").mkdir()
    (tmp_path / name).mkdir()
    script = tmp_path / "logs" / "run.sh"
    script.touch()
    for path in (script, tmp_path):
        path.chmod(0o755)
    with pytest.raises(UnavailableError, match=f"has other things in it, such as {name}"):
        open_data_dir(tmp_path)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (script, tmp_path)} == {0o755}


def test_other_things_in_a_data_directory_keep_their_modes(tmp_path: Path) -> None:
    for ours in ("nats", "admin.key"):
        (tmp_path / ours).mkdir()
    (tmp_path / "backup.sh").touch()
    (tmp_path / "backup.sh").chmod(0o755)
    open_data_dir(tmp_path)
    assert stat.S_IMODE((tmp_path / "backup.sh").stat().st_mode) == 0o755


def test_a_file_is_no_data_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UnavailableError, match="it is no directory, or something above it is none"):
            open_data_dir(path)


def _open_to_others(data: Path) -> list[str]:
    found = [data, *(path for path in data.rglob("*") if data / "hooks" not in path.parents)]
    return [str(path) for path in found if not path.is_symlink() and path.stat().st_mode & 0o077]


@pytest.mark.parametrize("dangling", [False, True])
def test_a_data_directory_that_is_a_link_is_refused(fakes: Path, base: int, tmp_path: Path, dangling: bool) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    if not dangling:
        real.mkdir()
    link.symlink_to(real)
    with start(fakes, link, base) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err == f"error: the data directory {link} is a link: name the directory itself, --data {real}\n"
    assert not real.exists() or list(real.iterdir()) == []


def test_a_data_directory_of_somebody_else_is_refused(fakes: Path, base: int, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    os.chown(data, 65534, -1)
    with start(fakes, data, base) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"error: the data directory {data} belongs to nobody: give another one with --data\n" == err


def test_a_data_directory_that_is_a_file_is_refused(fakes: Path, base: int, tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with start(fakes, tmp_path / "data", base) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.startswith(f"error: cannot use the data directory {tmp_path / 'data'}")


def test_a_service_that_says_what_it_waits_for_is_given_its_time(tmp_path: Path) -> None:
    """A large index takes longer to build than anything else at the start; who says nothing is given up."""
    out = io.StringIO()
    data, screen = DataDir(tmp_path), PlainScreen(out)
    _say_unready({"events": ("index at 5 of 9",), "memory": ()}, 1, data, screen)
    _say_unready({"events": ("index at 7 of 9",)}, 10 * READY_S, data, screen)
    assert out.getvalue().splitlines() == [
        "events waits for index at 5 of 9",
        "memory waits for its start",
        "events waits for index at 7 of 9",
    ]
    with pytest.raises(UnavailableError, match="memory"):
        _say_unready({"events": ("index at 7 of 9",), "memory": ()}, READY_S, data, screen)


@pytest.mark.parametrize(
    ("answer", "health"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n{}", Health(answers=True, ready=True)),
        (b'HTTP/1.1 503 x\r\n\r\n{"ready":false,"waiting_for":["index"]}', Health(True, waits_for=("index",))),
        (
            b'HTTP/1.1 503 x\r\n\r\n{"ready":false,"errors":[{"code":"losses","message":"m"}]}',
            Health(True, errors=("m",)),
        ),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", Health(answers=True)),
        (b"", Health()),
    ],
)
def test_what_a_service_says_of_itself_is_read(answer: bytes, health: Health) -> None:
    assert health_of(answer) == health
