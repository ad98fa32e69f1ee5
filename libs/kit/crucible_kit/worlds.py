"""Existing worlds: a service's copy of the `worlds` bucket, for its warnings about handlers of missing worlds."""

import msgspec

from crucible_core.envelope import DEFAULT_WORLD
from crucible_core.protocol.parts import Owned
from crucible_core.protocol.worlds import WorldRecord
from crucible_core.subjects import token
from crucible_kit.buckets import Bucket, Change, View, open_bucket
from crucible_kit.nats.bus import Bus

_record = msgspec.json.Decoder(WorldRecord)


async def open_worlds(bus: Bus, replicas: int) -> "Worlds":
    return Worlds(await open_bucket(bus, "worlds", replicas))


class Worlds:
    """Follows the bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self.view = View(bucket, self._take)
        self._open = {DEFAULT_WORLD}

    def warning(self, record: Owned) -> str | None:
        """A warning that a handler may never receive an event, as its world does not exist, or not yet."""
        if record.world_id is None or token(record.world_id) in self._open or not self.view.ready:
            return None
        return f"there is no world {record.world_id}, so no event is for it"

    def _take(self, change: Change) -> None:
        self._open.discard(change.key)
        if change.value is not None and _is_open(change.value):
            self._open.add(change.key)


def _is_open(value: bytes) -> bool:
    try:
        return _record.decode(value).deleted_at is None
    except msgspec.DecodeError:
        return True  # `events` says what is wrong with it
