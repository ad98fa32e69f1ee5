"""Entries of an append: each a stamped event with the message that commits it; and the rules between the entries of one
request: order, chains, streams, atomicity. Pure."""

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
from crucible_core.limits import BATCH_ERRORS
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
from crucible_events.append.lifetime import DEFAULT, Lifetime
from crucible_events.append.stamp import Defaults, Stamped, stamp
from crucible_events.append.validation import Payloads
from crucible_kit.nats.bus import MAX_BATCH
from crucible_kit.nats.frames import Outgoing


class Entry(msgspec.Struct, frozen=True):
    """The event at `index` of a request, and the parts to stamp it again when a hook changes its payload. Only the
    service's own events have `headers`, and no hook changes these. `scope` is the sender's."""

    index: int
    new: NewEvent
    defaults: Defaults
    stamped: Stamped
    most: int
    payloads: Payloads
    lifetime: Lifetime = DEFAULT
    headers: Mapping[str, str] = {}
    scope: Scope = EVERYTHING

    @property
    def client_ids(self) -> list[str]:
        """The ids from the client, by which the log may have the event already: its key first."""
        ids = (self.stamped.key, self.new.id)
        return list(dict.fromkeys(id for id in ids if id is not None))

    @property
    def entity(self) -> str | None:
        """A name of the subject of the event's entity; None where the entity has no subject of its own."""
        event = self.stamped.event
        return self.about if event.type in VERSIONED and event.data.event != ACCESSED else None

    @property
    def about(self) -> str | None:
        """A name of the event's entity."""
        event, about = self.stamped.event, self.stamped.event.metadata
        return None if about.entity is None else f"{about.world_id}\n{event.type}\n{about.entity}"

    @property
    def shares_subject(self) -> bool:
        """True where JetStream alone cannot check the expected sequence: the entity shares its subject with others. See
        `committer.commit_expecting`."""
        return self.stamped.expected_sequence is not None and self.stamped.event.type not in VERSIONED

    def versions(self, names: Names) -> str:
        """The subject of all events of its entity, or of the bucket that it shares."""
        about = self.stamped.event.metadata
        return names.versions(about.world_id, self.stamped.event.type, about.entity or "")

    def conflict(self, current: int, whole: bool = False) -> ConflictError:
        """The error for another last event of its entity than expected; `whole` names the event of the request."""
        at = f"events.{self.index}: " if whole else ""
        about = f"the last event of {self.stamped.event.metadata.entity} has sequence {current}"
        return ConflictError(f"{at}{about}, not {self.stamped.expected_sequence}", current_sequence=current)

    def refusal(self) -> ForbiddenError:
        event = self.stamped.event
        where = f"{event.dotted} in the world {event.metadata.world_id[:64]}, room {event.metadata.room_id[:64]}"
        return forbidden("events:write", f"nothing may be written there: {where}").as_value()

    def to_appended(self, sequence: int) -> Appended:
        event, about = self.stamped.event, self.stamped.event.metadata
        return Appended(id=about.id, sequence=sequence, type=event.dotted, correlation_id=about.correlation_id)

    def check_repeats(self, first: Known) -> None:
        check_repeats(self.new.fingerprint, first)

    def outgoing(self, names: Names, expectations: dict[str, int] | None = None) -> Outgoing:
        """The message that commits it. It takes the expectation of its shared subject away from `expectations`: only
        the first message of an atomic batch may have one for a subject."""
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
            expected = expectations.pop(self.versions(names), None) if expectations else None
        if expected is not None:
            headers[EXPECTED_SEQUENCE] = str(names.expected(about.world_id, expected))
            headers[EXPECTED_SUBJECT] = self.versions(names)
        subject = names.event(about.world_id, about.room_id, event.type, event.data.event, about.entity)
        if self.lifetime.remove_after_s is not None:
            headers[KEEP] = str(self.lifetime.remove_after_s)
        return Outgoing(subject, stamped.raw, headers, stamped.message_id, self.lifetime.ttl)

    def with_payload(self, payload: bytes) -> "Entry":
        """The same event with another payload. Raises as `stamp` does."""
        new = msgspec.structs.replace(self.new, payload=msgspec.Raw(payload))
        return msgspec.structs.replace(self, stamped=stamp(new, self.defaults, self.payloads, self.most))


def check_repeats(fingerprint: str | None, first: Known) -> None:
    """Raises InvalidError where an idempotency key was used for a request with another fingerprint."""
    if fingerprint and first.fingerprint and fingerprint != first.fingerprint:
        message = f"was used for another request, which made {first.id} at sequence {first.sequence}"
        raise InvalidError.field("Idempotency-Key", message)


