"""Appends: each event stamped, looked up, judged by its guards and committed, and the outcome told for each."""

import asyncio
import functools
import logging
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence

import msgspec

from crucible_core.access import Scope
from crucible_core.envelope import MAX_EVENT_BYTES, decode, is_intricate
from crucible_core.errors import (
    ConflictError,
    CrucibleError,
    FieldError,
    InvalidError,
    LimitedError,
    UnavailableError,
    from_problem,
    untried,
)
from crucible_core.protocol.events import Appended, AppendReply, AppendRequest, Known, NewEvent
from crucible_core.subjects import FINGERPRINT
from crucible_core.types.catalogue import UnknownTypeError
from crucible_events.append import lookup
from crucible_events.append.committer import Committer, Outcome
from crucible_events.append.entries import (
    ALONE,
    Candidate,
    State,
    all_of,
    by_stream,
    check_apart,
    check_one_stream,
    continue_chain,
    continues,
    entities_of,
    hold_back,
    remember_chain,
    runs,
    under_way,
    within,
)
from crucible_events.append.lifetime import FOREVER, Keeping
from crucible_events.append.lookup import Lookup, chains_of
from crucible_events.append.prehooks import Guard, Guards
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

JUDGED_AT_ONCE = 64
"""Events that guards judge at once; those of the same guards have a quarter of it."""
_SUGGESTED = 20
"""Events of one request that name no known type and are told the nearest one: to find it takes milliseconds."""
_HEADERS_ROOM = 8 * 1024
"""What subject and headers may take of NATS's max_payload."""


