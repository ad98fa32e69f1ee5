"""Nothing accepted is lost, and nothing is there twice, whatever is killed."""

import asyncio
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import msgspec

from crucible_core.subjects import Names
from crucible_kit.nats.bus import open_bus
from crucible_kit.nats.reader import read

from . import storm
from .conftest import Stack, until
from .receiver import Endpoint, endpoint
from .storm import Ledger

SECONDS = float(os.environ.get("CRUCIBLE_KILL_SECONDS", "14"))
EVERY_S = 3.0
DEATHS = (("events", "hooks"), ("gateway", "webhooks"), ("nats", "memory"))
"""What is killed together, in turn; only the first of each takes part in an append."""

Log = list[tuple[int, dict[str, Any]]]
"""Events by sequence, without it."""


def test_a_minute_of_kills_loses_nothing(make_stack: Callable[..., Stack]) -> None:
    """SIGKILL of events, gateway and nats-server in turn, every three seconds, under writers of every kind (`storm`).

    It takes 14 seconds and what it takes to settle; CRUCIBLE_KILL_SECONDS=60 makes it a whole minute.
    """
    stack = make_stack()
    ledger, stop = Ledger(), threading.Event()
    with endpoint() as receiver, stack.http() as http:
        wanted = {"name": "all", "url": receiver.url, "event_filters": [{"event_type": "Custom.Ring"}]}
        wanted["options"] = {"timeout_ms": 5000, "retry_delays_s": [0.5] * 10, "concurrency": 16}
        assert http.post("/api/v1/webhooks", json=wanted).status_code == 201
        kills: list[tuple[float, str]] = []
        writers = storm.start(stack, ledger, stop)
        try:
            _kill(stack, ledger, kills)
        finally:
            stop.set()
        for writer in writers:
            writer.join(60)
        assert not ledger.failures, ledger.failures
        assert not any(writer.is_alive() for writer in writers)
        until(stack.ready, 30)
        log = asyncio.run(_stream(stack))
        _check_once(ledger, log)
        _check_order(log)
        _check_versions(ledger, log)
        assert _queried(http, log[-1][0]) == log
        _check_delivered(ledger, receiver)
    _report(ledger, kills)


def _kill(stack: Stack, ledger: Ledger, kills: list[tuple[float, str]]) -> None:
    ends = time.monotonic() + SECONDS
    for services in itertools.cycle(DEATHS):
        time.sleep(EVERY_S)
        if time.monotonic() >= ends or ledger.failures:
            return
        for service in services:
            stack.kill(service)
        kills.append((time.monotonic(), services[0]))


# ---- what must hold --------------------------------------------------------------------------------------------------


def _check_once(ledger: Ledger, log: Log) -> None:
    """What was acknowledged is there once, where the answer said; nothing is there twice; what was refused is not."""
    stored = Counter(event["metadata"]["id"] for _, event in log)
    places = {event["metadata"]["id"]: sequence for sequence, event in log}
    lost = {event for event, sequence in ledger.accepted.items() if places.get(event) != sequence}
    assert not lost, f"{len(lost)} lost: {sorted(lost)[:5]}"
    twice = [event for event, count in stored.items() if count > 1]
    assert not twice, f"{len(twice)} are there more than once: {twice[:5]}"
    assert not ledger.refused & stored.keys()


def _check_order(log: Log) -> None:
    """Each writer numbers what it sends from 0 on: its entity's events are all there, in this order."""
    numbers: dict[str, list[int]] = {}
    for _, event in log:
        if event["type"] == "Custom" and event["metadata"]["entity"]:
            numbers.setdefault(event["metadata"]["entity"], []).append(event["data"]["payload"]["n"])
    assert len(numbers) == 5, numbers.keys()
    for entity, found in numbers.items():
        assert found == list(range(len(found))), f"{entity}: {_disorder(found)}"


def _disorder(found: list[int]) -> str:
    place = next(place for place, number in enumerate(found) if place != number)
    return f"… {found[max(0, place - 3) : place + 5]} …"


def _check_versions(ledger: Ledger, log: Log) -> None:
    """Each change of a shared entity was made on the one before it."""
    for entity in storm.SHARED:
        chain = [(sequence, event["metadata"]["id"]) for sequence, event in log if _changed(event) == entity]
        bases = [ledger.bases[event] for _, event in chain]
        assert bases == [0] + [sequence for sequence, _ in chain[:-1]]
        assert len(chain) > 1


def _changed(event: dict[str, Any]) -> str | None:
    return event["metadata"]["entity"] if event["type"] == "Memory" else None


def _check_delivered(ledger: Ledger, receiver: Endpoint) -> None:
    rung = {event for event in ledger.accepted if event.startswith("evt_ring_")}
    until(lambda: rung <= receiver.event_ids(), 60, lambda: f"not delivered: {sorted(rung - receiver.event_ids())[:5]}")


# ---- what there is ---------------------------------------------------------------------------------------------------


async def _stream(stack: Stack) -> Log:
    """The stream itself."""
    log: Log = []
    async with open_bus(stack.nats_url(), Names()) as bus:
        async for messages in read(bus, Names().events):
            if not messages:
                return log
            log += [(message.sequence, msgspec.json.decode(message.data)) for message in messages]
    raise AssertionError("a stream is read without end")


def _queried(http: httpx.Client, last: int) -> Log:
    """Everything that the index answers."""
    found: Log = []
    query: dict[str, str | int] = {"limit": 1000, "min_sequence": last}
    while True:
        page = http.get("/api/v1/events", params=query).raise_for_status().json()
        found += [(event.pop("sequence"), event) for event in page["events"]]
        if page["next_cursor"] is None:
            return found
        query["cursor"] = page["next_cursor"]


def _report(ledger: Ledger, kills: list[tuple[float, str]]) -> None:
    seconds, ended, who = ledger.longest()
    during = [f"{service} +{at - ended + seconds:.1f} s" for at, service in kills if ended - seconds - 1 < at < ended]
    print(
        f"\n{len(kills)} kills in {SECONDS:g} s: accepted {len(ledger.accepted)}, lost 0, duplicated 0, "
        f"refused {len(ledger.refused)}, without an answer {ledger.ambiguous} (given up {len(ledger.open)}), "
        f"longest outage {seconds:.1f} s ({who}; {', '.join(during)})"
    )
