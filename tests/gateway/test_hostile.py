"""Input that means harm, or was made by a broken program: a clear answer in bounded time, and never a 5xx."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from crucible_core.limits import EVENT_BYTES, HEAD_BYTES, REQUEST_HEADERS
from crucible_kit.http.connection import Connection
from tests.cases import each_of

from .conftest import HEADERS, KEY, Answers, Serve, Served, until

PATH = "/api/v1/events"
JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}
PROBLEM = "application/problem+json"


class Hasty(Connection):
    head_s = 0.4
    linger_s = 0.4


def event(payload: str, rest: str = "") -> bytes:
    return f'{{"type": "Custom.X", "payload": {payload}{rest}}}'.encode()


def nested(depth: int) -> str:
    return '{"a":' * (depth - 1) + "{}" + "}" * (depth - 1)


# ---- bodies ----------------------------------------------------------------------------------------------------------


REFUSED: list[tuple[bytes, int, str | None]] = [
    (b'{"type": 7}', 422, "type"),
    (b'{"type": null}', 422, "type"),
    (event("[]"), 422, "payload"),
    (event('"text"'), 422, "payload"),
    (event("null"), 422, "payload"),
    (event("{}", ', "entity": []'), 422, "entity"),
    (event("{}", ', "entty": "x"'), 422, "entty"),
    (event("{}", f', "expected_sequence": {2**70}'), 422, "expected_sequence"),
    (event("{}", ', "expected_sequence": 1e400'), 422, "expected_sequence"),
    (event("{}", ', "expected_sequence": 1.5'), 422, "expected_sequence"),
    (event("{}", f', "expected_sequence": {"9" * 5000}'), 422, "expected_sequence"),
    (event('{"n": 1e400}'), 422, "payload.n"),
    (event('{"n": NaN}'), 400, None),
    (event('{"n": 01}'), 400, None),
    (event('{"n": "\\ud800"}'), 400, None),
    (event('{"n": "') + b'\xff"}}', 400, None),
    (event(nested(64)), 400, None),
    (event("[" * 100_000), 400, None),
    (event('{"n": "a\x00b"}'), 400, None),
    (event('{"a": 1, "a": 2}'), 400, "payload.a"),
    (event("{}", ', "typ\\u0065": "Custom.Y"'), 400, "type"),
    (event("{}") + b"{}", 400, None),
    (event('{"n": "' + "x" * 1024 * 1024 + '"}'), 413, None),
]


async def test_refused(http: httpx.AsyncClient, log: None) -> None:
    for body, status, path in REFUSED:
        answer = await http.post(PATH, content=body)
        assert (answer.status_code, answer.headers["Content-Type"]) == (status, PROBLEM), (body[:99], answer.text)
        if path is not None:
            assert answer.json()["errors"][0]["path"] == path, (body[:99], answer.text)
        assert len(answer.content) < 2000, "what was sent is not sent back at length"
        # In a batch the same is one result among others.
        lines = body.replace(b"\n", b" ") + b"\n" + event("{}")
        first, second = (await http.post(PATH, content=lines, headers=NDJSON)).json()["results"]
        assert first["error"]["status"] == status, (body[:99], first)
        assert second["sequence"] >= 1


@pytest.mark.parametrize("size", [EVENT_BYTES, EVENT_BYTES + 100, 3 * EVENT_BYTES])
async def test_too_long_an_event_is_413_in_every_batch(http: httpx.AsyncClient, log: None, size: int) -> None:
    long, short = event('{"n": "' + "x" * size + '"}'), event("{}")
    for kind, body in ((JSON, b"[%b, %b]" % (long, short)), (NDJSON, long + b"\n" + short)):
        first, second = (await http.post(PATH, content=body, headers=kind)).json()["results"]
        assert (first["error"]["status"], first["error"]["max_bytes"]) == (413, EVENT_BYTES)
        assert second["sequence"] >= 1
        answer = await http.post(PATH, content=body, headers=kind, params={"atomic": "true"})
        assert answer.status_code == 413, answer.text


@each_of(
    "payload",
    [
        f'{{"n": {2**70}}}',
        '{"n": -0.0, "m": 1E5}',
        nested(63),
        '{"": {"": ""}}',
        '{"n": "\\u0000"}',
    ],
)
async def test_odd_but_legal(http: httpx.AsyncClient, log: None, payload: str) -> None:
    answer = await http.post(PATH, content=event(payload))
    assert answer.status_code == 201, answer.text
    read = await http.get(f"{PATH}/{answer.json()['id']}")
    assert read.status_code == 200
    assert payload in read.text, "bytes pass through"


async def test_a_line_without_end_is_not_held(http: httpx.AsyncClient, events: Answers) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'{"type": "Custom.X", "payload": {"x": "'
        for _ in range(30):
            yield b"x" * 1024 * 1024
        yield b'"}}\n' + event("{}")

    answer = await http.post(PATH, content=endless(), headers=NDJSON)
    first, second = answer.json()["results"]
    assert (first["error"]["status"], second["sequence"]) == (413, 1)


async def test_a_body_without_end_is_cut_off(http: httpx.AsyncClient, events: Answers) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(70):
            yield b"\n \r\n" * 256 * 1024

    started = time.monotonic()
    assert (await http.post(PATH, content=endless(), headers=NDJSON)).status_code == 413
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"[" + b",".join([b"1"] * 100_001) + b"]", "application/json"),
        (b"[" + b'{"a":[1,2],"b":"],"},' * 1_500_000 + b"1]", "application/json"),
        (b"[" + b"1," * 30_000_000 + b"1]", "application/json"),
        (b"1\n" * 100_001, "application/x-ndjson"),
    ],
    ids=["array", "objects", "numbers", "lines"],
)
async def test_more_events_than_an_answer_could_tell_of(
    gateway: Served, events: Answers, body: bytes, kind: str
) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, headers=HEADERS, timeout=60) as http:
        answer = await http.post(PATH, content=body, headers={"Content-Type": kind})
    assert (answer.status_code, "100000 events" in answer.text) == (413, True), answer.text[:200]


async def test_many_commas_are_no_many_events(http: httpx.AsyncClient, events: Answers) -> None:
    vectors = ",".join(['{"type": "Custom.X", "payload": {"v": [' + "0.1, " * 200_000 + "1]}}"] * 6)
    answer = await http.post(PATH, content=f"[{vectors}]", headers={"Content-Type": "application/json"})
    assert answer.json()["committed"] == 6


# ---- parameters ------------------------------------------------------------------------------------------------------


REFUSED_PARAMETERS: list[tuple[str, str]] = [
    ("limit=0", "limit"),
    ("limit=1001", "limit"),
    ("limit=1e400", "limit"),
    ("limit=null", "limit"),
    ("limit=", "limit"),
    ("limit=1&limit=2", "limit"),
    (f"after={2**70}", "after"),
    (f"after={'9' * 5000}", "after"),
    ("after=-1", "after"),
    ("limt=5", "limt"),
    ("order=up", "order"),
    ("type=Memory.Creatd", "type"),
    ("from_time=yesterday", "from_time"),
    ("from_time=2026-11-21T10:00:00Z&to_time=2026-11-20T10:00:00Z", "to_time"),
    ("cursor=x", "cursor"),
    ("cursor=%00", "cursor"),
    ("cursor=" + "A" * 5000, "cursor"),
    ("cursor=eyJxdWVyeSI6IngiLCJwb3NpdGlvbiI6MX0", "cursor"),
    ('filter={"n": {"matches": "(?=a)"}}', "filter.n.match"),
    ('filter={"n": {"matches": "(((a{1,99}){1,99}){1,99}){1,99}"}}', "filter.n.match"),
    ('filter={"n": {"matchs": "a"}}', "filter.n.match"),
    ("filter=[]", "filter"),
    ("filter=null", "filter"),
    ("filter=%22x%22", "filter"),
    (f"min_sequence={2**62}", "min_sequence"),
    ("min_sequence=null", "min_sequence"),
]


async def test_refused_parameters(http: httpx.AsyncClient, log: None) -> None:
    for query, path in REFUSED_PARAMETERS:
        answer = await http.get(f"{PATH}?{query}")
        assert answer.status_code == 422, (query[:99], answer.text)
        assert answer.json()["errors"][0]["path"].startswith(path), (query[:99], answer.text)


async def test_unreadable_parameters(http: httpx.AsyncClient, log: None) -> None:
    for query in ("filter={", "filter=" + "[" * 200, "filter=%ff", "type=%ff", "%ff=1", "&".join(["a=1"] * 300)):
        answer = await http.get(f"{PATH}?{query}")
        assert answer.status_code in (400, 422), (query, answer.text)


async def test_cursor_of_another_query_is_refused(http: httpx.AsyncClient, log: None) -> None:
    for _ in range(3):
        last = await http.post(PATH, content=event("{}"))
    page = (await http.get(PATH, params={"limit": 1, "min_sequence": last.json()["sequence"]})).json()
    assert (await http.get(PATH, params={"limit": 1, "cursor": page["next_cursor"]})).status_code == 200
    answer = await http.get(PATH, params={"order": "desc", "cursor": page["next_cursor"]})
    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, "cursor")


async def test_costly_patterns_take_linear_time(http: httpx.AsyncClient, log: None) -> None:
    last = await http.post(PATH, content=event(json.dumps({"n": "a" * 500_000})))
    wanted = json.dumps({"n": {"matches": "^(a*)*(a|aa)+$|(x+x+)+y"}})
    started = time.monotonic()
    found = await http.get(PATH, params={"filter": wanted, "min_sequence": last.json()["sequence"]})
    assert len(found.json()["events"]) == 1
    assert time.monotonic() - started < 5


async def test_odd_paths_are_not_found(http: httpx.AsyncClient, log: None) -> None:
    for name in ("%ff", "%00", "..%2f..%2fetc", "a" * 5000, "%F0%9F%98%80", "%2e%2e", "x%0d%0aSet-Cookie:a"):
        answer = await http.get(f"{PATH}/{name}")
        assert answer.status_code == 404, (name, answer.text)
        assert "set-cookie" not in answer.headers


# ---- methods ---------------------------------------------------------------------------------------------------------


async def test_other_methods_are_405_and_allow_tells_which(gateway: Served, http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        known = {method.upper() for method in operations}
        known |= {"HEAD"} if "GET" in known else set()
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE"} - known:
            answer = await http.request(method, path)
            assert (answer.status_code, answer.headers["Content-Type"]) == (405, PROBLEM), (method, path)
            assert set(answer.headers["Allow"].split(", ")) - {"OPTIONS"} == known, (method, path)
        answer = await http.options(path)
        assert set(answer.headers["Allow"].split(", ")) - {"OPTIONS"} == known, path


# ---- connections -----------------------------------------------------------------------------------------------------


Pipe = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def connected(gateway: Served) -> AsyncIterator[Pipe]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def head(method: str = "POST", path: str = PATH, **headers: Any) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in {"Host": "x", "X_API_Key": KEY, **headers}.items()]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode()


async def answered(reader: asyncio.StreamReader, within_s: float = 5.0) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the next answer."""
    async with asyncio.timeout(within_s):
        status = int((await reader.readline()).split()[1])
        fields = {}
        while line := (await reader.readline()).decode().strip():
            name, _, value = line.partition(": ")
            fields[name.lower()] = value
        return status, fields, await reader.readexactly(int(fields.get("content-length", 0)))


