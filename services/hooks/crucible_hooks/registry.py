"""The hooks of the installation: the KV bucket's records and this process's compiled copy of them."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set
from pathlib import Path

import msgspec

from crucible_core.access import Principal, is_operators, service_principal
from crucible_core.envelope import Event
from crucible_core.errors import CrucibleError, NotFoundError
from crucible_core.hooks import failure_policy, timing, trigger_filters
from crucible_core.matcher import Matcher
from crucible_core.position import Encoded, Position
from crucible_core.protocol.hooks import GuardedRequest, HookRecord
from crucible_core.subjects import RUN, shard_of, token
from crucible_kit.buckets import Bucket, Change, View
from crucible_kit.bus import Bus
from crucible_kit.clock import fresh_id, timestamp
from crucible_kit.eventlog import log_end
from crucible_kit.handlers.pointers import forget
from crucible_kit.handlers.service import Plan
from crucible_kit.principals import Principals
from crucible_kit.rpc import call_all
from crucible_kit.types import Types
from crucible_kit.worlds import Worlds

from .hook import Hook, handler_key, load_hook

log = logging.getLogger(__name__)

API = "api"
HOOKS = service_principal("hooks")
"""Who asks where this service acts for nobody else."""
_START_S = 30.0
_RUN_RECORDS = frozenset({"Executed", "Failed", "Triggered"})
MOST_SWITCHED = 64
"""Places at which a hook was switched on or off that are kept: what waits from before is not run any more."""
Changed = Callable[[str, HookRecord | None, HookRecord | None, int], None]
"""Called with a hook's name, its record before and after (None: it is gone), and the bucket's revision."""


class _Known(msgspec.Struct):
    """What can be read of nearly every record."""

    name: str
    id: str = ""


class Registry:
    """Follows the bucket. Disabled hooks are compiled too, so that enabling one cannot fail."""

    def __init__(self, bus: Bus, bucket: Bucket, types: Types, principals: Principals, worlds: Worlds) -> None:
        self._bus = bus
        self.types = types
        self.principals = principals
        self.worlds = worlds
        self._bucket = bucket
        self._revisions: dict[str, int] = {}
        self._names: dict[str, str] = {}
        self._by_key: dict[str, str] = {}
        self._unreadable: set[str] = set()
        self._nameless: set[str] = set()
        """Keys of the bucket whose records do not even tell which hook they are of."""
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
        self.stored: Callable[[int], Awaitable[None]]
        """Awaited with the revision of each change of this process: returns once all replicas know it."""
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
        """The Post hooks that this event triggers, among them such as were enabled when it was committed."""
        found = [self.hooks[name] for name in self._matcher.match(event)]
        return [hook for hook in found if self._was_on(hook, event) and self.hears(hook, event)]

    def triggers(self, hook: Hook, event: Event) -> bool:
        """Whether it triggers this one of them."""
        return not hook.pre and hook.filters.matches(event) and self._was_on(hook, event) and self.hears(hook, event)

    def _was_on(self, hook: Hook, event: Event) -> bool:
        """Whether events were for a hook when this one was committed."""
        record, names = self.records[hook.name], self._bus.names
        if not record.switched:
            return record.enabled
        return sum(not names.position(place).covers(event.sequence or 0) for place in record.switched) % 2 == 1

    def hears(self, hook: Hook, event: Event) -> bool:
        """Whether a hook whose filters match is triggered: its owner sees the event. A record of a run triggers only
        hooks that name its category: one that listens to everything would hear of itself for ever."""
        own = event.type == "Hook" and event.data.event in _RUN_RECORDS
        heard = not own or hook.filters.names_category("Hook")
        return heard and self.shows(hook, event)

    def wants(self, hook: Hook, event: Event) -> bool:
        """Whether a Pre hook judges an event that is on its way."""
        return hook.filters.matches(event) and self.shows(hook, event)

    def shows(self, hook: Hook, event: Event) -> bool:
        """Whether its owner sees the event, and it is of the hook's world."""
        return self.principals.shows(self.records[hook.name], event)

    @property
    def types_wanted(self) -> Set[str] | None:
        return self._matcher.types

    def may_want(self, category: str, event: str) -> bool:
        """Whether an event of a type may trigger a hook, whatever is in it."""
        return self._matcher.may_want(category, event)

    def by_key(self, key: str) -> HookRecord | None:
        """The hook that the work engine serves by a key."""
        name = self._by_key.get(key)
        return None if name is None else self.records[name]

    def plan(self, key: str) -> Plan | None:
        """How the work engine is to serve the hook of a key; None where there is none."""
        record = self.by_key(key)
        if record is None:
            return Plan(1, held=True) if self._nameless else None
        hook, since = self.hooks.get(record.name), self._since(record)
        if hook is None or hook.pre or not record.enabled:
            return Plan(1, since, held=True, keeps=hook is None and self._is_due(record))
        options = hook.definition.options
        return Plan(options.concurrency, since, types=hook.filters.types, apart_ms=options.debounce_ms)

    def unmatched(self) -> list[str]:
        """The keys of hooks that events are for and that cannot be matched here."""
        unloaded = ((key, name) for key, name in self._by_key.items() if name not in self.hooks)
        return [key for key, name in unloaded if self._is_due(self.records[name])]

    def since(self, shard: int) -> Position | None:
        """The place in the log after which the first hook of a shard wants events; None where there is none."""
        own = [self.records[name] for key, name in self._by_key.items() if shard_of(key) == shard]
        places = [self._since(record) for record in own if record.switched]
        return places[0].least(*places) if places else None

    def _since(self, record: HookRecord) -> Position:
        return self._bus.names.position(record.switched[0] if record.switched else 0)

    def _is_due(self, record: HookRecord) -> bool:
        return _is_on(record) or record.name in self._unreadable

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
        record = self.records[name]
        wanted = trigger_filters(record.definition or {})
        found = self.types.catalogue.warning(filter.event_type for filter in wanted)
        return [warning for warning in (found, self.worlds.warning(record)) if warning]

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
        """Returns once every replica works with it, for a Pre hook each of `events`: it has to do with the next event.
        Raises ConflictError where somebody else was first."""
        key, before = token(record.name), self.records.get(record.name)
        revision = self._revisions.get(key)
        id = record.id if record.id or before else fresh_id("hok")
        record = msgspec.structs.replace(record, id=id, switched=await self._switched(before, record))
        value = msgspec.json.encode(record)
        put = self._bucket.create(key, value) if revision is None else self._bucket.update(key, value, revision)
        stored = await put
        await self.view.reach(stored)
        if record.definition and timing(record.definition) == "Pre":
            # Where no replica answers, none guards: each learns of the hook before it commits anything.
            await call_all(self._bus, HOOKS, "events", "guarded", GuardedRequest(revision=stored))
        else:
            await self.stored(stored)

    async def _switched(self, before: HookRecord | None, after: HookRecord) -> list[Encoded]:
        was, places = before is not None and _is_on(before), list(before.switched) if before else []
        if was == _is_on(after):
            return places
        if was and not places:
            places = [0]
        places.append((await log_end(self._bus)).encoded)
        return places[max(0, len(places) - MOST_SWITCHED) // 2 * 2 :]

    async def set_enabled(self, name: str, enabled: bool) -> HookRecord:
        record = self.get(name)
        if record.enabled != enabled:
            record = msgspec.structs.replace(record, enabled=enabled, updated_at=timestamp())
            await self.save(record)
        return record

    async def delete(self, name: str) -> HookRecord:
        record = self.get(name)
        await self._bucket.delete(self._key_of(name))
        await self.view.refresh()
        await forget(self._bus, RUN, self._bus.names.hook_runs, handler_key(record.name, record.id))
        return record

    def _key_of(self, name: str) -> str:
        """What the bucket holds a hook under; a record that cannot be read may be called by its key."""
        key = token(name)
        return key if self._names.get(key) == name else next(k for k, known in self._names.items() if known == name)

    # ---- the copy

    def _take(self, change: Change) -> None:
        record, name = None, self._names.get(change.key, change.key)
        if change.value is not None:
            record = self._read(change.key, name, change.value)
            name = record.name
        before = self.records.pop(name, None)
        self._unload(name)
        self._owned.discard(name)
        if before is not None:
            self._by_key.pop(handler_key(name, before.id), None)
        if record is None:
            self._names.pop(change.key, None)
            self._revisions.pop(change.key, None)
            self._unreadable.discard(name)
            self._nameless.discard(change.key)
        else:
            self._names[change.key] = name
            self._revisions[change.key] = change.revision
            self._load(record)
        for listener in self.changed:
            listener(name, before, record, change.revision)

    def _read(self, key: str, name: str, value: bytes) -> HookRecord:
        """One that cannot be read, of a newer version perhaps, is not deleted: it is inert, and what waits for it
        waits."""
        self._unreadable.discard(name)
        self._nameless.discard(key)
        try:
            return msgspec.json.decode(value, type=HookRecord)
        except msgspec.DecodeError as error:
            log.error("the record of hook %s cannot be read: %s", key, error)
            reason = f"its record cannot be read: {error}"
        try:
            known = msgspec.json.decode(value, type=_Known)
        except msgspec.DecodeError:
            self._nameless.add(key)
            known = _Known(name)
        self._unreadable.add(known.name)
        return HookRecord(name=known.name, error=reason, id=known.id)

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
        self.records[record.name] = record
        self._by_key[handler_key(record.name, record.id)] = record.name
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
            if not hook.pre:
                self._matcher.put(record.name, hook.filters)
        except CrucibleError as error:
            self.broken[record.name] = error.detail
            log.warning("hook %s cannot run: %s", record.name, error.detail)


def _is_on(record: HookRecord) -> bool:
    """Whether events are for it that are committed from now on."""
    return record.enabled and record.definition is not None and timing(record.definition) == "Post"
