"""Replays through the door: the requests, and the events that come to a socket, from the real events service."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from websockets.asyncio.client import ClientConnection, connect

from crucible_core.errors import ConflictError, NotFoundError
from crucible_core.protocol.parts import GetRequest
from crucible_core.protocol.replays import Replay, ReplayTarget, StartReplay, SteerReplay
from crucible_core.subjects import Names
from crucible_events.app import create_app as create_events
from crucible_events.settings import Settings as EventsSettings
from crucible_gateway import examples
from crucible_gateway.context import Nothing
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.frames import Outgoing
from tests.cases import each_of

from .conftest import HEADERS, Serve, Served, answering, commit, until

URL = "/api/v1/events/replay"


def view(**fields: Any) -> Replay:
    shown = {
        "id": "rpl_1",
        "state": "running",
        "start": 0,
        "to": 5,
        "position": 2,
        "matched": 2,
        "sent": 2,
        "skipped": 0,
        "total": 5,
        "progress": 0.4,
        "target": ReplayTarget(hook="h"),
        "filters": [],
        "rate": None,
        "world_id": None,
        "room_id": None,
        "created_at": "",
        "updated_at": "",
    }
    return Replay(**(shown | fields))


async def test_requests_pass_through(http: httpx.AsyncClient, bus: Bus) -> None:
    async with answering(
        bus, "events", replay=StartReplay, replays=Nothing, replay_get=GetRequest, replay_steer=SteerReplay
    ) as events:
        events.replies = dict.fromkeys(("replay", "replays", "replay_get", "replay_steer"), view())
        made = await http.post(URL, json=examples.REPLAY_BODY, headers={"Idempotency-Key": "k"})
        assert (made.status_code, made.json()["from"], made.json()["progress"]) == (202, 0, 0.4)
        asked = events.last
        assert (asked.start, asked.to, asked.target.hook) == ("2026-11-20T00:00:00Z", "now", "auto-link-related")
        assert asked.idempotency_key == "user:admin k"
        events.replies["replay"] = view(duplicate=True)
        assert (await http.post(URL, json={"target": {"hook": "h"}, "from": 3})).status_code == 200
        assert (events.last.start, events.last.filters, events.last.idempotency_key) == (3, None, None)
        assert (await http.get("/api/v1/replays/rpl_1")).json()["id"] == "rpl_1"
        for action in ("pause", "resume", "cancel"):
            assert (await http.post(f"/api/v1/replays/rpl_1/{action}")).status_code == 200
            assert (events.last.id, events.last.action) == ("rpl_1", action)
        events.replies["replay_steer"] = ConflictError("done")
        assert (await http.post("/api/v1/replays/rpl_1/cancel")).status_code == 409
        events.replies["replay_get"] = NotFoundError("no replay")
        assert (await http.get("/api/v1/replays/x")).status_code == 404


@each_of(
    "body",
    [
        {},
        {"target": "h"},
        {"target": {"hok": "h"}},
        {"target": {"hook": "h"}, "from": 1.5},
        {"target": {"hook": "h"}, "from": None},
        {"target": {"hook": "h"}, "rate": -1},
        {"target": {"hook": "h"}, "filters": {"event_type": "*"}},
        {"target": {"hook": "h"}, "form": 1},
    ],
)
async def test_a_wrong_body_is_refused(http: httpx.AsyncClient, body: Any) -> None:
    answer = await http.post(URL, json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"]


@pytest.fixture
async def log(nats_url: str, names: Names, tmp_path: Path) -> AsyncIterator[Starlette]:
    """The real events service."""
    settings = EventsSettings(nats_url=nats_url, bus_prefix=names.prefix, data_dir=str(tmp_path / "data"))
    app = create_events(settings)
    async with app.router.lifespan_context(app):
        await until(lambda: not app.state.ready())
        yield app


@pytest.fixture
async def socket(gateway: Served) -> AsyncIterator[ClientConnection]:
    async with connect(gateway.ws, additional_headers=HEADERS, max_queue=None) as opened:
        yield opened


async def said(socket: ClientConnection) -> Any:
    return json.loads(await asyncio.wait_for(socket.recv(), 20))


async def ask(socket: ClientConnection, **message: Any) -> Any:
    await socket.send(json.dumps(message))
    return await said(socket)


async def until_replayed(socket: ClientConnection) -> tuple[list[Any], Any]:
    """The frames of events, and the one that ends them."""
    frames: list[Any] = []
    while (frame := await said(socket))["type"] == "event":
        frames.append(frame)
    return frames, frame


async def test_a_socket_asks_for_a_replay(log: Starlette, socket: ClientConnection, bus: Bus) -> None:
    for number in range(2500):
        await commit(bus, number, type="Custom.Tick" if number % 5 else "Custom.Tock")
    answer = await ask(socket, action="replay", filters=[{"event_type": "Custom.Tick"}], to=2400)
    assert (answer["type"], answer["total"], answer["to"]) == ("replay", 1920, 2400)
    frames, end = await until_replayed(socket)
    assert [frame["sequence"] for frame in frames] == [n + 1 for n in range(2400) if n % 5]
    assert {(frame["replay"], frame["subscription"]) for frame in frames} == {(True, answer["subscription"])}
    assert frames[0]["event"]["sequence"] == frames[0]["sequence"]
    assert end == {
        "type": "replayed",
        "subscription": answer["subscription"],
        "replay": answer["replay"],
        "state": "done",
        "sent": 1920,
    }
    assert (await ask(socket, action="ping"))["type"] == "pong"


async def test_mistakes_are_answered_on_the_socket(log: Starlette, socket: ClientConnection, bus: Bus) -> None:
    await commit(bus, 0)
    for wrong, path in (
        ({"from": 9}, "from"),
        ({"filters": [{"event_type": "Memori.Created"}]}, "filters.0.event_type"),
        ({"rate": 0}, "rate"),
        ({"form": 0}, "form"),
    ):
        answer = await ask(socket, action="replay", **wrong)
        assert answer["type"] == "error"
        assert answer["error"]["errors"][0]["path"] == path


async def test_a_live_subscription_is_a_target(
    log: Starlette, socket: ClientConnection, http: httpx.AsyncClient, bus: Bus, start: Serve
) -> None:
    for number in range(10):
        await commit(bus, number)
    live = (await ask(socket, action="subscribe", filters=[{"event_type": "Custom.None"}]))["subscription"]
    async with start() as second:  # another gateway, which does not have it
        asked = {"target": {"subscription": live}, "from": 4}
        made = await http.post(f"{second.url}{URL}", json=asked)
    assert made.status_code == 202, made.text
    frames, end = await until_replayed(socket)
    assert [frame["sequence"] for frame in frames] == [5, 6, 7, 8, 9, 10]
    assert (end["replay"], end["sent"]) == (made.json()["id"], 6)
    # The subscription is still there, and live.
    await ask(socket, action="unsubscribe", subscription=live)
    missing = await http.post(URL, json=asked)
    assert missing.status_code == 404
    assert missing.json()["errors"][0]["path"] == "target.subscription"


async def test_pause_resume_and_cancel_from_outside(
    log: Starlette, socket: ClientConnection, http: httpx.AsyncClient, bus: Bus
) -> None:
    for number in range(300):
        await commit(bus, number)
    replay = (await ask(socket, action="replay", rate=400))["replay"]
    first = [(await said(socket))["sequence"] for _ in range(50)]
    assert (await http.post(f"/api/v1/replays/{replay}/pause")).json()["state"] == "paused"
    await http.post(f"/api/v1/replays/{replay}/resume")
    frames, end = await until_replayed(socket)
    assert first + [frame["sequence"] for frame in frames] == list(range(1, 301))
    assert end["state"] == "done"

    other = (await ask(socket, action="replay", rate=1))["replay"]
    assert (await said(socket))["sequence"] == 1
    await http.post(f"/api/v1/replays/{other}/cancel")
    assert (await said(socket))["state"] == "cancelled"


async def test_who_has_left_ends_the_replay(log: Starlette, gateway: Served, http: httpx.AsyncClient, bus: Bus) -> None:
    for number in range(50):
        await commit(bus, number)
    async with connect(gateway.ws, additional_headers=HEADERS) as socket:
        replay = (await ask(socket, action="replay", rate=2))["replay"]
        await said(socket)

    async def failed() -> bool:
        return str((await http.get(f"/api/v1/replays/{replay}")).json()["state"]).startswith("failed")

    await until(failed, 20)
    assert (await http.get(f"/api/v1/replays/{replay}")).json()["error"] == "the subscriber has gone"
    async with connect(gateway.ws, additional_headers=HEADERS) as socket:
        answer = await ask(socket, action="replay", rate=2)
        await said(socket)
        left = await ask(socket, action="unsubscribe", subscription=answer["subscription"])
        assert left == {"type": "unsubscribed", "subscription": answer["subscription"]}
        assert (await http.get(f"/api/v1/replays/{answer['replay']}")).json()["state"] == "cancelled"


async def test_events_with_line_breaks_and_odd_bytes_come_as_they_are(
    log: Starlette, socket: ClientConnection, bus: Bus
) -> None:
    raw = (
        b'{"type":"Custom","data":{"event":"Odd","payload":{ "a":\n "\xc3\xbc\\u0000" }},"metadata":{"id":"evt_o",'
        b'"timestamp":"2026-11-21T10:00:00.000000Z","source":{"kind":"user","id":"t"},"actor":"user:t",'
        b'"correlation_id":"c"}}\n'
    )
    await bus.store(Outgoing(bus.names.event("default", "main", "Custom", "Odd", None), raw))
    await ask(socket, action="replay")
    frames, _ = await until_replayed(socket)
    assert frames[0]["event"]["data"]["payload"] == {"a": "ü\x00"}
