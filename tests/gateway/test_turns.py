"""What is large holds nobody up: how long the event loop, which gateway and events share here, works at a stretch."""

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from crucible_gateway.body.batches import elements

from .conftest import HEADERS, Served

PATH = "/api/v1/events"
MOST_S = 0.5
"""Processor time, which other processes do not change; before large requests were cut up, it was 0.7 s and more."""
SIZE = 1_040_000


def filled(unit: str) -> str:
    return '{"c": [' + unit * (SIZE // len(unit)) + "1]}"


SHAPES = {
    "text": json.dumps({"c": "x" * SIZE}),
    "objects": filled('{"a":1},'),
    "deep": filled("[" * 50 + "]" * 50 + ","),
    "twice": filled('{"a":1},').replace('{"a":1},1]', '{"a":1,"a":2},1]'),
}


def native(payload: str, number: int) -> str:
    return f'{{"type": "Custom.X", "payload": {payload}}}'


def cloud(payload: str, number: int) -> str:
    return f'{{"specversion": "1.0", "id": "{number}", "source": "urn:x", "type": "Custom.X", "data": {payload}}}'


@pytest.fixture(autouse=True)
def collecting_as_a_service() -> Iterator[None]:
    """The garbage collector as `crucible_kit.http.server` sets it, but for this test alone."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(20_000)
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


class Stretch:
    """The longest time of one round of the event loop."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            self.longest, last = max(self.longest, now - last), now

    def end(self) -> float:
        self._task.cancel()
        return self.longest


@pytest.mark.parametrize("shape", SHAPES)
async def test_eight_events_of_1_mb_hold_nobody_up(gateway: Served, log: None, shape: str) -> None:
    payload = SHAPES[shape]
    bodies = {
        "application/json": "[" + ",".join(native(payload, number) for number in range(8)) + "]",
        "application/x-ndjson": "\n".join(native(payload, number) for number in range(8)),
        "application/cloudevents-batch+json": "[" + ",".join(cloud(payload, number) for number in range(8)) + "]",
    }
    kinds = bodies if shape == "deep" else ["application/json"]
    async with httpx.AsyncClient(base_url=gateway.url, headers=HEADERS, timeout=60) as http:
        for kind in kinds:
            body, stretch = bodies[kind].encode(), Stretch()
            answer = await http.post(PATH, content=body, headers={"Content-Type": kind})
            assert stretch.end() < MOST_S, kind
            # A machine with much else to do may need longer than a commit waits.
            assert answer.status_code in (200, 503), answer.text[:300]
            statuses = {result.get("error", {}).get("status", 201) for result in answer.json().get("results", ())}
            assert statuses <= {400 if shape == "twice" else 201, 503}, answer.text[:300]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"[" + b"1," * 99_999 + b"1]"),
        ("application/json", b"[" + b"1," * 1_000_000 + b"1]"),
        ("application/x-ndjson", b'{"type": "Custom.X", "type": "Custom.Y"}\n' * 20_000),
        ("application/json", b"[" + b'{"type": "Custom.X", "payload": {"a": 1}},' * 5_000 + b"1]"),
    ],
    ids=["numbers", "too-many", "refused", "small"],
)
async def test_many_small_ones_hold_nobody_up(gateway: Served, log: None, kind: str, body: bytes) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, headers=HEADERS, timeout=60) as http:
        stretch = Stretch()
        answer = await http.post(PATH, content=body, headers={"Content-Type": kind})
        assert stretch.end() < MOST_S
        assert answer.status_code in (200, 413, 503)


async def test_an_array_that_comes_as_one_piece_is_split_in_many_turns() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"[" + b'{"a": [1, 2, {}]},' * 100_000 + b"{}]"

    waiting = asyncio.create_task(others())
    assert len([element async for element in elements(pieces())]) == 100_001
    waiting.cancel()
    assert turns > 100
