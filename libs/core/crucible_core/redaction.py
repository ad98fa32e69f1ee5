"""Redaction: what a tombstone holds of the event whose payload is erased, and what is left of that event. Pure."""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from crucible_core.envelope import Data, Event, Metadata, Redaction
from crucible_core.errors import InvalidError
from crucible_core.subjects import REDACTED, REDACTS, VERSIONED


class _EventName(msgspec.Struct, frozen=True):
    event: str


class Envelope(msgspec.Struct, frozen=True):
    """An event without its payload."""

    type: str
    data: _EventName
    metadata: Metadata


class Tombstone(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The payload of a tombstone. `id` is the entity that the event is about, `sequence` the event's position."""

    id: str | None = None
    event_id: str
    sequence: int
    type: str
    reason: str | None = None
    envelope: Envelope


class StoredEvent(NamedTuple):
    """The stored event that is erased: its sequence, time of storing (Unix ms), and message id (may be empty)."""

    sequence: int
    stored_ms: int
    message_id: str


class _Data(msgspec.Struct, frozen=True):
    payload: Tombstone


class _Told(msgspec.Struct, frozen=True):
    """A tombstone as it was committed."""

    data: _Data
    metadata: Metadata


_decoder = msgspec.json.Decoder(_Told)


def type_of(category: str) -> str:
    """The tombstone's type: on the subject of the redacted event's entity where JetStream checks its versions, so that
    the entity's last event is never one that is gone."""
    return f"{category if category in VERSIONED else 'System'}.{REDACTED}"


def tombstone(event: Event, reason: str | None) -> Tombstone:
    about = event.metadata
    return Tombstone(
        id=about.entity,
        event_id=about.id,
        sequence=event.sequence or 0,
        type=event.dotted,
        reason=reason,
        envelope=Envelope(event.type, _EventName(event.data.event), about),
    )


def left_of(stored: bytes) -> Event:
    """The event that a tombstone (its stored form) stands for, without its payload. Raises `msgspec.DecodeError`."""
    told = _decoder.decode(stored)
    found, about = told.data.payload, told.metadata
    return Event(
        found.envelope.type,
        Data(found.envelope.data.event, {}),
        found.envelope.metadata,
        found.sequence,
        Redaction(about.id, about.timestamp, about.actor, found.reason),
    )


def mark(stored: StoredEvent) -> dict[str, str]:
    """The header that makes an event a tombstone. Only `events` itself writes it: an event of such a type that somebody
    else appends, or imports, erases nothing."""
    return {REDACTS: f"{stored.sequence} {stored.stored_ms} {stored.message_id}"}


def redacted_event(headers: Mapping[str, str]) -> StoredEvent | None:
    """Of which event a message is the tombstone; None for every other message."""
    value = headers.get(REDACTS) if headers else None
    if value is None:
        return None
    sequence, _, rest = value.partition(" ")
    stored_ms, _, message_id = rest.partition(" ")
    if not (sequence.isdecimal() and stored_ms.isdecimal()):
        return None
    return StoredEvent(int(sequence), int(stored_ms), message_id)


def checked_empty(payload: bytes) -> None:
    """Raises InvalidError where a redacted event that is sent, as an import does, brings a payload."""
    if payload.strip() != b"{}":
        message = "must be {}: the event is redacted"
        raise InvalidError.field("payload", message)