async def closed(reader: asyncio.StreamReader, within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""


@contextlib.asynccontextmanager
async def trickling(writer: asyncio.StreamWriter, piece: bytes) -> AsyncIterator[None]:
    """Sends a little now and then, until nobody listens."""

    async def send() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.05)

    task = asyncio.create_task(send())
    try:
        yield
    finally:
        task.cancel()


async def test_half_a_body_is_no_event_and_no_failure(
    gateway: Served, http: httpx.AsyncClient, events: Answers
) -> None:
    for fields in ({"Content_Length": 1000}, {"Transfer_Encoding": "chunked"}):
        async with connected(gateway) as (_, writer):
            writer.write(head(**fields) + (b"5\r\n" if "Transfer_Encoding" in fields else b"") + b'{"typ')
            await writer.drain()

    async def counted() -> bool:
        return f'route="{PATH}",status="400"}} 2.0' in (await http.get("/metrics")).text

    await until(counted)
    assert 'status="500"' not in (await http.get("/metrics")).text
    assert events.asked == []


@pytest.mark.parametrize("kind", ["application/json", "application/x-ndjson", "application/cloudevents+json"])
async def test_a_body_that_trickles_is_408(start: Serve, events: Answers, kind: str) -> None:
    async with start(Hasty, body_timeout_s=0.5) as gateway, connected(gateway) as (reader, writer):
        writer.write(head(Content_Length=100_000, Content_Type=kind) + b"{")
        async with trickling(writer, b" "):
            status, fields, body = await answered(reader)
            assert (status, fields["content-type"]) == (408, PROBLEM)
            assert json.loads(body)["type"].endswith("/too_slow")
            await closed(reader)


