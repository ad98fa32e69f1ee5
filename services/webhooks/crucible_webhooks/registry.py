"""The registry of webhooks: the records of the KV bucket, a compiled copy of them, and their changes."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from itertools import islice

import msgspec

from crucible_core.access import Principal, is_operators, service_principal
from crucible_core.envelope import Event
from crucible_core.errors import ConflictError, CrucibleError, FieldError, NotFoundError
from crucible_core.ids import is_id
from crucible_core.limits import WEBHOOK_NAME_CHARS
from crucible_core.position import Encoded
from crucible_core.protocol.webhooks import WebhookRecord
from crucible_core.subjects import shard_of
from crucible_core.suggest import nearest
from crucible_kit.buckets import Bucket, Change
from crucible_kit.clock import timestamp
from crucible_kit.handlers.registry import HandlerEntry, HandlerRegistry
from crucible_kit.nats.bus import Bus
from crucible_kit.principals import Principals
from crucible_kit.types import Types
from crucible_kit.worlds import Worlds
from crucible_webhooks.records import compile_record_filters, normalize_name

WEBHOOKS = service_principal("webhooks")
"""The principal of this service, where it acts for nobody else."""
log = logging.getLogger(__name__)

_COMPARED = 200
"""The number of names that a misspelt one is compared with."""


_record = msgspec.json.Decoder(WebhookRecord)


class WebhookEntry(HandlerEntry, kw_only=True):
    is_held: bool
    concurrency: int
    since: Encoded | None

    @property
    def record(self) -> WebhookRecord:
        return _record.decode(self.value)


class Registry(HandlerRegistry[WebhookEntry]):
    """Has its entries by id. `changed` is called with a webhook's id after each change of it."""

    def __init__(self, bus: Bus, bucket: Bucket, types: Types, principals: Principals, worlds: Worlds) -> None:
        super().__init__(bus, bucket, types, principals, worlds)
        self._named: dict[str, str] = {}
        self._naming = asyncio.Lock()
        self._since: dict[int, list[Encoded]] | None = None
        self._gone: set[str] = set()
        self.changed: Callable[[str], None] = lambda _: None

    def match(self, event: Event) -> list[str]:
        """The webhooks that this event goes to, disabled ones too: their deliveries wait in the log."""
        found = [self.entries[id] for id in self._matcher.match(event)]
        return [entry.id for entry in found if self.was_wanted(entry, event) and self._may_go_to(entry, event)]

    def inert_reason(self, record: WebhookEntry | WebhookRecord) -> str | None:
        return self.inert.get(record.id) or self.principals.powerless_reason(record)

    def wants(self, webhook_id: str, event: Event) -> bool:
        """True where the event goes to this webhook."""
        entry = self.entries.get(webhook_id)
        return entry is not None and self.was_wanted(entry, event) and self.matches(webhook_id, event)

    def matches(self, webhook_id: str, event: Event) -> bool:
        """True where the event goes to this webhook as its filters are now: a replay asks for no more."""
        entry = self.entries.get(webhook_id)
        if entry is None or entry.filters is None or not entry.filters.matches(event):
            return False
        return self._may_go_to(entry, event)

    def _may_go_to(self, entry: WebhookEntry, event: Event) -> bool:
        return not _is_about(entry.id, event) and self.may_receive(entry, event)

    def warnings(self, record: WebhookRecord) -> list[str]:
        return self._warnings(record, (entry.event_type for entry in record.event_filters))

    def since(self, shard: int) -> list[Encoded]:
        """The positions in the log after which the webhooks of a shard want events."""
        if self._since is None:
            self._since = {}
            for entry in self.entries.values():
                if entry.since is not None:
                    self._since.setdefault(shard_of(entry.id), []).append(entry.since)
        return self._since.get(shard, [])

    def is_deleted(self, webhook_id: str) -> bool:
        """False also for one whose record this version cannot read."""
        return webhook_id not in self._revisions

    def record(self, webhook_id: str) -> WebhookRecord | None:
        entry = self.entries.get(webhook_id)
        return None if entry is None else entry.record

    def get(self, webhook_id: str) -> WebhookRecord:
        """By id. Raises NotFoundError."""
        record = self.record(webhook_id)
        if record is None:
            raise self._not_found(webhook_id, "id")
        return record

    def find(self, name: str, principal: Principal, path: str = "id") -> WebhookRecord:
        """By id, or by name. Raises NotFoundError with the nearest that the principal may see, at `path`."""
        normalized = normalize_name(name)
        id = next((id for id in (name, self._named.get(name), self._named.get(normalized)) if id in self.entries), None)
        if id is None or not principal.may_see(self.entries[id]):
            raise self._not_found(name, path, principal)
        return self.entries[id].record

    def find_owned(self, name: str, principal: Principal, path: str = "id") -> WebhookRecord:
        """The same, to change it. Raises ForbiddenError where it is somebody else's."""
        record = self.find(name, principal, path)
        principal.check_owns(record, f"webhook {record.name}")
        return record

    def _not_found(self, name: str, path: str, principal: Principal = WEBHOOKS) -> NotFoundError:
        if name in self._gone and principal.admin:
            return NotFoundError.field(path, "was deleted", detail=f"webhook {name} was deleted")
        # An id is not misspelt, and what is compared is bounded: this runs on the event loop.
        visible = (entry.name for entry in self.entries.values() if principal.may_see(entry))
        names = () if is_id("whk", name) else islice(visible, _COMPARED)
        suggestion = nearest(name[:WEBHOOK_NAME_CHARS], names)
        hint = f' (did you mean "{suggestion}"?)' if suggestion else ""
        error = FieldError(path, "there is no such webhook", suggestion)
        return NotFoundError(f"there is no webhook {name[:100]!r}{hint}", errors=[error])

    async def create(self, record: WebhookRecord) -> None:
        """Returns once every replica works with it. Raises ConflictError where its name is taken, which holds over all
        replicas: what is stored was decided on the whole bucket."""
        value = msgspec.json.encode(record)
        async with self._naming:  # each that changes the bucket makes all others of this process decide anew
            while True:
                if record.name in self._named:  # it may be free by now
                    await self.view.refresh()
                self._check_name(record)
                with contextlib.suppress(ConflictError):
                    stored = await self._bucket.change(record.id, value, self.view.revision)
                    await self.view.reach(stored)
                    break
                await self.view.refresh()
        await self.stored(stored)

    async def change(self, webhook_id: str, make: Callable[[WebhookRecord], WebhookRecord]) -> WebhookRecord:
        """Changes what is there now, never an older copy; `make` may be called again. Raises NotFoundError where the
        webhook was deleted, ConflictError where another has its new name."""
        while True:
            await self.view.refresh()
            before = self.get(webhook_id)
            record = msgspec.structs.replace(make(before), updated_at=timestamp())
            value, revision = msgspec.json.encode(record), self._revisions[webhook_id]
            renamed = record.name != before.name
            if renamed:
                self._check_name(record)
            with contextlib.suppress(ConflictError):
                storing = (
                    self._bucket.change(webhook_id, value, self.view.revision)
                    if renamed
                    else self._bucket.update(webhook_id, value, revision)
                )
                stored = await storing
                await self.view.reach(stored)
                await self.stored(stored)
                return record

    async def set_enabled(
        self, webhook_id: str, enabled: bool, reason: str | None = None, since: Encoded | None = None
    ) -> WebhookRecord:
        """One that is enabled is paused no more; with `since`, it gets nothing from before that position in the log.
        Raises NotFoundError where the webhook was deleted."""

        def changed(record: WebhookRecord) -> WebhookRecord:
            paused = record.paused and not enabled
            changes = {
                "enabled": enabled,
                "disabled_reason": reason,
                "paused": paused,
                "since": record.since if since is None else since,
            }
            return msgspec.structs.replace(record, **changes)

        return await self.change(webhook_id, changed)

    def _check_name(self, record: WebhookRecord) -> None:
        other = self.entries.get(self._named.get(record.name, record.id))
        if other is not None and other.id != record.id:
            visible = other.owner == record.owner or is_operators(record)
            message = f"{other.id if visible else 'another webhook'} has the name {record.name[:100]!r} already"
            about = {"id": other.id} if visible else {}
            raise ConflictError(f"name: {message}", errors=[FieldError("name", message)], **about)

    async def delete(self, webhook_id: str) -> WebhookRecord:
        record = self.get(webhook_id)
        await self._bucket.delete(webhook_id)
        await self.view.refresh()
        return record

    def _take(self, change: Change) -> None:
        self._since = None
        self._matcher.drop(change.key)
        self.inert.pop(change.key, None)
        before = self.entries.pop(change.key, None)
        if before is not None and self._named.get(before.name) == change.key:
            del self._named[before.name]
        self._owned.discard(change.key)
        self._revisions.pop(change.key, None)
        if change.value is None:
            self._gone.add(change.key)
        else:
            self._gone.discard(change.key)
            self._revisions[change.key] = change.revision
            self._load(change.key, change.value)
        self.changed(change.key)

    def _load(self, key: str, value: bytes) -> None:
        try:
            record = _record.decode(value)
        except msgspec.DecodeError as error:
            # Of a newer version, perhaps: not deleted, so what waits for it goes on waiting.
            log.error("webhook %s cannot be read: %s", key, error)
            self.inert[key] = f"its record cannot be read: {error}"
            return
        self.entries[key] = entry = WebhookEntry(
            id=key,
            name=record.name,
            owner=record.owner,
            world_id=record.world_id,
            value=value,
            is_held=record.paused or not record.enabled,
            concurrency=record.options.concurrency,
            since=record.since,
            former=tuple(record.former),
        )
        self._named[record.name] = key
        if not is_operators(record):
            self._owned.add(key)
        self._compile(entry, record)

    def _recompile(self, key: str, entry: WebhookEntry, type: str) -> None:
        self._matcher.drop(key)
        self.inert.pop(key, None)
        self._compile(entry, entry.record)

    def _compile(self, entry: WebhookEntry, record: WebhookRecord) -> None:
        entry.filters = None
        try:
            entry.filters = compile_record_filters(record, self.types.catalogue)
            self._matcher.put(entry.id, entry.filters)
        except CrucibleError as error:
            self.inert[entry.id] = error.detail


def _is_about(webhook_id: str, event: Event) -> bool:
    """True for an event about the webhook itself: an endpoint that wants `*` must not be sent its own failures."""
    return event.type == "Webhook" and event.data.payload.get("id") == webhook_id
