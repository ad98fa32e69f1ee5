"""The event log: appends, index, replay, live and queries, each beside its floor measured in the same run."""

import asyncio
import json
import statistics
from collections.abc import Callable

import uvloop

from bench import events_live, events_log, floors
from bench.load import hammer, post
from bench.running import Row, Running, running

PAYLOAD = {"text": "x" * 480, "n": 12345}
SECONDS = 6.0
EVENT = json.dumps({"type": "Custom.Bench", "payload": PAYLOAD}).encode()


def run(only: str = "") -> list[Row]:
    uvloop.install()
    parts: dict[str, Callable[[], list[Row]]] = {
        "batches": batches,
        "single": single,
        "latency": latency,
        "log": events_log.run,
        "live": events_live.run,
    }
    return [row for name, part in parts.items() if only in ("", name) for row in part()]


def batches() -> list[Row]:
    """NDJSON, 500 a request, over four connections, so that requests are read while others are committed. The floor is
    measured before and after, as for 64 connections and the index."""
    payload = json.dumps(PAYLOAD).encode()
    before_it = floors.batches(payload, SECONDS / 2)
    with running() as stack:
        body = (EVENT + b"\n") * floors.BATCH
        request = post("/api/v1/events", body, "application/x-ndjson", stack.key)
        port = stack.ports["gateway"]
        asyncio.run(hammer(port, lambda: request, 4, 1))
        before = stack.cpu()
        took = asyncio.run(hammer(port, lambda: request, 4, SECONDS))
        rate = len(took) * floors.BATCH / SECONDS
        floor = (before_it + floors.batches(payload, SECONDS / 2)) / 2
        return [stack.row("NDJSON append, 500 a request", rate, floor, "events/s", at_least=0.6, before=before)]


def single() -> list[Row]:
    body = json.dumps(PAYLOAD).encode()

    def floor(name: str) -> float:
        return len(floors.handler(body, 64, SECONDS / 2, name)) / SECONDS

    litestar, starlette = floor("app"), floor("starlette")
    with running() as stack:
        before, took = _singles(stack, 64)
        rate, what = len(took) / SECONDS, "single POST, 64 connections"
        floors_at_least = ((litestar + floor("app"), 1.0), (starlette + floor("starlette"), 0.75))
        rows = [stack.row(what, rate, found, "requests/s", least, before=before) for found, least in floors_at_least]
        return [rows[0], rows[1] | {"what": f"{what}, beside Starlette"}]


def latency() -> list[Row]:
    floor = statistics.median(floors.handler(json.dumps(PAYLOAD).encode(), 1, SECONDS)) * 1000
    with running() as stack:
        before, took = _singles(stack, 1)
        median = statistics.median(took) * 1000
        return [stack.row("single POST, 1 connection, median", median, floor, "ms", at_most=2.5, before=before)]


def _singles(stack: Running, connections: int) -> tuple[dict[str, float], list[float]]:
    request = post("/api/v1/events", EVENT, key=stack.key)
    port = stack.ports["gateway"]
    asyncio.run(hammer(port, lambda: request, connections, 1))
    before = stack.cpu()
    return before, asyncio.run(hammer(port, lambda: request, connections, SECONDS))