async def test_a_body_may_take_longer_where_more_of_it_came(start: Serve, events: Answers) -> None:
    async with start(body_timeout_s=0.3) as gateway, httpx.AsyncClient(base_url=gateway.url, headers=HEADERS) as http:

        async def steady() -> AsyncIterator[bytes]:
            for _ in range(5):
                yield event(json.dumps({"x": "x" * 20_000})) + b"\n"
                await asyncio.sleep(0.15)

        answer = await http.post(PATH, content=steady(), headers=NDJSON)
        assert answer.json()["committed"] == 5


async def test_a_body_that_nobody_reads_ends_the_connection(start: Serve) -> None:
    async with start(Hasty) as gateway, connected(gateway) as (reader, writer):
        writer.write(head(path="/nope", Content_Length=10**9))
        async with trickling(writer, b"x"):
            assert (await answered(reader))[0] == 404
            await closed(reader)


async def test_a_head_that_trickles_is_408(start: Serve) -> None:
    async with start(Hasty) as gateway, connected(gateway) as (reader, writer):
        writer.write(b"POST /api/v1/events HTTP/1.1\r\n")
        async with trickling(writer, b"a: b\r\n"):
            status, fields, _ = await answered(reader)
            assert (status, fields["content-type"]) == (408, PROBLEM)
            await closed(reader)


