"""Retention: the rules for the lifetimes of events, in this process's copy; the requests about them; and the removal of
events that have expired."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import partial

import msgspec

from crucible_core.envelope import Event
from crucible_core.errors import ConflictError, CrucibleError, FieldError, InvalidError
from crucible_core.limits import RETENTION_RULES
from crucible_core.protocol.retention import (
    PutRetention,
    ReachedRequest,
    RetentionRecord,
    RetentionRule,
    RetentionRules,
    RetentionView,
)
from crucible_core.subjects import first_of
from crucible_core.times import format_keep, parse_keep
from crucible_core.types.catalogue import CATALOGUE, Catalogue
from crucible_events import store
from crucible_events.append.lifetime import DEFAULT, Lifetime, expiry_of, lifetime_of
from crucible_events.append.stamp import EVENTS
from crucible_events.worlds.registry import Places
from crucible_kit.buckets import Bucket, Change, View
from crucible_kit.eventlog import event_at
from crucible_kit.index.index import Index
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import Context, Endpoint, call_all
from crucible_kit.types import Types

log = logging.getLogger(__name__)

BUCKET = "retention"
KEY = "rules"
_READY_S = 5.0
_REMEMBERED = 10_000
_MOST_ERRORS = 20
EVERY_S = 2.0
_AT_ONCE = 200
_rules = msgspec.json.Decoder(RetentionRules)


class Rule(msgspec.Struct, frozen=True):
    """`types` are as `Catalogue.expand` returns them: None is every type."""

    types: frozenset[str] | None
    world_id: str | None
    lifetime: Lifetime

    def matches(self, event: Event) -> bool:
        if self.world_id is not None and self.world_id != event.metadata.world_id:
            return False
        return self.types is None or event.dotted in self.types or f"{event.type}.*" in self.types


def compile_rule(rule: RetentionRule, at: str, max_age_s: float, catalogue: Catalogue = CATALOGUE) -> Rule:
    """Raises InvalidError with paths below `at`."""
    types = catalogue.expand(rule.type, f"{at}.type")
    return Rule(types, rule.world_id, lifetime_of(parse_keep(rule.keep, f"{at}.keep"), max_age_s))


class RetentionRequest(msgspec.Struct):
    """Nothing is asked."""


class Retention:
    """The rules, and the requests about them."""

    def __init__(self, bus: Bus, bucket: Bucket, places: Places, types: Types, max_age_s: float) -> None:
        """`max_age_s` is the stream's limit, for events without a rule."""
        self._bus = bus
        self._bucket = bucket
        self._places = places
        self._types = types
        self._max_age_s = max_age_s
        self._rules: Sequence[Rule] = ()
        self._recorded: Sequence[RetentionRule] = ()
        self._revision = 0
        self._lifetimes: dict[tuple[str, str], Lifetime] = {}
        self.view = View(bucket, self._apply)
        types.changed.append(lambda _: self._compile())

    def endpoints(self) -> Mapping[str, Endpoint]:
        return {"get_retention": Endpoint(RetentionRequest, self.get)}

    async def ready(self) -> None:
        """Raises UnavailableError until this copy has the rules."""
        await self.view.reach(0, _READY_S)

    def of(self, event: Event) -> Lifetime:
        """The lifetime that the first matching rule gives an event."""
        if not self._rules:
            return DEFAULT
        key = (event.dotted, event.metadata.world_id)
        found = self._lifetimes.get(key)
        if found is None:
            if len(self._lifetimes) >= _REMEMBERED:
                self._lifetimes.clear()
            found = next((rule.lifetime for rule in self._rules if rule.matches(event)), DEFAULT)
            self._lifetimes[key] = found
        return found

    # ---- requests

    async def get(self, request: RetentionRequest, context: Context) -> RetentionView:
        """The rules of the worlds that the scope shows."""
        await self.view.refresh()
        rules = [rule for rule in self._recorded if context.scope.has_place(rule.world_id)]
        return RetentionView(rules=rules, default=format_keep(self._max_age_s), revision=self._revision)

    async def put(self, request: PutRetention, context: Context) -> RetentionView:
        """Raises InvalidError with every mistake, and ConflictError where the rules are no longer those of the revision
        that was read."""
        await self._check(request.rules)
        value = msgspec.json.encode(RetentionRecord(rules=request.rules, owner=context.principal.id))
        revision = await self._store(value, request.revision)
        await self.view.reach(revision)
        await call_all(self._bus, EVENTS, "events", "reached", ReachedRequest(bucket=BUCKET, revision=revision))
        return RetentionView(rules=request.rules, default=format_keep(self._max_age_s), revision=revision)

    async def _store(self, value: bytes, expected: int | None) -> int:
        if expected is None:
            return await self._bucket.put(KEY, value)
        try:
            return await self._bucket.update(KEY, value, expected)
        except ConflictError:
            entry = await self._bucket.get(KEY)
            current = entry.revision if entry else 0
            message = f"the rules are at revision {current}, not {expected}"
            raise ConflictError(message, current_revision=current) from None

    async def _check(self, rules: Sequence[RetentionRule]) -> None:
        if len(rules) > RETENTION_RULES:
            raise InvalidError.field("rules", f"may hold {RETENTION_RULES}")
        await self._places.view.refresh()
        await self._types.view.refresh()
        errors: list[FieldError] = []
        for index, rule in enumerate(rules):
            errors += self._field_errors(rule, f"rules.{index}")
            if len(errors) >= _MOST_ERRORS:
                break
        if errors:
            raise InvalidError(f"{errors[0].path}: {errors[0].message}", errors=errors)

    def _field_errors(self, rule: RetentionRule, at: str) -> list[FieldError]:
        found: list[FieldError] = []
        expand = partial(self._types.catalogue.expand, rule.type, f"{at}.type")
        for check in (expand, partial(parse_keep, rule.keep, f"{at}.keep")):
            try:
                check()
            except InvalidError as error:
                found += error.errors
        unknown = self._places.unreadable(rule.world_id, None)
        if unknown is not None:
            found += [msgspec.structs.replace(field, path=f"{at}.{field.path}") for field in unknown.errors]
        return found

    # ---- the copy

    def _apply(self, change: Change) -> None:
        if change.key != KEY:
            return
        self._revision = change.revision
        try:
            self._recorded = [] if change.value is None else _rules.decode(change.value).rules
        except msgspec.DecodeError as error:
            log.error("the rules of retention cannot be read; the last ones hold: %s", error)
            return
        self._compile()

    def _compile(self) -> None:
        self._lifetimes.clear()
        self._rules = [
            rule for index, recorded in enumerate(self._recorded) if (rule := self._compile_rule(recorded, index))
        ]

    def _compile_rule(self, rule: RetentionRule, index: int) -> Rule | None:
        try:
            return compile_rule(rule, f"rules.{index}", self._max_age_s, self._types.catalogue)
        except CrucibleError as error:
            log.error("a rule of retention cannot be read, and is passed over: %s", error)
            return None


