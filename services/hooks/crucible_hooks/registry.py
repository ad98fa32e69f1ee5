"""The hooks of the installation: the KV bucket's records and this process's compiled copy of them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from crucible_core.access import Principal, is_operators, service_principal
from crucible_core.envelope import Event
from crucible_core.errors import CrucibleError, NotFoundError
from crucible_core.hooks import failure_policy, timing, trigger_filters
from crucible_core.matcher import Matcher
from crucible_core.protocol.hooks import GuardedRequest, HookRecord
from crucible_core.subjects import token
from crucible_kit.buckets import Bucket, Change, View
from crucible_kit.bus import Bus
from crucible_kit.clock import fresh_id, timestamp
from crucible_kit.principals import Principals
from crucible_kit.rpc import call_all
from crucible_kit.types import Types

from .hook import Hook, load_hook

log = logging.getLogger(__name__)

API = "api"
HOOKS = service_principal("hooks")
"""Who asks where this service acts for nobody else."""
_START_S = 30.0
_RUN_RECORDS = frozenset({"Executed", "Failed", "Triggered"})
Changed = Callable[[str, HookRecord | None, HookRecord | None, int], None]
"""Called with a hook's name, its record before and after (None: it is gone), and the bucket's revision."""


class Registry:
    """Follows the bucket. Disabled hooks are compiled too, so that enabling one cannot fail."""

    def __init__(
        self, bus: Bus, bucket: Bucket, types: Types, principals: Principals, begin: Callable[[], Awaitable[None]]
    ) -> None:
        """`begin` is awaited before the first change: what it opens is needed by hooks, and costs where there are
        none."""
        self._bus = bus
        self.types = types
        self.principals = principals
        self._bucket = bucket
        self._begin = begin
        self._begun = False
        self.populated = asyncio.Event()
        """Set once there is a hook."""
        self._revisions: dict[str, int] = {}
        self._names: dict[str, str] = {}
        self._matcher: Matcher[str] = Matcher()
        self._pre: list[Hook] | None = None
        self._order: dict[str, int] | None = None
        self.view = View(bucket, self._take)
        self.records: dict[str, HookRecord] = {}
        self.hooks: dict[str, Hook] = {}
        self._owned: set[str] = set()
        """Those of others than the operator."""
        self.broken: dict[str, str] = {}
        """Why a record's definition cannot be run."""
        self.changed: list[Changed] = []
        self.reloaded: list[Callable[[str], None]] = []
        """Called with the name of a hook that means another thing since an event type was registered or deleted."""
        types.changed.append(self._type_changed)

    # ---- what runs

    @property
    def order(self) -> Mapping[str, int]:
        """The places of the enabled Pre hooks in that order, from 1 on, by name."""
        if self._order is None:
            self._order = {hook.name: place for place, hook in enumerate(self.pre, 1)}
        return self._order

    @property
    def pre(self) -> list[Hook]:
        """The enabled Pre hooks in the order in which they are asked: priority, then name."""
        if self._pre is None:
            found = [hook for hook in self.hooks.values() if hook.pre and self.records[hook.name].enabled]
            self._pre = sorted(found, key=lambda hook: (hook.definition.trigger.priority, hook.name))
        return self._pre

    def match(self, event: Event) -> list[Hook]:
        """The enabled Post hooks that this event triggers."""
        found = [self.hooks[name] for name in self._matcher.match(event)]
        return [hook for hook in found if self.hears(hook, event)]

    def hears(self, hook: Hook, event: Event) -> bool:
        """Whether a hook whose filters match is triggered: its owner sees the event. A record of a run triggers only
        hooks that name its category: one that listens to everything would hear of itself for ever."""
        own = event.type == "Hook" and event.data.event in _RUN_RECORDS
        heard = not own or hook.filters.names_category("Hook")
        return heard and self.principals.shows(self.records[hook.name], event)

    def wants(self, hook: Hook, event: Event) -> bool:
        """Whether a Pre hook judges an event that is on its way."""
        return hook.filters.matches(event) and self.principals.shows(self.records[hook.name], event)

    def state(self, name: str) -> str:
        record = self.get(name)
        if not record.enabled:
            return "disabled"
        if powerless := self.principals.powerless(record):
            return f"inert: {powerless}"
        reason = record.error or self.broken.get(name)
        if reason is None:
            return "active"
        return f"inert: {reason}" + ("; the last good version still runs" if name in self.hooks else "")

    def warnings(self, name: str) -> list[str]:
        """What keeps a hook that can run from firing."""
        hook = self.hooks.get(name)
        if hook is None:
            return []
        wanted = trigger_filters(self.records[name].definition or {})
        found = self.types.catalogue.warning(filter.event_type for filter in wanted)
        return [found] if found else []

    def unloaded(self, name: str) -> str | None:
        """Why an enabled Pre hook that must not be passed over cannot run here; None for one that can, or need not."""
        record = self.records.get(name)
        if record is None or not record.enabled or name in self.hooks:
            return None
        if record.definition is None:
            return record.error
        if timing(record.definition) != "Pre" or failure_policy(record.definition) == "allow":
            return None
        return self.broken.get(name)

    def get(self, name: str, principal: Principal = HOOKS) -> HookRecord:
        """Raises NotFoundError, also where the principal may not see it."""
        record = self.records.get(name)
        if record is None or not principal.may_see(record):
            raise NotFoundError(f"there is no hook {name[:100]!r}")
        return record

    def own(self, name: str, principal: Principal) -> HookRecord:
        """The same, to change it. Raises ForbiddenError where it is somebody else's."""
        record = self.get(name, principal)
        principal.check_owns(record, f"hook {name}")
        return record

    def seen_by(self, principal: Principal) -> list[HookRecord]:
        return [record for record in self.records.values() if principal.may_see(record)]

    def home_of(self, record: HookRecord) -> str:
        """The world that hears of it."""
        return record.world_id or self.principals.of(record.owner).home

    # ---- changes

    async def follow(self) -> None:
        """Runs until cancelled. Filters name types, and records owners, so that these are known first."""
        await self.types.view.reach(0, _START_S)
        await self.principals.view.reach(0, _START_S)
        await self.view.follow()

    async def catch_up(self, events: Iterable[Event]) -> None:
        """Returns once the copy is as new as some committed events: each was committed after the hooks that wait for
        it, and after its type was registered."""
        await self.view.refresh()
        if self.broken:
            await self.types.view.refresh()
        await self.types.learn(event.dotted for event in events)
        if self._owned:
            await self.principals.view.refresh()

    async def save(self, record: HookRecord) -> None:
        """Returns once this process works with it and, for a Pre hook, so does every replica of `events`: it judges
        the next event. Raises ConflictError where somebody else was first."""
        if not self._begun:
            await self._begin()
            self._begun = True
        if not record.id and record.name not in self.records:
            record = msgspec.structs.replace(record, id=fresh_id("hok"))
        key, value = token(record.name), msgspec.json.encode(record)
        revision = self._revisions.get(key)
        put = self._bucket.create(key, value) if revision is None else self._bucket.update(key, value, revision)
        stored = await put
        await self.view.reach(stored)
        if record.definition and timing(record.definition) == "Pre":
            # Where no replica answers, none guards: each learns of the hook before it commits anything.
            await call_all(self._bus, HOOKS, "events", "guarded", GuardedRequest(revision=stored))

    async def set_enabled(self, name: str, enabled: bool) -> HookRecord:
        record = self.get(name)
        if record.enabled != enabled:
            record = msgspec.structs.replace(record, enabled=enabled, updated_at=timestamp())
            await self.save(record)
        return record

    async def delete(self, name: str) -> HookRecord:
        record = self.get(name)
        await self._bucket.delete(token(name))
        await self.view.refresh()
        return record

    # ---- the copy

    def _take(self, change: Change) -> None:
        record = _record(change, self._names.get(change.key, change.key))
        name = record.name if record else self._names.get(change.key, change.key)
        before = self.records.pop(name, None)
        self._unload(name)
        self._owned.discard(name)
        if record is None:
            self._names.pop(change.key, None)
            self._revisions.pop(change.key, None)
        else:
            self._names[change.key] = name
            self._revisions[change.key] = change.revision
            self._load(record)
        for listener in self.changed:
            listener(name, before, record, change.revision)

    def _type_changed(self, dotted: str) -> None:
        """A hook that named a type in vain can run now; one whose type is gone, or has closed, cannot."""
        category = dotted.partition(".")[0]
        for name, record in list(self.records.items()):
            hook = self.hooks.get(name)
            if record.definition is None or (hook is not None and not hook.filters.names_category(category)):
                continue
            self._unload(name)
            self._load(record)
            if (hook is None) != (name not in self.hooks):
                log.info("hook %s is %s, since %s has changed", name, self.state(name), dotted)
            for listener in self.reloaded:
                listener(name)

    def _unload(self, name: str) -> None:
        self._pre = self._order = None
        self._matcher.drop(name)
        self.hooks.pop(name, None)
        self.broken.pop(name, None)

    def _load(self, record: HookRecord) -> None:
        self.populated.set()
        self.records[record.name] = record
        if not is_operators(record):
            self._owned.add(record.name)
        if record.definition is None:
            return
        directory = None if record.origin == API else Path(record.origin).parent
        try:
            beside = str(directory) if directory else None
            hook = self.hooks[record.name] = load_hook(
                record.definition, beside, record.id, record.owner, catalogue=self.types.catalogue
            )
            if record.enabled and not hook.pre:
                self._matcher.put(record.name, hook.filters)
        except CrucibleError as error:
            self.broken[record.name] = error.detail
            log.warning("hook %s cannot run: %s", record.name, error.detail)


def _record(change: Change, name: str) -> HookRecord | None:
    """One that cannot be read, of a newer version perhaps, is not deleted: it is inert, and what waits for it waits."""
    if change.value is None:
        return None
    try:
        return msgspec.json.decode(change.value, type=HookRecord)
    except msgspec.DecodeError as error:
        log.error("the record of hook %s cannot be read: %s", change.key, error)
        return HookRecord(name=name, error=f"its record cannot be read: {error}")
