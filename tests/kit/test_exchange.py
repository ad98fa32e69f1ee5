"""Exchanges with real servers on loopback, and with a resolver and sockets that only record."""

import asyncio
import contextlib
import errno
import gc
import gzip
import socket
import ssl
import sys
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from crucible_kit.http.egress import LOOPBACK, open_guard, parse_target
from crucible_kit.http.exchange import Answer, ExchangeError, Exchanger, open_exchanger, reason_of

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HERE = open_guard(LOOPBACK)


class Names(AbstractResolver):
    """Answers with the addresses that it was given, the next list each time."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            ResolveResult(
                hostname=host,
                host=text,
                port=port,
                family=socket.AF_INET6 if ":" in text else socket.AF_INET,
                proto=0,
                flags=0,
            )
            for text in answer
        ]

    async def close(self) -> None:
        pass


class Sockets:
    """Remembers what would be connected to, and connects to nothing."""

    def __init__(self) -> None:
        self.addresses: list[str] = []

    def __call__(self, place: Any) -> socket.socket:
        self.addresses.append(place[4][0])
        raise OSError(errno.ECONNREFUSED, "not in a test")


@contextlib.asynccontextmanager
async def serving(talk: Talk) -> AsyncIterator[int]:
    talking: set[asyncio.Task[None]] = set()

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await talk(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talking.add(asyncio.create_task(served(reader, writer)))

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.wait(talking, timeout=5)


def saying(text: bytes) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65_536)
        writer.write(text)
        await writer.drain()

    return talk


async def post(exchanger: Exchanger, url: str, timeout_s: float = 5.0) -> Answer:
    return await exchanger.send("POST", parse_target(url), {}, b"{}", timeout_s)


async def answer_of(text: bytes) -> Answer:
    async with serving(saying(text)) as port, open_exchanger(HERE) as exchanger:
        return await post(exchanger, f"http://127.0.0.1:{port}/")


async def failure_of(talk: Talk, scheme: str = "http", timeout_s: float = 5.0) -> str:
    async with serving(talk) as port, open_exchanger(HERE) as exchanger:
        with pytest.raises(ExchangeError) as failed:
            await post(exchanger, f"{scheme}://127.0.0.1:{port}/", timeout_s)
    return str(failed.value)


# ---- Where it connects to


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "64:ff9b::7f00:1", "fe80::1%eth0"]
)
@pytest.mark.parametrize("reaching", [False, True])
async def test_name_of_a_closed_address_is_not_connected_to(address: str, reaching: bool) -> None:
    sockets = Sockets()
    async with open_exchanger(open_guard([]), Names([address]), sockets) as exchanger:
        with pytest.raises(ExchangeError, match=r"h.example leads to .* address, which CRUCIBLE_EGRESS_ALLOW"):
            await (
                exchanger.check_reachable(parse_target("https://h.example/"), 5)
                if reaching
                else post(exchanger, "http://h.example/")
            )
    assert sockets.addresses == []


@pytest.mark.parametrize("reaching", [False, True])
async def test_only_what_is_open_of_all_answers_is_connected_to(reaching: bool) -> None:
    sockets, names = Sockets(), Names(["10.0.0.1", "93.184.215.14", "::1", "2606:4700::1111"])
    async with open_exchanger(open_guard([]), names, sockets) as exchanger:
        with pytest.raises(ExchangeError, match="the connection was refused"):
            await (
                exchanger.check_reachable(parse_target("http://h.example/"), 5)
                if reaching
                else post(exchanger, "http://h.example/")
            )
    assert sorted(set(sockets.addresses)) == ["2606:4700::1111", "93.184.215.14"]
    assert names.asked == ["h.example"]


async def test_name_that_changes_its_address_is_judged_where_it_leads_to() -> None:
    sockets, names = Sockets(), Names(["93.184.215.14"], ["127.0.0.1"])
    async with open_exchanger(open_guard([]), names, sockets) as exchanger:
        for _ in range(3):
            with pytest.raises(ExchangeError):
                await exchanger.check_reachable(parse_target("http://h.example/"), 5)
    assert set(sockets.addresses) == {"93.184.215.14"}


@pytest.mark.parametrize("host", ["127。0。0。1", "①②⑦.0.0.1", "[::ffff:127.0.0.1]", "[::1]", "169.254.169.254"])
async def test_closed_address_in_a_url_is_not_connected_to(host: str) -> None:
    sockets, names = Sockets(), Names(["93.184.215.14"])
    async with open_exchanger(open_guard([]), names, sockets) as exchanger:
        target = parse_target(f"http://{host}:9/")
        for asked in (exchanger.send("POST", target, {}, b"", 5.0), exchanger.check_reachable(target, 5.0)):
            with pytest.raises(ExchangeError, match="CRUCIBLE_EGRESS_ALLOW"):
                await asked
    assert (sockets.addresses, names.asked) == ([], [])


async def test_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (await answer_of(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")).status == 200


async def test_address_of_six_is_reached_as_it_is_written() -> None:
    try:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with server, open_exchanger(HERE) as exchanger:
        port = server.sockets[0].getsockname()[1]
        await exchanger.check_reachable(parse_target(f"http://[0:0::1]:{port}/"), 5.0)
        with pytest.raises(ExchangeError, match="closed without an answer"):
            await post(exchanger, f"http://[::1]:{port}/")


async def test_redirect_is_an_answer() -> None:
    answer = await answer_of(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n")
    assert (answer.status, answer.headers["location"]) == (302, "http://127.0.0.1:9/")


async def test_dry_run_reaches_an_endpoint_that_listens() -> None:
    async with serving(saying(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port, open_exchanger(HERE) as exchanger:
        await exchanger.check_reachable(parse_target(f"http://127.0.0.1:{port}/"), 5.0)
        with pytest.raises(ExchangeError, match="TLS: the other side does not speak it at this port"):
            await exchanger.check_reachable(parse_target(f"https://127.0.0.1:{port}/"), 5.0)


# ---- How much it reads


@pytest.mark.parametrize("size", [0, 10, 65_536, 65_537, 1_000_000])
async def test_body_is_read_to_its_bound(size: int) -> None:
    answer = await answer_of(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
    assert len(answer.body) == min(size, 65_536)
    assert answer.complete == (size <= 65_536)


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("X-GZIP", gzip.compress)]
)
async def test_packed_body_is_unpacked_to_the_same_bound(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    for text in (b"hello", b"0" * 50_000_000):
        packed = pack(text)
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(packed)}\r\n\r\n".encode()
        answer = await answer_of(head + packed)
        assert answer.body == text[:65_536]
        assert answer.complete == (len(text) < 65_536)
        assert "content-encoding" not in answer.headers


async def test_body_that_cannot_be_unpacked_says_so() -> None:
    for encoding in (b"gzip", b"br", b"gzip, gzip"):
        for body in (b"xyz", b"x", gzip.compress(b"hello")[:-1]):
            head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (encoding, len(body))
            answer = await answer_of(head + body)
            assert (answer.headers["content-encoding"], answer.body) == (encoding.decode(), body)


async def test_headers_are_read_to_their_bound() -> None:
    fine = b"".join(b"X-%d: %b\r\n" % (number, b"v" * 8000) for number in range(7))
    assert (await answer_of(b"HTTP/1.1 200 OK\r\n" + fine + b"Content-Length: 0\r\n\r\n")).status == 200
    for large in (fine * 2, b"X: " + b"v" * 100_000 + b"\r\n", b"X: y\r\n" * 10_000):
        assert "header" in await failure_of(saying(b"HTTP/1.1 200 OK\r\n" + large + b"Content-Length: 0\r\n\r\n"))


async def test_answer_that_drips_ends_with_the_deadline() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    assert await failure_of(drip, timeout_s=0.3) == "no answer within 0.3 s"


# ---- How failures read


async def test_failures_are_told_in_plain_words() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    assert await failure_of(hang_up) == "the connection was closed without an answer"
    broken = await failure_of(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"))
    assert broken == "the connection broke off within the answer"
    assert "not HTTP" in await failure_of(saying(b"SSH-2.0-x\r\n\r\n"))
    assert "does not speak it" in await failure_of(saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "https")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with open_exchanger(HERE) as exchanger:
        with pytest.raises(ExchangeError, match=r"^the connection was refused$"):
            await post(exchanger, f"http://127.0.0.1:{port}/")


async def test_header_that_http_does_not_allow_is_not_sent() -> None:
    async with serving(saying(b"")) as port, open_exchanger(HERE) as exchanger:
        with pytest.raises(ExchangeError, match="a header of it holds what HTTP does not allow"):
            await exchanger.send("POST", parse_target(f"http://127.0.0.1:{port}/"), {"X": "a\nb"}, b"", 5.0)


@pytest.mark.parametrize(
    ("code", "words"),
    [(10, "has expired"), (18, "signed by itself"), (20, "not trusted"), (62, "another host"), (1, "not trusted")],
)
def test_bad_certificate_is_told_in_plain_words(code: int, words: str) -> None:
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    error.verify_code = code
    assert words in reason_of(error)
    assert "SSL" not in reason_of(error)


def test_failure_that_nobody_thought_of_shows_no_text_of_a_library() -> None:
    assert reason_of(OSError("Multiple exceptions: [Errno 111] Connect call failed")) == "the connection failed"
    assert reason_of(OSError(errno.EHOSTDOWN, "x")) == "the connection failed (EHOSTDOWN)"


async def test_body_that_reached_nobody_is_let_go() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        target = parse_target(f"http://127.0.0.1:{closed.getsockname()[1]}/")
        body = b"x" * 1000
        async with open_exchanger(HERE) as exchanger:
            gc.disable()
            try:
                before = sys.getrefcount(body)
                for _ in range(3):
                    with contextlib.suppress(ExchangeError):
                        await exchanger.send("POST", target, {}, body, 5.0)
                assert sys.getrefcount(body) == before
            finally:
                gc.enable()
