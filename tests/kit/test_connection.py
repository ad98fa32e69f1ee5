"""HTTP/1.1 as clients speak it: the bytes that come in, and what the app and the client see of them."""

import asyncio
import contextlib
import itertools
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from crucible_core.limits import HEAD_BYTES
from crucible_kit.http.connection import Connection
from crucible_kit.http.server import WEBSOCKET

PROBLEM = "application/problem+json"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}
H2C = {"Connection": "Upgrade, HTTP2-Settings", "HTTP2-Settings": "AAMAAABkAAQCAAAAAAIAAAAA", "Upgrade": "h2c"}


class Hasty(Connection):
    head_s = 0.4
    linger_s = 0.4
    stall_s = 0.4


class Answer(NamedTuple):
    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def seen(self) -> Any:
        """What the app saw of the request."""
        return json.loads(self.body)


class Client(NamedTuple):
    """A connection, and what came and went on it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, *pieces: bytes) -> None:
        """Each piece in a packet of its own."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0.02)

    async def answer(self, method: str = "GET") -> Answer:
        async with asyncio.timeout(5):
            status = int((await self.reader.readline()).split()[1])
            fields = {}
            while line := (await self.reader.readline()).decode().strip():
                name, _, value = line.partition(": ")
                fields[name.lower()] = value
            if method == "HEAD" or status < 200:
                return Answer(status, fields, b"")
            return Answer(status, fields, await self._body(fields))

    async def _body(self, fields: dict[str, str]) -> bytes:
        if fields.get("transfer-encoding") != "chunked":
            size = int(fields.get("content-length", -1))
            return await (self.reader.readexactly(size) if size >= 0 else self.reader.read())
        body = b""
        while size := int(await self.reader.readline(), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readline()
        return body

    async def ask(self, *pieces: bytes) -> Answer:
        await self.send(*pieces)
        return await self.answer("HEAD" if pieces[0].startswith(b"HEAD") else "GET")

    async def closed(self) -> None:
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                assert await self.reader.read() == b""


def head(method: str = "POST", path: str = "/echo", /, *, version: str = "1.1", **fields: Any) -> bytes:
    return raw(method, path, {name.replace("_", "-"): value for name, value in fields.items()}, version)


def raw(method: str, path: str, fields: dict[str, Any], version: str = "1.1") -> bytes:
    lines = [f"{name}: {value}" for name, value in {"Host": "x", **fields}.items()]
    return "\r\n".join([f"{method} {path} HTTP/{version}", *lines, "", ""]).encode()


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


# ---- the app ---------------------------------------------------------------------------------------------------------


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await (_refuse if scope["path"].startswith("/refuse") else _converse)(scope, receive, send)
    elif scope["path"] in _ANSWERS:
        await _ANSWERS[scope["path"]](scope, receive, send)
    else:
        await _respond(send, b"", status=404)


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    seen = {"method": scope["method"], "path": scope["path"], "query": scope["query_string"].decode()}
    names = sorted(name.decode() for name, _ in scope["headers"])
    await _respond(send, json.dumps({**seen, "body": body.decode("latin-1"), "headers": names}).encode())


async def _unread(scope: Scope, receive: Receive, send: Send) -> None:
    await _respond(send, b"unread", status=403)


async def _streamed(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for piece in (b"one\n", b"", b"two\n"):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _endless(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"begun\n", "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        pass


async def _flood(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(500):
        await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _respond(send: Send, body: bytes, status: int = 200) -> None:
    fields = [(b"content-length", b"%d" % len(body)), (b"x-own", b"1")]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


_ANSWERS: dict[str, Callable[[Scope, Receive, Send], Awaitable[None]]] = {
    "/echo": _echo,
    "/unread": _unread,
    "/streamed": _streamed,
    "/endless": _endless,
    "/flood": _flood,
}


async def _converse(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    code, reason = (4404, "Nothing is here") if scope["path"].endswith("404") else (1000, "")
    await send({"type": "websocket.close", "code": code, "reason": reason})


# ---- the server ------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(ws: str, connection: type[Connection] = Connection) -> AsyncIterator[int]:
    """The port of a server as every service has it."""
    config = uvicorn.Config(app, port=0, ws=ws, http=connection, log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())
    try:
        async with asyncio.timeout(10):
            await _started(server)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        server.force_exit = True
        await task


async def _started(server: uvicorn.Server) -> None:
    while True:
        if server.started:
            return
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.fixture(params=[WEBSOCKET, "none"], ids=["gateway", "ops"])
async def port(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> AsyncIterator[int]:
    """The gateway's server, and that of the services' ops endpoints, which has no WebSockets; neither logs an error."""
    async with serving(request.param) as number:
        yield number
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.fixture
async def sockets(caplog: pytest.LogCaptureFixture) -> AsyncIterator[int]:
    async with serving(WEBSOCKET) as number:
        yield number
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.fixture
async def hasty() -> AsyncIterator[int]:
    async with serving(WEBSOCKET, Hasty) as number:
        yield number


# ---- upgrades --------------------------------------------------------------------------------------------------------

CURL = (
    b"POST /echo HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n"
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
    b'Content-Type: application/json\r\nContent-Length: 19\r\n\r\n{"type":"Custom.X"}'
)
JAVA = (
    b"POST /echo HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: 19\r\nHost: 127.0.0.1\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA\r\nUpgrade: h2c\r\n"
    b'User-Agent: Java-http-client/17.0.15\r\nContent-Type: application/json\r\n\r\n{"type":"Custom.X"}'
)
JAVA_CHUNKED = (
    b"POST /echo HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nHost: 127.0.0.1\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA\r\nTransfer-encoding: chunked\r\n"
    b"Upgrade: h2c\r\nUser-Agent: Java-http-client/17.0.15\r\nContent-Type: application/json\r\n\r\n"
    b'13\r\n{"type":"Custom.X"}\r\n0\r\n\r\n'
)
NEXT = head("GET", "/echo?next")


@pytest.mark.parametrize("sent", [CURL, JAVA, JAVA_CHUNKED], ids=["curl", "java", "java-chunked"])
async def test_a_body_beside_an_offer_of_http2_arrives(port: int, sent: bytes) -> None:
    half = sent.index(b"\r\n\r\n") + 4
    for pieces in ([sent], [sent[:half], sent[half:]], [sent[:30], sent[30 : half + 5], sent[half + 5 :]]):
        async with connected(port) as client:
            answer = await client.ask(*pieces)
            assert (answer.status, answer.seen["body"]) == (200, '{"type":"Custom.X"}'), answer
            assert (await client.ask(NEXT)).seen["query"] == "next", "the connection goes on"
    async with connected(port) as client:
        await client.send(sent * 3 + NEXT)
        assert [(await client.answer()).seen["body"] for _ in range(4)] == ['{"type":"Custom.X"}'] * 3 + [""]


async def test_bytes_one_by_one(port: int) -> None:
    async with connected(port) as client:
        for sent in (CURL, JAVA_CHUNKED, NEXT):
            for place in range(len(sent)):
                client.writer.write(sent[place : place + 1])
                await client.writer.drain()
                await asyncio.sleep(0)
        assert [(await client.answer()).seen["body"] for _ in range(3)] == ['{"type":"Custom.X"}'] * 2 + [""]


@pytest.mark.parametrize(
    "offer",
    [
        H2C,
        {"Connection": "Upgrade", "Upgrade": "h2c"},
        {"Connection": "upgrade", "Upgrade": "TLS/1.0, HTTP/2.0"},
        {"Connection": "keep-alive, Upgrade", "Upgrade": "foo/1"},
        {"Connection": "Upgrade", "Upgrade": "websockets"},
        {"Connection": "Upgrade", "Upgrade": ""},
        {"Connection": "Upgrade"},
        {"Upgrade": "websocket"},
    ],
    ids=lambda offer: str(offer.get("Upgrade")),
)
async def test_what_is_offered_is_ignored(port: int, offer: dict[str, str]) -> None:
    bodies = (({"Content-Length": 5}, b"hello"), ({"Transfer-Encoding": "chunked"}, chunked(b"hello")))
    async with connected(port) as client:
        for method in ("POST", "PUT", "PATCH", "DELETE", "GET"):
            for fields, body in bodies:
                answer = await client.ask(raw(method, "/echo?a=b", offer | fields) + body + NEXT)
                assert (answer.status, answer.seen["body"]) == (200, "hello")
                assert (answer.seen["method"], answer.seen["query"]) == (method, "a=b")
                assert (await client.answer()).seen["query"] == "next"


async def test_an_offer_over_http_1_0_is_ignored(port: int) -> None:
    for offer in (H2C, HANDSHAKE):
        async with connected(port) as client:
            answer = await client.ask(raw("POST", "/echo", offer | {"Content-Length": 5}, "1.0") + b"hello")
            assert (answer.status, answer.seen["body"]) == (200, "hello")
            await client.closed()


async def test_an_offer_with_a_close_is_answered_and_closed(port: int) -> None:
    async with connected(port) as client:
        fields = {"Connection": "close, Upgrade", "Upgrade": "h2c", "Content-Length": 5}
        answer = await client.ask(raw("POST", "/echo", fields) + b"hello" + NEXT)
        assert (answer.seen["body"], answer.fields["connection"]) == ("hello", "close")
        await client.closed()


async def test_a_large_body_beside_an_offer(port: int) -> None:
    body = b"x" * 3_000_000
    async with connected(port) as client:
        begun = raw("POST", "/echo", H2C | {"Content-Length": len(body)}) + body[:70_000]
        answer = await client.ask(begun, body[70_000:])
        assert len(answer.seen["body"]) == len(body)


async def test_an_expectation_beside_an_offer_is_met(port: int) -> None:
    async with connected(port) as client:
        first = await client.ask(raw("POST", "/echo", H2C | {"Content-Length": 5, "Expect": "100-continue"}))
        assert first.status == 100
        assert (await client.ask(b"hello")).seen["body"] == "hello"
        assert (await client.ask(NEXT)).status == 200


async def test_head_beside_an_offer(port: int) -> None:
    async with connected(port) as client:
        answer = await client.ask(raw("HEAD", "/echo", H2C))
        assert (answer.status, answer.fields["x-own"]) == (200, "1")
        assert (await client.ask(NEXT)).status == 200


async def test_many_offers_at_once(port: int) -> None:
    async with connected(port) as client:
        await client.send(raw("GET", "/unread", H2C) * 2000)
        for _ in range(2000):
            assert (await client.answer()).status == 403


@pytest.mark.parametrize("upgrade", ["websocket", "WebSocket", "foo, websocket", "h2c,websocket"])
async def test_a_handshake_with_a_body_is_400(port: int, upgrade: str) -> None:
    bodies = (
        ({"Content-Length": 5}, b"hello"),
        ({"Transfer-Encoding": "chunked"}, chunked(b"hello")),
        ({"Content-Length": 5}, b""),
    )
    for method, (fields, body) in itertools.product(("POST", "GET", "PUT"), bodies):
        async with connected(port) as client:
            answer = await client.ask(raw(method, "/echo", HANDSHAKE | {"Upgrade": upgrade} | fields), body + NEXT)
            assert (answer.status, answer.fields["content-type"]) == (400, PROBLEM)
            assert "WebSocket" in answer.seen["detail"]
            await client.closed()


async def test_a_handshake_that_is_no_get_is_400(port: int) -> None:
    for method in ("POST", "HEAD", "OPTIONS"):
        async with connected(port) as client:
            answer = await client.ask(raw(method, "/echo", HANDSHAKE) + NEXT)
            assert (answer.status, answer.fields["content-type"]) == (400, PROBLEM)
            if method != "HEAD":
                await client.closed()


async def test_ops_endpoints_answer_a_handshake_as_what_it_is_beside() -> None:
    async with serving("none") as port, connected(port) as client:
        answer = await client.ask(raw("GET", "/echo", HANDSHAKE) + NEXT)
        assert (answer.status, answer.seen["method"]) == (200, "GET")
        assert (await client.answer()).seen["query"] == "next"


async def test_connect_is_refused(port: int) -> None:
    async with connected(port) as client:
        answer = await client.ask(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n" + NEXT)
        assert (answer.status, answer.fields["content-type"]) == (405, PROBLEM)
        await client.closed()


# ---- framing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00",
        b"GET /echo HTTP/2.0\r\nHost: x\r\n\r\n",
        b"GET /echo HTTP/0.9\r\n\r\n",
        b"GET /echo\r\n\r\n",
        b"GET /echo HTTP/1.1\nHost: x\n\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\n\nhello",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\nContent-Length: 5\r\n\r\nhello",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\r\n chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length : 5\r\n\r\nhello",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 5\r\n\r\nhello",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\nhello",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 0x5\r\n\r\nhello",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\nxx",
        b"POST /echo HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello",
    ],
)
@pytest.mark.parametrize("offer", [b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"], ids=["plain", "offer"])
async def test_doubtful_framing_is_400_and_the_end(port: int, sent: bytes, offer: bytes) -> None:
    sent = sent.replace(b"Host: x\r\n", b"Host: x\r\n" + offer)
    async with connected(port) as client:
        answer = await client.ask(sent + NEXT)
        assert (answer.status, answer.fields["content-type"]) == (400, PROBLEM), answer
        await client.closed()


async def test_what_was_asked_before_is_answered_before(port: int) -> None:
    async with connected(port) as client:
        await client.send(head(Content_Length=5) + b"hello" + NEXT + b"\x16\x03\x01 no HTTP\r\n\r\n")
        assert (await client.answer()).seen["body"] == "hello"
        assert (await client.answer()).seen["query"] == "next"
        assert (await client.answer()).status == 400
        await client.closed()


async def test_a_broken_body_ends_its_request(hasty: int) -> None:
    async with connected(hasty) as client:
        await client.send(head(Transfer_Encoding="chunked") + b"5\r\nhello\r\nzz\r\n")
        assert (await client.answer()).status == 400
        await client.closed()
    async with connected(hasty) as client:
        await client.send(NEXT + head(Transfer_Encoding="chunked") + b"5\r\nhello\r\nzz\r\n")
        assert (await client.answer()).status == 200
        assert (await client.answer()).status == 400
        await client.closed()


async def test_trailers_are_no_headers(port: int) -> None:
    trailers = b"5\r\nhello\r\n0\r\nX-Api-Key: secret\r\nX-Other: b\r\n\r\n"
    async with connected(port) as client:
        answer = await client.ask(head(Transfer_Encoding="chunked"), trailers + NEXT)
        assert answer.seen["headers"] == ["host", "transfer-encoding"]
        following = (await client.answer()).seen
        assert (following["headers"], following["query"]) == (["host"], "next")


@pytest.mark.parametrize(
    "begun",
    [b"0\r\nX: ", b"0\r\nX", b"5;a=", b"1\r\nx\r\n2;a="],
)
async def test_a_body_without_end_that_is_no_body_is_cut_off(port: int, begun: bytes) -> None:
    async with connected(port) as client:
        await client.send(head(Transfer_Encoding="chunked") + begun)
        for _ in range(3 + HEAD_BYTES // 10_000):
            await client.send(b"x" * 10_000)
        assert (await client.answer()).status in (400, 431)
        await client.closed()


# ---- answers ---------------------------------------------------------------------------------------------------------


async def test_head_has_what_get_has_and_no_body(port: int) -> None:
    async with connected(port) as client:
        for path in ("/echo", "/unread", "/nowhere", "/streamed", "/endless"):
            answer = await client.ask(head("HEAD", path))
            if path == "/endless":
                fields = {"content-type": "text/plain", "transfer-encoding": "chunked"}
                whole = Answer(200, fields, b"")
            else:
                whole = await client.ask(head("GET", path))
            assert answer.status == whole.status
            names = {name for name in whole.fields if name not in ("transfer-encoding", "date")}
            assert {name: answer.fields[name] for name in names} == {name: whole.fields[name] for name in names}


async def test_http_1_0_gets_no_chunks(port: int) -> None:
    for fields in ({}, {"Connection": "keep-alive"}):
        async with connected(port) as client:
            answer = await client.ask(raw("GET", "/streamed", fields, "1.0"))
            assert (answer.status, answer.body, answer.fields["connection"]) == (200, b"one\ntwo\n", "close")
            assert "transfer-encoding" not in answer.fields
    async with connected(port) as client:
        assert (await client.ask(raw("GET", "/echo", {}, "1.0"))).seen["method"] == "GET"
        await client.closed()
    async with connected(port) as client:
        answer = await client.ask(raw("HEAD", "/streamed", {}, "1.0"))
        assert (answer.status, "transfer-encoding" in answer.fields) == (200, False)
        await client.closed()


async def test_http_1_0_is_sent_what_comes_as_it_comes(port: int) -> None:
    async with connected(port) as client:
        await client.send(raw("GET", "/endless", {}, "1.0"))
        async with asyncio.timeout(5):
            assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            assert await client.reader.readline() == b"begun\n"


async def test_http_1_0_is_told_of_no_100(port: int) -> None:
    async with connected(port) as client:
        sent = raw("POST", "/echo", {"Content-Length": 5, "Expect": "100-continue"}, "1.0")
        assert (await client.ask(sent + b"hello")).seen["body"] == "hello"


async def test_an_expectation_that_is_not_met_ends_the_connection(hasty: int) -> None:
    async with connected(hasty) as client:
        answer = await client.ask(head("POST", "/unread", Content_Length=5, Expect="100-continue"))
        assert (answer.status, answer.fields["connection"]) == (403, "close")
        await client.closed()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_an_early_answer_is_seen_though_the_body_is_not_read(hasty: int, version: str) -> None:
    body = b"x" * 20_000_000
    async with connected(hasty) as client:
        fields = {"Content-Length": len(body), "Connection": "close"}
        client.writer.write(raw("POST", "/unread", fields, version) + body)
        assert (await client.answer()).status == 403


async def test_a_client_that_reads_nothing_is_cut_off() -> None:
    lost = asyncio.Event()

    class Watched(Hasty):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            lost.set()

    async with serving(WEBSOCKET, Watched) as port, connected(port) as client:
        client.writer.write(head("GET", "/flood"))
        await asyncio.wait_for(lost.wait(), 30)
        with contextlib.suppress(ConnectionError):
            assert len(await client.reader.read()) < 50_000_000


# ---- WebSockets ------------------------------------------------------------------------------------------------------


async def test_a_handshake_is_answered(sockets: int) -> None:
    async with connect(f"ws://127.0.0.1:{sockets}/talk") as socket:
        await socket.send("hello")
        assert await socket.recv() == "hello"


async def test_a_frame_that_comes_with_the_handshake_is_not_lost(sockets: int) -> None:
    frame = bytes([0x81, 0x82, 0, 0, 0, 0]) + b"hi"
    ping = bytes([0x89, 0x80, 0, 0, 0, 0])
    async with connected(sockets) as client:
        await client.send(raw("GET", "/talk", HANDSHAKE) + ping + frame, frame)
        assert (await client.answer("HEAD")).status == 101
        assert await client.reader.readexactly(2 + 4 + 4) == b"\x8a\x00" + b"\x81\x02hi" * 2


async def test_large_headers_of_a_handshake(sockets: int) -> None:
    for fields in ({"Cookie": "x" * 30_000}, {f"X-{number}": "1" for number in range(180)}):
        async with connect(f"ws://127.0.0.1:{sockets}/talk?{'q' * 9000}", additional_headers=fields) as socket:
            await socket.send("hello")
            assert await socket.recv() == "hello"


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"Sec-WebSocket-Key": ""}, 400),
        ({"Sec-WebSocket-Key": "short"}, 400),
        ({"Sec-WebSocket-Key": None}, 400),
        ({"Sec-WebSocket-Version": None}, 400),
        ({"Sec-WebSocket-Version": "8"}, 400),
        ({"Sec-WebSocket-Extensions": "permessage-deflate; ="}, 400),
        ({"Sec-WebSocket-Protocol": "a b,,;"}, 400),
        ({"Upgrade": "foo, websocket"}, 426),
    ],
)
async def test_a_bad_handshake_is_a_problem(sockets: int, changed: dict[str, str | None], status: int) -> None:
    fields = {name: value for name, value in (HANDSHAKE | changed).items() if value is not None}
    async with connected(sockets) as client:
        answer = await client.ask(raw("GET", "/talk", fields))
        assert (answer.status, answer.fields["content-type"]) == (status, PROBLEM)
        assert (answer.seen["status"], "WebSocket" in answer.seen["detail"]) == (status, True)
        await client.closed()


async def test_odd_targets_of_a_handshake_do_no_harm(sockets: int) -> None:
    for target in ("/\u00e9", "*", "http://x", "http://x/talk", "//talk", "/%ff%00", "/talk?" + "%" * 99):
        async with connected(sockets) as client:
            answer = await client.ask(raw("GET", target, HANDSHAKE))
            assert answer.status in (101, 400, 403), target


async def test_a_refused_handshake_is_a_problem(sockets: int) -> None:
    for path, status in (("/refuse/404", 404), ("/refuse", 403)):
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://127.0.0.1:{sockets}{path}")
        response = refused.value.response
        assert (response.status_code, response.headers["Content-Type"]) == (status, PROBLEM)
        assert json.loads(response.body or b"")["status"] == status


async def test_a_handshake_behind_a_request_that_is_being_answered(sockets: int) -> None:
    async with connected(sockets) as client:
        await client.send(head("POST", Content_Length=5) + b"hello" + raw("GET", "/echo?later", HANDSHAKE))
        assert (await client.answer()).seen["body"] == "hello"
        assert (await client.answer()).seen["query"] == "later", "answered, as the offer is refused"
    async with connected(sockets) as client:
        assert (await client.ask(NEXT)).status == 200
        await client.send(raw("GET", "/talk", HANDSHAKE))
        assert (await client.answer("HEAD")).status == 101, "one after another"
