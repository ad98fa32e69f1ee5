"""Purged worlds: what an index does when a world's events are gone from the log, once it cannot read one any more."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

import msgspec

from crucible_core.errors import UnavailableError
from crucible_core.protocol.worlds import WorldRecord

from .buckets import Change
from .index import Index

log = logging.getLogger(__name__)

Forget = Callable[[str, int], Awaitable[object]]
"""Removes a world's rows up to a sequence; it may be called again."""

_PAUSE_S = 1.0


def note_purge(purging: "Purging", change: Change) -> None:
    """Takes a change of the `worlds` bucket. What cannot be read is for `events` to complain of."""
    with contextlib.suppress(msgspec.DecodeError):
        if change.value is not None:
            world = msgspec.json.decode(change.value, type=WorldRecord)
            purging.note(world.id, world.purge_through)


class Purging:
    """Forgets, one world after another, what `note` names. The `worlds` bucket is where it is known from, at every
    start anew, so that a replica that was away does it then."""

    def __init__(self, index: Index, forget: Forget) -> None:
        self._index = index
        self._forget = forget
        self._wanted: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._changed = asyncio.Condition()
        self._wake = asyncio.Event()

    def note(self, world: str, through: int) -> None:
        """The world has no events up to this sequence."""
        if through > self._done.get(world, 0):
            self._wanted[world] = through
            self._wake.set()

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            for world, through in list(self._wanted.items()):
                await self._purge(world, through)

    async def settled(self) -> None:
        """Returns once everything that was noted is forgotten."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._wanted)

    async def _purge(self, world: str, through: int) -> None:
        try:
            # What was read before it was purged may be on its way into the index: it must be there first.
            await self._index.reach(through)
            if not self._index.position.covers(
                through
            ):  # the last ones are gone: whether they were read, nothing tells
                await asyncio.sleep(_PAUSE_S)
            await self._forget(world, through)
        except UnavailableError as error:
            log.info("world %s is not forgotten yet: %s", world, error)
            await asyncio.sleep(_PAUSE_S)
            self._wake.set()
            return
        self._done[world] = through
        async with self._changed:
            if self._wanted.get(world) == through:
                del self._wanted[world]
            self._changed.notify_all()