async def test_silent_connections_are_closed(start: Serve) -> None:
    async with start(Hasty) as gateway:
        async with connected(gateway) as (reader, writer):
            await closed(reader)
        async with connected(gateway) as (reader, writer):
            writer.write(head("GET", "/healthz"))
            assert (await answered(reader))[0] == 200
            writer.write(b"\r\n")  # uvicorn's own timer ends here, and begins no more
            assert (await answered(reader))[0] == 408
            await closed(reader)


@pytest.mark.parametrize(
    "sent",
    [
        head("GET", "/healthz?" + "x" * HEAD_BYTES),
        head("GET", "/healthz", Long="x" * HEAD_BYTES),
        head("GET", "/healthz", **{f"h{number}": number for number in range(REQUEST_HEADERS)}),
        b"GET /" + b"x" * 20 * HEAD_BYTES,
    ],
    ids=["url", "header", "headers", "endless"],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_too_large_a_head_is_431(start: Serve, sent: bytes, at_once: bool) -> None:
    async with start(Hasty) as gateway, connected(gateway) as (reader, writer):
        step = len(sent) if at_once else 5000
        for place in range(0, len(sent), step):
            writer.write(sent[place : place + step])
        status, fields, body = await answered(reader)
        assert (status, fields["content-type"], json.loads(body)["status"]) == (431, PROBLEM, 431)
        await closed(reader)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        head(Content_Length="-1"),
        head(Content_Length="5", Transfer_Encoding="chunked"),
        head(Content_Length="5").replace(b"Content-Length", b"Content-Length: 4\r\nContent-Length"),
        head(Transfer_Encoding="chunked") + b"zz\r\n",
    ],
)
async def test_what_is_no_http_is_400(start: Serve, sent: bytes) -> None:
    async with start(Hasty) as gateway, connected(gateway) as (reader, writer):
        writer.write(sent)
        status, fields, _ = await answered(reader)
        assert (status, fields["content-type"]) == (400, PROBLEM)
        await closed(reader)


async def test_large_heads_within_the_limits_are_read(gateway: Served) -> None:
    async with connected(gateway) as (reader, writer):
        writer.write(head("GET", "/healthz", Long="x" * (HEAD_BYTES - 2000), **{f"h{n}": "" for n in range(150)}))
        assert (await answered(reader))[0] == 200
        writer.write(head("GET", "/healthz") * 3)
        assert [(await answered(reader))[0] for _ in range(3)] == [200] * 3, "one after another, sent at once"


# ---- offers to upgrade -----------------------------------------------------------------------------------------------

H2C = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2_Settings": "AAMAAABkAAQCAAAAAAIAAAAA"}
CLOUD = {"ce_specversion": "1.0", "ce_id": "1", "ce_source": "urn:x", "ce_type": "Custom.X"}


@pytest.mark.parametrize("fields", [{}, CLOUD], ids=["json", "cloudevents"])
async def test_an_event_beside_an_offer_of_http2_is_stored_whole(
    gateway: Served, events: Answers, fields: dict[str, str]
) -> None:
    payload = b'{"n": 1}'
    body = payload if fields else event(payload.decode())
    kind = {"Content_Type": "application/json"}
    async with connected(gateway) as (reader, writer):
        writer.write(head(**H2C, **fields, **kind, Content_Length=len(body)) + body)
        assert (await answered(reader))[0] == 201
        writer.write(
            head(**H2C, **fields, **kind, Transfer_Encoding="chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        )
        assert (await answered(reader))[0] in (200, 201)
        assert [bytes(request.events[0].payload) for _, request, _ in events.asked] == [payload, payload]


async def test_a_handshake_with_a_body_is_400_and_stores_nothing(gateway: Served, events: Answers) -> None:
    for path in (PATH, f"{PATH}/stream", "/healthz", "/nope"):
        async with connected(gateway) as (reader, writer):
            writer.write(head(path=path, Connection="Upgrade", Upgrade="websocket", Content_Length=2) + b"{}")
            status, fields, _ = await answered(reader)
            assert (status, fields["content-type"]) == (400, PROBLEM)
    assert events.asked == []
