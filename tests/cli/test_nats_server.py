import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nats
import pytest

from crucible_cli.up import nats_server
from crucible_cli.up.nats_server import NatsServer
from crucible_core.errors import InvalidError


@contextmanager
def running(server: NatsServer, directory: Path) -> Iterator[None]:
    with (directory / "log").open("ab") as log, subprocess.Popen(server.command, stderr=log) as process:
        try:
            yield
        finally:
            process.terminate()


async def until_ready(server: NatsServer) -> None:
    async with asyncio.timeout(15):
        while not await server.ready():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_server_becomes_ready_and_keeps_what_it_stored(tmp_path: Path) -> None:
    directory = tmp_path / 'with "quotes" and ü'
    server = nats_server.prepare(directory, nats_server.free_port())
    with running(server, tmp_path):
        await until_ready(server)
        client = await nats.connect(server.url)
        context = client.jetstream()
        await context.add_stream(name="S", subjects=["s"])
        await context.publish("s", b"kept")
        assert client.max_payload == nats_server.MAX_PAYLOAD
        await client.close()
    again = nats_server.prepare(directory, nats_server.free_port())
    assert again.token == server.token
    with running(again, tmp_path):
        await until_ready(again)
        client = await nats.connect(again.url)
        assert (await client.jetstream().get_msg("S", 1)).data == b"kept"
        await client.close()
    assert "Trapped" in (tmp_path / "log").read_text()


async def test_nobody_enters_without_the_token(tmp_path: Path) -> None:
    server = nats_server.prepare(tmp_path, nats_server.free_port())
    with running(server, tmp_path):
        await until_ready(server)
        assert not await nats_server.probe(server.port, "wrong")
        with socket.create_connection(("127.0.0.1", server.port)) as stranger:
            stranger.sendall(b"CONNECT {}\r\nPING\r\n")
            answer = b"".join(iter(lambda: stranger.recv(4096), b""))
        assert b"-ERR 'Authorization Violation'" in answer
        assert b"PONG" not in answer


def test_secrets_are_their_owners_alone(tmp_path: Path) -> None:
    nats_server.prepare(tmp_path, 4222)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("token", "nats.conf", "store")}
    assert modes == {"token": 0o600, "nats.conf": 0o600, "store": 0o700}


def test_store_may_grow_past_what_is_free_by_what_it_holds(tmp_path: Path) -> None:
    held = tmp_path / "store" / "block"
    held.parent.mkdir()
    held.touch()
    os.truncate(held, 2**40)  # sparse: it takes no room
    nats_server.prepare(tmp_path, 4222, "500ms")
    jetstream = json.loads((tmp_path / "nats.conf").read_text())["jetstream"]
    assert jetstream["max_file_store"] > 2**40
    assert jetstream["sync_interval"] == "500ms"


async def test_nothing_on_the_port_is_not_ready() -> None:
    assert not await nats_server.probe(nats_server.free_port(), "x")


def test_taken_port_gives_way_to_a_free_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert not nats_server.is_free(port)
        assert nats_server.choose_port(port) != port


def test_free_port_is_kept() -> None:
    port = nats_server.free_port()
    assert nats_server.choose_port(port) == port


@pytest.mark.parametrize(
    ("text", "interval"), [("", "always"), (" always ", "always"), ("500ms", "500ms"), ("2m", "2m")]
)
def test_sync_interval_is_read(text: str, interval: str) -> None:
    assert nats_server.sync_interval({"CRUCIBLE_NATS_SYNC": text}) == interval


@pytest.mark.parametrize("text", ["never", "2", "-1s", "1 s", '1s"}'])
def test_bad_sync_interval_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="CRUCIBLE_NATS_SYNC"):
        nats_server.sync_interval({"CRUCIBLE_NATS_SYNC": text})


def test_binary_is_the_packages() -> None:
    assert nats_server.find_binary() == str(Path(sys.executable).with_name("nats-server"))


def test_memory_is_aimed_at_unless_the_user_says_otherwise() -> None:
    assert nats_server.environment({"A": "b"}) == {"A": "b", "GOMEMLIMIT": "384MiB", "GOGC": "50"}
    assert nats_server.environment({"GOMEMLIMIT": "1GiB"}) == {"GOMEMLIMIT": "1GiB", "GOGC": "50"}
