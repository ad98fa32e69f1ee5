"""The event stream: from any point of the past into live, with no hole and no repeat, over WebSocket and SSE."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from crucible_core.protocol.worlds import PlaceRequest
from crucible_gateway.live import hub as hubs
from crucible_kit.nats.bus import Bus
from tests.cases import each_of

from .conftest import HEADERS, Serve, Served, answering, commit, until

ALL = [{"event_type": "*"}]
STREAM = "/api/v1/events/stream"
SSE = {"Accept": "text/event-stream"}


async def said(socket: ClientConnection) -> Any:
    return json.loads(await asyncio.wait_for(socket.recv(), 15))


async def ask(socket: ClientConnection, **message: Any) -> Any:
    await socket.send(json.dumps(message))
    return await said(socket)


async def subscribe(socket: ClientConnection, **message: Any) -> str:
    answer = await ask(socket, action="subscribe", **message)
    assert answer["type"] == "subscribed", answer
    return str(answer["subscription"])


async def numbers(socket: ClientConnection, count: int) -> list[int]:
    """`n` of the next so many events; other frames are skipped."""
    found: list[int] = []
    while len(found) < count:
        frame = await said(socket)
        if frame["type"] == "event":
            assert frame["event"]["sequence"] == frame["sequence"]
            found.append(frame["event"]["data"]["payload"]["n"])
    return found


@pytest.fixture
async def socket(gateway: Served) -> AsyncIterator[ClientConnection]:
    async with connect(gateway.ws, additional_headers=HEADERS) as opened:
        yield opened


async def test_live_event_arrives(socket: ClientConnection, bus: Bus) -> None:
    await commit(bus, 0)
    subscription = await subscribe(socket, filters=ALL)
    sequence = await commit(bus, 1, text="ü")
    frame = await said(socket)
    assert (frame["type"], frame["subscription"], frame["sequence"]) == ("event", subscription, sequence)
    assert frame["event"]["data"]["payload"] == {"n": 1, "text": "ü"}


async def test_filters_world_and_room_choose(socket: ClientConnection, bus: Bus) -> None:
    filters = [{"event_type": "Custom.*", "filter": {"n": {"gt": 2}}}, {"event_type": "file.created"}]
    async with answering(bus, "events", place=PlaceRequest) as events:
        events.replies["place"] = PlaceRequest()
        await subscribe(socket, filters=filters, world_id="w", **{"from": "start"})
    for n, world, kind in [
        (1, "w", "Custom.Tick"),
        (3, "v", "Custom.Tick"),
        (4, "w", "Custom.Tick"),
        (2, "w", "File.Created"),
        (5, "w", "Memory.Created"),
        (9, "w", "Custom.Other"),
    ]:
        await commit(bus, n, world, kind)
    assert await numbers(socket, 3) == [4, 2, 9]


async def test_past_then_caught_up_then_live(socket: ClientConnection, bus: Bus) -> None:
    sequences = [await commit(bus, n) for n in range(5)]
    await subscribe(socket, filters=ALL, **{"from": sequences[1]})
    assert await numbers(socket, 3) == [2, 3, 4]
    assert (await said(socket))["type"] == "caught_up"
    await commit(bus, 5)
    assert await numbers(socket, 1) == [5]


async def test_caught_up_comes_after_what_was_remembered(socket: ClientConnection, bus: Bus) -> None:
    live = await subscribe(socket, filters=ALL)
    before = await commit(bus, 1)
    sequence = await commit(bus, 2)
    assert await numbers(socket, 2) == [1, 2]
    late = await subscribe(socket, filters=ALL, **{"from": before})
    frames = [await said(socket) for _ in range(2)]
    assert [(frame["type"], frame["sequence"]) for frame in frames] == [("event", sequence), ("caught_up", sequence)]
    assert {frame["subscription"] for frame in frames} == {late} != {live}


async def test_from_a_time(socket: ClientConnection, bus: Bus) -> None:
    await commit(bus, 1)
    await subscribe(socket, filters=ALL, **{"from": "2020-01-01T00:00:00Z"})
    assert await numbers(socket, 1) == [1]
    assert (await said(socket))["type"] == "caught_up"
    other = await subscribe(socket, filters=ALL, **{"from": "2090-01-01T00:00:00Z"})
    frame = await said(socket)
    assert (frame["type"], frame["subscription"]) == ("caught_up", other)


async def test_join_under_load_has_no_hole_and_no_repeat(gateway: Served, bus: Bus) -> None:
    """Sockets and SSE begin anywhere while thousands of events are written."""
    total = 3000
    begun = asyncio.Event()

    async def write() -> None:
        for at in range(0, total, 20):
            await asyncio.gather(*(commit(bus, n) for n in range(at, at + 20)))
            if at >= 600:
                begun.set()

    async def watch(start: Any) -> list[int]:
        async with connect(gateway.ws, additional_headers=HEADERS, max_queue=None) as socket:
            await subscribe(socket, filters=ALL, **{"from": start})
            return await all_after(socket, start)

    async def all_after(socket: ClientConnection, start: Any) -> list[int]:
        found: list[int] = []
        while True:
            frame = await said(socket)
            if frame["type"] == "event":
                found.append(frame["sequence"])
                if frame["sequence"] == total:
                    return found

    async def watch_sse(start: int) -> list[int]:
        async with httpx.AsyncClient(base_url=gateway.url, headers=HEADERS | SSE, timeout=20) as client:
            found = []
            async with client.stream("GET", STREAM, params={"from": start}) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: ") and '"metadata"' in line:
                        found.append(json.loads(line[6:])["sequence"])
                        if found[-1] == total:
                            break
            return found

    writing = asyncio.create_task(write())
    await asyncio.wait_for(begun.wait(), 20)
    watching = [asyncio.create_task(watch(start)) for start in ("start", 100, 500, "start", "now")]
    sse = [asyncio.create_task(watch_sse(start)) for start in (0, 300)]
    results = await asyncio.wait_for(asyncio.gather(*watching, *sse), 40)
    await writing
    starts = [0, 100, 500, 0, results[4][0] - 1, 0, 300]
    for start, found in zip(starts, results, strict=True):
        assert found == list(range(start + 1, total + 1))


async def test_live_events_go_on_after_a_broken_connection(socket: ClientConnection, gateway: Served, bus: Bus) -> None:
    await subscribe(socket, filters=ALL)
    await commit(bus, 1)
    assert await numbers(socket, 1) == [1]
    gateway.app.state.gateway.hub._reading._cut()
    for n in range(2, 6):
        await commit(bus, n)
    assert await numbers(socket, 4) == [2, 3, 4, 5]


async def test_slow_reader_gets_a_gap_and_then_everything(start: Serve, bus: Bus) -> None:
    async with (
        start(stream_queue=20) as gateway,
        connect(gateway.ws, additional_headers=HEADERS) as fast,
        httpx.AsyncClient(base_url=gateway.url, headers=HEADERS | SSE, timeout=20) as client,
        client.stream("GET", STREAM) as slow,
    ):
        await subscribe(fast, filters=ALL)
        lines = slow.aiter_lines()
        await anext(lines)
        total = 200
        for n in range(total):
            await commit(bus, n, text="x" * 100_000)
            # The one that reads is not held up by the one that does not.
            assert await numbers(fast, 1) == [n]
        found, gaps = [], 0
        while len(found) < total:
            line = await asyncio.wait_for(anext(lines), 15)
            gaps += line == "event: gap"
            if line.startswith("data: ") and '"metadata"' in line:
                found.append(json.loads(line[6:])["data"]["payload"]["n"])
        assert found == list(range(total))
        assert gaps


async def test_what_a_client_says_wrong_is_answered(socket: ClientConnection) -> None:
    for raw, path, suggestion in [
        ("{", None, None),
        ("[]", None, None),
        ('"x"', None, None),
        ('{"action": "subscibe"}', "action", "subscribe"),
        ('{"action": 5}', "action", None),
        ('{"action": "subscribe", "filter": []}', "filter", "filters"),
        (
            '{"action": "subscribe", "filters": [{"event_type": "Memory.Creatd"}]}',
            "filters.0.event_type",
            "Memory.Created",
        ),
        ('{"action": "subscribe", "filters": [{"event_type": "*", "filtr": {}}]}', "filters.0.filtr", "filter"),
        ('{"action": "subscribe", "from": "tomorrow"}', "from", None),
        ('{"action": "subscribe", "from": -1}', "from", None),
        ('{"action": "subscribe", "from": "٣"}', "from", None),
        ('{"action": "subscribe", "from": 7}', "from", None),
        ('{"action": "unsubscribe", "subscription": "sub_x"}', None, None),
    ]:
        await socket.send(raw)
        answer = await said(socket)
        assert answer["type"] == "error"
        assert answer["error"]["status"] in (400, 404, 422)
        if path:
            error = answer["error"]["errors"][0]
            assert (error["path"], error.get("suggestion")) == (path, suggestion)
    assert await ask(socket, action="ping") == {"type": "pong"}


async def test_unsubscribed_hears_no_more(socket: ClientConnection, gateway: Served, bus: Bus) -> None:
    first = await subscribe(socket, filters=ALL)
    second = await subscribe(socket, filters=[{"event_type": "Custom.Tick"}])
    assert await ask(socket, action="unsubscribe", subscription=first) == {
        "type": "unsubscribed",
        "subscription": first,
    }
    await commit(bus, 1)
    assert (await said(socket))["subscription"] == second
    await socket.close()
    await until(lambda: not gateway.app.state.gateway.hub._readers)


async def test_a_socket_has_so_many_subscriptions(socket: ClientConnection) -> None:
    for _ in range(100):
        await subscribe(socket, filters=ALL)
    answer = await ask(socket, action="subscribe", filters=ALL)
    assert answer["error"]["type"].endswith("/limited")


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
async def test_handshake_without_a_key_is_401(gateway: Served, headers: dict[str, str]) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(gateway.ws, additional_headers=headers):
            pass
    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body)["type"].endswith("/unauthenticated")


async def test_sse_frames_and_resumption(http: httpx.AsyncClient, bus: Bus) -> None:
    for n in range(4):
        await commit(bus, n)
    params = {"type": ["Custom.Tick", "Custom.Other"], "filter": '{"n": {"not_equals": 2}}', "from": "start"}
    async with http.stream("GET", STREAM, params=params, headers=SSE | {"Last-Event-ID": "1"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.aiter_lines()
        found = [await asyncio.wait_for(anext(lines), 10) for _ in range(9)]
    assert found[:2] == ["retry: 1000", ""]
    assert found[2:4] == ["id: 2", "event: event"]
    assert json.loads(found[4].removeprefix("data: "))["sequence"] == 2
    assert found[6:8] == ["id: 4", "event: event"]


async def test_a_subscription_to_what_nobody_emits_says_so(socket: ClientConnection, http: httpx.AsyncClient) -> None:
    told = ["nobody emits Webhook.Failing yet: reserved"]
    for types, warnings in ((["Webhook.Failing", "Custom.Tick"], told), (["Webhook.*"], None)):
        answer = await ask(socket, action="subscribe", filters=[{"event_type": type} for type in types])
        assert answer.get("warnings") == warnings
    for start, sequence in (("now", 0), ("start", None)):
        params = {"type": "Webhook.Failing", "from": start}
        async with http.stream("GET", STREAM, params=params, headers=SSE) as answer:
            lines = answer.aiter_lines()
            found = [await asyncio.wait_for(anext(lines), 10) for _ in range(5)]
        data = json.loads(next(line.removeprefix("data: ") for line in found if line.startswith("data: ")))
        assert "event: subscribed" in found
        assert (data.get("sequence"), data["warnings"]) == (sequence, told)


async def test_silent_stream_beats(start: Serve) -> None:
    async with start(stream_heartbeat_s=0.05) as gateway:
        client = httpx.AsyncClient(base_url=gateway.url, headers=HEADERS | SSE)
        async with client, client.stream("GET", STREAM) as answer:
            async for line in answer.aiter_lines():
                if line == ": heartbeat":
                    break


@each_of(
    ("query", "headers", "status"),
    [
        ("", {"Accept": "application/json"}, 406),
        ("type=Memory.Creatd", SSE, 422),
        ("filter={", SSE, 400),
        ('filter={"n":{"foo":1}}', SSE, 422),
        ("from=soon", SSE, 422),
        ("frm=now", SSE, 422),
        ("from=7", SSE, 422),
        ("", SSE | {"Last-Event-ID": "x"}, 422),
        ("", SSE | {"Last-Event-ID": "7"}, 422),
    ],
)
async def test_bad_stream_request_is_a_problem(
    http: httpx.AsyncClient, query: str, headers: dict[str, str], status: int
) -> None:
    answer = await http.get(f"{STREAM}?{query}", headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


async def test_hub_listens_only_while_somebody_does(gateway: Served, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = gateway.app.state.gateway.hub
    monkeypatch.setattr(hubs, "_LINGER_S", 0.05)
    for _ in range(2):
        assert not hub._open.is_set()
        async with connect(gateway.ws, additional_headers=HEADERS) as socket:
            await subscribe(socket, filters=ALL)
            await commit(bus, 1)
            assert await numbers(socket, 1) == [1]
        await until(lambda: not hub._open.is_set())
