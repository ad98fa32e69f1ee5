"""Bodies as programs write them: byte order marks, other encodings, and keys that stand twice."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from crucible_core.protocol.hooks import RegisterHook
from crucible_kit.nats.bus import Bus
from tests.cases import each_of

from .conftest import HEADERS, Answers, Served, answering

PATH = "/api/v1/events"
BOM = b"\xef\xbb\xbf"
EVENT = b'{"type": "Custom.X", "payload": {"n": "\xc3\xbc"}}'
PAYLOAD = b'{"n": "\xc3\xbc"}'
CLOUD_EVENT = b'{"specversion": "1.0", "id": "%d", "source": "urn:x", "type": "Custom.X", "data": {"n": "\xc3\xbc"}}'
ATTRIBUTES = {"ce-specversion": "1.0", "ce-source": "urn:x", "ce-type": "Custom.X"}

FORMS: list[tuple[str, bytes, dict[str, str]]] = [
    ("application/json", EVENT, {}),
    ("application/json", b"[%b, %b]" % (EVENT, EVENT), {}),
    ("application/x-ndjson", EVENT + b"\n" + EVENT, {}),
    ("application/cloudevents+json", CLOUD_EVENT % 1, {}),
    ("application/cloudevents-batch+json", b"[%b, %b]" % (CLOUD_EVENT % 2, CLOUD_EVENT % 3), {}),
    ("application/json", PAYLOAD, ATTRIBUTES | {"ce-id": "4"}),
    ("application/problem+json", PAYLOAD, ATTRIBUTES | {"ce-id": "5"}),
    ("", PAYLOAD, ATTRIBUTES | {"ce-id": "6"}),
]
IDS = ["json", "array", "ndjson", "structured", "batch", "binary", "binary-suffix", "binary-untyped"]


async def sent(http: httpx.AsyncClient, kind: str, body: Any, headers: dict[str, str], **params: str) -> httpx.Response:
    request = http.build_request("POST", PATH, content=body, headers=headers, params=params)
    request.headers.pop("content-type", None)
    if kind:
        request.headers["Content-Type"] = kind
    return await http.send(request)


def payloads(events: Answers) -> list[bytes]:
    return [bytes(event.payload) for _, request, _ in events.asked for event in request.events]


# ---- byte order marks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "body", "headers"), FORMS, ids=IDS)
async def test_a_byte_order_mark_is_skipped(
    http: httpx.AsyncClient, events: Answers, kind: str, body: bytes, headers: dict[str, str]
) -> None:
    async def trickled() -> AsyncIterator[bytes]:
        for place in range(12):
            yield (BOM + body)[place : place + 1]
        yield (BOM + body)[12:]

    for content in (BOM + body, trickled()):
        events.asked.clear()
        answer = await sent(http, kind, content, headers)
        assert answer.status_code in (200, 201), answer.text
        assert set(payloads(events)) == {PAYLOAD}
        assert "error" not in answer.text


async def test_a_large_array_may_have_a_mark(http: httpx.AsyncClient, events: Answers) -> None:
    body = BOM + b"[" + b",".join([EVENT] * 30_000) + b"]"
    assert (await sent(http, "application/json", body, {})).json()["committed"] == 30_000


async def test_joined_files_have_a_mark_each(http: httpx.AsyncClient, events: Answers) -> None:
    file = BOM + EVENT + b"\r\n"
    assert (await sent(http, "application/x-ndjson", file * 3, {})).json()["committed"] == 3


async def test_a_mark_alone_is_an_empty_body(http: httpx.AsyncClient, events: Answers) -> None:
    for kind in ("application/json", "application/x-ndjson", "application/cloudevents+json"):
        answer = await sent(http, kind, BOM, {})
        assert (answer.status_code, events.asked) == (400, []), answer.text


async def test_bytes_that_are_no_text_keep_theirs(http: httpx.AsyncClient, events: Answers) -> None:
    for kind, body in (("application/octet-stream", BOM + b"x"), ("image/x-icon", b"\x00\x00\x01\x00")):
        answer = await sent(http, kind, body, ATTRIBUTES | {"ce-id": kind})
        assert answer.status_code == 201, answer.text
    assert [json.loads(payload)["data_base64"] for payload in payloads(events)] == ["77u/eA==", "AAABAA=="]


@each_of("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
async def test_other_encodings_are_a_clear_400(http: httpx.AsyncClient, events: Answers, encoding: str) -> None:
    for kind, body, headers in FORMS:
        before = len(events.asked)
        answer = await sent(http, kind, body.decode().encode(encoding), headers)
        if kind:
            assert (answer.status_code, len(events.asked)) == (400, before), (kind, answer.text)
            assert f"{encoding[:6].upper()}: send it as UTF-8" in answer.json()["detail"]


async def test_every_json_body_may_have_a_mark(gateway: Served, http: httpx.AsyncClient, bus: Bus) -> None:
    kind = {"Content-Type": "application/json"}
    async with answering(bus, "hooks", register=RegisterHook) as hooks:
        hooks.replies["register"] = lambda request: RegisterHook(definition=request.definition)
        answer = await http.post("/api/v1/hooks", content=BOM + b'{"name": "h"}', headers=kind)
        assert (answer.status_code, hooks.last.definition) == (201, {"name": "h"})
    async with connect(gateway.ws, additional_headers=HEADERS) as socket:
        await socket.send('\ufeff{"action": "ping"}')
        assert json.loads(await socket.recv()) == {"type": "pong"}


# ---- keys that stand twice -------------------------------------------------------------------------------------------

TWICE = b'{"secret": "bad", "deep": [{"s\\u0065cret": 1, "secret": 2}]}'
AT = "deep.0.secret"
ONE: list[tuple[str, bytes, dict[str, str], str]] = [
    ("application/json", b'{"type": "Custom.X", "payload": %b}' % TWICE, {}, f"payload.{AT}"),
    (
        "application/json",
        b'{"type": "Custom", "data": {"event": "X", "payload": %b}}' % TWICE,
        {},
        f"payload.{AT}",
    ),
    ("application/json", b'{"type": "Custom.X", "type": "Custom.Y"}', {}, "type"),
    ("application/json", b'{"type": "Custom.X", "payload": {"a": 1}, "payload": {}}', {}, "payload"),
    ("application/json", b'{"type": "Custom.X", "p\\u0061yload": {"a": 1}, "payload": {}}', {}, "payload"),
    (
        "application/json",
        b'{"type": "Custom", "data": {"event": "X"}, "metadata": {"actor": "user:a", "actor": "user:b"}}',
        {},
        "metadata.actor",
    ),
    (
        "application/json",
        b'{"type": "Custom", "data": {"event": "X"}, "metadata": {"extensions": {"a": 1, "a": 2}}}',
        {},
        "metadata.extensions.a",
    ),
    ("application/cloudevents+json", CLOUD_EVENT % 1 + b"", {}, ""),
    ("application/cloudevents+json", (CLOUD_EVENT % 1).replace(b'{"n"', b'{"n": 1, "n"'), {}, "data.n"),
    ("application/cloudevents+json", (CLOUD_EVENT % 1).replace(b'"id"', b'"id": "2", "id"'), {}, "id"),
    ("application/cloudevents+json", (CLOUD_EVENT % 1).replace(b'"data"', b'"data": {}, "data"'), {}, "data"),
    ("application/json", TWICE, ATTRIBUTES | {"ce-id": "4"}, f"data.{AT}"),
    ("application/json", b"[%b]" % TWICE, ATTRIBUTES | {"ce-id": "4"}, f"data.0.{AT}"),
    ("", TWICE, ATTRIBUTES | {"ce-id": "4"}, f"data.{AT}"),
]


@each_of(("kind", "body", "headers", "path"), ONE)
async def test_a_key_that_stands_twice_is_400(
    http: httpx.AsyncClient, log: None, kind: str, body: bytes, headers: dict[str, str], path: str
) -> None:
    before = (await http.get(f"{PATH}/count")).json()
    answer = await sent(http, kind, body, headers)
    if not path:
        assert answer.status_code == 201, answer.text
        await http.get(PATH, params={"min_sequence": answer.json()["sequence"]})
        return
    assert answer.status_code == 400, answer.text
    assert (await http.get(f"{PATH}/count")).json() == before
    assert [error["path"] for error in answer.json()["errors"]] == [path]
    assert path in answer.json()["detail"]


@pytest.mark.parametrize("kind", ["application/json", "application/x-ndjson", "application/cloudevents-batch+json"])
async def test_in_a_batch_it_is_one_result_among_others(http: httpx.AsyncClient, log: None, kind: str) -> None:
    cloud = "cloudevents" in kind
    good = CLOUD_EVENT % 1 if cloud else EVENT
    bad, path = (good.replace(b'{"n"', b'{"n": 1, "n"'), "data.n" if cloud else "payload.n")
    body = b"\n".join([bad, good]) if "ndjson" in kind else b"[%b, %b]" % (bad, good)
    first, second = (await sent(http, kind, body, {})).json()["results"]
    assert (first["error"]["status"], first["error"]["errors"][0]["path"]) == (400, path)
    assert second["sequence"] == 1
    answer = await sent(http, kind, body, {}, atomic="true")
    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (400, f"0.{path}")


async def test_every_json_body_is_read_so(gateway: Served, http: httpx.AsyncClient) -> None:
    kind = {"Content-Type": "application/json"}
    for method, path in (
        ("POST", "/api/v1/hooks"),
        ("POST", "/api/v1/webhooks"),
        ("POST", "/api/v1/memory"),
        ("POST", "/api/v1/memory/query"),
        ("POST", "/api/v1/event-types"),
        ("POST", "/api/v1/worlds"),
        ("POST", "/api/v1/events/replay"),
        ("PUT", "/api/v1/retention"),
    ):
        answer = await http.request(method, path, content=b'{"x": {"a": 1, "a": 2}}', headers=kind)
        assert answer.status_code in (400, 422), (path, answer.text)
        again = await http.request(method, path, content=b'{"name": "a", "name": "a"}', headers=kind)
        assert again.status_code in (400, 422), (path, again.text)
    answer = await http.get(PATH, params={"filter": '{"a": 1, "a": 2}'})
    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (400, "filter.a")
    async with connect(gateway.ws, additional_headers=HEADERS) as socket:
        await socket.send('{"action": "subscribe", "filters": [{"event_type": "*", "filter": {"a": 1, "a": 2}}]}')
        told = json.loads(await socket.recv())
        assert (told["type"], told["error"]["errors"][0]["path"]) == ("error", "filters.0.filter.a")
