"""Live events: from a POST to a WebSocket, and a hundred sockets at once."""

import asyncio
import json
import statistics
import time

import websockets

from bench import floors
from bench.load import connect, post
from bench.running import Row, Running, running

RUNS = 300
SOCKETS = 100
RATE = 1000
SECONDS = 30
BEHIND_S = 1.0
"""A socket whose event is older than this when it comes has fallen behind."""
PAYLOAD = {"text": "x" * 480, "n": 0}


def run() -> list[Row]:
    body = json.dumps(PAYLOAD).encode()
    bare_post = statistics.median(floors.handler(body, 1, 3))
    with floors.server() as url:
        bare_publish = floors.core_publish(url, body, RUNS)
    with running() as stack:
        rows = [_latency(stack, (bare_post + bare_publish) * 1000)]
    with running() as stack:
        rows.append(_hundred(stack))
    return rows


def _socket(stack: Running) -> "websockets.connect":
    headers = {"Authorization": f"Bearer {stack.key}"}
    uri = f"ws://127.0.0.1:{stack.ports['gateway']}/api/v1/events/stream"
    return websockets.connect(uri, additional_headers=headers, compression=None)


def _latency(stack: Running, floor: float) -> Row:
    async def measure() -> list[float]:
        took = []
        event = json.dumps({"type": "Custom.Bench", "payload": PAYLOAD}).encode()
        request = post("/api/v1/events", event, key=stack.key)
        connection = await connect(stack.ports["gateway"])
        async with _socket(stack) as socket:
            await socket.send(json.dumps({"action": "subscribe", "filters": [{"event_type": "Custom.Bench"}]}))
            await socket.recv()
            for _ in range(RUNS):
                began = time.perf_counter()
                answered = asyncio.ensure_future(connection.ask(request))
                await socket.recv()
                took.append(time.perf_counter() - began)
                await answered
                await asyncio.sleep(0.01)
        connection.transport.close()
        return took

    median = statistics.median(asyncio.run(measure())) * 1000
    return stack.row("POST to WebSocket arrival, median", median, floor, "ms", at_most=3)


def _hundred(stack: Running) -> Row:
    """Each socket wants one in a hundred events, by a filter on the payload; 1,000 events a second come in batches."""
    worst = [0.0] * SOCKETS
    received = [0] * SOCKETS
    gaps = 0

    async def listen(number: int, ready: asyncio.Semaphore) -> None:
        nonlocal gaps
        async with _socket(stack) as socket:
            wanted = {"event_type": "Custom.Bench", "filter": {"n": {"equals": number}}}
            await socket.send(json.dumps({"action": "subscribe", "filters": [wanted]}))
            await socket.recv()
            ready.release()
            async for frame in socket:
                message = json.loads(frame)
                gaps += message["type"] == "gap"
                if message["type"] == "event":
                    received[number] += 1
                    late = time.time() - message["event"]["data"]["payload"]["at"]
                    worst[number] = max(worst[number], late)

    async def measure() -> None:
        ready = asyncio.Semaphore(0)
        tasks = [asyncio.create_task(listen(number, ready)) for number in range(SOCKETS)]
        for _ in tasks:
            await ready.acquire()
        connection = await connect(stack.ports["gateway"])
        began = time.perf_counter()
        for batch in range(SECONDS * 10):
            await asyncio.sleep(max(0.0, began + batch / 10 - time.perf_counter()))
            lines = [
                json.dumps({"type": "Custom.Bench", "payload": PAYLOAD | {"n": n, "at": time.time()}})
                for n in range(RATE // 10)
            ]
            body = "\n".join(lines).encode()
            status, answer = await connection.ask(post("/api/v1/events", body, "application/x-ndjson", stack.key))
            assert status == 200, answer
        await asyncio.sleep(BEHIND_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        connection.transport.close()

    before = stack.cpu()
    asyncio.run(measure())
    assert sum(received) == RATE * SECONDS, (sum(received), gaps)
    row = stack.row(f"{SOCKETS} sockets, {RATE:,} events/s, the latest", max(worst) * 1000, None, "ms", before=before)
    return row | {"wanted": "none behind", "": "ok" if not gaps and max(worst) < BEHIND_S else "MISSED"}
