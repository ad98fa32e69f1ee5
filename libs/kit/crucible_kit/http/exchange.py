"""HTTP exchanges with a URL: through the egress guard, limited in time and size, with failures in plain words. Only
this module imports aiohttp."""

import asyncio
import contextlib
import functools
import ipaddress
import logging
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from urllib.parse import quote

import aiodns
import aiohappyeyeballs
import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult

from crucible_core import subjects
from crucible_core.envelope import Metadata
from crucible_core.errors import without_frames
from crucible_core.limits import ANSWER_BYTES, ANSWER_HEADER_BYTES
from crucible_core.network import BROKEN, NO_ANSWER, NO_TLS, certificate_reason, connection_reason
from crucible_kit.http.egress import Guard, Target
from crucible_kit.telemetry.spans import Attribute, Telemetry

log = logging.getLogger(__name__)

SocketFactory = Callable[[aiohappyeyeballs.AddrInfoType], socket.socket]

_REFUSED = 400
_LOOKUP_S = 5.0
_FIELD_BYTES = 16 * 1024
_EYEBALLS_S = 0.25
_PLAIN = "".join(char for char in map(chr, range(33, 127)) if char != "%")
_PACKED = {"gzip": 31, "x-gzip": 31, "deflate": 47}
"""The window bits of zlib for each encoding."""


class ExchangeError(Exception):
    """There is no answer. The text is the reason, for users; `kind` is one of few words for telemetry."""

    def __init__(self, text: str, kind: str = "refused") -> None:
        super().__init__(text)
        self.kind = kind


class _LookupError(OSError):
    """A name has no address to connect to. The text is the reason, for users."""


class Answer(msgspec.Struct, frozen=True):
    """`headers` are by lower-case name. `complete` is False where the body was longer than what is read of it; a
    `content-encoding` among the headers says that the body could not be unpacked."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    complete: bool = True


class Exchanger:
    """A pool of connections to all endpoints; its users limit the number to each."""

    def __init__(
        self, session: aiohttp.ClientSession, guard: Guard, resolver: "GuardedResolver", tls: ssl.SSLContext
    ) -> None:
        self._session = session
        self._resolver = resolver
        self._tls = tls
        self.guard = guard
        self._refusal = functools.lru_cache(maxsize=1024)(guard.refusal)
        self.telemetry = Telemetry()
        """Makes a span of each exchange, below the `traceparent` in its headers."""

    async def send(
        self, method: str, target: Target, headers: Mapping[str, str], body: bytes | None, timeout_s: float
    ) -> Answer:
        """`timeout_s` bounds the whole exchange. Redirects are answers as any other. Raises ExchangeError."""
        self._check(target)
        about = _span_attributes(method, target) if self.telemetry.recording else None
        with self.telemetry.span(method, headers.get(subjects.TRACEPARENT), "client", about) as span:
            if subjects.TRACEPARENT in headers:
                headers = {**headers, subjects.TRACEPARENT: span.traceparent}
            try:
                answer = await self._exchange(method, target, headers, body, timeout_s)
            except ExchangeError as error:
                span.fail(error.kind, str(error))
                raise
            span.set("http.response.status_code", answer.status)
            if answer.status >= _REFUSED:
                span.fail(str(answer.status))
            return answer

    async def _exchange(
        self, method: str, target: Target, headers: Mapping[str, str], body: bytes | None, timeout_s: float
    ) -> Answer:
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._session.request(
                    method, target.url, data=body, headers=headers, allow_redirects=False
                ) as response,
            ):
                return await _read_answer(response)
        except TimeoutError:
            raise ExchangeError(f"no answer within {timeout_s:g} s", "timeout") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            log.debug("%s %s: %r", method, target.origin, error)
            reason, kind = reason_of(error), type(error).__name__.lstrip("_")
            without_frames(error)  # uvloop's keep it, and it would keep ours, with the body
            raise ExchangeError(reason, kind) from None

    async def check_reachable(self, target: Target, timeout_s: float) -> None:
        """Connects as `send` does, and hangs up. Raises ExchangeError."""
        self._check(target)
        try:
            async with asyncio.timeout(timeout_s):
                await self._connect(target)
        except TimeoutError:
            raise ExchangeError(f"no connection within {timeout_s:g} s") from None
        except OSError as error:
            log.debug("%s: %r", target.origin, error)
            reason = reason_of(error)
            without_frames(error)
            raise ExchangeError(reason) from None

    async def _connect(self, target: Target) -> None:
        hosts = await self._resolver.addresses(target)
        addresses = [(host["family"], socket.SOCK_STREAM, 0, "", (host["host"], target.port)) for host in hosts]
        opened = await aiohappyeyeballs.start_connection(
            addresses, happy_eyeballs_delay=_EYEBALLS_S, socket_factory=self._resolver.socket_factory
        )
        tls, name = (self._tls, target.host) if target.tls else (None, None)
        try:
            _, writer = await asyncio.open_connection(sock=opened, ssl=tls, server_hostname=name)
        except BaseException:
            opened.close()
            raise
        writer.close()

    def _check(self, target: Target) -> None:
        if target.address is not None and (refusal := self._refusal(target.host, target.address)):
            raise ExchangeError(refusal)


class GuardedResolver(AbstractResolver):
    """Looks hosts up, and returns only the addresses that the guard allows: connections go to these alone."""

    def __init__(
        self, guard: Guard, resolver: AbstractResolver | None = None, socket_factory: SocketFactory | None = None
    ) -> None:
        # Not in threads: look-ups that hang cannot be cancelled there, and would use up the threads of everybody else.
        self._resolver = resolver or aiohttp.AsyncResolver(timeout=_LOOKUP_S, tries=2)
        self._guard = guard
        self.socket_factory = socket_factory

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        try:
            found = await self._resolver.resolve(host, port, family)
        except OSError as error:
            raise _LookupError(_lookup_reason(host, error)) from None
        refusals = [self._guard.refusal(host, ipaddress.ip_address(result["host"])) for result in found]
        allowed = [result for result, refusal in zip(found, refusals, strict=True) if refusal is None]
        if not allowed:
            raise _LookupError(next(filter(None, refusals), f"the name {host} has no address"))
        return allowed

    async def addresses(self, target: Target) -> list[ResolveResult]:
        if target.address is None:
            return await self.resolve(target.host, target.port)
        family = socket.AF_INET if target.address.version == 4 else socket.AF_INET6
        return [
            ResolveResult(hostname=target.host, host=target.host, port=target.port, family=family, proto=0, flags=0)
        ]

    async def close(self) -> None:
        await self._resolver.close()


@contextlib.asynccontextmanager
async def open_exchanger(
    guard: Guard, resolver: AbstractResolver | None = None, socket_factory: SocketFactory | None = None
) -> AsyncIterator[Exchanger]:
    """`resolver` looks names up and `socket_factory` makes the socket for an address, where those of the system do not.

    No variable of the environment (HTTP_PROXY and the like) changes where requests go.
    """
    guarded = GuardedResolver(guard, resolver, socket_factory)
    tls = ssl.create_default_context()
    connector = aiohttp.TCPConnector(
        limit=0,
        ssl=tls,
        resolver=guarded,
        keepalive_timeout=30,
        happy_eyeballs_delay=_EYEBALLS_S,
        socket_factory=socket_factory,
    )
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity"},
        auto_decompress=False,
        trust_env=False,
        max_line_size=_FIELD_BYTES,
        max_field_size=_FIELD_BYTES,
    ) as session:
        yield Exchanger(session, guard, guarded, tls)


def chain_headers(about: Metadata) -> dict[str, str]:
    """Headers of a request that an event causes: a caller that sends them back continues the event's chain."""
    correlation = quote(about.correlation_id, safe=_PLAIN)
    traceparent = {subjects.TRACEPARENT: about.traceparent} if about.traceparent else {}
    return {subjects.HOP: str(about.hop), subjects.CORRELATION_ID: correlation, **traceparent}


