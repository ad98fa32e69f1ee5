"""The settings of webhooks."""

from typing import Annotated, Literal

from msgspec import Meta

from crucible_kit.settings import KitSettings


class Settings(KitSettings, frozen=True, kw_only=True):
    webhooks_role: Annotated[
        Literal["all", "dispatch", "deliver"],
        Meta(description="dispatch answers the API and keeps the index, deliver matches and sends; all does both"),
    ] = "all"
    webhooks_timeout_ms: Annotated[
        int,
        Meta(
            description="The whole exchange of one attempt, where a webhook sets none",
            ge=100,
            le=60_000,
            extra={"unit": "ms"},
        ),
    ] = 15_000
