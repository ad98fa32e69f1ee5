"""An event on its way into the log: stamped, with the message that commits it; and what holds among those of one
atomic request. Pure."""

from collections.abc import Mapping, Sequence

import msgspec

from crucible_core.access import EVERYTHING, Scope, forbidden
from crucible_core.envelope import decode
from crucible_core.errors import (
    ConflictError,
    CrucibleError,
    FieldError,
    ForbiddenError,
    InvalidError,
    LimitedError,
    UnavailableError,
)
from crucible_core.protocol.events import Appended, Chain, Known, NewEvent
from crucible_core.subjects import (
    ACCESSED,
    EXPECTED_SEQUENCE,
    EXPECTED_SUBJECT,
    FINGERPRINT,
    KEEP,
    KEY,
    NO_REACTION,
    VERSIONED,
    Names,
)
from crucible_events.append.lifetime import DEFAULT, Keeping
from crucible_events.append.stamp import Defaults, Stamped, stamp
from crucible_events.append.validation import Payloads
from crucible_kit.nats.bus import MAX_BATCH
from crucible_kit.nats.frames import Outgoing

_MOST_ERRORS = 100


class Candidate(msgspec.Struct, frozen=True):
    """An event of a request, with what is needed to stamp it again when a hook has changed its payload. `headers` are
    those of the service's own events: such an event is not changed by hooks. `scope` is what who sends it may see."""

    position: int
    new: NewEvent
    defaults: Defaults
    stamped: Stamped
    most: int
    payloads: Payloads
    keeping: Keeping = DEFAULT
    headers: Mapping[str, str] = {}
    scope: Scope = EVERYTHING

    @property
    def brought(self) -> list[str]:
        """The ids by which the log may know the event already, its key first; none where it got them here."""
        ids = (self.stamped.key, self.new.id)
        return list(dict.fromkeys(id for id in ids if id is not None))

    @property
    def entity(self) -> str | None:
        """What names the subject of the event's entity; None where it has none of its own."""
        event = self.stamped.event
        return self.about if event.type in VERSIONED and event.data.event != ACCESSED else None

    @property
    def about(self) -> str | None:
        """What names the event's entity."""
        event, about = self.stamped.event, self.stamped.event.metadata
        return None if about.entity is None else f"{about.world_id}\n{event.type}\n{about.entity}"

    @property
    def shares(self) -> bool:
        """Whether its entity's expected sequence is one that JetStream alone cannot check: see `pinning`."""
        return self.stamped.expected_sequence is not None and self.stamped.event.type not in VERSIONED

    def versions(self, names: Names) -> str:
        """The subject of all events of its entity, or of the bucket that it shares."""
        about = self.stamped.event.metadata
        return names.versions(about.world_id, self.stamped.event.type, about.entity or "")

    def conflict(self, current: int, whole: bool = False) -> ConflictError:
        """That its entity's last event is another than expected; `whole` says which event of the request it is."""
        place = f"events.{self.position}: " if whole else ""
        about = f"the last event of {self.stamped.event.metadata.entity} has sequence {current}"
        return ConflictError(f"{place}{about}, not {self.stamped.expected_sequence}", current_sequence=current)

    def refusal(self) -> ForbiddenError:
        event = self.stamped.event
        where = f"{event.dotted} in the world {event.metadata.world_id[:64]}, room {event.metadata.room_id[:64]}"
        return forbidden("events:write", f"nothing may be written there: {where}").as_value()

    def committed(self, sequence: int) -> Appended:
        event, about = self.stamped.event, self.stamped.event.metadata
        return Appended(id=about.id, sequence=sequence, type=event.dotted, correlation_id=about.correlation_id)

    def check_repeats(self, first: Known) -> None:
        """Raises InvalidError where the event that has its idempotency key was another request's."""
        check_repeats(self.new.fingerprint, first)

    def outgoing(self, names: Names, pins: dict[str, int] | None = None) -> Outgoing:
        """The message that commits it. It takes its bucket's pin, if there is one: only the first message of an atomic
        batch may say what it expects of a subject."""
        stamped, event, about = self.stamped, self.stamped.event, self.stamped.event.metadata
        headers = dict(self.headers)
        if not self.new.react or self.new.redacted is not None:  # it is only recorded
            headers[NO_REACTION] = "1"
        if self.new.fingerprint is not None:
            headers[FINGERPRINT] = self.new.fingerprint
        if stamped.key is not None and stamped.key != stamped.message_id:
            headers[KEY] = stamped.key
        expected = stamped.expected_sequence
        if event.type not in VERSIONED:
            expected = pins.pop(self.versions(names), None) if pins else None
        if expected is not None:
            headers[EXPECTED_SEQUENCE] = str(names.expected(about.world_id, expected))
            headers[EXPECTED_SUBJECT] = self.versions(names)
        subject = names.event(about.world_id, about.room_id, event.type, event.data.event, about.entity)
        if self.keeping.keep_s is not None:
            headers[KEEP] = str(self.keeping.keep_s)
        return Outgoing(subject, stamped.raw, headers, stamped.message_id, self.keeping.ttl)

    def changed(self, payload: bytes) -> "Candidate":
        """The same event with another payload. Raises as `stamp` does."""
        new = msgspec.structs.replace(self.new, payload=msgspec.Raw(payload))
        return msgspec.structs.replace(self, stamped=stamp(new, self.defaults, self.payloads, self.most))


def check_repeats(fingerprint: str | None, first: Known) -> None:
    if fingerprint and first.fingerprint and fingerprint != first.fingerprint:
        message = f"was used for another request, which made {first.id} at sequence {first.sequence}"
        raise InvalidError(f"Idempotency-Key: {message}", errors=[FieldError("Idempotency-Key", message)])


