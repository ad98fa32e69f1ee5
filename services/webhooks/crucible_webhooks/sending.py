"""One HTTP exchange with an endpoint, bounded in time and size. The only module that imports aiohttp."""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from .verdict import Response

KEPT_BYTES = 2048
"""How much of an answer is kept with its attempt."""
_READ_BYTES = 64 * 1024
_LOOKUP_S = 5.0


class PublicResolver(AbstractResolver):
    """Resolves to public addresses only, so that a webhook cannot reach into the operator's network (SSRF)."""

    def __init__(self) -> None:
        self._resolver = _resolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        public = [address for address in found if ipaddress.ip_address(address["host"]).is_global]
        if not public:
            raise OSError(f"{host} has no public address")
        return public

    async def close(self) -> None:
        await self._resolver.close()


class Sender:
    """A pool of connections to all endpoints; what limits them is each webhook's own concurrency."""

    def __init__(self, session: aiohttp.ClientSession, private_targets: bool) -> None:
        self._session = session
        self._private_targets = private_targets

    async def send(self, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> Response:
        """Posts, and never raises: what went wrong is the answer's `error`. `timeout_s` bounds the whole exchange."""
        refusal = self._refusal(url)
        if refusal:
            return Response(error=refusal)
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._session.post(url, data=body, headers=headers, allow_redirects=False) as answer,
            ):
                kept = await _beginning(answer)
                return Response(answer.status, kept, None, _retry_after(answer.headers.get("Retry-After")))
        except TimeoutError:
            return Response(error=f"no answer within {timeout_s:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Response(error=f"{type(error).__name__}: {error}"[:500])

    async def reach(self, host: str, port: int, tls: bool, timeout_s: float) -> str | None:
        """Connects and hangs up; None, or why it did not work."""
        try:
            async with asyncio.timeout(timeout_s):
                _, writer = await asyncio.open_connection(host, port, ssl=tls or None)
                writer.close()
        except TimeoutError:
            return f"no connection within {timeout_s:g} s"
        except OSError as error:
            return str(error)
        return None

    def _refusal(self, url: str) -> str | None:
        # A host that is an address already is never given to the resolver.
        if self._private_targets:
            return None
        with contextlib.suppress(ValueError):
            if not ipaddress.ip_address(urlsplit(url).hostname or "").is_global:
                return "the endpoint's address is not public"
        return None


@contextlib.asynccontextmanager
async def open_sender(private_targets: bool) -> AsyncIterator[Sender]:
    resolver = _resolver() if private_targets else PublicResolver()
    connector = aiohttp.TCPConnector(limit=0, resolver=resolver, keepalive_timeout=30)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    ) as session:
        yield Sender(session, private_targets)


def _resolver() -> aiohttp.AsyncResolver:
    # Not in threads: look-ups that hang cannot be cancelled there, and would use up the threads of everybody else.
    return aiohttp.AsyncResolver(timeout=_LOOKUP_S, tries=2)


async def _beginning(answer: aiohttp.ClientResponse) -> str:
    kept = await answer.content.read(KEPT_BYTES)
    remaining = _READ_BYTES
    while remaining > 0 and (more := await answer.content.read(remaining)):
        remaining -= len(more)
    if remaining <= 0:
        answer.close()  # a longer answer is not read to its end; the connection is not kept
    return kept.decode("utf-8", "replace")


def _retry_after(header: str | None) -> float | None:
    return float(header) if header and header.isascii() and header.isdigit() and len(header) < 9 else None
