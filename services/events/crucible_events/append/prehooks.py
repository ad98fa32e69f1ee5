"""Pre hooks of the append path: a copy of the `hooks` bucket, the match in process, and the request for a decision."""

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
"""Types that `hooks` itself appends; only a filter that names the category sees them, not a bare `*`."""

_READY_S = 5.0
_record = msgspec.json.Decoder(HookRecord)


class PreHook(msgspec.Struct, frozen=True):
    """One enabled Pre hook. `broken` says why its record cannot be read: then it denies every event that it might
    watch. A `partial` one names types that this process does not know; it appends no events of these until it does."""

    name: str
    filters: CompiledFilters
    definition: Mapping[str, Any]
    record: Owned = msgspec.field(default_factory=Owned)
    fails_open: bool = False
    broken: str | None = None
    partial: bool = False


def read_prehook(key: str, value: bytes, catalogue: Catalogue) -> PreHook | None:
    """The Pre hook of an entry of the `hooks` bucket; None where it is disabled, inert or a Post hook."""
    try:
        record = _record.decode(value)
        if not record.enabled or record.definition is None or definition.timing(record.definition) != "Pre":
            return None
        wanted = definition.trigger_filters(record.definition)
        known = [one for one in wanted if _is_known(one, catalogue)]
        filters = compile_filters(known, catalogue=catalogue, any_path=True)
        fails_open = definition.failure_policy(record.definition) == "allow"
        return PreHook(record.name, filters, record.definition, record, fails_open, partial=len(known) < len(wanted))
    except (msgspec.DecodeError, InvalidError, KeyError, TypeError, AttributeError) as error:
        return _broken_prehook(key, value, catalogue, str(error))


def _broken_prehook(key: str, value: bytes, catalogue: Catalogue, error: str) -> PreHook | None:
    """A Pre hook that denies every event that its record may watch, by the parts of the record that can be read."""
    try:
        found = msgspec.json.decode(value)
    except msgspec.DecodeError:
        found = {}
    match found:
        case {"enabled": False} | {"definition": None} | {"definition": {"trigger": {"timing": "Post"}}}:
            return None
        case {"definition": {"trigger": {"events": [*events]}}}:
            types = {_widest_type(one, catalogue) for one in events}
        case _:
            types = set[str]()
    fields = found if isinstance(found, dict) else {}
    owned = Owned(**{name: fields[name] for name in ("owner", "world_id") if isinstance(fields.get(name), str)})
    name = fields["name"] if isinstance(fields.get("name"), str) else key
    wanted = [TypeFilter(event_type=type) for type in sorted(types or {"*"})]
    log.error(
        "hook %s cannot be read, so that %s is denied: %s", name, ", ".join(one.event_type for one in wanted), error
    )
    return PreHook(name, compile_filters(wanted, catalogue=catalogue), {}, owned, broken=error)


def _widest_type(wanted: Any, catalogue: Catalogue) -> str:
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
    """True where this process has the type of a filter. Raises InvalidError for one of Crucible's own categories: a
    newer version has it, where it may stand for a type that has another name here."""
    try:
        catalogue.expand(wanted.event_type)
    except InvalidError:
        if catalogue.is_own(wanted.event_type):
            raise
        return False
    return True


