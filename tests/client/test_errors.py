"""How a gateway that cannot be reached is told of: in plain words, by both clients and over WebSocket."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator

import httpx
import pytest

from crucible_client import AsyncCrucible, Crucible, UnreachableError
from crucible_client.errors import reason_of, unreachable

TEXTS_OF_LIBRARIES = (
    "Errno",
    "attempts failed",
    "Error",
    "_ssl",
    "SSL:",
    "httpcore",
    "HTTP status line",
    "close frame",
)


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """A server that reads once, answers this to everybody, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client, contextlib.suppress(OSError):
                        client.recv(65_536)
                        client.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


async def reasons(url: str) -> set[str]:
    """What each way to the gateway says after its address."""
    said = []
    with Crucible(url, "k") as client:
        for ask in (client.hooks.list, lambda: next(client.events.subscribe("*", patience_s=0))):
            with pytest.raises(UnreachableError) as failed:
                ask()
            said.append(failed.value.detail)
    async with AsyncCrucible(url, "k") as awaited:
        with pytest.raises(UnreachableError) as failed:
            await awaited.hooks.list()
        said.append(failed.value.detail)
        with pytest.raises(UnreachableError) as failed:
            await anext(awaited.events.subscribe("*", patience_s=0))
        said.append(failed.value.detail)
    return {detail.removeprefix(f"no answer from {url}: ") for detail in said}


async def test_refused_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert await reasons(f"http://127.0.0.1:{port}") == {"the connection was refused"}


async def test_connection_that_is_closed_without_an_answer() -> None:
    with answering(b"") as port:
        assert await reasons(f"http://127.0.0.1:{port}") == {"the connection was closed without an answer"}


async def test_tls_where_there_is_none() -> None:
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        [reason] = await reasons(f"https://127.0.0.1:{port}")
    assert reason.startswith("TLS: the other side does not speak it")


def test_every_failure_has_plain_words() -> None:
    expired = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED]")
    expired.verify_code = 10
    for cause, words in (
        (expired, "TLS: the certificate has expired"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "its name was not found"),
        (ExceptionGroup("attempts", [OSError(113, "No route to host")]), "the address cannot be reached from here"),
        (OSError("All connection attempts failed"), "the connection broke off"),
    ):
        error = httpx.ConnectError(str(cause))
        error.__cause__ = cause
        assert reason_of(error) == words
        assert not any(text in unreachable(error, "http://h").detail for text in TEXTS_OF_LIBRARIES)
    assert "takes too long" in unreachable(httpx.ConnectTimeout("timed out"), "http://h").detail