class Appender:
    """Takes an event through all its steps. Many requests are under way at once; the committer orders them."""

    def __init__(
        self,
        bus: Bus,
        lookup: Lookup,
        types: Types,
        guards: Guards,
        places: Places,
        retention: Retention,
        committer: Committer,
        metrics: Metrics,
    ) -> None:
        self._bus = bus
        self._lookup = lookup
        self._guards = guards
        self._types = types
        self._payloads = Payloads(lambda: types.catalogue)
        self._places = places
        self._retention = retention
        self._committer = committer
        self._judging = Slots(JUDGED_AT_ONCE, JUDGED_AT_ONCE // 4)
        self._most = min(MAX_EVENT_BYTES, bus.max_payload - _HEADERS_ROOM)
        appended = metrics.counter("events_appended", "Events that were committed", ("category",))
        self._appended_of = functools.cache(appended.labels)
        self._duplicates = metrics.counter("events_duplicates", "Appends of what the log had already")
        self._refused = metrics.counter("events_refused", "Events that were refused", ("reason",))

    async def append(self, request: AppendRequest, context: Context, *, spare: bool = False) -> AppendReply:
        """One outcome for each event; an atomic request is refused as a whole, by an error. `spare`: what is told of
        something that makes room may use what is kept free for that."""
        await self._ready()
        with self._places.appending():
            if request.atomic:
                return AppendReply(results=await self._append_whole(request.events, context))
            states = await self._stamped(request.events, context, apart=request.apart)
            return AppendReply(results=await self._brought_about(states, spare=spare, apart=request.apart))

    # ---- each on its own

    async def append_own(
        self, new: NewEvent, headers: Mapping[str, str], keeping: Keeping, traceparent: str
    ) -> Appended:
        """Appends an event of this service's own, whose message has headers that no client can set. It may be as large
        as the bus allows, and go to a place that there is no more. Raises why it was refused: a hook may deny it."""
        await self._ready()
        with self._places.appending():
            state = self._candidate(
                0, new, fresh_id("evt"), timestamp(), traceparent, most=self._bus.max_payload - _HEADERS_ROOM
            )
            if isinstance(state, Candidate):
                state = msgspec.structs.replace(state, headers=headers, keeping=keeping)
            [outcome] = await self._brought_about([state], anywhere=True, spare=True)
        if outcome.error is not None:
            raise from_problem(outcome.error)
        return outcome

    async def _ready(self) -> None:
        """Raises UnavailableError while something is not known yet that an append needs."""
        await self._types.view.reach(0)
        for copy in (self._guards, self._places, self._retention):
            await copy.ready()

    async def _brought_about(
        self, states: list[State], *, anywhere: bool = False, spare: bool = False, apart: bool = False
    ) -> list[Appended]:
        """`anywhere`: also where there is no place any more. `spare`: also where room is short. `apart`: what others
        would wait for is left."""
        for candidate, first in await self._known(under_way(states)):
            try:
                states[candidate.position] = self._duplicate(candidate, first)
            except CrucibleError as error:
                states[candidate.position] = error.as_value()
        sent = under_way(states)
        if not spare:
            self._find_room(states)
        if apart:
            for candidate in under_way(states):
                if not self._places.has(candidate) or self._guards.match(candidate.stamped.event):
                    states[candidate.position] = ALONE
        else:
            if not anywhere:
                await self._places.admit(states)
            await self._judge(states)
            hold_back(sent, states)
        await self._commit_each(states)
        return [self._outcome(state) for state in states]

    async def _commit_each(self, states: list[State]) -> None:
        first, *others = by_stream(under_way(states), self._bus.names) or [[]]
        if others:
            await asyncio.gather(*(self._commit_to_stream(some, states) for some in (first, *others)))
        else:
            await self._commit_to_stream(first, states)

    async def _commit_to_stream(self, candidates: list[Candidate], states: list[State]) -> None:
        waiting: list[tuple[list[Candidate], asyncio.Future[list[Outcome]]]] = []
        missed: State | None = None
        try:
            for run in runs(candidates):
                try:
                    if missed is not None:  # what comes after it would be before it once it comes again
                        for candidate in run:
                            states[candidate.position] = missed
                    elif run[0].shares:
                        await self._tell(states, run, self._pinned(*run))
                    else:
                        before = waiting[-1][1] if waiting else None
                        messages = [candidate.outgoing(self._bus.names) for candidate in run]
                        waiting.append((run, self._committer.submit_each(messages, entities_of(run), before)))
                except CrucibleError as error:
                    for candidate in run:
                        states[candidate.position] = error.as_value()
                first = states[run[0].position]
                if isinstance(first, LimitedError | UnavailableError):
                    missed = untried(first)
            for run, future in waiting:
                await self._tell(states, run, future)
        finally:
            for _, future in waiting:
                future.cancel()

    async def _tell(self, states: list[State], run: list[Candidate], committing: Awaitable[Sequence[Outcome]]) -> None:
        """Puts each event's outcome in its place."""
        outcomes: Sequence[Outcome]
        try:
            outcomes = await committing
        except CrucibleError as error:
            outcomes = [error.as_value()] * len(run)
        committed: Counter[str] = Counter()
        for candidate, outcome in zip(run, outcomes, strict=True):
            if isinstance(outcome, Stored) and not outcome.duplicate:
                states[candidate.position] = candidate.committed(outcome.sequence)
                committed[candidate.stamped.event.type] += 1
                continue
            try:
                states[candidate.position] = await self._told(candidate, outcome)
            except CrucibleError as error:
                states[candidate.position] = error.as_value()
        self._count(committed)

    async def _told(self, candidate: Candidate, outcome: Outcome) -> State:
        """What became of an event that this append did not add to the log."""
        if isinstance(outcome, ConflictError):
            # JetStream compares sequences before ids: the repetition of an append conflicts with its own first time.
            for _, first in await self._known([candidate], settled=True):
                return self._duplicate(candidate, first)
            return outcome if candidate.shares else await self._conflict(candidate)
        if isinstance(outcome, CrucibleError):
            return outcome
        return self._duplicate(candidate, await self._first(candidate, outcome.sequence))

    async def _pinned(self, *candidates: Candidate, whole: bool = False) -> list[Stored]:
        return await lookup.commit(self._bus, self._lookup, self._committer, candidates, whole=whole)

    # ---- all or nothing

    async def _append_whole(self, events: Sequence[NewEvent], context: Context) -> list[Appended]:
        if len(events) > MAX_BATCH:
            message = f"an atomic append takes at most {MAX_BATCH} events"
            raise self._counted(InvalidError(message, errors=[FieldError("events", message)]))
        try:
            states = await self._stamped(events, context)
            candidates = all_of(states)
            check_apart(candidates)
            check_one_stream(candidates, self._bus.names)
            known = await self._known(candidates)
            if 0 < len(known) < len(candidates):  # the index may be in the middle of them
                known = await self._known(candidates, settled=True)
            if repeated := self._repeated(candidates, known):
                return repeated
            self._find_room(states)
            await self._places.admit(states)
            all_of(states)
            await self._judge(states)
            return await self._commit_whole(all_of(states)) if states else []
        except CrucibleError as error:
            raise self._counted(error) from None

    async def _commit_whole(self, judged: list[Candidate]) -> list[Appended]:
        try:
            if any(candidate.shares for candidate in judged):
                stored = await self._pinned(*judged, whole=True)
            else:
                messages = [candidate.outgoing(self._bus.names) for candidate in judged]
                stored = await self._committer.submit(messages, entities_of(judged))
        except (ConflictError, DuplicateError) as error:
            if repeated := self._repeated(judged, await self._known(judged, settled=True)):
                return repeated
            raise error if "current_sequence" in error.extra else await self._conflict_among(judged) from None
        if stored[0].duplicate:
            return [self._duplicate(judged[0], await self._first(judged[0], stored[0].sequence))]
        self._count(Counter(candidate.stamped.event.type for candidate in judged))
        return [one.committed(place.sequence) for one, place in zip(judged, stored, strict=True)]

    def _repeated(self, candidates: list[Candidate], known: list[tuple[Candidate, Known]]) -> list[Appended]:
        """The first answers, where a whole request comes again. Raises ConflictError where only a part of it does."""
        if known and len(known) < len(candidates):
            places = ", ".join(f"events.{candidate.position}" for candidate, _ in known[:5])
            raise ConflictError(f"{places}: known already, and other events of the request are not")
        return [self._duplicate(candidate, first) for candidate, first in known]

    # ---- the steps

    async def _stamped(self, events: Sequence[NewEvent], context: Context, *, apart: bool = False) -> list[State]:
        now, fresh = timestamp(), fresh_ids("evt", len(events))
        traceparent, scope = context.traceparent, context.scope
        chains = await chains_of(self._lookup, events, scope) if any(map(continues, events)) else None
        states: list[State] = []
        unknown: list[int] = []
        turn = Turn()
        for place, new in enumerate(events):
            if turn.over:
                await turn.pass_on()
            if chains is not None:
                continue_chain(new, chains)
            about = place, new, fresh[place], now, traceparent, not apart and len(unknown) < _SUGGESTED
            intricate = is_intricate(bytes(new.payload))
            states.append(await asyncio.to_thread(self._candidate, *about) if intricate else self._candidate(*about))
            if isinstance(states[-1], UnknownTypeError):
                unknown.append(place)
            if chains is not None:
                remember_chain(states[-1], chains)
        if apart:
            for place in unknown:
                states[place] = ALONE
        elif unknown and await self._types.renewed():
            for known, place in enumerate(unknown):
                about = place, events[place], fresh[place], now, traceparent, known < _SUGGESTED
                states[place] = self._candidate(*about)
        return states if scope.everything else await self._allowed(states, scope)

    async def _allowed(self, states: list[State], scope: Scope) -> list[State]:
        """Refuses what may not be written, also to an entity of a room that may not be seen."""
        states = [within(scope, state) for state in states]
        for candidate in under_way(states):
            last = await self._last(candidate) if candidate.entity is not None else None
            about = None if last is None else decode(last.data).metadata
            if about is not None and not scope.has_place(about.world_id, about.room_id):
                states[candidate.position] = candidate.refusal()
        return states

    def _candidate(
        self, position: int, new: NewEvent, fresh: str, now: str, traceparent: str, near: bool = True, most: int = 0
    ) -> Candidate | CrucibleError:
        most = most or self._most
        # A chain is named after its first event, where that is given its id here.
        defaults = Defaults(new.id or fresh, now, new.correlation_id or f"cor_{fresh[4:]}", traceparent)
        try:
            if not near:
                self._payloads.resolve(new, near=False)
            stamped = stamp(new, defaults, self._payloads, most)
            keeping = FOREVER if stamped.forever else self._retention.of(stamped.event)
            return Candidate(position, new, defaults, stamped, most, self._payloads, keeping)
        except CrucibleError as error:
            return error.as_value()

    async def _known(self, candidates: list[Candidate], settled: bool = False) -> list[tuple[Candidate, Known]]:
        """Those that the log has already, by the ids and keys that clients brought; `settled`: of all that is committed
        by now."""
        wanted = [id for candidate in candidates if candidate.stamped.brought for id in candidate.brought]
        if not wanted:
            return []
        # JetStream knows an event by one name only: of two, the index must tell what has come by now.
        settled = settled or any(len(candidate.brought) > 1 for candidate in candidates)
        found = await self._lookup.known(wanted, settled)
        firsts = [(one, next((found[id] for id in one.brought if id in found), None)) for one in candidates]
        return [(one, await self._shown(one, first)) for one, first in firsts if first is not None]

    async def _shown(self, candidate: Candidate, first: Known) -> Known:
        """Without its sequence where whoever asks may not see it."""
        if candidate.scope.everything:
            return first
        message = await event_at(self._bus, first.sequence)
        seen = message is not None and candidate.scope.sees(decode(message.data))
        return first if seen else first._replace(sequence=0)

    def _find_room(self, states: list[State]) -> None:
        """Puts the refusal in the place of each event where there is no room for all. An event is stored twice: in
        JetStream and in the index."""
        sent = under_way(states)
        size = sum(len(candidate.stamped.raw) for candidate in sent)
        try:
            self._bus.storage.check(2 * (size + self._committer.held_bytes))
        except CrucibleError as error:
            for candidate in sent:
                states[candidate.position] = error.as_value()

    async def _judge(self, states: list[State]) -> None:
        """Asks the guards of each event; what they refuse or change is put in its place."""
        matched: list[tuple[Candidate, list[Guard]]] = []
        turn = Turn()
        for candidate in under_way(states):
            if guards := self._guards.match(candidate.stamped.event):
                matched.append((candidate, guards))
            if turn.over:
                await turn.pass_on()
        if not matched:
            return
        for state, (candidate, _) in zip(
            await asyncio.gather(*(self._judged(one, guards) for one, guards in matched)), matched, strict=True
        ):
            states[candidate.position] = state

    async def _judged(self, candidate: Candidate, guards: list[Guard]) -> State:
        stamped = candidate.stamped
        try:
            # The events of other guards do not wait behind those of a slow one.
            async with self._judging.take(" ".join(guard.name for guard in guards)):
                payload = await self._guards.judge(guards, stamped.raw, stamped.event.metadata.traceparent)
        except CrucibleError as error:
            return error.as_value()
        if candidate.headers and payload is not None:
            return InvalidError(f"a hook may deny {stamped.event.dotted}, and not change it")
        try:
            return candidate if payload is None else candidate.changed(payload)
        except CrucibleError as error:
            detail = f"as a hook changed it, the event is refused: {error.detail}"
            return InvalidError(detail, errors=error.errors)

    async def _first(self, candidate: Candidate, sequence: int) -> Known:
        """What an append's first time was answered, by the stream itself."""
        message = await event_at(self._bus, sequence)
        event = candidate.stamped.event if message is None else decode(message.data)
        same_key = message is not None and candidate.stamped.key == stored_key(message.headers)
        fingerprint = message.headers.get(FINGERPRINT) if message is not None and same_key else None
        first = Known(sequence, event.metadata.id, event.dotted, event.metadata.correlation_id, fingerprint)
        return await self._shown(candidate, first)

    # ---- outcomes

    async def _last(self, candidate: Candidate) -> Message | None:
        """The last event of its entity."""
        names = self._bus.names
        stream = names.stream_of(candidate.stamped.event.metadata.world_id)
        return await self._bus.last(stream, candidate.versions(names))

    async def _conflict(self, candidate: Candidate, whole: bool = False) -> ConflictError:
        last = await self._last(candidate)
        return candidate.conflict(last.sequence if last else 0, whole)

    async def _conflict_among(self, candidates: list[Candidate]) -> ConflictError:
        for candidate in candidates:
            expected = candidate.stamped.expected_sequence
            if expected is None or candidate.shares:
                continue
            conflict = await self._conflict(candidate, whole=True)
            if conflict.extra["current_sequence"] != expected:
                return conflict
        return ConflictError("another append was first; nothing of the request was committed")

    def _count(self, committed: Mapping[str, int]) -> None:
        """By category."""
        for category, count in committed.items():
            self._appended_of(category).inc(count)

    def _duplicate(self, candidate: Candidate, first: Known) -> Appended:
        if not first.sequence:
            raise ConflictError("there is another event of that id")
        candidate.check_repeats(first)
        self._duplicates.inc()
        return Appended(
            id=first.id, sequence=first.sequence, type=first.type, correlation_id=first.correlation_id, duplicate=True
        )

    def _outcome(self, state: State) -> Appended:
        assert not isinstance(state, Candidate)
        return state if isinstance(state, Appended) else Appended(error=self._counted(state).problem())

    def _counted(self, error: CrucibleError) -> CrucibleError:
        if isinstance(error, HopsError):
            log.warning("an append was refused: %s", error.detail)
        self._refused.labels("hops" if isinstance(error, HopsError) else error.code).inc()
        return error
