"""What can go wrong in the client itself; everything else is the gateway's answer, in `crucible_core.errors`.

CrucibleError
├── UnavailableError
│   └── UnreachableError   nothing answered at the URL, or the connection broke
└── SignatureError         a webhook's signature does not hold: do not trust the request
"""

from typing import ClassVar, Literal

import httpx

from crucible_core.errors import CrucibleError, UnavailableError

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
    what = "timed out" if isinstance(error, httpx.TimeoutException) else str(error) or type(error).__name__
    return UnreachableError(f"no answer from {url}: {what}", sent=not never_sent)
