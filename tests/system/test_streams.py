"""The whole installation on a log of three streams: users notice nothing of it."""

import asyncio
import contextlib
import subprocess
import time
from collections.abc import AsyncGenerator, Iterable, Iterator

import msgspec
import pytest

from crucible_client import AsyncCrucible, Crucible, Notice
from crucible_core.envelope import Event
from crucible_core.subjects import Names

from .conftest import CRUCIBLE, Stack, free_base, running, until
from .receiver import Endpoint, endpoint

WORLDS = ("default", "red", "pink")
NAMES = Names(streams=3)
HOOK = {
    "name": "echo",
    "trigger": {"events": [{"type": "Custom", "event": "Handled"}], "timing": "Post"},
    "action": {
        "type": "Script",
        "script": 'emit("Custom.Echoed", {"n": event["payload"]["n"]})',
    },
}


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """For all tests, each of which has a type of its own; the last one removes a world."""
    with running(tmp_path_factory.mktemp("spread"), CRUCIBLE_STREAMS="3") as stack:
        assert len({NAMES.stream_of(world) for world in WORLDS}) == 3
        with stack.client() as crucible:
            for world in WORLDS[1:]:
                crucible.worlds.create(world)
        yield stack


class Follower:
    """A live subscription in a task of its own."""

    def __init__(self, crucible: AsyncCrucible, start: str | int = "now", *, socket: bool = True) -> None:
        self.events: list[Event] = []
        self.caught_up = asyncio.Event()
        if socket:
            events = crucible.events.subscribe("Custom.Live", from_=start, on_notice=self._hear)
        else:
            events = crucible.events.stream("Custom.Live", start=start, on_notice=self._hear)
        self._task = asyncio.create_task(self._run(events))

    async def _run(self, events: AsyncGenerator[Event, None]) -> None:
        async with contextlib.aclosing(events):
            async for event in events:
                self.events.append(event)

    def _hear(self, notice: Notice) -> None:
        if notice.kind == "caught_up":
            self.caught_up.set()

    @property
    def numbers(self) -> list[int]:
        return [event.data.payload["n"] for event in self.events]

    async def has(self, wanted: Iterable[int]) -> None:
        numbers = set(wanted)
        async with asyncio.timeout(30):
            while not numbers <= set(self.numbers):  # noqa: ASYNC110 - another task collects them
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


def order(crucible: Crucible, type: str, first: int, count: int) -> None:
    for n in range(first, first + count):
        crucible.events.append(type, {"n": n}, world_id=WORLDS[n % 3])


def in_order_of_worlds(events: list[Event]) -> bool:
    worlds: dict[str, list[int]] = {}
    for event in events:
        worlds.setdefault(event.metadata.world_id, []).append(event.data.payload["n"])
    return all(mine == sorted(mine) for mine in worlds.values())


async def test_live_events_come_from_all_streams(spread: Stack) -> None:
    everything = list(range(60))
    async with AsyncCrucible(spread.url, spread.key) as client, contextlib.AsyncExitStack() as followers:

        def follow(start: str | int = "now", *, socket: bool = True) -> Follower:
            follower = Follower(client, start, socket=socket)
            followers.push_async_callback(follower.close)
            return follower

        with spread.client() as crucible:
            past, live = follow("start", socket=False), follow("start")
            await asyncio.gather(past.caught_up.wait(), live.caught_up.wait())
            await asyncio.to_thread(order, crucible, "Custom.Live", 0, 30)
            await asyncio.gather(past.has(range(30)), live.has(range(30)))
            spread.kill("gateway")
            await asyncio.to_thread(until, spread.ready, 30)
            await asyncio.to_thread(order, crucible, "Custom.Live", 30, 30)
            late = follow("start")
            for follower in (past, live, late):
                await follower.has(everything)
                assert sorted(follower.numbers) == everything
                assert in_order_of_worlds(follower.events)
            assert late.numbers == everything
            after = follow(late.events[40].sequence or 0)
            await after.has(range(41, 60))