def _span_attributes(method: str, target: Target) -> dict[str, Attribute | None]:
    # Of the URL only its origin: the rest may be a secret, as that of a chat's webhook is.
    return {
        "http.request.method": method,
        "server.address": target.host,
        "server.port": target.port,
        "url.full": target.origin,
    }


# ---- The answer


async def _read_answer(response: aiohttp.ClientResponse) -> Answer:
    # aiohttp bounds each header and their number, together at some MiB.
    if sum(len(name) + len(value) for name, value in response.raw_headers) > ANSWER_HEADER_BYTES:
        response.close()
        raise ExchangeError(f"the answer's headers are larger than {ANSWER_HEADER_BYTES // 1024} KiB")
    body = await _read_body(response)
    headers = {name.lower(): value for name, value in response.headers.items()}
    encoding = headers.get("content-encoding", "").strip().lower()
    unpacked = _unpack(body, encoding)
    if unpacked is not None:
        body = unpacked
        headers.pop("content-encoding", None)
    return Answer(response.status, headers, body[:ANSWER_BYTES], len(body) <= ANSWER_BYTES)


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    """Reads the body up to one byte over the limit."""
    body = bytearray()
    while len(body) <= ANSWER_BYTES and (more := await response.content.read(ANSWER_BYTES + 1 - len(body))):
        body += more
    if len(body) > ANSWER_BYTES:
        response.close()  # the rest is not read, so the connection cannot be kept
    return bytes(body)


def _unpack(body: bytes, encoding: str) -> bytes | None:
    """Unpacks the body up to one byte over the limit; None where it cannot be unpacked."""
    if encoding in ("", "identity"):
        return body
    if encoding not in _PACKED:
        return None
    unpacker = zlib.decompressobj(_PACKED[encoding])
    try:
        found = unpacker.decompress(body, ANSWER_BYTES + 1)
    except zlib.error:
        return None
    return found if unpacker.eof or len(found) > ANSWER_BYTES else None


# ---- Failures


def reason_of(error: BaseException) -> str:
    """The reason of a failed connection or answer, in words for users."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return reason_of(error.certificate_error)
        case aiohttp.ClientConnectorError():
            return reason_of(error.os_error)
        case ssl.SSLCertVerificationError():
            return certificate_reason(error.verify_code)
        case ssl.SSLError():
            return NO_TLS
        case aiohttp.ServerDisconnectedError():
            return NO_ANSWER
        case aiohttp.ClientPayloadError():
            return f"{BROKEN} within the answer"
        case aiohttp.ClientResponseError():
            return "the answer is not HTTP, or a header of it is too long"
        case _LookupError():
            return str(error)
        case OSError():
            return connection_reason(error.errno)
        case ValueError():
            return "the request cannot be sent: a header of it holds what HTTP does not allow"
    return connection_reason(None)


def _lookup_reason(host: str, error: OSError) -> str:
    code = error.__cause__.args[0] if isinstance(error.__cause__, aiodns.error.DNSError) else None
    match code:
        case aiodns.error.ARES_ENOTFOUND:
            return f"the name {host} was not found"
        case aiodns.error.ARES_ENODATA:
            return f"the name {host} has no address"
        case aiodns.error.ARES_ETIMEOUT | aiodns.error.ARES_ECONNREFUSED:
            return f"the name {host} could not be looked up: no name server answered"
    return f"the name {host} could not be looked up"
