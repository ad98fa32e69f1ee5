"""What principals may do: this process's copy of the `keys` bucket. So a handler's owner need not be there to be asked
what it may see: what was taken away from it is missing from the next event on."""

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
        """By what the bucket holds a key under."""
        self._keys: dict[str, set[str]] = {}
        self._known: dict[str, Principal] = {}

    def holder(self, key_hash: str) -> Principal | None:
        """Whose a key is; None where there is none, or it is disabled."""
        return self._holders.get(key_hash)

    def of(self, owner: str) -> Principal:
        """One that has no key any more may see nothing. Nobody's records are the operator's."""
        if owner in ("", OPERATOR_ID):
            return OPERATOR
        found = self._known.get(owner)
        if found is None:
            grants = [self._holders[key].grants for key in self._keys.get(owner, ())]
            every = None if None in grants else [grant for some in grants for grant in some or ()]
            found = self._known[owner] = Principal(owner, every)
        return found

    def may_receive(self, record: Owned, event: Event) -> bool:
        """Whether a handler may be given an event, with its payload decoded: its owner sees it, and it is of the
        handler's world."""
        here = record.world_id is None or record.world_id == event.metadata.world_id
        return here and self.of(record.owner).scope.sees(event)

    def powerless_reason(self, record: Owned) -> str | None:
        """Why a handler can be given nothing at all."""
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
