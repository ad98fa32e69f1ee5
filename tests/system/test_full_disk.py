"""A disk that fills up, and has room again: a real one, of 64 MiB."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from .conftest import SERVICES, Stack, until

MIB = 1024 * 1024
SOON_S = 10.0
WEBHOOK = {"name": "more", "url": "http://127.0.0.1:1/", "event_filters": [{"event_type": "Custom.Never"}]}
HOOK = {
    "name": "more",
    "trigger": {"events": [{"type": "Custom", "event": "Never"}], "timing": "Post"},
    "action": {"type": "Script", "script": "1"},
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; mounting needs root, as CI is."""
    where = tmp_path / "disk"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


@pytest.fixture
def stack(disk: Path, request: pytest.FixtureRequest) -> Iterator[Stack]:
    (disk / "stack").mkdir()
    made = Stack(disk / "stack" / "data", getattr(request, "param", {}))
    made.start()
    yield made
    made.stop()


def free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def fill(disk: Path, leave: int) -> Path:
    """A file that leaves so many bytes free."""
    filler = disk / "filler"
    with filler.open("wb") as out:
        while (room := free(disk) - leave) > 0:
            try:
                out.write(bytes(min(room, MIB)))
                out.flush()
            except OSError:
                break
    return filler


def append(http: httpx.Client, size: int = 100, **fields: Any) -> httpx.Response:
    return http.post("/api/v1/events", json={"type": "Custom.Filling", "payload": {"text": "x" * size}, **fields})


def readiness(stack: Stack, service: str) -> tuple[int, str]:
    ports = msgspec.json.decode((stack.data / "up.json").read_bytes())["ports"]
    answer = httpx.get(f"http://127.0.0.1:{ports[service]}/readyz", timeout=5)
    return answer.status_code, answer.text


def test_writes_are_refused_before_it_is_full_and_go_on_once_there_is_room(stack: Stack, disk: Path) -> None:
    with stack.http() as http:
        http.post("/api/v1/worlds", json={"id": "heavy"}).raise_for_status()
        first = append(http, id="evt_01kaj3x5vae8jv6jq0f1d8c2hm").raise_for_status().json()
        for _ in range(4):
            append(http, MIB // 2, world_id="heavy").raise_for_status()
        filler = fill(disk, leave=8 * MIB)
        refused = append(http)
        assert refused.status_code == 507
        assert "the disk of" in refused.json()["detail"]
        assert refused.headers["retry-after"]
        refusals = [
            http.post("/api/v1/events", json=[{"type": "Custom.Filling", "payload": {}}] * 2),
            http.post("/api/v1/events?atomic=true", json=[{"type": "Custom.Filling", "payload": {}}] * 2),
            http.post("/api/v1/memory", json={"content": "more"}),
            http.post("/api/v1/worlds", json={"id": "more"}),
            http.post("/api/v1/webhooks", json=WEBHOOK),
            http.post("/api/v1/hooks", json=HOOK),
        ]
        assert [answer.status_code for answer in refusals] == [507] * len(refusals)
        for service in SERVICES:
            assert readiness(stack, service)[0] == 503
            assert "the disk of" in readiness(stack, service)[1]
        doctor = stack.run("doctor", "--json", check=False)
        diagnosis = json.loads(doctor.stdout)
        assert (doctor.returncode, diagnosis["healthy"]) == (1, False)
        assert [error["code"] for error in diagnosis["health"]["errors"]] == ["storage"]
        assert "the disk of" in stack.run("doctor", check=False).stdout
        # What reads, what was there already and what makes room goes on.
        assert http.get(f"/api/v1/events/{first['id']}").status_code == 200
        assert append(http, id=first["id"]).json()["duplicate"]
        assert http.post(f"/api/v1/events/{first['id']}/redact", json={}).status_code == 200
        assert http.delete("/api/v1/worlds/heavy?purge=true").status_code == 204
        assert append(http).status_code == 507
        began = time.monotonic()
        filler.unlink()
        until(lambda: append(http).status_code == 201, SOON_S)
        until(stack.ready, SOON_S)
        assert time.monotonic() - began < SOON_S
        assert stack.run("doctor").returncode == 0


@pytest.mark.parametrize("stack", [{"CRUCIBLE_STORAGE_RESERVE_MIB": "-1000"}], indirect=True)
def test_a_server_that_met_a_full_disk_writes_again_within_ten_seconds(stack: Stack, disk: Path) -> None:
    """Where nobody looks at the disk it is met for real; JetStream then refuses all until it is started again."""
    acknowledged: list[dict[str, Any]] = []
    with stack.http() as http:
        filler = fill(disk, leave=4 * MIB)
        for _ in range(100):
            answer = append(http, 200_000)
            if answer.status_code != 201:
                break
            acknowledged.append(answer.json())
        assert answer.status_code in (503, 507)
        assert acknowledged
        filler.unlink()
        began = time.monotonic()
        until(lambda: append(http).status_code == 201, SOON_S)
        assert time.monotonic() - began < SOON_S
        until(stack.ready, SOON_S)
        for one in acknowledged:
            assert http.get(f"/api/v1/events/{one['id']}").json()["sequence"] == one["sequence"]
    said = (stack.data.parent / "up.log").read_text()
    assert "nats cannot write any more, and there is room again: starting it anew" in said
