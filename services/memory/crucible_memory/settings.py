"""The settings of memory."""

from crucible_kit.settings import KitSettings


class Settings(KitSettings, frozen=True, kw_only=True):
    """Those of every service."""
