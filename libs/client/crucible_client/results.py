"""Results of the client that the services' own Structs (`crucible_core.protocol`) do not say."""

from typing import Any, Generic, TypeVar

import msgspec

from crucible_client.response import error_from
from crucible_core.errors import CrucibleError

T = TypeVar("T")


class Page(msgspec.Struct, Generic[T], frozen=True):
    """One page of a longer answer; `next_cursor` asks for the next one, None after the last."""

    items: list[T]
    next_cursor: str | None = None


class BatchItem(msgspec.Struct, frozen=True):
    """One event of a batch: its `id` and `sequence`, or the `error` document that refused it."""

    id: str | None = None
    sequence: int | None = None
    duplicate: bool = False
    error: dict[str, Any] | None = None

    @property
    def exception(self) -> CrucibleError | None:
        """`error` as the exception that a single append would have raised."""
        return None if self.error is None else error_from(self.error)


class Batch(msgspec.Struct, frozen=True):
    """`results` are in the order of the events that were sent."""

    committed: int
    results: list[BatchItem]


class Written(msgspec.Struct, frozen=True):
    """A memory that was written; `sequence` reads it back at once (`min_sequence`) and guards the next update."""

    id: str
    sequence: int | None = None
    duplicate: bool = False
