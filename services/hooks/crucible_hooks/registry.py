"""The registry of hooks: the records of the KV bucket, a compiled copy of them, and their changes."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from crucible_core.access import Principal, is_operators, service_principal
from crucible_core.definition import failure_policy, timing, trigger_filters
from crucible_core.envelope import Event
from crucible_core.errors import CrucibleError, NotFoundError
from crucible_core.filters.matcher import CompiledFilters
from crucible_core.position import Encoded, Position
from crucible_core.protocol.hooks import GuardedRequest, HookRecord
from crucible_core.protocol.parts import FormerTypes
from crucible_core.subjects import RUN, shard_of, token
from crucible_hooks.hook import Hook, handler_key, load_hook
from crucible_kit.buckets import Bucket, Change
from crucible_kit.clock import fresh_id, timestamp
from crucible_kit.eventlog import log_end
from crucible_kit.handlers.pointers import forget
from crucible_kit.handlers.registry import HandlerEntry, HandlerRegistry, named_types, remember_types
from crucible_kit.handlers.service import Plan
from crucible_kit.nats.bus import Bus
from crucible_kit.principals import Principals
from crucible_kit.rpc import call_all
from crucible_kit.types import Types
from crucible_kit.worlds import Worlds

log = logging.getLogger(__name__)

API = "api"
HOOKS = service_principal("hooks")
"""The principal of this service, where it acts for nobody else."""
_COMPILED = 1024
"""The number of hooks that stay ready to run. Any other is compiled when it is to run, within some 50 µs."""
_RUN_RECORDS = frozenset({"Executed", "Failed", "Triggered"})
MOST_SWITCHED = 64
"""The number of positions at which a hook was switched on or off that its record has: older work is not run."""
Changed = Callable[[str, HookRecord | None, HookRecord | None, int], None]
"""Called with a hook's name, its record before and after (None: it is gone), and the bucket's revision."""


_record = msgspec.json.Decoder(HookRecord)


class _Identity(msgspec.Struct):
    """The part that can be read of nearly every record."""

    name: str
    id: str = ""


class HookEntry(HandlerEntry, kw_only=True):
    """A record that cannot be read may have its `bucket_key` for its name. `switched` is the record's; `is_on`: events
    that are committed from now on are for it. `pre` is a Pre hook's priority."""

    bucket_key: str
    enabled: bool
    is_on: bool
    switched: tuple[Encoded, ...]
    pre: int | None = None
    concurrency: int = 1
    apart_ms: int = 0

    @property
    def key(self) -> str:
        return handler_key(self.name, self.id)

    @property
    def record(self) -> HookRecord:
        return _record.decode(self.value)


