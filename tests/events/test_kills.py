"""Two replicas of each role as processes, one of them killed every moment: nothing accepted is lost or there twice, and
what begins with a snapshot misses nothing."""

import asyncio
import itertools
import os
import random
import shutil
import sys
from pathlib import Path

import httpx
import msgspec
import pytest

from crucible_core.errors import CrucibleError
from crucible_core.protocol.events import Appended
from crucible_events.settings import Settings
from crucible_kit.nats.bus import Bus

from .conftest import Asker, eventually, new, starter
from .test_snapshots import other, rows, snapshots

SECONDS = float(os.environ.get("CRUCIBLE_KILL_SECONDS", "12"))
EVERY = 200


class Replica:
    """A process of a role, which is started again whenever it was killed; one of `query` then has no file any more."""

    def __init__(self, settings: Settings, role: str, number: int) -> None:
        self.role = role
        self.data = Path(f"{settings.data_dir}-{role}{number}")
        self._log = self.data.with_suffix(".log")
        self._environ = os.environ | {
            "CRUCIBLE_NATS_URL": settings.nats_url,
            "CRUCIBLE_BUS_PREFIX": settings.bus_prefix,
            "CRUCIBLE_EVENTS_ROLE": role,
            "CRUCIBLE_EVENTS_SNAPSHOT_EVERY": str(EVERY),
            "CRUCIBLE_DATA_DIR": str(self.data),
        }
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "crucible_events", env=self._environ, stdout=log, stderr=log
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.wait()
        if self.role == "query":
            shutil.rmtree(self.data, ignore_errors=True)

    async def is_ready(self) -> bool:
        url = self.said.rpartition("listening on ")[2].split("\n")[0]
        try:
            async with httpx.AsyncClient(timeout=2) as client:
                return (await client.get(f"{url}/readyz")).status_code == 200
        except (httpx.HTTPError, httpx.InvalidURL):
            return False


class Writers:
    """They append plain events, and events with a key, which they send again until they are accepted."""

    def __init__(self, ask: Asker) -> None:
        self._ask = ask
        self.plain: list[Appended] = []
        self.keyed: dict[str, Appended] = {}

    async def write(self) -> None:
        for number in itertools.count():
            try:
                outcome = await self._ask.one(new(payload={"n": number}))
                if outcome.error is None:
                    self.plain.append(outcome)
            except CrucibleError:
                await asyncio.sleep(0.02)

    async def write_keyed(self) -> None:
        for number in itertools.count():
            key = f"k{number}"
            while key not in self.keyed:
                try:
                    outcome = await self._ask.one(new("Custom.keyed", idempotency_key=key, fingerprint="f"))
                    if outcome.error is None:
                        self.keyed[key] = outcome
                except CrucibleError:
                    await asyncio.sleep(0.02)


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return msgspec.structs.replace(settings, duplicate_window_s=1.0)


async def test_replicas_of_both_roles_are_killed_in_turn(bus: Bus, ask: Asker, settings: Settings) -> None:
    replicas = [Replica(settings, role, number) for number in range(2) for role in ("append", "query")]
    writers = Writers(ask)
    try:
        for replica in replicas:
            await replica.start()
        for replica in replicas:
            await eventually(replica.is_ready)
        writing = [asyncio.create_task(one()) for one in (writers.write, writers.write, writers.write_keyed)]
        await _kill(replicas)
        for task in writing:
            task.cancel()
        await asyncio.gather(*writing, return_exceptions=True)
        for replica in replicas:
            await eventually(replica.is_ready)
    finally:
        for replica in replicas:
            await replica.kill()
    queries = "".join(replica.said for replica in replicas if replica.role == "query")
    assert "the index begins with snapshot" in queries
    await _check(ask, settings, writers)


async def _kill(replicas: list[Replica]) -> None:
    """In turn, at any moment of a start or of a snapshot."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + SECONDS
    for replica in itertools.cycle(replicas):
        if loop.time() > ends:
            return
        await asyncio.sleep(random.uniform(0.1, 2.0))
        await replica.kill()
        await asyncio.sleep(random.uniform(0, 0.3))
        await replica.start()


async def _check(ask: Asker, settings: Settings, writers: Writers) -> None:
    """What the log holds, by an index that begins with a snapshot, and by one that is built from the log."""
    restored, rebuilt = other(settings, "restored"), other(settings, "rebuilt")
    async with starter(restored)():
        last = await ask.last()
        await ask.query(min_sequence=last)
        found = await _all(ask)
    lost = [outcome.id for outcome in (*writers.plain, *writers.keyed.values()) if outcome.id not in found]
    assert not lost
    assert len(writers.plain) > 100
    assert len(writers.keyed) > 10
    keyed = [id for id, type in found.items() if type == "Custom.keyed"]
    assert len(keyed) <= len(writers.keyed) + 1  # the last one may have been cut off
    for one in await snapshots(ask.bus):
        await ask.bus.delete_stream(one.stream)
    async with starter(rebuilt)():
        await ask.query(min_sequence=last)
    assert rows(restored) == rows(rebuilt)


async def _all(ask: Asker) -> dict[str, str]:
    found: dict[str, str] = {}
    cursor: str | None = None
    while True:
        page = await ask.query(limit=1000, cursor=cursor)
        for raw in page.events:
            event = msgspec.json.decode(raw)
            assert event["metadata"]["id"] not in found
            found[event["metadata"]["id"]] = f"{event['type']}.{event['data']['event']}"
        cursor = page.next_cursor
        if cursor is None:
            return found


async def test_appends_go_on_while_no_index_is_there(ask: Asker, settings: Settings) -> None:
    append, query = Replica(settings, "append", 0), Replica(settings, "query", 0)
    try:
        for replica in (append, query):
            await replica.start()
            await eventually(replica.is_ready)
        before = [await ask.one(new()) for _ in range(EVERY + 1)]
        await eventually(lambda: _has_one(ask))
        await query.kill()
        during = [await ask.one(new()) for _ in range(20)]
        assert await append.is_ready()
        await query.start()
        await eventually(query.is_ready)
        assert "the index begins with snapshot" in query.said
        held = await _all(ask)
        assert all(outcome.id in held for outcome in (*before, *during))
    finally:
        for replica in (append, query):
            await replica.kill()


async def _has_one(ask: Asker) -> bool:
    return bool(await snapshots(ask.bus))