def test_events_are_queried_exported_and_counted(spread: Stack) -> None:
    everything = list(range(60))
    with spread.client() as crucible:
        order(crucible, "Custom.Queried", 0, 60)
        until(lambda: crucible.events.count("Custom.Queried").count == 60, 10)
        found = list(crucible.events.list("Custom.Queried", page_size=7))
        assert [event.data.payload["n"] for event in found] == everything
        newest = crucible.events.list("Custom.Queried", order="desc", page_size=7)
        assert [event.data.payload["n"] for event in newest] == everything[::-1]
        lines = [msgspec.json.decode(line) for line in crucible.events.export("Custom.Queried")]
        assert [line["data"]["payload"]["n"] for line in lines] == everything
        assert crucible.events.count("Custom.Queried").count == 60
    shown = spread.run("events", "show", f"#{found[17].sequence}").stdout
    assert found[17].metadata.id in shown


def test_handlers_get_the_events_of_every_world(spread: Stack) -> None:
    with endpoint() as all_of_them, endpoint() as replayed, spread.client() as crucible, spread.http() as http:
        http.post("/api/v1/hooks", json=HOOK).raise_for_status()
        crucible.webhooks.create("all", all_of_them.url, ["Custom.Handled"])
        order(crucible, "Custom.Handled", 0, 30)
        until(lambda: len(bodies(all_of_them)) == 30, 30)
        until(lambda: crucible.events.count("Custom.Echoed").count == 30, 30)
        for process in ("webhooks", "hooks", "events"):
            spread.kill(process)
        until(spread.ready, 30)
        order(crucible, "Custom.Handled", 30, 30)
        until(lambda: len(set(bodies(all_of_them))) == 60, 30)
        until(lambda: crucible.events.count("Custom.Echoed").count == 60, 30)
        time.sleep(1)
        assert crucible.events.count("Custom.Echoed").count == 60
        webhook = crucible.webhooks.create("again", replayed.url, ["Custom.Handled"])
        started = http.post("/api/v1/events/replay", json={"from": 0, "target": {"webhook": webhook.id}})
        started.raise_for_status()
        until(lambda: len(set(bodies(replayed))) == 60, 30)
        assert len(bodies(replayed)) == 60
        until(lambda: crucible.replays.get(started.json()["id"]).state == "done", 10)
        for line in crucible.webhooks.list():
            assert line.state == "active"


def bodies(receiver: Endpoint) -> list[int]:
    return [msgspec.json.decode(body)["event"]["data"]["payload"]["n"] for _, body in list(receiver.requests)]


def test_another_number_of_streams_is_refused_with_words(spread: Stack) -> None:
    with spread.client() as crucible:
        order(crucible, "Custom.Kept", 0, 9)
    spread.stop()
    refused = subprocess.run(
        [CRUCIBLE, "up", "--data", str(spread.data), "--port-base", str(free_base())],
        env={**spread.environ, "CRUCIBLE_STREAMS": "2"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode != 0
    assert "CRUCIBLE_STREAMS is 2, and the events of this NATS are in 3 streams: set it to 3" in refused.stderr
    spread.start()
    with spread.client() as crucible:
        assert len(list(crucible.events.list("Custom.Kept"))) == 9


def test_memories_of_notes_in_every_world(spread: Stack) -> None:
    with spread.client() as crucible:
        made = crucible.memory.create("about nothing")
        assert [memory.id for memory in crucible.memory.query("nothing", min_sequence=made.sequence)] == [made.id]
        for n in range(30):
            payload = {"path": f"note-{n}.md", "root": "notes", "content": f"# Note {n}\n\nabout nothing"}
            crucible.events.append("File.Created", payload, world_id=WORLDS[n % 3])
        until(lambda: crucible.events.count("File.Processed").count == 30, 30)
        for world in WORLDS:
            found = crucible.memory.query("nothing", world_id=world, limit=50)
            assert len(found) == 10 + (world == "default")
        until(lambda: crucible.events.count("Graph.NodeAdded").count == 31, 20)
        [created] = crucible.events.list("Memory.Created", entity=found[0].id)
        crucible.events.redact(created.metadata.id)
        until(lambda: len(crucible.memory.query("nothing", world_id="pink", limit=50)) == 9, 20)
        crucible.worlds.delete("red", purge=True)
        until(lambda: not crucible.memory.query("nothing", world_id="red", limit=50), 20)
        assert len(crucible.memory.query("nothing", limit=50)) == 11
