"""Pre hooks: which events they watch, known in process from the `hooks` bucket, and asking `hooks` for its verdict."""

import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from crucible_core import definition
from crucible_core.envelope import Data, Event, read
from crucible_core.errors import CrucibleError, DeniedError, InvalidError, UnavailableError
from crucible_core.filters.matcher import CompiledFilters, Matcher, compile_filters
from crucible_core.protocol.hooks import HookRecord, InterceptReply, InterceptRequest
from crucible_core.protocol.parts import Owned, Trouble, TypeFilter
from crucible_core.types.catalogue import Catalogue
from crucible_events.append.stamp import EVENTS
from crucible_kit.buckets import Bucket, Change, View
from crucible_kit.nats.bus import Bus
from crucible_kit.principals import Principals
from crucible_kit.rpc import call
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.types import Types

log = logging.getLogger(__name__)

RUN_RECORDS = frozenset({"Hook.Triggered", "Hook.Executed", "Hook.Failed"})
"""What `hooks` itself appends; only a filter that names the category sees them, not a bare `*`."""

_PATIENCE_S = 5.0
_record = msgspec.json.Decoder(HookRecord)


class Guard(msgspec.Struct, frozen=True):
    """One enabled Pre hook. `broken` says why its stored form cannot be read: then it denies what it might watch, like
    any gate that fails. `partial`: it names types that this process does not know, of which nothing can be appended
    here until it does."""

    name: str
    filters: CompiledFilters
    definition: Mapping[str, Any]
    record: Owned = msgspec.field(default_factory=Owned)
    fails_open: bool = False
    broken: str | None = None
    partial: bool = False


def read_guard(key: str, value: bytes, catalogue: Catalogue) -> Guard | None:
    """The guard that an entry of the `hooks` bucket describes; None where it is disabled, inert or a Post hook."""
    try:
        record = _record.decode(value)
        if not record.enabled or record.definition is None or definition.timing(record.definition) != "Pre":
            return None
        wanted = definition.trigger_filters(record.definition)
        known = [one for one in wanted if _is_known(one, catalogue)]
        filters = compile_filters(known, catalogue=catalogue, any_path=True)
        fails_open = definition.failure_policy(record.definition) == "allow"
        return Guard(record.name, filters, record.definition, record, fails_open, partial=len(known) < len(wanted))
    except (msgspec.DecodeError, InvalidError, KeyError, TypeError, AttributeError) as error:
        return _unreadable(key, value, catalogue, str(error))


def _unreadable(key: str, value: bytes, catalogue: Catalogue, error: str) -> Guard | None:
    """A guard that denies all that a record may watch, as far as that can be told from what can be read of it."""
    try:
        found = msgspec.json.decode(value)
    except msgspec.DecodeError:
        found = {}
    match found:
        case {"enabled": False} | {"definition": None} | {"definition": {"trigger": {"timing": "Post"}}}:
            return None
        case {"definition": {"trigger": {"events": [*events]}}}:
            types = {_around(one, catalogue) for one in events}
        case _:
            types = set[str]()
    told = found if isinstance(found, dict) else {}
    owned = Owned(**{name: told[name] for name in ("owner", "world_id") if isinstance(told.get(name), str)})
    name = told["name"] if isinstance(told.get("name"), str) else key
    wanted = [TypeFilter(event_type=type) for type in sorted(types or {"*"})]
    log.error(
        "hook %s cannot be read, so that %s is denied: %s", name, ", ".join(one.event_type for one in wanted), error
    )
    return Guard(name, compile_filters(wanted, catalogue=catalogue), {}, owned, broken=error)


def _around(wanted: Any, catalogue: Catalogue) -> str:
    """The type that an entry of a trigger names, its category where that is unknown, or everything."""
    match wanted:
        case {"type": str(type), "event": str(event)}:
            name = definition.event_type(type, event)
        case {"type": str(name)}:
            pass
        case _:
            return "*"
    for known in (name, f"{name.partition('.')[0]}.*"):
        with contextlib.suppress(InvalidError):
            catalogue.expand(known)
            return known
    return "*"


def _is_known(wanted: TypeFilter, catalogue: Catalogue) -> bool:
    """Whether this process knows the type that is wanted. Raises InvalidError for one of Crucible's own categories:
    that is of a newer version, where it may stand for a type that is known here by another name."""
    try:
        catalogue.expand(wanted.event_type)
    except InvalidError:
        if catalogue.is_own(wanted.event_type):
            raise
        return False
    return True


