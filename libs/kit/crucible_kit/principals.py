"""Permissions of principals: this process's copy of the `keys` bucket. A handler's owner need not be present to be
checked: a permission that it loses is missing from the next event on."""

import logging

import msgspec

from crucible_core.access import OPERATOR, OPERATOR_ID, KeyRecord, Principal
from crucible_core.envelope import Event
from crucible_core.protocol.parts import Owned
from crucible_kit.buckets import Bucket, Change, View, open_bucket
from crucible_kit.nats.bus import Bus

log = logging.getLogger(__name__)

BUCKET = "keys"


async def open_principals(bus: Bus, replicas: int) -> "Principals":
    return Principals(await open_bucket(bus, BUCKET, replicas))


class Principals:
    """Follows the bucket. A principal may do what any of its keys may that are not disabled."""

    def __init__(self, bucket: Bucket) -> None:
        self.view = View(bucket, self._take)
        self._holders: dict[str, Principal] = {}
        """By key in the bucket."""
        self._keys: dict[str, set[str]] = {}
        self._known: dict[str, Principal] = {}

    def holder(self, key_hash: str) -> Principal | None:
        """The owner of an API key; None where there is no such key, or it is disabled."""
        return self._holders.get(key_hash)

    def of(self, owner: str) -> Principal:
        """The principal of that id. Without a key it may see nothing. Records without an owner belong to the
        operator."""
        if owner in ("", OPERATOR_ID):
            return OPERATOR
        found = self._known.get(owner)
        if found is None:
            grants = [self._holders[key].grants for key in self._keys.get(owner, ())]
            every = None if None in grants else [grant for some in grants for grant in some or ()]
            found = self._known[owner] = Principal(owner, every)
        return found

    def may_receive(self, record: Owned, event: Event) -> bool:
        """Returns True if a handler may receive an event, whose payload is decoded: its owner sees it, and it is of the
        handler's world."""
        in_world = record.world_id is None or record.world_id == event.metadata.world_id
        return in_world and self.of(record.owner).scope.sees(event)

    def powerless_reason(self, record: Owned) -> str | None:
        """The reason why a handler can receive no event at all; None where it can."""
        views = self.of(record.owner).scope.views
        return None if views or not self.view.ready else f"its owner {record.owner} may see nothing any more"

    def _take(self, change: Change) -> None:
        before = self._holders.pop(change.key, None)
        record = None if change.value is None else read_key(change.key, change.value)
        after = None if record is None or record.disabled else record.holder()
        for holder in (before, after):
            if holder is not None:
                self._known.pop(holder.id, None)
        if before is not None:
            self._keys[before.id].discard(change.key)
        if after is not None:
            self._holders[change.key] = after
            self._keys.setdefault(after.id, set()).add(change.key)


def read_key(key: str, value: bytes) -> KeyRecord | None:
    try:
        return msgspec.json.decode(value, type=KeyRecord)
    except msgspec.DecodeError as error:
        log.error("the key %s… cannot be read: %s", key[:8], error)
        return None
