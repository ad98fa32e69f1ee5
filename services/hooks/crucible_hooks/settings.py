"""The settings of hooks."""

import os
from typing import Annotated

from msgspec import Meta

from crucible_kit.settings import KitSettings


class Settings(KitSettings, frozen=True, kw_only=True):
    hooks_dir: Annotated[str, Meta(description="The watched directory of hook files; empty: none")] = ""
    hooks_allow_api_shell: Annotated[
        bool, Meta(description="Whether hooks that are registered over the API may use Shell")
    ] = False
    hooks_script_memory_mb: Annotated[
        int, Meta(description="The memory that one script may use", ge=1, le=1024, extra={"unit": "MiB"})
    ] = 64
    hooks_script_workers: Annotated[
        int,
        Meta(
            description="Sandbox processes, at most, for the scripts of Post hooks and again for Pre hooks", ge=1, le=64
        ),
    ] = 8

    @property
    def root(self) -> str | None:
        """The hooks directory as an absolute path, which is how the records name their files."""
        return os.path.abspath(self.hooks_dir) if self.hooks_dir else None
