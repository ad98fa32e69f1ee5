"""The gateway's WebSocket, opened for either client; its failures in our words."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import websockets.asyncio.client
import websockets.sync.client
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from crucible_client.errors import UnreachableError, reason_of
from crucible_client.response import raise_for
from crucible_client.settings import ClientSettings
from crucible_core.errors import CrucibleError

PATH = "/api/v1/events/stream"
_FAILURES = (OSError, EOFError, TimeoutError, ConnectionClosed, InvalidHandshake)


@contextmanager
def open_socket(settings: ClientSettings) -> Iterator[websockets.sync.client.ClientConnection]:
    """A connection for as long as the block lasts, within which its failures are translated too. Raises
    UnreachableError, and what the gateway refuses it with."""
    opened = False
    try:
        with websockets.sync.client.connect(_address(settings), **_options(settings)) as socket:
            opened = True
            yield socket
    except _FAILURES as error:
        raise _translated(error, settings.url, opened) from error


@asynccontextmanager
async def open_async_socket(settings: ClientSettings) -> AsyncIterator[websockets.asyncio.client.ClientConnection]:
    """The same, awaited."""
    opened = False
    try:
        async with websockets.asyncio.client.connect(_address(settings), **_options(settings)) as socket:
            opened = True
            yield socket
    except _FAILURES as error:
        raise _translated(error, settings.url, opened) from error


def _address(settings: ClientSettings) -> str:
    return f"ws{settings.url.removeprefix('http')}{PATH}"


def _options(settings: ClientSettings) -> dict[str, Any]:
    """The pings find out within a minute that the other side is gone. A frame holds one event. As for other requests,
    proxies of the environment are not used."""
    headers = {"authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    limits = {
        "open_timeout": 10,
        "ping_interval": 20,
        "ping_timeout": 20,
        "close_timeout": 2,
        "max_size": 2**22,
        "proxy": None,
    }
    return {"additional_headers": headers, **limits}


def _translated(error: Exception, url: str, opened: bool) -> CrucibleError:
    if isinstance(error, InvalidStatus):
        response = error.response
        headers = {name.lower(): value for name, value in response.headers.raw_items()}
        try:
            raise_for(response.status_code, headers, bytes(response.body))
        except CrucibleError as refusal:
            return refusal
    return UnreachableError(f"no answer from {url}: {_reason(error)}", sent=opened)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError) and error.errno is None:
        return "it takes too long"
    if isinstance(error, ConnectionClosed) and error.rcvd and error.rcvd.reason:
        return f"the connection was closed: {error.rcvd.reason}"
    if isinstance(error, InvalidHandshake) and error.__cause__ is None:
        return "it does not speak WebSocket"
    return reason_of(error)
