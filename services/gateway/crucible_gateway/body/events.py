"""Events as clients send them, made `NewEvent`s: the long and the short form, alone, in arrays and in lines."""

import hashlib
import re
from codecs import BOM_UTF8
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from crucible_core.access import ADMIN, Principal, forbidden
from crucible_core.attributes import Extensions
from crucible_core.decode import check_keys, check_members, decode
from crucible_core.envelope import DEFAULT_ROOM, DEFAULT_WORLD, Redaction, Source
from crucible_core.errors import CrucibleError, InvalidError, MalformedError, TooLargeError
from crucible_core.limits import EVENT_BYTES, KEY_CHARS, REQUEST_EVENTS
from crucible_core.protocol.events import NewEvent
from crucible_kit.telemetry.spans import parse_traceparent

MAX_SENT_BYTES = EVENT_BYTES + 64
"""An event with what an export adds to it: its sequence and retention."""
_EMPTY = Raw(b"{}")
_BLANK_LINES = re.compile(rb"\n[ \t\r\n]*\n")
_SHORT_ONLY = ("payload", "entity", "world_id", "room_id", "id", "correlation_id", "causation_id")
_NOT_SAID = frozenset({"payload", "traceparent", "idempotency_key", "fingerprint", "react", "outside"})
_Sequence = Annotated[int, Meta(ge=0, le=2**63 - 1)]
SizedEvent = tuple[int, NewEvent | CrucibleError]
"""An event's size in bytes and the event, or why it is none."""


def empty_object() -> Raw:
    return _EMPTY


class SentData(msgspec.Struct, forbid_unknown_fields=True):
    event: str
    payload: Raw = msgspec.field(default_factory=empty_object)


