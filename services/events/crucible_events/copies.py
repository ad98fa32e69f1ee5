"""What a replica of events holds of the buckets, and works by: event types, Pre hooks, worlds, replays, and the rules
of retention."""

import asyncio
import contextlib

import msgspec

from crucible_core.protocol.retention import ReachedRequest
from crucible_kit.buckets import Bucket, View
from crucible_kit.purging import Purging
from crucible_kit.types import Types

from . import retention, worlds
from .guards import Guards
from .places import Places
from .replays import Replays
from .retention import Retention


class Copies(msgspec.Struct, frozen=True, kw_only=True):
    """`atlas` is the bucket of the worlds."""

    types: Types
    guards: Guards
    places: Places
    retention: Retention
    replays: Replays
    purging: Purging
    atlas: Bucket

    @property
    def views(self) -> list[View]:
        """What is followed once the types are known."""
        return [self.guards.view, self.places.view, self.retention.view, self.replays.view]

    async def ready(self) -> None:
        """Raises UnavailableError while something that an append needs is not known yet."""
        await self.types.view.reach(0)
        await self.guards.ready()
        await self.places.ready()
        await self.retention.ready()

    async def reach(self, request: ReachedRequest) -> None:
        """Returns once this replica works by what was asked for. Raises UnavailableError."""
        if request.bucket == worlds.BUCKET:
            await self.places.view.reach(request.revision)
        elif request.bucket == retention.BUCKET:
            await self.retention.view.reach(request.revision)
        if request.settle:
            await self.places.quiet(worlds.SETTLE_S)
            with contextlib.suppress(TimeoutError):  # a large one goes on by itself
                async with asyncio.timeout(worlds.SETTLE_S):
                    await self.purging.settled()
