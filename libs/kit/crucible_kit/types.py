"""Event types that this process knows: the built-in ones, and those that users registered (bucket `event_types`)."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import msgspec

from crucible_core.errors import InvalidError
from crucible_core.protocol.events import KnowTypes, TypeRecord
from crucible_core.types.catalogue import CATALOGUE, Catalogue, Registered
from crucible_kit.buckets import Bucket, Change, View, open_bucket
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import Context, Endpoint

log = logging.getLogger(__name__)

T = TypeVar("T")

BUCKET = "event_types"
KNOW_TYPES = "know_types"

Changed = Callable[[str], None]
"""Called with the name of a type that was registered, changed or deleted."""


async def open_types(bus: Bus, replicas: int) -> "Types":
    return Types(await open_bucket(bus, BUCKET, replicas))


class Types:
    """Follows the bucket. `catalogue` is immutable: there is a new one after each change, so take it anew each time."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.view = View(bucket, self._take)
        self.changed: list[Changed] = []
        self._registered: dict[str, Registered] = {}
        self._catalogue: Catalogue | None = CATALOGUE

    @property
    def catalogue(self) -> Catalogue:
        if self._catalogue is None:
            self._catalogue = _catalogue(self._registered.values())
        return self._catalogue

    async def resolve(self, make: Callable[[Catalogue], T]) -> T:
        """Returns `make(catalogue)`. After an InvalidError it calls it again, once this process knows every type whose
        registration was acknowledged."""
        try:
            return make(self.catalogue)
        except InvalidError:
            if not await self.refresh():
                raise
        return make(self.catalogue)

    async def refresh(self) -> bool:
        """Waits for everything that was acknowledged to anybody. Returns True if there was something new."""
        before = self.view.revision
        await self.view.refresh()
        return self.view.revision != before

    async def ensure_known(self, names: Iterable[str]) -> None:
        """Refreshes where one of these canonical names of committed events is not known yet."""
        catalogue = self.catalogue
        if not all(map(catalogue.has, names)):
            await self.view.refresh()

    def endpoints(self) -> Mapping[str, Endpoint]:
        """The endpoint of every service with types; see `KnowTypes`."""

        async def know(request: KnowTypes, context: Context) -> KnowTypes:
            await self.view.reach(request.revision)
            return request

        return {KNOW_TYPES: Endpoint(KnowTypes, know, every_replica=True)}

    def _take(self, change: Change) -> None:
        before = self._registered.pop(change.key, None)
        after = None if change.value is None else _read(change.key, change.value)
        if after is not None:
            self._registered[change.key] = after
        self._catalogue = None
        kind = after or before
        if kind is not None:
            for listener in self.changed:
                listener(kind.dotted)


def _read(key: str, value: bytes) -> Registered | None:
    try:
        record = msgspec.json.decode(value, type=TypeRecord)
        return Registered(record) if record.versions else None
    except msgspec.DecodeError as error:
        log.error("event type %s cannot be read: %s", key, error)
        return None


def _catalogue(registered: Iterable[Registered]) -> Catalogue:
    """Built-in types come first: a newer Crucible may have taken a name that a user had registered."""
    kinds = list(registered)
    try:
        return CATALOGUE.extended(kinds)
    except ValueError as error:
        log.error("registered event types stand in each other's way: %s", error)
    found = CATALOGUE
    for kind in kinds:
        try:
            if not CATALOGUE.has(kind.dotted) or kind.category == "Custom":
                found = found.extended([kind])
        except ValueError as error:
            log.error("the registered event type %s is left out: %s", kind.dotted, error)
    return found