class SentMetadata(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A committed event's metadata, of which a client may send any part."""

    id: str | None = None
    timestamp: str | None = None
    version: str | None = None
    source: Source | None = None
    actor: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    hop: Annotated[int, Meta(ge=0, le=2**31)] = 0
    world_id: str | None = None
    room_id: str | None = None
    entity: str | None = None
    traceparent: str | None = None
    extensions: Extensions | None = None


class SentEvent(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An event in the short form (`payload` beside `type`) or the long one (`data` and `metadata`), never both.

    A committed event, sent again, is a long form; its `sequence` is skipped. One that is `redacted` stays so: it has no
    payload, and is only recorded.
    """

    type: str
    payload: Raw = msgspec.field(default_factory=Raw)
    entity: str | UnsetType | None = UNSET
    world_id: str | UnsetType | None = UNSET
    room_id: str | UnsetType | None = UNSET
    id: str | UnsetType | None = UNSET
    correlation_id: str | UnsetType | None = UNSET
    causation_id: str | UnsetType | None = UNSET
    data: SentData | UnsetType = UNSET
    metadata: SentMetadata | UnsetType | None = UNSET
    sequence: _Sequence | UnsetType | None = UNSET
    expected_sequence: _Sequence | None = None
    retention: Literal["default", "forever"] = "default"
    redacted: Redaction | UnsetType | None = UNSET


class _Inside(msgspec.Struct):
    data: Raw = msgspec.field(default_factory=Raw)
    metadata: Raw = msgspec.field(default_factory=Raw)
    redacted: Raw = msgspec.field(default_factory=Raw)


_inside = msgspec.json.Decoder(_Inside)


class Origin(msgspec.Struct, frozen=True):
    """The request's word on all its events: who sends them, and what they get that do not say themselves.

    `request_id` is the correlation id of the request's own answer: an event that is sent alone shares it. `hop` is how
    deep in a chain of effects the request is.
    """

    principal: Principal
    traceparent: str
    correlation_id: str | None = None
    idempotency_key: str | None = None
    request_id: str | None = None
    react: bool = True
    hop: int = 0

    def apply(self, event: NewEvent, position: int | None = None) -> NewEvent:
        """`event`, completed; `position` is its index in a batch, which tells it apart under one idempotency key.

        In a batch the key is for events without a name of their own: their positions change where a part comes again.
        Raises ForbiddenError for one in another's name.
        """
        if self.idempotency_key is not None and (position is None or not (event.id or event.idempotency_key)):
            event.fingerprint = fingerprint(event, self.idempotency_key)
            event.idempotency_key = self.idempotency_key if position is None else f"{self.idempotency_key}/{position}"
        who = self.principal
        if not who.admin and not (event.source in (None, who.source) and event.actor in (None, who.id)):
            raise forbidden(ADMIN, "an event in another's name")
        if not who.admin or (event.source is None and event.actor is None):
            event.source, event.actor = who.source, who.id
        # An event that names its cause has the correlation id of that, which `events` knows.
        alone = self.request_id if position is None and event.causation_id is None else None
        event.correlation_id = event.correlation_id or self.correlation_id or alone
        event.hop = max(event.hop, self.hop)
        event.traceparent = event.traceparent or self.traceparent
        event.react = self.react
        event.outside = True
        return event


def read_event(raw: bytes, what: str = "event") -> NewEvent:
    """One event. Raises TooLargeError, MalformedError, InvalidError."""
    if len(raw) > MAX_SENT_BYTES:
        raise TooLargeError(f"{what} has more than {EVENT_BYTES} bytes", max_bytes=EVENT_BYTES)
    sent = decode(raw, SentEvent, what=what, deep=False)
    if sent.data is UNSET:
        return _from_short(sent)
    _check_inside(raw, what)
    return _from_long(sent, sent.data)


def _check_inside(raw: bytes, what: str) -> None:
    """Looks at the keys of the objects of the long form; `events` does so at those of the payload."""
    inside = _inside.decode(raw.removeprefix(BOM_UTF8))
    check_members(bytes(inside.data), what, "data")
    for name in ("metadata", "redacted"):
        if part := bytes(getattr(inside, name)):
            check_keys(part, what, name)


def _from_short(sent: SentEvent) -> NewEvent:
    if sent.metadata or sent.sequence is not UNSET or sent.redacted:
        named = "metadata" if sent.metadata else "redacted" if sent.redacted else "sequence"
        raise InvalidError.field(
            named, 'belongs to the long form, which has {"data": {"event": …, "payload": …}} and no "payload" beside it'
        )
    return NewEvent(
        type=sent.type,
        payload=sent.payload if len(sent.payload) else _EMPTY,
        id=sent.id or None,
        correlation_id=sent.correlation_id or None,
        causation_id=sent.causation_id or None,
        world_id=sent.world_id or DEFAULT_WORLD,
        room_id=sent.room_id or DEFAULT_ROOM,
        entity=sent.entity or None,
        expected_sequence=sent.expected_sequence,
        retention=sent.retention,
    )


def _from_long(sent: SentEvent, data: SentData) -> NewEvent:
    mixed = [name for name in _SHORT_ONLY if name != "payload" and getattr(sent, name) is not UNSET]
    if len(sent.payload):
        raise InvalidError.field(
            "payload", 'stands inside "data" where the event has "data": use one form or the other'
        )
    if mixed:
        raise InvalidError.field(mixed[0], f'stands inside "metadata" where the event has "data": metadata.{mixed[0]}')
    known = sent.metadata or SentMetadata()
    if known.traceparent is not None and parse_traceparent(known.traceparent) is None:
        raise InvalidError.field("metadata.traceparent", "is no W3C traceparent")
    return NewEvent(
        type=f"{sent.type}.{data.event}",
        payload=data.payload,
        id=known.id,
        timestamp=known.timestamp,
        version=known.version,
        source=known.source,
        actor=known.actor,
        correlation_id=known.correlation_id,
        causation_id=known.causation_id,
        hop=known.hop,
        world_id=known.world_id or DEFAULT_WORLD,
        room_id=known.room_id or DEFAULT_ROOM,
        entity=known.entity,
        traceparent=known.traceparent,
        extensions=known.extensions or {},
        expected_sequence=sent.expected_sequence,
        retention=sent.retention,
        redacted=sent.redacted or None,
    )


def read_sized(raw: bytes) -> SizedEvent:
    try:
        return len(raw), read_event(raw)
    except CrucibleError as error:
        return len(raw), error.as_value()


def too_many() -> TooLargeError:
    return TooLargeError(f"a request may have {REQUEST_EVENTS} events", max_events=REQUEST_EVENTS)


async def lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines of a body as they arrive, blank ones left out. A line that is too long for an event is cut just past
    the limit, so that it is refused and never held whole. Raises MalformedError where there is no line at all."""
    begun, any_line = bytearray(), False
    async for piece in pieces:
        # A million blank lines would keep everybody waiting.
        *ends, rest = (_BLANK_LINES.sub(b"\n", piece) if b"\n\n" in piece or b"\n\r" in piece else piece).split(b"\n")
        for end in ends:
            if begun:
                begun += end[: MAX_SENT_BYTES + 1]
                end = bytes(begun)
                begun.clear()
            if line := end[: MAX_SENT_BYTES + 1].strip():
                any_line = True
                yield line
        begun += rest[: max(0, MAX_SENT_BYTES + 1 - len(begun))]
    if line := bytes(begun).strip():
        yield line
    elif not any_line:
        raise MalformedError("the body is empty")


def idempotency_key(sent: str | None) -> str | None:
    """The Idempotency-Key header, checked. Raises InvalidError."""
    if sent is None:
        return None
    if not 0 < len(sent) <= KEY_CHARS or not sent.isprintable():
        raise InvalidError.field("Idempotency-Key", f"must be 1 to {KEY_CHARS} printable characters")
    return sent


def fingerprint(event: NewEvent, key: str) -> str:
    """The same for all events that say the same, however it is written. Each attempt may have a trace of its own.

    Who does not know the key cannot find out by it what the event said, should that be redacted.
    """
    try:
        payload: Any = msgspec.json.decode(event.payload)
    except (msgspec.DecodeError, UnicodeError):
        payload = bytes(event.payload)
    fields = {name: getattr(event, name) for name in event.__struct_fields__ if name not in _NOT_SAID}
    return hashlib.sha256(msgspec.json.encode([key, fields, payload], order="sorted")).hexdigest()[:32]