def batches(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Neighbours that can be committed in one go: they expect no sequence, and none has another's message id."""
    found: list[list[Entry]] = []
    ids: set[str] = set()
    for entry in entries:
        stamped = entry.stamped
        alone = stamped.expected_sequence is not None
        if alone or not ids or stamped.message_id in ids or len(ids) == MAX_BATCH:
            found.append([])
            ids.clear()
        found[-1].append(entry)
        if not alone:
            ids.add(stamped.message_id)
    return found


def entities_of(entries: Sequence[Entry]) -> set[str]:
    """The names of the subjects of their entities; one name for all that share a subject with others."""
    return {entry.entity or "" for entry in entries}


State = Entry | Appended | CrucibleError
"""The state of an event: an entry under way, or its outcome."""
ALONE = Appended(alone=True)
"""The outcome of an event that others would have to wait for."""


def continues(new: NewEvent) -> bool:
    """True where an event takes its depth and correlation from the cause that it names; services set these
    themselves."""
    return new.causation_id is not None and new.outside and new.react and not (new.hop and new.correlation_id)


def continue_chain(new: NewEvent, chains: Mapping[str, Chain]) -> None:
    """Makes an event one effect deeper than its cause; a cause that the log does not have changes nothing."""
    cause = chains.get(new.causation_id or "") if continues(new) else None
    if cause is not None:
        new.hop = new.hop or cause.hop + 1
        new.correlation_id = new.correlation_id or cause.correlation_id


def remember_chain(state: State, chains: dict[str, Chain]) -> None:
    """An event may be the cause of a later one of its request."""
    if isinstance(state, Entry) and state.new.id is not None:
        about = state.stamped.event.metadata
        chains.setdefault(state.new.id, Chain(about.hop, about.correlation_id))


def apply_scope(scope: Scope, state: State) -> State:
    """The entry, or its refusal where its sender may not write it. The refusal tells nothing about the log."""
    if scope.everything or not isinstance(state, Entry):
        return state
    if not scope.sees(decode(state.stamped.raw)):
        return state.refusal()
    return msgspec.structs.replace(state, scope=scope)


def entries_in(states: Sequence[State]) -> list[Entry]:
    return [state for state in states if isinstance(state, Entry)]


def require_all(states: list[State]) -> list[Entry]:
    """The entries of an atomic request. Raises where one of them is refused."""
    refused = {index: state for index, state in enumerate(states) if isinstance(state, CrucibleError)}
    if refused:
        raise _merge(refused)
    return entries_in(states)


def hold_back(sent: Sequence[Entry], states: list[State]) -> None:
    """Keeps the order of each entity's events: a later one of those that were `sent` fails with the one before it that
    cannot be committed for now, and both wait for the repetition of the request."""
    missed: set[str | None] = set()
    for entry in sent:
        state = states[entry.index]
        if entry.about is None:
            continue
        if isinstance(state, LimitedError | UnavailableError):
            missed.add(entry.about)
        elif isinstance(state, Entry) and entry.about in missed:
            message = "an earlier event of its entity could not be committed"
            states[entry.index] = UnavailableError(message, retry_after=1)


def check_independent(entries: Sequence[Entry]) -> None:
    """Raises InvalidError where events of an atomic request have one id, or one expects the version of another."""
    ids: set[str] = set()
    entities: set[str | None] = {None}
    errors = []
    for entry in entries:
        at = f"events.{entry.index}"
        if entry.stamped.message_id in ids:
            errors.append(FieldError(f"{at}.id", "another event of the request has the same id"))
        if entry.stamped.expected_sequence is not None and entry.about in entities:
            message = "belongs to the first event that the request has of an entity: it is about what is committed"
            errors.append(FieldError(f"{at}.expected_sequence", message))
        ids.add(entry.stamped.message_id)
        entities.add(entry.about)
    if errors:
        raise InvalidError(f"{errors[0].path}: {errors[0].message}", errors=errors)


def by_stream(entries: list[Entry], names: Names) -> list[list[Entry]]:
    """The entries of each stream of the log, in their order."""
    if names.streams == 1:
        return [entries]
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(names.stream_of(entry.stamped.event.metadata.world_id), []).append(entry)
    return list(found.values())


def check_one_stream(entries: list[Entry], names: Names) -> None:
    """Raises InvalidError where an atomic request is about worlds of several streams: JetStream commits one stream's
    messages together."""
    _, *others = by_stream(entries, names) or [[]]
    strangers = sorted(entry.index for some in others for entry in some)
    if strangers:
        message = "its world is in another stream of the log than that of the first event: append it by itself"
        errors = [FieldError(f"events.{index}.world_id", message) for index in strangers[:BATCH_ERRORS]]
        raise InvalidError(f"{errors[0].path}: {message}", errors=errors)


def _merge(refused: Mapping[int, CrucibleError]) -> CrucibleError:
    """The refusal of an atomic request, from those of its events by index: of the first one's kind, with the errors of
    all of that kind."""
    index, first = min(refused.items())
    alike = {index: error for index, error in refused.items() if error.code == first.code}
    errors = [
        msgspec.structs.replace(field, path=f"events.{index}.{field.path}".rstrip("."))
        for index, error in alike.items()
        for field in error.errors or [FieldError("", error.detail)]
    ]
    detail = f"events.{index}: {first.detail}"
    return type(first)(detail, errors=errors[:BATCH_ERRORS], **first.extra)
