"""The settings of memory."""

from typing import Annotated

from msgspec import Meta

from crucible_kit.settings import KitSettings


class Settings(KitSettings, frozen=True, kw_only=True):
    memory_accessed_every_s: Annotated[
        float,
        Meta(
            description="The least time between two Memory.Accessed of one memory, however often it is read; 0: none",
            ge=0,
            extra={"unit": "s"},
        ),
    ] = 60.0
    memory_graph_events: Annotated[
        bool,
        Meta(description="Whether Graph events follow from memories and their links: each new memory then costs two"),
    ] = True
