"""The one envelope: an event as it is committed, read and sent, and its JSON encoding."""

import gc
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from crucible_core.attributes import Extensions
from crucible_core.errors import InvalidError
from crucible_core.times import parse_time

DEFAULT_WORLD = "default"
DEFAULT_ROOM = "main"

_LARGE_BYTES = 128 * 1024
_INTRICATE = 20_000

T = TypeVar("T")

SourceKind = Literal["user", "agent", "system", "external"]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: SourceKind
    id: str


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """The context of an event. `timestamp` is RFC 3339 in UTC with microseconds; `traceparent` is W3C's;
    `extensions` are the attributes of a CloudEvent that no other field holds, and is absent where there are none."""

    id: str
    timestamp: str
    version: str = "1.0.0"
    source: Source
    actor: str
    correlation_id: str
    causation_id: str | None = None
    hop: int = 0
    world_id: str = DEFAULT_WORLD
    room_id: str = DEFAULT_ROOM
    entity: str | None = None
    traceparent: str | None = None
    extensions: Extensions | UnsetType = UNSET


class Data(msgspec.Struct, frozen=True):
    """`payload` is a dict once decoded; to encode, it may also be `msgspec.Raw`, whose bytes pass through."""

    event: str
    payload: Any


class Redaction(msgspec.Struct, frozen=True):
    """The erasure of an event's payload: when, by whom, why, and the id of the event that says so."""

    tombstone: str
    at: str
    by: str
    reason: str | None = None


class Event(msgspec.Struct, frozen=True, omit_defaults=False):
    """A committed event; `sequence` is its position in the EVENTS stream and is not stored inside it. `redacted` is
    absent where nothing was erased."""

    type: str
    data: Data
    metadata: Metadata
    sequence: int | None = None
    redacted: Redaction | UnsetType = UNSET

    @property
    def dotted(self) -> str:
        return f"{self.type}.{self.data.event}"


class _Stored(msgspec.Struct, frozen=True):
    type: str
    data: Data
    metadata: Metadata
    redacted: Redaction | UnsetType = UNSET


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Event)


def encode(event: Event) -> bytes:
    """The stored form: JSON without `sequence`, which only the stream knows."""
    return _encoder.encode(_Stored(event.type, event.data, event.metadata, event.redacted))


def decode(raw: bytes, sequence: int | None = None) -> Event:
    """The event in `raw` (stored form or with a sequence). Raises `msgspec.DecodeError` for anything else."""
    event = read(_decoder.decode, raw)
    return event if sequence is None else msgspec.structs.replace(event, sequence=sequence)


def read(decoder: Callable[[bytes], T], raw: bytes) -> T:
    """The value that a decoder reads in `raw`. A large one is read without the garbage collector: of a million small
    values, all of them in use, it would look through the same ones again and again, which takes as long as reading
    them."""
    if len(raw) < _LARGE_BYTES or not gc.isenabled():
        return decoder(raw)
    gc.disable()
    try:
        return decoder(raw)
    finally:
        gc.enable()


def is_intricate(raw: bytes) -> bool:
    """True if JSON has so many values that each step of looking at them takes some 10 ms or more."""
    return len(raw) >= _LARGE_BYTES and raw.count(b",") + raw.count(b"[") + raw.count(b"{") > _INTRICATE


def with_sequence(raw: bytes, sequence: int) -> bytes:
    """The public form of a stored event, its bytes untouched."""
    return b'%b,"sequence":%d}' % (raw.rstrip()[:-1], sequence)


def moment_ms(event: Event) -> int:
    """Unix milliseconds, the same on every replica and in every attempt; 0 where the timestamp cannot be read."""
    try:
        return max(0, parse_time(event.metadata.timestamp, "timestamp") // 1000)
    except InvalidError:
        return 0
