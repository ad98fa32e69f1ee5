"""HTTP as clients speak it to the gateway: HEAD, HTTP/1.0, and handshakes that are refused."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from crucible_kit.nats.bus import Bus
from tests.cases import each_of

from .conftest import HEADERS, KEY, Served, commit, until

EVENTS = "/api/v1/events"
STREAM = f"{EVENTS}/stream"
PROBLEM = "application/problem+json"


async def spoken(gateway: Served, method: str, path: str, version: str, **fields: str) -> tuple[bytes, bytes]:
    """Head and body of the answer on a connection of its own, read until the server closes it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    lines = [
        f"{name}: {value}" for name, value in {"Host": "x", "X-API-Key": KEY, "Connection": "close", **fields}.items()
    ]
    writer.write("\r\n".join([f"{method} {path} HTTP/{version}", *lines, "", ""]).encode())
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


# ---- HEAD ------------------------------------------------------------------------------------------------------------


async def test_head_of_whatever_can_be_got(gateway: Served, http: httpx.AsyncClient, log: None) -> None:
    id = (await http.post(EVENTS, json={"type": "Custom.X"})).json()["id"]
    values = {"id": id, "correlation_id": "cor_nobody"}
    document = (await http.get("/openapi.json")).json()
    paths = [path for path, methods in document["paths"].items() if "get" in methods and path != STREAM]
    assert len(paths) > 20
    for path in [*paths, "/nope", "/api/v1/nope", f"{EVENTS}?limit=0", f"{EVENTS}?limit=1"]:
        for name, value in values.items():
            path = path.replace(f"{{{name}}}", value)
        got, head = await http.get(path), await http.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        varying = {"date", "x-correlation-id", "transfer-encoding"}
        if path == "/metrics":
            varying.add("content-length")
        for name in set(got.headers) - varying:
            assert head.headers[name] == got.headers[name], (path, name)


async def test_head_of_a_stream_ends(gateway: Served, http: httpx.AsyncClient) -> None:
    for _ in range(3):
        head = await asyncio.wait_for(http.head(STREAM, headers={"Accept": "text/event-stream"}), 5)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Type"].startswith("text/event-stream")
    async with http.stream("GET", STREAM, headers={"Accept": "text/event-stream"}) as got:
        assert set(got.headers) - set(head.headers) == {"transfer-encoding"}


async def test_head_needs_a_key(gateway: Served) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        assert (await client.head(EVENTS)).status_code == 401


# ---- HTTP/1.0 --------------------------------------------------------------------------------------------------------


async def test_http_1_0_gets_no_chunks(gateway: Served, http: httpx.AsyncClient, log: None) -> None:
    last = (await http.post(EVENTS, json=[{"type": "Custom.X"}] * 3)).json()["results"][-1]["sequence"]
    head, body = await spoken(gateway, "GET", f"{EVENTS}/export?min_sequence={last}", "1.0")
    assert b"transfer-encoding" not in head.lower()
    lines = body.split(b"\n")
    assert [json.loads(line)["type"] for line in lines[:-2]] == ["Custom"] * 3
    assert lines[-2:] == [b"", b""]
    for path in (f"{EVENTS}?min_sequence={last}", "/openapi.json", "/docs", "/nope"):
        head, body = await spoken(gateway, "GET", path, "1.0")
        assert b"transfer-encoding" not in head.lower()
        assert b"content-length: %d" % len(body) in head.lower()


