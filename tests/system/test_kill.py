"""Nothing accepted is lost: every process is killed once while 2,000 events are appended."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx

from .conftest import SERVICES, Stack, until
from .receiver import endpoint

EVENTS = 2000
WRITERS = 4


def test_every_process_killed_once_during_2000_appends(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    with endpoint() as receiver, stack.http() as http:
        wanted = {"name": "all", "url": receiver.url, "event_filters": [{"event_type": "Custom.Tick"}]}
        wanted["options"] = {"timeout_ms": 5000, "retry_delays_s": [0.5] * 10, "concurrency": 16}
        assert http.post("/api/v1/webhooks", json=wanted).status_code == 201
        accepted: dict[str, int] = {}
        numbers = itertools.count()
        outages: list[float] = []
        writers = [threading.Thread(target=_write, args=(stack, numbers, accepted, outages)) for _ in range(WRITERS)]
        for writer in writers:
            writer.start()
        for place, service in enumerate(("nats", *SERVICES), 1):
            until(lambda due=place: len(accepted) >= due * EVENTS // 8, 60)
            stack.kill(service)
        for writer in writers:
            writer.join(120)
        assert len(accepted) == EVENTS
        until(stack.ready, 30)
        stored = Counter(_all_ids(http))
        assert {event: stored[event] for event in accepted} == dict.fromkeys(accepted, 1)
        until(lambda: accepted.keys() <= receiver.event_ids(), 90, lambda: _missing(accepted, receiver.event_ids()))
    print(f"accepted {len(accepted)}, lost 0, duplicated 0, longest outage {max(outages, default=0):.1f} s")


def _write(stack: Stack, numbers: Any, accepted: dict[str, int], outages: list[float]) -> None:
    """Appends with ids of its own, each again until it is accepted."""
    with stack.http() as http:
        while (number := next(numbers)) < EVENTS:
            event = f"evt_tick{number:06d}"
            began = time.monotonic()
            while True:
                try:
                    body = {"type": "Custom.Tick", "payload": {"n": number}, "id": event}
                    answer = http.post("/api/v1/events", json=body)
                except httpx.HTTPError:
                    time.sleep(0.05)
                    continue
                if answer.status_code in (200, 201):
                    break
                assert answer.status_code == 503, answer.text
                assert int(answer.headers["Retry-After"]) >= 1
                time.sleep(0.05)
            outages.append(time.monotonic() - began)
            accepted[event] = answer.json()["sequence"]


def _all_ids(http: httpx.Client) -> list[str]:
    found: list[str] = []
    cursor: str | None = None
    while True:
        query: dict[str, str | int] = {"type": "Custom.Tick", "limit": 1000, **({"cursor": cursor} if cursor else {})}
        page = http.get("/api/v1/events", params=query).raise_for_status().json()
        found += [event["metadata"]["id"] for event in page["events"]]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def _missing(accepted: dict[str, int], received: set[str]) -> str:
    missing = sorted(accepted.keys() - received)
    return f"{len(missing)} not delivered: {missing[:5]}"
