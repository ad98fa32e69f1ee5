"""Appends: each event is stamped, looked up, put to its Pre hooks and committed, and has its own outcome."""

import asyncio
import functools
import logging
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence

import msgspec

from crucible_core.access import Scope
from crucible_core.envelope import decode, is_intricate
from crucible_core.errors import (
    ConflictError,
    CrucibleError,
    InvalidError,
    LimitedError,
    UnavailableError,
    from_problem,
    untried,
)
from crucible_core.limits import EVENT_BYTES
from crucible_core.protocol.events import Appended, AppendReply, AppendRequest, Known, NewEvent
from crucible_core.subjects import FINGERPRINT
from crucible_core.types.catalogue import UnknownTypeError
from crucible_events.append.committer import Committer, Outcome, commit_expecting
from crucible_events.append.entries import (
    ALONE,
    Entry,
    State,
    apply_scope,
    batches,
    by_stream,
    check_independent,
    check_one_stream,
    continue_chain,
    continues,
    entities_of,
    entries_in,
    hold_back,
    remember_chain,
    require_all,
)
from crucible_events.append.lifetime import FOREVER, Lifetime
from crucible_events.append.lookup import Lookup, chains_of
from crucible_events.append.prehooks import PreHook, PreHooks
from crucible_events.append.stamp import Defaults, HopsError, stamp, stored_key
from crucible_events.append.validation import Payloads
from crucible_events.retention import Retention
from crucible_events.worlds.registry import Places
from crucible_kit.clock import fresh_id, fresh_ids, timestamp
from crucible_kit.eventlog import event_at
from crucible_kit.fairness import Slots
from crucible_kit.nats.bus import MAX_BATCH, Bus, DuplicateError, Message, Stored
from crucible_kit.rpc import Context
from crucible_kit.tasks import Turn
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.types import Types

log = logging.getLogger(__name__)

DECISIONS_AT_ONCE = 64
"""Events that Pre hooks decide on at once; the events of the same hooks have a quarter of it."""
_SUGGESTED = 20
"""Events of one request with an unknown type whose refusals name the nearest one: to find it takes milliseconds."""
_HEADERS_BYTES = 8 * 1024
"""Of NATS's max_payload, for subject and headers."""


