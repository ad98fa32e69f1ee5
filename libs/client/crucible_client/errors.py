"""Errors of the client itself; all others are the gateway's answers, in `crucible_core.errors`.

CrucibleError
├── UnavailableError
│   └── UnreachableError   nothing answered at the URL, or the connection broke
└── SignatureError         a webhook's signature does not hold: do not trust the request
"""

import socket
import ssl
from collections.abc import Iterator
from typing import ClassVar, Literal

import httpx

from crucible_core.errors import CrucibleError, UnavailableError
from crucible_core.network import BROKEN, NO_ANSWER, NO_TLS, certificate_reason, connection_reason

_LOOKUP = {socket.EAI_NONAME: "its name was not found", socket.EAI_AGAIN: "no name server answered"}

SignaturePart = Literal["webhook-id", "webhook-timestamp", "webhook-signature", "x-crucible-signature", "secret"]


class UnreachableError(UnavailableError):
    """`sent` says whether the gateway may have received the request before the connection failed."""

    def __init__(self, detail: str, *, sent: bool) -> None:
        super().__init__(detail)
        self.sent = sent


class SignatureError(CrucibleError):
    """`part` names the header (or the secret) that failed."""

    code: ClassVar[str] = "signature"

    def __init__(self, part: SignaturePart, detail: str) -> None:
        super().__init__(f"{part}: {detail}", part=part)
        self.part = part


def unreachable(error: httpx.TransportError, url: str) -> UnreachableError:
    """httpx's failure in our words."""
    never_sent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    what = "it takes too long" if isinstance(error, httpx.TimeoutException) else reason_of(error)
    return UnreachableError(f"no answer from {url}: {what}", sent=not never_sent)


def reason_of(error: BaseException) -> str:
    """The cause below a library's failure, in words for users."""
    for cause in _causes(error):
        match cause:
            case ssl.SSLCertVerificationError():
                return certificate_reason(cause.verify_code)
            case ssl.SSLError():
                return NO_TLS
            case socket.gaierror():
                return _LOOKUP.get(cause.errno or 0, "its name could not be looked up")
            case OSError(errno=int()):
                return connection_reason(cause.errno)
            case httpx.RemoteProtocolError() | EOFError():
                return NO_ANSWER
    return BROKEN


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from, the members of groups too."""
    if error is not None:
        yield error
        yield from _causes(error.__cause__ or error.__context__)
        if isinstance(error, BaseExceptionGroup):
            for member in error.exceptions:
                yield from _causes(member)