class Records(Mapping[str, HookRecord]):
    """The records by name, each decoded when it is read."""

    def __init__(self, entries: Mapping[str, HookEntry]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> HookRecord:
        return self._entries[name].record

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class Registry(HandlerRegistry[HookEntry]):
    """Has its entries by name. Each hook is compiled once, also a disabled one, so that enabling it cannot fail."""

    def __init__(self, bus: Bus, bucket: Bucket, types: Types, principals: Principals, worlds: Worlds) -> None:
        super().__init__(bus, bucket, types, principals, worlds)
        self._names: dict[str, str] = {}
        """The names of hooks by their keys in the bucket, where the two differ."""
        self._by_key: dict[str, HookEntry] = {}
        self._since: dict[int, Position] | None = None
        self._unreadable: set[str] = set()
        self._nameless: set[str] = set()
        """Keys of the bucket whose records do not even have the name of their hook."""
        self._pre: list[Hook] | None = None
        self._order: dict[str, int] | None = None
        self.records: Mapping[str, HookRecord] = Records(self.entries)
        self._compiled: dict[str, Hook] = {}
        self._pre_hooks: set[str] = set()
        self.changed: list[Changed] = []
        self.reloaded: list[Callable[[str], None]] = []
        """Called with the name of a hook that was compiled anew, since an event type was registered or deleted."""

    # ---- what runs

    @property
    def order(self) -> Mapping[str, int]:
        """The numbers of the enabled Pre hooks in that order, from 1 on, by name."""
        if self._order is None:
            self._order = {hook.name: number for number, hook in enumerate(self.pre, 1)}
        return self._order

    @property
    def pre(self) -> list[Hook]:
        """The enabled Pre hooks in the order in which they run: priority, then name."""
        if self._pre is None:
            found = [entry for name in self._pre_hooks if (entry := self.entries[name]).enabled]
            found.sort(key=lambda entry: (entry.pre, entry.name))
            self._pre = [self._hook(entry) for entry in found]
        return self._pre

    def match(self, event: Event) -> list[HookEntry]:
        """The Post hooks that this event triggers, with those that were enabled when it was committed."""
        found = [self.entries[name] for name in self._matcher.match(event)]
        return [entry for entry in found if self._was_for(entry, event) and self.is_triggered(entry, event)]

    def triggers(self, key: str, event: Event) -> bool:
        """True where the event triggers the Post hook of a key."""
        entry = self._by_key.get(key)
        if entry is None or entry.filters is None or entry.pre is not None or not entry.filters.matches(event):
            return False
        return self._was_for(entry, event) and self.is_triggered(entry, event)

    def _was_for(self, entry: HookEntry, event: Event) -> bool:
        """True where the hook was enabled, and named the type, when the event was committed."""
        if not self.was_wanted(entry, event):
            return False
        if not entry.switched:
            return entry.enabled
        position = self._bus.names.position
        return sum(not position(switch).covers(event.sequence or 0) for switch in entry.switched) % 2 == 1

    def is_triggered(self, hook: HookEntry | Hook, event: Event) -> bool:
        """True where a hook whose filters match is triggered: its owner sees the event. A record of a run triggers only
        hooks that name its category: one that listens to everything would trigger itself for ever."""
        own = event.type == "Hook" and event.data.event in _RUN_RECORDS
        heard = not own or (hook.filters is not None and hook.filters.names_category("Hook"))
        return heard and self.owner_sees(hook, event)

    def wants(self, hook: Hook, event: Event) -> bool:
        """True where a Pre hook decides on an event that is not committed yet."""
        return hook.filters.matches(event) and self.owner_sees(hook, event)

    def owner_sees(self, hook: HookEntry | Hook, event: Event) -> bool:
        return self.may_receive(self.entries[hook.name], event)

    def hook(self, name: str) -> Hook | None:
        """The hook, ready to run; None where there is none, or it cannot run."""
        entry = self.entries.get(name)
        return None if entry is None or entry.filters is None else self._hook(entry)

    def _hook(self, entry: HookEntry) -> Hook:
        hook = self._compiled.get(entry.name)
        if hook is None:
            if len(self._compiled) >= _COMPILED:
                del self._compiled[next(iter(self._compiled))]
            hook = self._compiled[entry.name] = self._compile(entry.record, entry.filters)
        return hook

    def _compile(self, record: HookRecord, filters: CompiledFilters | None = None) -> Hook:
        """Raises InvalidError, though not with filters that were compiled before."""
        beside = None if record.origin == API else str(Path(record.origin).parent)
        definition, catalogue = record.definition or {}, self.types.catalogue
        return load_hook(definition, beside, record.id, record.owner, catalogue=catalogue, filters=filters)

    def by_key(self, key: str) -> Hook | None:
        """The hook that the work engine serves by a key; None where there is none, or it cannot run."""
        entry = self._by_key.get(key)
        return None if entry is None else self.hook(entry.name)

    def plan(self, key: str) -> Plan | None:
        """The plan by which the work engine serves the hook of a key; None where there is none."""
        entry = self._by_key.get(key)
        if entry is None:
            return Plan(1, held=True) if self._nameless else None
        since = self._since_of(entry)
        if entry.filters is None or entry.pre is not None or not entry.enabled:
            return Plan(1, since, held=True, keeps=entry.filters is None and self._is_due(entry))
        return Plan(entry.concurrency, since, types=entry.filters.types, apart_ms=entry.apart_ms)

    def unmatched(self) -> list[str]:
        """The keys of enabled hooks that cannot be matched here."""
        return [key for key, entry in self._by_key.items() if entry.filters is None and self._is_due(entry)]

    def since(self, shard: int) -> Position | None:
        """The position in the log after which the first hook of a shard wants events; None without hooks."""
        if self._since is None:
            positions: defaultdict[int, list[Position]] = defaultdict(list)
            for key, entry in self._by_key.items():
                if entry.switched:
                    positions[shard_of(key)].append(self._since_of(entry))
            self._since = {number: first.least(*others) for number, (first, *others) in positions.items()}
        return self._since.get(shard)

    def _since_of(self, entry: HookEntry) -> Position:
        return self._bus.names.position(entry.switched[0] if entry.switched else 0)

    def _is_due(self, entry: HookEntry) -> bool:
        return entry.is_on or entry.name in self._unreadable

    def state(self, name: str) -> str:
        record = self.get(name)
        if not record.enabled:
            return "disabled"
        if powerless := self.principals.powerless_reason(record):
            return f"inert: {powerless}"
        reason = record.error or self.inert.get(name)
        if reason is None:
            return "active"
        return f"inert: {reason}" + ("; the last good version still runs" if self._runs(name) else "")

    def warnings(self, name: str) -> list[str]:
        """The reasons for which a hook that can run may never be triggered."""
        if not self._runs(name):
            return []
        record = self.records[name]
        return self._warnings(record, (one.event_type for one in trigger_filters(record.definition or {})))

    def load_error(self, name: str) -> str | None:
        """The reason for which an enabled Pre hook with `failure_policy: deny` cannot run here; None for any other."""
        record = self.records.get(name)
        if record is None or not record.enabled or self._runs(name):
            return None
        if record.definition is None:
            return record.error
        if timing(record.definition) != "Pre" or failure_policy(record.definition) == "allow":
            return None
        return self.inert.get(name)

    def get(self, name: str, principal: Principal = HOOKS) -> HookRecord:
        """Raises NotFoundError, also where the principal may not see it."""
        record = self.records.get(name)
        if record is None or not principal.may_see(record):
            raise NotFoundError(f"there is no hook {name[:100]!r}")
        return record

    def find_owned(self, name: str, principal: Principal) -> HookRecord:
        """The same, to change it. Raises ForbiddenError where it is somebody else's."""
        record = self.get(name, principal)
        principal.check_owns(record, f"hook {name}")
        return record

    def _runs(self, name: str) -> bool:
        return self.entries[name].filters is not None

    # ---- changes

    async def save(self, record: HookRecord) -> None:
        """Returns once every replica works with it, for a Pre hook every replica of `events`: it decides on the next
        event. Raises ConflictError where somebody else was first."""
        key, before = token(record.name), self.records.get(record.name)
        revision = self._revisions.get(key)
        id = record.id if record.id or before else fresh_id("hok")
        end = await log_end(self._bus)
        switched, former = self._switch_positions(before, record, end), self._former_types(before, record, end)
        record = msgspec.structs.replace(record, id=id, switched=switched, former=former)
        value = msgspec.json.encode(record)
        put = self._bucket.create(key, value) if revision is None else self._bucket.update(key, value, revision)
        stored = await put
        await self.view.reach(stored)
        if record.definition and timing(record.definition) == "Pre":
            # A replica that does not answer commits nothing before it has learned of the hook.
            await call_all(self._bus, HOOKS, "events", "guarded", GuardedRequest(revision=stored))
        else:
            await self.stored(stored)

    def _switch_positions(self, before: HookRecord | None, after: HookRecord, end: Position) -> list[Encoded]:
        was, positions = before is not None and _gets_new_events(before), list(before.switched) if before else []
        if was == _gets_new_events(after):
            return positions
        positions = [*(positions or [0] * was), end.encoded]
        return positions[max(0, len(positions) - MOST_SWITCHED) // 2 * 2 :]

    def _former_types(self, before: HookRecord | None, after: HookRecord, end: Position) -> list[FormerTypes]:
        if before is None or not before.definition or not after.definition:
            return before.former if before else []
        old, new = (named_types(trigger_filters(one.definition or {}), self.types.catalogue) for one in (before, after))
        return remember_types(before.former, old, new, end)

    async def set_enabled(self, name: str, enabled: bool) -> HookRecord:
        record = self.get(name)
        if record.enabled != enabled:
            record = msgspec.structs.replace(record, enabled=enabled, updated_at=timestamp())
            await self.save(record)
        return record

    async def delete(self, name: str) -> HookRecord:
        record = self.get(name)
        await self._bucket.delete(self.entries[name].bucket_key)
        await self.view.refresh()
        await forget(self._bus, RUN, self._bus.names.hook_runs, handler_key(record.name, record.id))
        return record

    # ---- the copy

    def _take(self, change: Change) -> None:
        record, name, value = None, self._names.get(change.key, change.key), change.value
        if value is not None:
            record, value = self._read(change.key, name, value)
            name = record.name
        before = self.records.get(name)
        self._unload(name)
        self._owned.discard(name)
        if before is not None:
            self._by_key.pop(handler_key(name, before.id), None)
            del self.entries[name]
        self._names.pop(change.key, None)
        if record is None or value is None:
            self._revisions.pop(change.key, None)
            self._unreadable.discard(name)
            self._nameless.discard(change.key)
        else:
            if name != change.key:
                self._names[change.key] = name
            self._revisions[change.key] = change.revision
            self._load(record, value, name if name == change.key else change.key)
        for listener in self.changed:
            listener(name, before, record, change.revision)

    def _read(self, key: str, name: str, value: bytes) -> tuple[HookRecord, bytes]:
        """The record, and its bytes. One that cannot be read, perhaps of a newer version, is inert; its work waits."""
        self._unreadable.discard(name)
        self._nameless.discard(key)
        try:
            return _record.decode(value), value
        except msgspec.DecodeError as error:
            log.error("the record of hook %s cannot be read: %s", key, error)
            reason = f"its record cannot be read: {error}"
        try:
            identity = msgspec.json.decode(value, type=_Identity)
        except msgspec.DecodeError:
            self._nameless.add(key)
            identity = _Identity(name)
        self._unreadable.add(identity.name)
        record = HookRecord(name=identity.name, error=reason, id=identity.id)
        return record, msgspec.json.encode(record)

    def _recompile(self, key: str, entry: HookEntry, type: str) -> None:
        could_run = self._runs(key)
        self._unload(key)
        self._load(entry.record, entry.value, entry.bucket_key)
        if could_run != self._runs(key):
            log.info("hook %s is %s, since %s has changed", key, self.state(key), type)
        for listener in self.reloaded:
            listener(key)

    def _unload(self, name: str) -> None:
        self._pre = self._order = self._since = None
        self._matcher.drop(name)
        self._pre_hooks.discard(name)
        self._compiled.pop(name, None)
        self.inert.pop(name, None)

    def _load(self, record: HookRecord, value: bytes, bucket_key: str) -> None:
        entry = self.entries[record.name] = HookEntry(
            name=record.name,
            bucket_key=bucket_key,
            id=record.id,
            owner=record.owner,
            world_id=record.world_id,
            value=value,
            enabled=record.enabled,
            is_on=_gets_new_events(record),
            switched=tuple(record.switched),
            former=tuple(record.former),
        )
        self._by_key[entry.key] = entry
        if not is_operators(record):
            self._owned.add(record.name)
        if record.definition is None:
            return
        try:
            hook = self._compile(record)
        except CrucibleError as error:
            self.inert[record.name] = error.detail
            log.warning("hook %s cannot run: %s", record.name, error.detail)
            return
        options = hook.definition.options
        entry.filters, entry.concurrency, entry.apart_ms = hook.filters, options.concurrency, options.debounce_ms
        if hook.pre:
            entry.pre = hook.definition.trigger.priority
            self._pre_hooks.add(record.name)
        else:
            self._matcher.put(record.name, hook.filters)


def _gets_new_events(record: HookRecord) -> bool:
    """True where events that are committed from now on are for the hook."""
    return record.enabled and record.definition is not None and timing(record.definition) == "Post"
