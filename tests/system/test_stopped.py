"""A service that is stopped for a while, as a debugger or a machine that swaps does it: 503 in time, nothing late."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from .conftest import Stack, until

IN_TIME_S = 8.0
"""Silence of three seconds, twice where one service asks another, and what a busy machine adds."""
HOOK = {
    "name": "late",
    "trigger": {"events": [{"type": "Custom", "event": "Never"}], "timing": "Post"},
    "action": {"type": "Script", "script": "1"},
}
GUARD = {
    "name": "guard",
    "trigger": {"events": [{"type": "Custom", "event": "Guarded"}], "timing": "Pre"},
    "action": {"type": "Script", "script": "None"},
}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}
Ask = tuple[str, str, dict[str, Any]]
OTHERS = ("hooks", "webhooks", "memory")
"""Those without which an append that no Pre hook watches goes on."""
FREE: Ask = ("POST", "/api/v1/events", {"type": "Custom.Free", "payload": {}})


@pytest.fixture
def known(shared: Stack) -> dict[str, str]:
    """What the requests are about: ids by name."""
    with shared.http() as http:
        made = http.post("/api/v1/webhooks", json=webhook("kept"))
        memory = http.post("/api/v1/memory", json={"content": "kept"}, headers={"Idempotency-Key": "kept"})
        event = http.post("/api/v1/events", json={"type": "Custom.Kept", "payload": {"secret": 1}})
        for hook in (GUARD, {**HOOK, "name": "kept"}):
            http.post("/api/v1/hooks", json=hook).raise_for_status()
        http.post("/api/v1/worlds", json={"id": "kept"})
    return {"webhook": made.json()["id"], "memory": memory.json()["id"], "event": event.json()["id"]}


def webhook(name: str) -> dict[str, Any]:
    return {"name": name, "url": "http://127.0.0.1:1/", "event_filters": [{"event_type": "Custom.Never"}]}


def asks(service: str, known: dict[str, str]) -> list[Ask]:
    """Every request that has an effect and needs the service."""
    own: dict[str, list[Ask]] = {
        "events": [
            ("POST", "/api/v1/events", {"type": "Custom.Late", "payload": {}, "id": "evt_01kaj3x5vae8jv6jq0f1d8c2hm"}),
            *(("POST", "/api/v1/events", {"type": "Custom.Late", "payload": {"n": n}}) for n in range(20)),
            ("POST", "/api/v1/events?atomic=true", [{"type": "Custom.Late", "payload": {"n": n}} for n in range(30)]),
            ("POST", "/api/v1/worlds", {"id": "late"}),
            ("DELETE", "/api/v1/worlds/kept?purge=true", {}),
            ("POST", "/api/v1/worlds/default/rooms", {"id": "late"}),
            ("POST", "/api/v1/event-types", {"type": "Late.Typed", "version": "1.0.0", "schema": SCHEMA}),
            ("PUT", "/api/v1/retention", {"rules": [{"type": "Custom.Late", "keep": "1h"}]}),
            ("POST", f"/api/v1/events/{known['event']}/redact", {"reason": "late"}),
            ("POST", "/api/v1/events/replay", {"from": "start", "to": "now", "target": {"hook": "kept"}}),
        ],
        "hooks": [
            ("POST", "/api/v1/hooks", HOOK),
            ("DELETE", "/api/v1/hooks/kept", {}),
            ("POST", "/api/v1/hooks/kept/disable", {}),
            ("POST", "/api/v1/hooks/kept/test", {"dry_run": False}),
            ("POST", "/api/v1/events", {"type": "Custom.Guarded", "payload": {}}),
        ],
        "webhooks": [
            ("POST", "/api/v1/webhooks", webhook("late")),
            ("DELETE", f"/api/v1/webhooks/{known['webhook']}", {}),
            ("POST", f"/api/v1/webhooks/{known['webhook']}/disable", {}),
        ],
        "memory": [
            ("POST", "/api/v1/memory", {"content": "late"}),
            ("PATCH", f"/api/v1/memory/{known['memory']}", {"content": "late"}),
            ("DELETE", f"/api/v1/memory/{known['memory']}", {}),
        ],
    }
    return list(itertools.chain(*own.values())) if service == "nats" else own[service]


def send(http: httpx.Client, ask: Ask) -> httpx.Response:
    method, path, body = ask
    return http.request(method, path, json=body or None, headers={"Idempotency-Key": f"{path} {body}"[:180]})


def state_of(http: httpx.Client) -> dict[str, Any]:
    """All that the requests could have changed."""
    found = {name: http.get(f"/api/v1/{name}").raise_for_status().json() for name in ("hooks", "webhooks", "worlds")}
    for listed in (found["hooks"]["hooks"], found["webhooks"]["webhooks"]):
        for one in listed:
            one.pop("counters")
    found["retention"] = http.get("/api/v1/retention").json()["rules"]
    found["types"] = [one["type"] for one in http.get("/api/v1/event-types").json()["types"] if one["registered"]]
    found["replays"] = http.get("/api/v1/replays").json()
    found["events"] = http.get("/api/v1/events?limit=1000").json()["events"]
    return found


@pytest.mark.parametrize("service", ["events", "hooks", "webhooks", "memory", "nats"])
def test_what_was_answered_503_is_not_done_when_a_stopped_service_goes_on(
    shared: Stack, known: dict[str, str], service: str
) -> None:
    with shared.http() as http, ThreadPoolExecutor(64) as pool:
        before = state_of(http)
        process = shared.pid(service)
        process.suspend()
        began = time.monotonic()
        try:
            wanted = asks(service, known)
            answers = list(pool.map(lambda ask: send(http, ask), wanted))
            took = time.monotonic() - began
            free = send(http, FREE) if service in OTHERS else None
        finally:
            process.resume()
        assert [(ask[1], answer.status_code) for ask, answer in zip(wanted, answers, strict=True)] == [
            (ask[1], 503) for ask in wanted
        ]
        assert all(answer.headers["retry-after"] for answer in answers)
        assert took < IN_TIME_S
        until(shared.ready, 30)
        marker = http.post("/api/v1/events", json={"type": "Custom.After", "payload": {}}).raise_for_status().json()
        if service in ("hooks", "nats"):
            http.post("/api/v1/events", json={"type": "Custom.Guarded", "payload": {"after": True}}).raise_for_status()
        after = state_of(http)
        if free is not None:
            assert free.status_code in (200, 201)  # again with the same key
        own = {"Free", "After", "Guarded", "Executed", "Triggered", "Started", "ConfigChanged"}  # a start's come late
        late = [event for event in after.pop("events") if event not in before["events"]]
        assert {event["data"]["event"] for event in late} <= own
        assert sum(event["data"]["event"] == "Guarded" for event in late) <= 1
        assert marker["sequence"]
        before.pop("events")
        assert after == before


def test_a_retry_with_the_same_key_does_once_what_may_have_been_done(shared: Stack) -> None:
    """Both that which was answered in the middle, and that which was not done."""
    process, keys = shared.pid("events"), [f"again {n}" for n in range(40)]
    begun = threading.Event()

    def append(key: str) -> httpx.Response:
        begun.set()
        body = {"type": "Custom.Again", "payload": {"key": key}}
        return http.post("/api/v1/events", json=body, headers={"Idempotency-Key": key})

    with shared.http() as http, ThreadPoolExecutor(40) as pool:
        first = [pool.submit(append, key) for key in keys]
        begun.wait()
        process.suspend()
        codes = {one.result().status_code for one in first}
        process.resume()
        assert codes <= {201, 503}
        until(shared.ready, 30)
        answers = [append(key).raise_for_status().json() for key in keys]
        last = max(one["sequence"] for one in answers)
        found = http.get(f"/api/v1/events?type=Custom.Again&limit=1000&min_sequence={last}").json()["events"]
        assert sorted(event["data"]["payload"]["key"] for event in found) == sorted(keys)
        assert {one["sequence"] for one in answers} == {event["sequence"] for event in found}
        for one in first:
            if one.result().status_code == 201:
                assert one.result().json()["sequence"] in {event["sequence"] for event in found}


def test_a_503_says_whether_anything_may_have_been_done(shared: Stack, known: dict[str, str]) -> None:
    process = shared.pid("events")
    with shared.http() as http:
        process.suspend()
        try:
            written = http.post("/api/v1/events", json={"type": "Custom.Late", "payload": {}})
            read = http.get("/api/v1/events")
        finally:
            process.resume()
        until(shared.ready, 30)
    assert written.json()["type"].endswith("/outcome_unknown")
    assert "the same id or Idempotency-Key" in written.json()["detail"]
    assert read.json()["type"].endswith("/unavailable")
    assert [written.status_code, read.status_code] == [503, 503]