class Expiry:
    """Every replica forgets the expired events of its own index, and removes them from the stream: twice is
    harmless."""

    def __init__(self, bus: Bus, index: Index) -> None:
        self._bus = bus
        self._index = index
        self._expired_to = {stream: first_of(stream) for stream in index.streams}
        """By stream, the sequence below which the index has no event past the stream's limit."""

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            try:
                await self.once()
            except CrucibleError as error:
                log.warning("expired events stay in the index for now: %s", error)
            await asyncio.sleep(EVERY_S)

    async def once(self) -> int:
        """Returns how many events were forgotten."""
        gone, now_ms = 0, 0
        for stream in self._index.streams:
            state = await self._bus.stream_state(stream)
            now_ms = state.now_ms
            if state.max_age_ms:
                gone += await self._forget(stream, now_ms - state.max_age_ms)
        while due := await store.overdue(self._index, now_ms, _AT_ONCE):
            await asyncio.gather(*(self._remove(sequence, now_ms) for sequence in due))
            gone += await store.forget_sequences(self._index, due)
        return gone + await store.forget_expired(self._index, now_ms)

    async def _forget(self, stream: str, before_ms: int) -> int:
        first = self._expired_to[stream]
        end = self._expired_to[stream] = await store.first_since(self._index, before_ms, first - 1)
        gone = await store.forget_range(self._index, first, end)
        return gone + await store.forget_redacted(self._index, before_ms)

    async def _remove(self, sequence: int, now_ms: int) -> None:
        message = await event_at(self._bus, sequence)
        if message is None:
            return
        # The stream's own message decides: a server that lost its end has used sequences again.
        forever, expires_ms = expiry_of(message.headers, message.time_ms)
        if forever and expires_ms is not None and expires_ms <= now_ms:
            await self._bus.remove(self._bus.names.stream_at(sequence), sequence)
