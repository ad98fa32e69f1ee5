"""A log of a million events: how fast the index catches up on it, how it is replayed, and how it is queried."""

import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import httpx
import websockets

from bench import floors
from bench.running import Row, Running, alone
from crucible_core.envelope import Data, Event, Metadata, Source, encode
from crucible_core.ids import derive_id
from crucible_core.subjects import Names
from crucible_events import store
from crucible_kit.nats.bus import open_bus
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.message import Message
from crucible_kit.nats.streams import declare_streams
from crucible_kit.settings import KitSettings

FIRST = 200_000
ALL = 1_000_000
QUERIES = 200
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
EVERY = timedelta(milliseconds=500)
TYPES = 20
NAMES = Names("")


def run() -> list[Row]:
    with floors.server() as url:
        asyncio.run(_fill(url, 0, FIRST))
        values = [_row(n) for n in range(FIRST)]
        before = floors.rows(store.SCHEMA, _bare_insert(), values)
        with alone(url, "events") as stack:
            rows = [_index(stack, lambda: (before + floors.rows(store.SCHEMA, _bare_insert(), values)) / 2)]
        ordered = floors.ordered(url, NAMES.events, FIRST)
        with alone(url, "events", "gateway") as stack:
            rows.append(_replay(stack, ordered))
            asyncio.run(_fill(url, FIRST, ALL))
            _caught_up(stack, ALL)
            rows.append(_queries(stack))
    return rows


def _index(stack: Running, floor: Callable[[], float]) -> Row:
    """The floor is measured before and after: the speed of a shared machine changes within minutes."""
    began = time.perf_counter()
    before = stack.cpu()
    _caught_up(stack, FIRST)
    rate = FIRST / (time.perf_counter() - began)
    return stack.row(f"index catching up on {FIRST:,}", rate, floor(), "rows/s", at_least=0.6, before=before)


def _replay(stack: Running, floor: float) -> Row:
    """Every event over one WebSocket, from the start until `caught_up`."""

    async def read() -> float:
        headers = {"Authorization": f"Bearer {stack.key}"}
        uri = f"ws://127.0.0.1:{stack.ports['gateway']}/api/v1/events/stream"
        async with websockets.connect(uri, additional_headers=headers, max_size=None, compression=None) as socket:
            await socket.send(json.dumps({"action": "subscribe", "from": "start"}))
            began = time.perf_counter()
            seen = 0
            while b'"caught_up"' not in (frame := await socket.recv(decode=False))[:30]:
                seen += frame.startswith(b'{"type":"event"')
            assert seen >= FIRST, seen  # the start of each service is in the log too
            return seen / (time.perf_counter() - began)

    before = stack.cpu()
    return stack.row("full replay to a subscriber", asyncio.run(read()), floor, "events/s", 0.5, before=before)


def _queries(stack: Running) -> Row:
    chance = random.Random(1)
    took = []
    with stack.http() as http:
        for _ in range(QUERIES):
            at = BEGAN + chance.random() * (ALL - 50_000) * EVERY
            query = {
                "type": f"Custom.Bench{chance.randrange(TYPES)}",
                "from_time": at.isoformat().replace("+00:00", "Z"),
                "to_time": (at + timedelta(hours=6)).isoformat().replace("+00:00", "Z"),
                "limit": 100,
            }
            began = time.perf_counter()
            answer = http.get("/api/v1/events", params=query)
            took.append(time.perf_counter() - began)
            assert len(answer.raise_for_status().json()["events"]) == 100
    median = statistics.median(took) * 1000
    return stack.row(f"query by type and time on {ALL:,}, 100 rows", median, None, "ms", at_most=10)


def _caught_up(stack: Running, count: int) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        text = httpx.get(f"http://127.0.0.1:{stack.ports['events']}/metrics").text
        lag = [line for line in text.splitlines() if line.startswith("crucible_index_sequence ")]
        if lag and float(lag[0].split()[1]) >= count:
            return
        time.sleep(0.05)
    raise TimeoutError


# ---- the log ---------------------------------------------------------------------------------------------------------


async def _fill(url: str, start: int, end: int) -> None:
    async with open_bus(url, NAMES) as bus:
        await declare_streams(bus, KitSettings(nats_url=url))
        for at in range(start, end, 1000):
            await bus.commit([_message(n) for n in range(at, at + 1000)])


def _event(n: int) -> Event:
    at = (BEGAN + n * EVERY).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    actor = f"user{n % 50}"
    metadata = Metadata(
        id=derive_id("evt", 1_767_225_600_000 + n * 500, str(n)),
        timestamp=at,
        source=Source("user", actor),
        actor=f"user:{actor}",
        correlation_id=derive_id("cor", 1_767_225_600_000 + n * 500, str(n)),
    )
    return Event("Custom", Data(f"Bench{n * 7919 % TYPES}", {"n": n, "text": "x" * 480}), metadata)


def _message(n: int) -> Outgoing:
    event = _event(n)
    subject = NAMES.event("default", "main", event.type, event.data.event, None)
    return Outgoing(subject, encode(event), {}, event.metadata.id)


def _row(n: int) -> tuple[object, ...]:
    event = _event(n)
    return store.row_of(Message("", encode(event), {}, sequence=n + 1, time_ms=n))


def _bare_insert() -> str:
    return f"{store.INSERT} ({', '.join('?' * len(_row(0)))})"
