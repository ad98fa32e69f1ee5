"""What a version before the work engine has left of hooks: their runs were named by the hook and told which one of that
name they are of; the bucket `marks` told when a hook with a debounce had fired last. A module of its own, to be removed
whole once nobody comes from such a version."""

from collections.abc import Mapping

import msgspec

from crucible_core.subjects import DRY_RUN, EVENT_SEQUENCE, REGISTRATION, token
from crucible_kit.buckets import Bucket, open_bucket
from crucible_kit.bus import Bus, Message
from crucible_kit.handlers.upgrade import bring_over

from .registry import HOOKS, Registry
from .runs import Runs


class Mark(msgspec.Struct, frozen=True):
    """The commit (Unix ms) of the last event that a debounce let pass, and the hook's id."""

    at_ms: int
    hook_id: str = ""


async def upgrade(bus: Bus, shards: Bucket, runs: Runs, registry: Registry) -> None:
    """Returns once nothing of it is left. Safe to break off and to do twice."""
    names = {token(known.name): known for known in registry.seen_by(HOOKS)}

    def find(found: Message) -> str | None:
        known = names.get(bus.names.old_handler_of(found.subject))
        tried_out = DRY_RUN in found.headers or EVENT_SEQUENCE not in found.headers
        if known is None or tried_out or known.id != found.headers.get(REGISTRATION, ""):
            return None
        return known.key

    async def fired() -> Mapping[str, int]:
        marks: dict[str, int] = {}
        for key, entry in (await (await open_bucket(bus, "marks")).entries()).items():
            known = names.get(key)
            mark = msgspec.json.decode(entry.value, type=Mark) if known is not None else None
            if known is not None and mark is not None and mark.hook_id == known.id:
                marks[known.key] = mark.at_ms
        return marks

    await bring_over(bus, shards, runs, find, fired)
