"""The settings of events."""

from typing import Annotated, Literal

from msgspec import Meta

from crucible_kit.settings import KitSettings


class Settings(KitSettings, frozen=True, kw_only=True):
    events_role: Annotated[
        Literal["all", "append", "query"],
        Meta(
            description="append takes events and needs no index, query has the index and answers from it; all does both"
        ),
    ] = "all"
    events_snapshot_every: Annotated[
        int,
        Meta(
            description="How many events come to the index until a snapshot of it is stored in NATS, with which a new"
            " replica of the role query begins; 0 stores none, as `crucible up` does unless this is set",
            ge=0,
            extra={"unit": "events"},
        ),
    ] = 100_000
    events_queue: Annotated[
        int,
        Meta(
            description="How many events may wait for their commit; past that appends are refused",
            ge=1,
            extra={"unit": "events"},
        ),
    ] = 20_000
    events_queue_mib: Annotated[
        int, Meta(description="How much may wait for its commit", ge=2, extra={"unit": "MiB"})
    ] = 64
