"""The settings of the gateway."""

from typing import Annotated

from msgspec import Meta

from crucible_kit.settings import KitSettings


class Settings(KitSettings, frozen=True, kw_only=True):
    port: Annotated[int, Meta(description="The port to listen on; 0 takes a free one", ge=0, le=65535)] = 8080
    admin_key: Annotated[
        str,
        Meta(description="An API key made known at the start as admin; none if empty", extra={"secret": True}),
    ] = ""
    request_timeout_s: Annotated[
        float, Meta(description="How long a service may take to answer a request", gt=0, extra={"unit": "s"})
    ] = 15.0
    body_timeout_s: Annotated[
        float,
        Meta(
            description="How long a request's body may take, beside one second for every 16 KiB of it",
            gt=0,
            extra={"unit": "s"},
        ),
    ] = 20.0
    stream_queue: Annotated[
        int,
        Meta(
            description="How many events may wait for a slow subscription; past that it reads them from the log again",
            ge=1,
            extra={"unit": "events"},
        ),
    ] = 1000
    stream_heartbeat_s: Annotated[
        float, Meta(description="How often a silent event stream shows that it is alive", gt=0, extra={"unit": "s"})
    ] = 15.0