class PreHooks:
    """This process's copy of the Pre hooks. No append asks it before it holds all of them (`ready`)."""

    def __init__(self, bus: Bus, bucket: Bucket, types: Types, principals: Principals, metrics: Metrics) -> None:
        self._bus = bus
        self._event_types = types
        self._principals = principals
        self._values: dict[str, bytes] = {}
        self._hooks: dict[str, PreHook] = {}
        self._matcher: Matcher[str] = Matcher()
        self._enabled = metrics.gauge("events_pre_hooks", "Enabled Pre hooks that this process knows")
        self._decisions = metrics.counter("events_intercepts", "Events that Pre hooks decided on", ("verdict",))
        self.view = View(bucket, self._apply)
        types.changed.append(self._recompile)

    def _apply(self, change: Change) -> None:
        hook = None
        self._values.pop(change.key, None)
        if change.value is not None:
            hook = read_prehook(change.key, change.value, self._event_types.catalogue)
        if hook is None or change.value is None:
            self._hooks.pop(change.key, None)
            self._matcher.drop(change.key)
        else:
            self._hooks[change.key] = hook
            self._values[change.key] = change.value
            self._matcher.put(change.key, hook.filters)
        self._enabled.set(len(self._hooks))

    def _recompile(self, dotted: str) -> None:
        """Compiles anew the filters that may mean something else now."""
        category = dotted.partition(".")[0]
        for key, hook in list(self._hooks.items()):
            if hook.partial or hook.filters.names_category(category):
                self._apply(Change(key, self._values[key], self.view.revision))

    async def reach(self, revision: int) -> None:
        """Returns once this copy is at a revision of the bucket, and has every type that the hooks name and the grants
        of their owners."""
        await self.view.reach(revision)
        await self._principals.view.refresh()
        if any(hook.partial for hook in self._hooks.values()):
            await self._event_types.view.refresh()

    async def ready(self) -> None:
        """Raises UnavailableError until this copy holds every Pre hook and the grants of their owners."""
        await self.view.reach(0, _READY_S)
        await self._principals.view.reach(0, _READY_S)

    def troubles(self) -> list[Trouble]:
        """One for each hook that denies events because its record cannot be read."""
        return [
            Trouble(
                "hooks",
                f"the record of hook {hook.name} cannot be read, so what it may watch is denied ({hook.broken}). "
                f"Register it again, or remove it: crucible hooks delete {hook.name}",
            )
            for hook in self._hooks.values()
            if hook.broken
        ]

    def match(self, event: Event) -> list[PreHook]:
        """The Pre hooks that watch a stamped event, whose payload is `msgspec.Raw`; most events have none."""
        if not self._matcher.may_want(event.type, event.data.event):
            return []
        payload = read(msgspec.json.decode, bytes(event.data.payload))
        decoded = msgspec.structs.replace(event, data=Data(event.data.event, payload))
        found = [self._hooks[key] for key in self._matcher.match(decoded)]
        matched = [hook for hook in found if self._principals.may_receive(hook.record, decoded)]
        if event.dotted in RUN_RECORDS:
            return [hook for hook in matched if hook.filters.names_category("Hook")]
        return matched

    async def decide(self, matched: list[PreHook], raw: bytes, traceparent: str | None) -> bytes | None:
        """The decision of the Pre hooks that match an event: the payload that replaces its own, or None to keep it.

        Raises DeniedError for a veto, UnavailableError where the hooks cannot be asked and one of them fails closed.
        """
        for hook in matched:
            if hook.broken:
                self._decisions.labels("denied").inc()
                reason = f"its record cannot be read: {hook.broken}"
                raise DeniedError(f"hook {hook.name} denied the event: {reason}", hook=hook.name, reason=reason)
        try:
            payload = await self._ask(matched, raw, traceparent)
        except DeniedError:
            self._decisions.labels("denied").inc()
            raise
        except CrucibleError as error:
            self._decisions.labels("failed").inc()
            if all(hook.fails_open for hook in matched):
                log.warning("pre hooks %s cannot be asked, and let the event pass: %s", _names(matched), error)
                return None
            message = f"the event needs the decision of {_names(matched)}, and hooks cannot be asked: {error.detail}"
            raise UnavailableError(message, retry_after=2) from error
        self._decisions.labels("allowed" if payload is None else "changed").inc()
        return payload

    async def _ask(self, matched: list[PreHook], raw: bytes, traceparent: str | None) -> bytes | None:
        names = [hook.name for hook in matched]
        request = InterceptRequest(event=msgspec.Raw(raw), hooks=names, revision=self.view.revision)
        timeout = definition.intercept_budget_s(hook.definition for hook in matched)
        reply = await call(
            self._bus, EVENTS, "hooks", "intercept", request, InterceptReply, timeout=timeout, traceparent=traceparent
        )
        return None if reply.payload is msgspec.UNSET else bytes(reply.payload)


def _names(hooks: list[PreHook]) -> str:
    return ", ".join(hook.name for hook in hooks)
