"""The Python SDK of Crucible: `Crucible`, `AsyncCrucible` and `verify_webhook`."""

from .aio import AsyncCrucible
from .errors import SignatureError, UnreachableError
from .results import Batch, BatchItem, Page, Written
from .retries import Retries
from .signing import check_signature, verify_webhook
from .subscription import Notice
from .sync import Crucible
from .tally import Count

__all__ = [
    "AsyncCrucible",
    "Batch",
    "BatchItem",
    "Count",
    "Crucible",
    "Notice",
    "Page",
    "Retries",
    "SignatureError",
    "UnreachableError",
    "Written",
    "check_signature",
    "verify_webhook",
]
