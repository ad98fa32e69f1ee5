"""Debounce: the least time between two triggers of a hook, kept for all replicas in the `marks` bucket."""

import msgspec

from crucible_core.errors import ConflictError
from crucible_core.subjects import token
from crucible_kit.buckets import Bucket

from .hook import Hook


class Mark(msgspec.Struct, frozen=True):
    """The last trigger that passed: when (Unix ms, of its commit), the event's id, and the hook's."""

    at_ms: int
    event_id: str
    hook_id: str = ""


class Debounce:
    """Times are those of the commits, so that a backlog and a repeated batch are decided as they were at first."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._marks: dict[str, Mark] = {}

    async def passes(self, hook: Hook, event_id: str, at_ms: int) -> bool:
        """Whether this event triggers the hook. The first one does, and each that comes `debounce_ms` after it."""
        wait = hook.definition.options.debounce_ms
        if not wait:
            return True
        known = self._marks.get(hook.name)
        # Marks only move on: what the known one holds back, a newer one would too.
        mine = known is not None and known.hook_id == hook.id
        if known is not None and mine and known.event_id != event_id and at_ms < known.at_ms + wait:
            return False
        return await self._claim(hook.name, Mark(at_ms, event_id, hook.id), wait)

    async def forget(self, hook: str) -> None:
        self._marks.pop(hook, None)
        await self._bucket.delete(token(hook))

    async def _claim(self, hook: str, mark: Mark, wait: int) -> bool:
        key, value = token(hook), msgspec.json.encode(mark)
        while True:
            entry = await self._bucket.get(key)
            last = msgspec.json.decode(entry.value, type=Mark) if entry else None
            if last is not None and last.hook_id != mark.hook_id:
                last = None  # of a hook that had the name before
            if last is not None and last.event_id == mark.event_id:
                return True
            if last is not None and mark.at_ms < last.at_ms + wait:
                self._marks[hook] = last
                return False
            try:
                if entry is None:
                    await self._bucket.create(key, value)
                else:
                    await self._bucket.update(key, value, entry.revision)
            except ConflictError:
                continue
            self._marks[hook] = mark
            return True