async def test_http_1_0_follows_the_stream(gateway: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    writer.write(f"GET {STREAM} HTTP/1.0\r\nX-API-Key: {KEY}\r\nAccept: text/event-stream\r\n\r\n".encode())
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"transfer-encoding" not in head.lower()
        assert await reader.readline() == b"retry: 1000\n"
    writer.close()


# ---- server-sent events ----------------------------------------------------------------------------------------------


@each_of(
    "accepts",
    [
        [],
        ["*/*"],
        ["text/event-stream"],
        ["Text/Event-Stream; charset=utf-8"],
        ["text/event-stream, */*;q=0.1"],
        ["application/json;q=0.9, text/event-stream;q=0.5"],
        ["text/*"],
        ["text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"],
        ["application/json", "text/event-stream"],
        ["text/event-stream;q=0.001"],
        ["text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"],
        ["*"],
        ["text/event-stream;q=1.0000"],
        ["text/event-stream; q=2"],
        [""],
    ],
)
async def test_server_sent_events_for_what_clients_accept(gateway: Served, accepts: list[str]) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        request = client.build_request(
            "GET", STREAM, headers=[*HEADERS.items(), *(("Accept", each) for each in accepts)]
        )
        if not accepts:
            del request.headers["accept"]
        answer = await client.send(request, stream=True)
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        await answer.aclose()


@each_of(
    "accept",
    [
        "application/json",
        "text/event-stream;q=0",
        "text/html, text/plain",
        "*/*;q=0",
        "*;q=0.0",
        "*;q=.",
        "*x",
    ],
)
async def test_what_is_not_accepted_is_not_sent(http: httpx.AsyncClient, accept: str) -> None:
    answer = await http.get(STREAM, headers={"Accept": accept})
    assert (answer.status_code, answer.headers["Content-Type"]) == (406, PROBLEM)
    assert "text/event-stream" in answer.json()["detail"]


async def test_frames_without_a_name_are_what_onmessage_takes(http: httpx.AsyncClient, bus: Bus) -> None:
    sequence = await commit(bus, 1)
    for frames, name in (("named", ["event: event"]), ("unnamed", [])):
        async with http.stream("GET", STREAM, params={"from": "start", "frames": frames}) as answer:
            lines = answer.aiter_lines()
            frame = await next_frame(lines, f"id: {sequence}")
            assert [line for line in frame if not line.startswith("data: ")] == [f"id: {sequence}", *name]
            assert json.loads(frame[-1].removeprefix("data: "))["sequence"] == sequence
            assert "event: caught_up" in await next_frame(lines, f"id: {sequence}"), "others keep theirs"
    answer = await http.get(STREAM, params={"frames": "none"})
    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, "frames")


async def next_frame(lines: AsyncIterator[str], first: str) -> list[str]:
    """The next frame that begins so."""
    frame: list[str] = []
    async with asyncio.timeout(10):
        async for line in lines:
            if not line and frame and frame[0] == first:
                return frame
            frame = [*frame, line] if line else []
    raise AssertionError(f"no frame began with {first}")


# ---- refused handshakes ----------------------------------------------------------------------------------------------


@each_of(
    ("path", "headers", "status"),
    [
        (STREAM, {}, 401),
        (STREAM, {"X-API-Key": "wrong"}, 401),
        ("/nope", HEADERS, 404),
        ("/api/v1/nope", HEADERS, 404),
        ("/healthz", HEADERS, 404),
        (EVENTS, HEADERS, 404),
        (f"{STREAM}/", {}, 401),
        (f"{STREAM}?type=Memory.*", HEADERS, 422),
        (f"{STREAM}?%ff=1", HEADERS, 422),
        (STREAM, HEADERS | {"Sec-WebSocket-Extensions": "permessage-deflate; ="}, 400),
    ],
)
async def test_a_refused_handshake_is_a_problem_and_no_error(
    gateway: Served, caplog: pytest.LogCaptureFixture, path: str, headers: dict[str, str], status: int
) -> None:
    caplog.set_level(logging.INFO)
    url = f"ws{gateway.url.removeprefix('http')}{path}"
    with pytest.raises(InvalidStatus) as refused:
        await connect(url, additional_headers=headers)
    response = refused.value.response
    assert (response.status_code, response.headers["Content-Type"]) == (status, PROBLEM), response.body
    document = json.loads(response.body or b"")
    assert document["status"] == status, document
    assert [record for record in caplog.records if record.levelno >= logging.WARNING or record.exc_info] == []


async def test_a_refused_handshake_has_a_correlation_id_and_is_counted(
    gateway: Served, http: httpx.AsyncClient
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await connect(gateway.ws, additional_headers={"X-Correlation-Id": "abc"})
    response = refused.value.response
    assert response.headers["X-Correlation-Id"] == json.loads(response.body or b"")["correlation_id"] == "abc"
    assert response.headers["WWW-Authenticate"] == "Bearer"
    text = (await http.get("/metrics")).text
    assert f'crucible_http_requests_total{{method="WEBSOCKET",route="{STREAM}",status="401"}} 1.0' in text


async def test_who_leaves_during_a_handshake_is_no_error(gateway: Served, caplog: pytest.LogCaptureFixture) -> None:
    handshake = (
        f"GET {STREAM} HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
        writer.write(handshake.encode())
        writer.transport.abort()
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        await until(lambda: no_sockets(client))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def no_sockets(client: httpx.AsyncClient) -> bool:
    return "crucible_open_sockets 0.0" in (await client.get("/metrics")).text


async def test_keys_not_read_yet_are_503(gateway: Served) -> None:
    gateway.app.state.gateway.keys.principals.view.ready = False
    try:
        with pytest.raises(InvalidStatus) as refused:
            await connect(gateway.ws, additional_headers=HEADERS)
    finally:
        gateway.app.state.gateway.keys.principals.view.ready = True
    response: Any = refused.value.response
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