class Appender:
    """Takes an event through all its steps. Many requests are under way at once; the committer orders them."""

    def __init__(
        self,
        bus: Bus,
        lookup: Lookup,
        types: Types,
        prehooks: PreHooks,
        places: Places,
        retention: Retention,
        committer: Committer,
        metrics: Metrics,
    ) -> None:
        self._bus = bus
        self._lookup = lookup
        self._prehooks = prehooks
        self._types = types
        self._payloads = Payloads(lambda: types.catalogue)
        self._places = places
        self._retention = retention
        self._committer = committer
        self._deciding = Slots(DECISIONS_AT_ONCE, DECISIONS_AT_ONCE // 4)
        self._most = min(EVENT_BYTES, bus.max_payload - _HEADERS_BYTES)
        appended = metrics.counter("events_appended", "Events that were committed", ("category",))
        self._appended_of = functools.cache(appended.labels)
        self._duplicates = metrics.counter("events_duplicates", "Appends of what the log had already")
        self._refused = metrics.counter("events_refused", "Events that were refused", ("reason",))

    async def append(self, request: AppendRequest, context: Context, *, spare: bool = False) -> AppendReply:
        """One outcome for each event; an atomic request is refused as a whole, by an error. `spare`: events that record
        a deletion may use the storage that is reserved for that."""
        await self._ready()
        with self._places.appending():
            if request.atomic:
                return AppendReply(results=await self._append_whole(request.events, context))
            states = await self._stamp_all(request.events, context, apart=request.apart)
            return AppendReply(results=await self._append_each(states, spare=spare, apart=request.apart))

    # ---- each on its own

    async def append_own(
        self, new: NewEvent, headers: Mapping[str, str], lifetime: Lifetime, traceparent: str
    ) -> Appended:
        """Appends an event of this service's own, whose message has headers that no client can set. It may be as large
        as the bus allows, and go to a deleted world or room. Raises the refusal: a hook may deny it."""
        await self._ready()
        with self._places.appending():
            state = self._stamp(
                0, new, fresh_id("evt"), timestamp(), traceparent, most=self._bus.max_payload - _HEADERS_BYTES
            )
            if isinstance(state, Entry):
                state = msgspec.structs.replace(state, headers=headers, lifetime=lifetime)
            [outcome] = await self._append_each([state], anywhere=True, spare=True)
        if outcome.error is not None:
            raise from_problem(outcome.error)
        return outcome

    async def _ready(self) -> None:
        """Raises UnavailableError until this process has the configuration that an append needs."""
        await self._types.view.reach(0)
        for copy in (self._prehooks, self._places, self._retention):
            await copy.ready()

    async def _append_each(
        self, states: list[State], *, anywhere: bool = False, spare: bool = False, apart: bool = False
    ) -> list[Appended]:
        """`anywhere`: also to deleted worlds and rooms. `spare`: also where storage is short. `apart`: without the
        events that others would wait for."""
        for entry, first in await self._find_known(entries_in(states)):
            try:
                states[entry.index] = self._duplicate(entry, first)
            except CrucibleError as error:
                states[entry.index] = error.as_value()
        sent = entries_in(states)
        if not spare:
            self._check_storage(states)
        if apart:
            for entry in entries_in(states):
                if not self._places.has(entry) or self._prehooks.match(entry.stamped.event):
                    states[entry.index] = ALONE
        else:
            if not anywhere:
                await self._places.admit(states)
            await self._ask_prehooks(states)
            hold_back(sent, states)
        await self._commit_each(states)
        return [self._outcome(state) for state in states]

    async def _commit_each(self, states: list[State]) -> None:
        first, *others = by_stream(entries_in(states), self._bus.names) or [[]]
        if others:
            await asyncio.gather(*(self._commit_to_stream(some, states) for some in (first, *others)))
        else:
            await self._commit_to_stream(first, states)

    async def _commit_to_stream(self, entries: list[Entry], states: list[State]) -> None:
        waiting: list[tuple[list[Entry], asyncio.Future[list[Outcome]]]] = []
        missed: State | None = None
        try:
            for batch in batches(entries):
                try:
                    if missed is not None:  # later events would come before it once it is repeated
                        for entry in batch:
                            states[entry.index] = missed
                    elif batch[0].shares_subject:
                        await self._set_outcomes(states, batch, self._commit_expecting(*batch))
                    else:
                        before = waiting[-1][1] if waiting else None
                        messages = [entry.outgoing(self._bus.names) for entry in batch]
                        waiting.append((batch, self._committer.submit_each(messages, entities_of(batch), before)))
                except CrucibleError as error:
                    for entry in batch:
                        states[entry.index] = error.as_value()
                first = states[batch[0].index]
                if isinstance(first, LimitedError | UnavailableError):
                    missed = untried(first)
            for batch, future in waiting:
                await self._set_outcomes(states, batch, future)
        finally:
            for _, future in waiting:
                future.cancel()

    async def _set_outcomes(
        self, states: list[State], batch: list[Entry], committing: Awaitable[Sequence[Outcome]]
    ) -> None:
        outcomes: Sequence[Outcome]
        try:
            outcomes = await committing
        except CrucibleError as error:
            outcomes = [error.as_value()] * len(batch)
        committed: Counter[str] = Counter()
        for entry, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Stored) and not outcome.duplicate:
                states[entry.index] = entry.to_appended(outcome.sequence)
                committed[entry.stamped.event.type] += 1
                continue
            try:
                states[entry.index] = await self._resolve(entry, outcome)
            except CrucibleError as error:
                states[entry.index] = error.as_value()
        self._count(committed)

    async def _resolve(self, entry: Entry, outcome: Outcome) -> State:
        """The state of an event that this append did not add to the log."""
        if isinstance(outcome, ConflictError):
            # JetStream compares sequences before ids: the repetition of an append conflicts with its own first time.
            for _, first in await self._find_known([entry], settled=True):
                return self._duplicate(entry, first)
            return outcome if entry.shares_subject else await self._conflict(entry)
        if isinstance(outcome, CrucibleError):
            return outcome
        return self._duplicate(entry, await self._read_first(entry, outcome.sequence))

    async def _commit_expecting(self, *entries: Entry, whole: bool = False) -> list[Stored]:
        return await commit_expecting(self._bus, self._lookup, self._committer, entries, whole=whole)

    # ---- all or nothing

    async def _append_whole(self, events: Sequence[NewEvent], context: Context) -> list[Appended]:
        if len(events) > MAX_BATCH:
            message = f"an atomic append takes at most {MAX_BATCH} events"
            raise self._count_refusal(InvalidError.field("events", message, detail=message))
        try:
            states = await self._stamp_all(events, context)
            entries = require_all(states)
            check_independent(entries)
            check_one_stream(entries, self._bus.names)
            known = await self._find_known(entries)
            if 0 < len(known) < len(entries):  # the index may be in the middle of them
                known = await self._find_known(entries, settled=True)
            if first := self._first_answers(entries, known):
                return first
            self._check_storage(states)
            await self._places.admit(states)
            require_all(states)
            await self._ask_prehooks(states)
            return await self._commit_whole(require_all(states)) if states else []
        except CrucibleError as error:
            raise self._count_refusal(error) from None

    async def _commit_whole(self, entries: list[Entry]) -> list[Appended]:
        try:
            if any(entry.shares_subject for entry in entries):
                stored = await self._commit_expecting(*entries, whole=True)
            else:
                messages = [entry.outgoing(self._bus.names) for entry in entries]
                stored = await self._committer.submit(messages, entities_of(entries))
        except (ConflictError, DuplicateError) as error:
            if first := self._first_answers(entries, await self._find_known(entries, settled=True)):
                return first
            raise error if "current_sequence" in error.extra else await self._conflict_among(entries) from None
        if stored[0].duplicate:
            return [self._duplicate(entries[0], await self._read_first(entries[0], stored[0].sequence))]
        self._count(Counter(entry.stamped.event.type for entry in entries))
        return [entry.to_appended(one.sequence) for entry, one in zip(entries, stored, strict=True)]

    def _first_answers(self, entries: list[Entry], known: list[tuple[Entry, Known]]) -> list[Appended]:
        """The answers of the first time, where a whole request comes again. Raises ConflictError where only a part
        does."""
        if known and len(known) < len(entries):
            paths = ", ".join(f"events.{entry.index}" for entry, _ in known[:5])
            raise ConflictError(f"{paths}: known already, and other events of the request are not")
        return [self._duplicate(entry, first) for entry, first in known]

    # ---- stamping

    async def _stamp_all(self, events: Sequence[NewEvent], context: Context, *, apart: bool = False) -> list[State]:
        now, fresh = timestamp(), fresh_ids("evt", len(events))
        traceparent, scope = context.traceparent, context.scope
        chains = await chains_of(self._lookup, events, scope) if any(map(continues, events)) else None
        states: list[State] = []
        unknown: list[int] = []
        turn = Turn()
        for index, new in enumerate(events):
            if turn.over:
                await turn.pass_on()
            if chains is not None:
                continue_chain(new, chains)
            about = index, new, fresh[index], now, traceparent, not apart and len(unknown) < _SUGGESTED
            intricate = is_intricate(bytes(new.payload))
            states.append(await asyncio.to_thread(self._stamp, *about) if intricate else self._stamp(*about))
            if isinstance(states[-1], UnknownTypeError):
                unknown.append(index)
            if chains is not None:
                remember_chain(states[-1], chains)
        if apart:
            for index in unknown:
                states[index] = ALONE
        elif unknown and await self._types.refresh():
            for count, index in enumerate(unknown):
                about = index, events[index], fresh[index], now, traceparent, count < _SUGGESTED
                states[index] = self._stamp(*about)
        return states if scope.everything else await self._apply_scope(states, scope)

    async def _apply_scope(self, states: list[State], scope: Scope) -> list[State]:
        """Refuses the events that the sender may not write, and those of an entity in a room that it may not see."""
        states = [apply_scope(scope, state) for state in states]
        for entry in entries_in(states):
            last = await self._last_event(entry) if entry.entity is not None else None
            about = None if last is None else decode(last.data).metadata
            if about is not None and not scope.has_place(about.world_id, about.room_id):
                states[entry.index] = entry.refusal()
        return states

    def _stamp(
        self, index: int, new: NewEvent, fresh: str, now: str, traceparent: str, near: bool = True, most: int = 0
    ) -> Entry | CrucibleError:
        most = most or self._most
        # A chain is named after its first event, where that is given its id here.
        defaults = Defaults(new.id or fresh, now, new.correlation_id or f"cor_{fresh[4:]}", traceparent)
        try:
            if not near:
                self._payloads.resolve(new, near=False)
            stamped = stamp(new, defaults, self._payloads, most)
            lifetime = FOREVER if stamped.forever else self._retention.of(stamped.event)
            return Entry(index, new, defaults, stamped, most, self._payloads, lifetime)
        except CrucibleError as error:
            return error.as_value()

    async def _find_known(self, entries: list[Entry], settled: bool = False) -> list[tuple[Entry, Known]]:
        """The entries that the log has already, by the ids and keys of clients; `settled` includes all that is
        committed by now."""
        wanted = [id for entry in entries if entry.stamped.may_repeat for id in entry.client_ids]
        if not wanted:
            return []
        # JetStream knows an event by one name only: where it has two, the index must be up to date.
        settled = settled or any(len(entry.client_ids) > 1 for entry in entries)
        found = await self._lookup.find_known(wanted, settled)
        firsts = [(one, next((found[id] for id in one.client_ids if id in found), None)) for one in entries]
        return [(one, await self._show(one, first)) for one, first in firsts if first is not None]

    async def _show(self, entry: Entry, first: Known) -> Known:
        """`first` without its sequence where the sender may not see it."""
        if entry.scope.everything:
            return first
        message = await event_at(self._bus, first.sequence)
        visible = message is not None and entry.scope.sees(decode(message.data))
        return first if visible else first._replace(sequence=0)

    def _check_storage(self, states: list[State]) -> None:
        """Refuses each event where the storage cannot hold all of them. An event is stored twice: in JetStream and in
        the index."""
        sent = entries_in(states)
        size = sum(len(entry.stamped.raw) for entry in sent)
        try:
            self._bus.storage.check(2 * (size + self._committer.held_bytes))
        except CrucibleError as error:
            for entry in sent:
                states[entry.index] = error.as_value()

    async def _ask_prehooks(self, states: list[State]) -> None:
        """Refuses or changes events as their Pre hooks decide."""
        matched: list[tuple[Entry, list[PreHook]]] = []
        turn = Turn()
        for entry in entries_in(states):
            if hooks := self._prehooks.match(entry.stamped.event):
                matched.append((entry, hooks))
            if turn.over:
                await turn.pass_on()
        if not matched:
            return
        for state, (entry, _) in zip(
            await asyncio.gather(*(self._decide(one, hooks) for one, hooks in matched)), matched, strict=True
        ):
            states[entry.index] = state

    async def _decide(self, entry: Entry, hooks: list[PreHook]) -> State:
        stamped = entry.stamped
        try:
            # The events of other hooks do not wait behind those of a slow one.
            async with self._deciding.take(" ".join(hook.name for hook in hooks)):
                payload = await self._prehooks.decide(hooks, stamped.raw, stamped.event.metadata.traceparent)
        except CrucibleError as error:
            return error.as_value()
        if entry.headers and payload is not None:
            return InvalidError(f"a hook may deny {stamped.event.dotted}, and not change it")
        try:
            return entry if payload is None else entry.with_payload(payload)
        except CrucibleError as error:
            detail = f"as a hook changed it, the event is refused: {error.detail}"
            return InvalidError(detail, errors=error.errors)

    async def _read_first(self, entry: Entry, sequence: int) -> Known:
        """The event of an append's first time, from the stream itself."""
        message = await event_at(self._bus, sequence)
        event = entry.stamped.event if message is None else decode(message.data)
        same_key = message is not None and entry.stamped.key == stored_key(message.headers)
        fingerprint = message.headers.get(FINGERPRINT) if message is not None and same_key else None
        first = Known(sequence, event.metadata.id, event.dotted, event.metadata.correlation_id, fingerprint)
        return await self._show(entry, first)

    # ---- outcomes

    async def _last_event(self, entry: Entry) -> Message | None:
        """The last event of its entity."""
        names = self._bus.names
        stream = names.stream_of(entry.stamped.event.metadata.world_id)
        return await self._bus.last(stream, entry.versions(names))

    async def _conflict(self, entry: Entry, whole: bool = False) -> ConflictError:
        last = await self._last_event(entry)
        return entry.conflict(last.sequence if last else 0, whole)

    async def _conflict_among(self, entries: list[Entry]) -> ConflictError:
        for entry in entries:
            expected = entry.stamped.expected_sequence
            if expected is None or entry.shares_subject:
                continue
            conflict = await self._conflict(entry, whole=True)
            if conflict.extra["current_sequence"] != expected:
                return conflict
        return ConflictError("another append was first; nothing of the request was committed")

    def _count(self, committed: Mapping[str, int]) -> None:
        for category, count in committed.items():
            self._appended_of(category).inc(count)

    def _duplicate(self, entry: Entry, first: Known) -> Appended:
        if not first.sequence:
            raise ConflictError("there is another event of that id")
        entry.check_repeats(first)
        self._duplicates.inc()
        return Appended(
            id=first.id, sequence=first.sequence, type=first.type, correlation_id=first.correlation_id, duplicate=True
        )

    def _outcome(self, state: State) -> Appended:
        assert not isinstance(state, Entry)
        return state if isinstance(state, Appended) else Appended(error=self._count_refusal(state).problem())

    def _count_refusal(self, error: CrucibleError) -> CrucibleError:
        if isinstance(error, HopsError):
            log.warning("an append was refused: %s", error.detail)
        self._refused.labels("hops" if isinstance(error, HopsError) else error.code).inc()
        return error