def runs(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Neighbours that can be committed in one go: they expect no sequence, and none has another's message id."""
    found: list[list[Candidate]] = []
    ids: set[str] = set()
    for candidate in candidates:
        stamped = candidate.stamped
        alone = stamped.expected_sequence is not None
        if alone or not ids or stamped.message_id in ids or len(ids) == MAX_BATCH:
            found.append([])
            ids.clear()
        found[-1].append(candidate)
        if not alone:
            ids.add(stamped.message_id)
    return found


def entities_of(candidates: Sequence[Candidate]) -> set[str]:
    """What names the subjects of their entities; one name for all that share a subject with others."""
    return {candidate.entity or "" for candidate in candidates}


State = Candidate | Appended | CrucibleError
"""How far an event has come: it is on its way, or has its outcome."""
ALONE = Appended(alone=True)
"""The outcome of an event that others would have to wait for."""


def continues(new: NewEvent) -> bool:
    """Whether an event's place in a chain is to be taken from the cause that it names: services say it themselves."""
    return new.causation_id is not None and new.outside and new.react and not (new.hop and new.correlation_id)


def continue_chain(new: NewEvent, chains: Mapping[str, Chain]) -> None:
    """Makes an event one effect deeper than its cause. One that is not known, as another system's is not, changes
    nothing."""
    cause = chains.get(new.causation_id or "") if continues(new) else None
    if cause is not None:
        new.hop = new.hop or cause.hop + 1
        new.correlation_id = new.correlation_id or cause.correlation_id


def remember_chain(state: State, chains: dict[str, Chain]) -> None:
    """An event may be the cause of a later one of its request."""
    if isinstance(state, Candidate) and state.new.id is not None:
        about = state.stamped.event.metadata
        chains.setdefault(state.new.id, Chain(about.hop, about.correlation_id))


def within(scope: Scope, state: State) -> State:
    """The event, or its refusal where it is none that its sender may write. Nothing is told of what there is."""
    if scope.everything or not isinstance(state, Candidate):
        return state
    if not scope.sees(decode(state.stamped.raw)):
        return state.refusal()
    return msgspec.structs.replace(state, scope=scope)


def under_way(states: Sequence[State]) -> list[Candidate]:
    return [state for state in states if isinstance(state, Candidate)]


def all_of(states: list[State]) -> list[Candidate]:
    """The events of an atomic request. Raises where one of them is refused."""
    refused = {place: state for place, state in enumerate(states) if isinstance(state, CrucibleError)}
    if refused:
        raise as_one(refused)
    return under_way(states)


def hold_back(sent: Sequence[Candidate], states: list[State]) -> None:
    """Keeps the order of an entity's events, of those that were `sent`: what comes after one that cannot be committed
    for now waits with it for the repetition of the request."""
    missed: set[str | None] = set()
    for candidate in sent:
        state = states[candidate.position]
        if candidate.about is None:
            continue
        if isinstance(state, LimitedError | UnavailableError):
            missed.add(candidate.about)
        elif isinstance(state, Candidate) and candidate.about in missed:
            message = "an earlier event of its entity could not be committed"
            states[candidate.position] = UnavailableError(message, retry_after=1)


def check_apart(candidates: Sequence[Candidate]) -> None:
    """Raises InvalidError where events of an atomic request stand in each other's way."""
    ids: set[str] = set()
    entities: set[str | None] = {None}
    errors = []
    for candidate in candidates:
        at = f"events.{candidate.position}"
        if candidate.stamped.message_id in ids:
            errors.append(FieldError(f"{at}.id", "another event of the request has the same id"))
        if candidate.stamped.expected_sequence is not None and candidate.about in entities:
            message = "belongs to the first event that the request has of an entity: it is about what is committed"
            errors.append(FieldError(f"{at}.expected_sequence", message))
        ids.add(candidate.stamped.message_id)
        entities.add(candidate.about)
    if errors:
        raise InvalidError(f"{errors[0].path}: {errors[0].message}", errors=errors)


def by_stream(candidates: list[Candidate], names: Names) -> list[list[Candidate]]:
    """Those of each stream of the log, in their order."""
    if names.streams == 1:
        return [candidates]
    found: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        found.setdefault(names.stream_of(candidate.stamped.event.metadata.world_id), []).append(candidate)
    return list(found.values())


def check_one_stream(candidates: list[Candidate], names: Names) -> None:
    """Raises InvalidError where an atomic request is about worlds of several streams: JetStream commits one stream's
    messages together."""
    _, *others = by_stream(candidates, names) or [[]]
    strangers = sorted(candidate.position for some in others for candidate in some)
    if strangers:
        message = "its world is in another stream of the log than that of the first event: append it by itself"
        errors = [FieldError(f"events.{place}.world_id", message) for place in strangers[:_MOST_ERRORS]]
        raise InvalidError(f"{errors[0].path}: {message}", errors=errors)


def as_one(refused: Mapping[int, CrucibleError]) -> CrucibleError:
    """The refusal of an atomic request, from those of its events by position: of the first one's kind. Each of these
    has its place among the errors."""
    place, first = min(refused.items())
    alike = {place: error for place, error in refused.items() if error.code == first.code}
    errors = [
        msgspec.structs.replace(field, path=f"events.{place}.{field.path}".rstrip("."))
        for place, error in alike.items()
        for field in error.errors or [FieldError("", error.detail)]
    ]
    detail = f"events.{place}: {first.detail}"
    return type(first)(detail, errors=errors[:_MOST_ERRORS], **first.extra)