class Guards:
    """This process's copy of the Pre hooks. It is never asked before it has seen all of them."""

    def __init__(self, bus: Bus, bucket: Bucket, types: Types, principals: Principals, metrics: Metrics) -> None:
        self._bus = bus
        self._event_types = types
        self._principals = principals
        self._values: dict[str, bytes] = {}
        self._guards: dict[str, Guard] = {}
        self._matcher: Matcher[str] = Matcher()
        self._known = metrics.gauge("events_pre_hooks", "Enabled Pre hooks that this process knows")
        self._asked = metrics.counter("events_intercepts", "Events that Pre hooks judged", ("verdict",))
        self.view = View(bucket, self._changed)
        types.changed.append(self._type_changed)

    def _changed(self, change: Change) -> None:
        guard = None
        self._values.pop(change.key, None)
        if change.value is not None:
            guard = read_guard(change.key, change.value, self._event_types.catalogue)
        if guard is None or change.value is None:
            self._guards.pop(change.key, None)
            self._matcher.drop(change.key)
        else:
            self._guards[change.key] = guard
            self._values[change.key] = change.value
            self._matcher.put(change.key, guard.filters)
        self._known.set(len(self._guards))

    def _type_changed(self, dotted: str) -> None:
        """What a guard's filters mean may be another thing now."""
        category = dotted.partition(".")[0]
        for key, guard in list(self._guards.items()):
            if guard.partial or guard.filters.names_category(category):
                self._changed(Change(key, self._values[key], self.view.revision))

    async def reach(self, revision: int) -> None:
        """Returns once the guards are those of a revision of the bucket, with every type that they name and all that
        their owners may see."""
        await self.view.reach(revision)
        await self._principals.view.refresh()
        if any(guard.partial for guard in self._guards.values()):
            await self._event_types.view.refresh()

    async def ready(self) -> None:
        """Raises UnavailableError while it is not known which Pre hooks there are, and what their owners may see."""
        await self.view.reach(0, _PATIENCE_S)
        await self._principals.view.reach(0, _PATIENCE_S)

    def troubles(self) -> list[Trouble]:
        """Each hook that denies events since nobody can read it."""
        return [
            Trouble(
                "hooks",
                f"the record of hook {guard.name} cannot be read, so what it may watch is denied ({guard.broken}). "
                f"Register it again, or remove it: crucible hooks delete {guard.name}",
            )
            for guard in self._guards.values()
            if guard.broken
        ]

    def match(self, event: Event) -> list[Guard]:
        """The guards that watch a stamped event, whose payload is `msgspec.Raw`; most events have none."""
        if not self._matcher.may_want(event.type, event.data.event):
            return []
        payload = read(msgspec.json.decode, bytes(event.data.payload))
        decoded = msgspec.structs.replace(event, data=Data(event.data.event, payload))
        found = [self._guards[key] for key in self._matcher.match(decoded)]
        matched = [guard for guard in found if self._principals.shows(guard.record, decoded)]
        if event.dotted in RUN_RECORDS:
            return [guard for guard in matched if guard.filters.names_category("Hook")]
        return matched

    async def judge(self, matched: list[Guard], raw: bytes, traceparent: str | None) -> bytes | None:
        """What the guards that match an event say of it: the payload to put in place of its own, or None.

        DeniedError is a hook's veto; UnavailableError says that the hooks cannot be asked, and one of them must be.
        """
        for guard in matched:
            if guard.broken:
                self._asked.labels("denied").inc()
                reason = f"its record cannot be read: {guard.broken}"
                raise DeniedError(f"hook {guard.name} denied the event: {reason}", hook=guard.name, reason=reason)
        try:
            payload = await self._ask(matched, raw, traceparent)
        except DeniedError:
            self._asked.labels("denied").inc()
            raise
        except CrucibleError as error:
            self._asked.labels("failed").inc()
            if all(guard.fails_open for guard in matched):
                log.warning("pre hooks %s cannot be asked, and let the event pass: %s", _names(matched), error)
                return None
            message = f"the event needs the verdict of {_names(matched)}, which cannot be had: {error.detail}"
            raise UnavailableError(message, retry_after=2) from error
        self._asked.labels("allowed" if payload is None else "changed").inc()
        return payload

    async def _ask(self, matched: list[Guard], raw: bytes, traceparent: str | None) -> bytes | None:
        names = [guard.name for guard in matched]
        request = InterceptRequest(event=msgspec.Raw(raw), hooks=names, revision=self.view.revision)
        patience = definition.intercept_budget_s(guard.definition for guard in matched)
        reply = await call(
            self._bus, EVENTS, "hooks", "intercept", request, InterceptReply, timeout=patience, traceparent=traceparent
        )
        return None if reply.payload is msgspec.UNSET else bytes(reply.payload)


def _names(guards: list[Guard]) -> str:
    return ", ".join(guard.name for guard in guards)
