"""The Python SDK of Crucible: `Crucible`, `AsyncCrucible` and `verify_webhook`."""

from crucible_client.aio import AsyncCrucible
from crucible_client.calls.events import Count
from crucible_client.errors import SignatureError, UnreachableError
from crucible_client.results import Batch, BatchItem, Page, Written
from crucible_client.retries import Retries
from crucible_client.signing import check_signature, verify_webhook
from crucible_client.subscription import Notice
from crucible_client.sync import Crucible

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
