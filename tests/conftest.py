"""Fixtures that every test may use: a real nats-server for the whole run, and names on it that no other test has."""

import asyncio
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator

import nats
import pytest

from crucible_cli.up import nats_server
from crucible_core.subjects import Names
from crucible_kit.nats.bus import Bus, open_bus
from tests.collector import Collector, collecting

_START_S = 20.0


@pytest.fixture(scope="session")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a nats-server on a free port, with its own store; it syncs now and then, which is faster."""
    directory = tmp_path_factory.mktemp("nats")
    server = nats_server.prepare(directory, nats_server.free_port(), sync="2m")
    with (directory / "log").open("wb") as log, subprocess.Popen(server.command, stdout=log, stderr=log) as process:
        try:
            with asyncio.Runner() as runner:
                runner.run(_until_ready(server))
            yield server.url
        finally:
            process.terminate()


@pytest.fixture
async def names(request: pytest.FixtureRequest) -> AsyncIterator[Names]:
    """Names with a prefix of their own; what the test made under them on the server is deleted after it."""
    mine = Names(f"t{secrets.token_hex(5)}")
    uses_server = "nats_url" in request.fixturenames
    yield mine
    if uses_server:
        await delete_streams(request.getfixturevalue("nats_url"), mine.prefix)


@pytest.fixture
async def bus(nats_url: str, names: Names) -> AsyncIterator[Bus]:
    async with open_bus(nats_url, names) as opened:
        yield opened


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Where what is opened in this process from now on exports its spans, metrics and logs, at the latest when it is
    closed."""
    with collecting() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        yield found


async def _until_ready(server: nats_server.NatsServer) -> None:
    async with asyncio.timeout(_START_S):
        while True:
            if await server.ready():
                return
            await asyncio.sleep(0.02)


async def delete_streams(url: str, prefix: str) -> None:
    """Streams, buckets (whose streams are called KV_…) and object stores (OBJ_…) of one prefix."""
    client = await nats.connect(url)
    try:
        context = client.jetstream()
        for info in await context.streams_info():
            name = info.config.name or ""
            if name.removeprefix("KV_").removeprefix("OBJ_").startswith(prefix):
                await context.delete_stream(name)
    finally:
        await client.close()
