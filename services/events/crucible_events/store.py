"""Store: an SQLite index of EVENTS with every event's bytes; the writes of its projection, and the reads."""

import logging
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from crucible_core import envelope, subjects
from crucible_core.envelope import Event, Metadata
from crucible_core.errors import InvalidError
from crucible_core.position import Encoded, Position, base_of, joined, stream_number
from crucible_core.position import decoded as position_from
from crucible_core.protocol.events import Chain, Known
from crucible_core.times import parse_time
from crucible_events.append.lifetime import expiry_of
from crucible_events.append.stamp import stored_key
from crucible_kit.index.erasure import original_of
from crucible_kit.index.file import insert
from crucible_kit.index.index import Index, unwritable
from crucible_kit.nats.message import Message
from crucible_kit.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

VERSION = 4
SPAN_BITS = 10
SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
  sequence INTEGER PRIMARY KEY,
  id TEXT NOT NULL, type TEXT NOT NULL, category TEXT NOT NULL, time INTEGER NOT NULL, actor TEXT NOT NULL,
  correlation_id TEXT NOT NULL, causation_id TEXT, entity TEXT, world_id TEXT NOT NULL, room_id TEXT NOT NULL,
  source_kind TEXT NOT NULL, source_id TEXT NOT NULL,
  message_id TEXT, fingerprint TEXT,
  stored_ms INTEGER NOT NULL, forever INTEGER NOT NULL, expires_ms INTEGER, raw BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS by_id ON events (id);
CREATE INDEX IF NOT EXISTS by_type ON events (type);
CREATE INDEX IF NOT EXISTS by_category ON events (category);
CREATE INDEX IF NOT EXISTS by_actor ON events (actor);
CREATE INDEX IF NOT EXISTS by_correlation_id ON events (correlation_id);
CREATE INDEX IF NOT EXISTS by_causation_id ON events (causation_id) WHERE causation_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_entity ON events (entity) WHERE entity IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_world_id ON events (world_id);
CREATE INDEX IF NOT EXISTS by_room_id ON events (room_id);
CREATE INDEX IF NOT EXISTS by_message_id ON events (message_id) WHERE message_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_expires_ms ON events (expires_ms) WHERE expires_ms IS NOT NULL;
CREATE TABLE IF NOT EXISTS spans (span INTEGER PRIMARY KEY, low INTEGER NOT NULL, high INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS erasures (
  sequence INTEGER PRIMARY KEY, event_id TEXT NOT NULL, done INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS erasures_due ON erasures (sequence) WHERE NOT done;
CREATE TABLE IF NOT EXISTS streams (name TEXT PRIMARY KEY, created TEXT NOT NULL, last INTEGER NOT NULL) WITHOUT ROWID;
"""
"""`time` is microseconds; `message_id` stands for an idempotency key, if there is one; `forever` and `expires_ms` are
as `lifetime.expiry_of` returns them. `spans` has the least and the greatest time of each 1,024 sequences: a query by
time finds its stretches of the log with it, without an index on time. Every index has one column, after which SQLite
puts the sequence: it is read in the log's order without sorting. `erasures` has the redacted events; `done` says that
their bytes are gone from every file (see `redaction`)."""

INSERT = "INSERT OR IGNORE INTO events VALUES"
_OVERWRITE = "UPDATE events SET raw = zeroblob(length(raw)) WHERE sequence = ?"
_WRITE_REMAINS = "UPDATE events SET raw = ? WHERE sequence = ?"
_REMEMBER = "INSERT OR IGNORE INTO erasures (sequence, event_id) VALUES"
_WIDEN = (
    "INSERT INTO spans VALUES (?, ?, ?) ON CONFLICT (span)"
    " DO UPDATE SET low = min(low, excluded.low), high = max(high, excluded.high)"
)
_AT_ONCE = 500
_MOST_STRETCHES = 100
_ISLANDS = """
SELECT min(span), max(span) FROM
  (SELECT span, span - row_number() OVER (ORDER BY span) AS island FROM spans WHERE high >= ? AND low < ?)
GROUP BY island ORDER BY 1
"""
_EXPIRE_AT_ONCE = 5_000


class Sized(NamedTuple):
    """A row of a scan; `size` is None where the row fails the test."""

    sequence: int
    size: int | None


class _Data(msgspec.Struct):
    event: str


class _Row(msgspec.Struct):
    """An event without its payload, which the index does not decode."""

    type: str
    data: _Data
    metadata: Metadata


_decoder = msgspec.json.Decoder(_Row)

# ---- writing ---------------------------------------------------------------------------------------------------------


class Projection:
    """Writes the stream into the index. It skips and counts messages that cannot be decoded."""

    def __init__(self, metrics: Metrics) -> None:
        self._skipped = metrics.counter("events_skipped", "Messages of EVENTS that are no events")

    def apply(self, writer: sqlite3.Connection, messages: list[Message]) -> None:
        rows, redacted = [], []
        for message in messages:
            try:
                rows.append(row_of(message))
                if (original := original_of(message)) is not None:
                    redacted.append(row_of(original))
            except (msgspec.DecodeError, InvalidError) as error:
                self._skipped.inc()
                log.error("message %d of EVENTS is no event: %s", message.sequence, error)
        insert(writer, INSERT, rows)
        _redact(writer, redacted)
        writer.executemany(_WIDEN, _spans([*rows, *redacted]))


def row_of(message: Message) -> tuple[Any, ...]:
    """The columns of an event. Raises `msgspec.DecodeError` or InvalidError for a message that is no event."""
    event = _decoder.decode(message.data)
    about = event.metadata
    headers = message.headers or {}
    message_id = stored_key(headers)
    forever, expires_ms = expiry_of(message.headers, message.time_ms)
    return (
        message.sequence,
        about.id,
        f"{event.type}.{event.data.event}",
        event.type,
        parse_time(about.timestamp, "timestamp"),
        about.actor,
        about.correlation_id,
        about.causation_id,
        about.entity,
        about.world_id,
        about.room_id,
        about.source.kind,
        about.source.id,
        None if message_id == about.id else message_id,
        headers.get(subjects.FINGERPRINT),
        message.time_ms,
        forever,
        expires_ms,
        message.data,
    )


def _redact(writer: sqlite3.Connection, rows: Sequence[Sequence[Any]]) -> None:
    """Replaces redacted events by their remains, whether the index has the events or, built anew from a stream without
    them, not."""
    for row in rows:
        sequence, event_id, left = row[0], row[1], row[-1]
        there = writer.execute("SELECT id, length(raw) FROM events WHERE sequence = ?", (sequence,)).fetchone()
        if there is None:
            insert(writer, INSERT, [row])
        elif there[0] == event_id:
            # A value of the same size overwrites the old bytes. Of one that moves, SQLite may leave copies behind:
            # hence white space at the end.
            writer.execute(_OVERWRITE, (sequence,))
            writer.execute(_WRITE_REMAINS, (left.ljust(there[1]), sequence))
        else:
            log.error("%s is redacted, and sequence %d holds %s: it is left alone", event_id, sequence, there[0])
            continue
        insert(writer, _REMEMBER, [row[:2]])


def _spans(rows: Iterable[Sequence[Any]]) -> list[tuple[int, int, int]]:
    """(span, least time, greatest time) of some rows."""
    times: dict[int, list[int]] = {}
    for row in rows:
        times.setdefault(row[0] >> SPAN_BITS, []).append(row[4])
    return [(span, min(found), max(found)) for span, found in times.items()]


async def first_since(index: Index, moment_ms: int, after: int) -> int:
    """The first sequence after `after`, in its stream, that was stored at a moment or later; else the next one to
    come."""
    number = stream_number(after + 1)
    end = index.position.end_of(number)  # before the read: later events are not searched
    statement = "SELECT sequence FROM events WHERE sequence > ? AND sequence <= ? AND stored_ms >= ? ORDER BY 1 LIMIT 1"
    found = await select(index, statement, (after, end, moment_ms))
    return int(found[0][0]) if found else end + 1


async def forget_range(index: Index, first: int, end: int) -> int:
    """Forgets the events from a sequence to just before another, except those that the stream's limit spares."""
    return await _forget(index, "sequence >= ? AND sequence < ? AND NOT forever", (first, end))


async def forget_expired(index: Index, now_ms: int) -> int:
    """Forgets the events whose own time has come."""
    return await _forget(index, "expires_ms <= ?", (now_ms,))


async def has_world(index: Index, world_id: str, through: int) -> bool:
    """True where the index has events of a world up to a sequence."""
    return bool(
        await select(index, "SELECT 1 FROM events WHERE world_id = ? AND sequence <= ? LIMIT 1", (world_id, through))
    )


async def forget_world(index: Index, world_id: str, through: int) -> int:
    """Forgets the events of a world up to a sequence."""
    return await _forget(index, "world_id = ? AND sequence <= ?", (world_id, through))


async def forget_sequences(index: Index, sequences: Sequence[int]) -> int:
    return await _forget(index, f"sequence IN ({', '.join('?' * len(sequences))})", sequences)


async def forget_redacted(index: Index, before_ms: int) -> int:
    """Forgets the redacted events that the stream's limit would have reached: in a new index they come late, with their
    tombstones."""
    redacted = "sequence IN (SELECT sequence FROM erasures WHERE done)"
    return await _forget(index, f"{redacted} AND NOT forever AND stored_ms < ?", (before_ms,))


async def overdue(index: Index, now_ms: int, most: int) -> list[int]:
    """Events whose end has come, and that the stream keeps until `events` removes them."""
    statement = "SELECT sequence FROM events WHERE expires_ms <= ? AND forever LIMIT ?"
    return [row[0] for row in await select(index, statement, (now_ms, most))]


async def _forget(index: Index, condition: str, values: Sequence[Any]) -> int:
    # A little at a time: the projection shares the writer.
    some = f"SELECT sequence FROM events WHERE {condition} LIMIT {_EXPIRE_AT_ONCE}"
    statement = f"DELETE FROM events WHERE sequence IN ({some})"
    gone = 0
    while True:
        try:
            part = await index.writer.run(lambda writer: writer.execute(statement, values).rowcount)
        except sqlite3.OperationalError as error:
            raise unwritable(error) from error
        gone += part
        if part < _EXPIRE_AT_ONCE:
            return gone


# ---- reading ---------------------------------------------------------------------------------------------------------


async def select(index: Index, statement: str, values: Sequence[Any] = ()) -> list[Any]:
    """All rows of a statement. Raises UnavailableError when the file cannot be read."""
    return await index.reader.execute_fetchall(statement, values)


async def find_known(index: Index, message_ids: Sequence[str]) -> dict[str, Known]:
    """The events that the log has already, by id or by the hash of a key (see `stamp.key_of`)."""
    found: dict[str, Known] = {}
    for start in range(0, len(message_ids), _AT_ONCE):
        part = message_ids[start : start + _AT_ONCE]
        marks = ", ".join("?" * len(part))
        for column, fingerprint in (("id", "NULL"), ("message_id", "fingerprint")):
            columns = f"{column}, sequence, id, type, correlation_id, {fingerprint}"
            statement = f"SELECT {columns} FROM events WHERE {column} IN ({marks})"
            found |= {row[0]: Known(*row[1:]) for row in await select(index, statement, part)}
    return found


async def find_chains(index: Index, ids: Sequence[str]) -> dict[str, Chain]:
    """The depth and correlation of some events, by their ids, without those that the log does not have."""
    found: dict[str, Chain] = {}
    for start in range(0, len(ids), _AT_ONCE):
        part = ids[start : start + _AT_ONCE]
        hop = "json_extract(CAST(raw AS TEXT), '$.metadata.hop')"
        statement = f"SELECT id, {hop}, correlation_id FROM events WHERE id IN ({', '.join('?' * len(part))})"
        found |= {row[0]: Chain(row[1] or 0, row[2]) for row in await select(index, statement, part)}
    return found


async def find_by_id(index: Index, event_id: str) -> tuple[int, bytes] | None:
    """The sequence and the bytes of an event."""
    rows = await select(index, "SELECT sequence, raw FROM events WHERE id = ? ORDER BY sequence LIMIT 1", (event_id,))
    return rows[0] if rows else None


async def last_of(index: Index, world_id: str, category: str, entity: str) -> int:
    """The sequence of an entity's last event of a category; 0 if there is none."""
    statement = (
        "SELECT sequence FROM events INDEXED BY by_entity WHERE entity = ? AND world_id = ? AND category = ?"
        " ORDER BY sequence DESC LIMIT 1"
    )
    rows = await select(index, statement, (entity, world_id, category))
    return int(rows[0][0]) if rows else 0


async def find_by_correlation(index: Index, correlation_id: str, most: int) -> list[Sized]:
    """The first events of one correlation id."""
    order = "sequence" if len(index.streams) == 1 else "stored_ms, sequence"
    statement = f"SELECT sequence, length(raw) FROM events WHERE correlation_id = ? ORDER BY {order} LIMIT ?"
    return [Sized(*row) for row in await select(index, statement, (correlation_id, most))]


async def counts_by_type(index: Index) -> dict[str, int]:
    """The number of events of each type, by canonical name."""
    return dict(await select(index, "SELECT type, count(*) FROM events GROUP BY type"))


async def stretches(index: Index, start: int | None, end: int | None) -> list[tuple[int, int]]:
    """The stretches of sequences (first, last), in order, that hold all events with a time in [start, end). There are
    several where events of other times stand between, as imported ones do; very many become one."""
    values = (-(2**62) if start is None else start, 2**62 if end is None else end)
    found = [
        (first << SPAN_BITS, ((last + 1) << SPAN_BITS) - 1) for first, last in await select(index, _ISLANDS, values)
    ]
    return found if len(found) <= _MOST_STRETCHES else [(found[0][0], found[-1][1])]


async def position_of(index: Index, position: Encoded) -> Position:
    """The position just after a sequence, or as it is. The other streams of the log are at their ends of when that
    event was stored: of two stored at one moment, the later stream's is the later one."""
    streams = len(index.streams)
    if streams == 1 or not isinstance(position, int):
        return position_from(position, streams)
    sequence, number = position, stream_number(position)
    if number >= streams:
        return Position.end(streams)
    found = await select(
        index,
        "SELECT stored_ms FROM events WHERE sequence > ? AND sequence <= ? ORDER BY sequence DESC LIMIT 1",
        (base_of(number), sequence),
    )
    if not found:
        return Position.start(streams).at(sequence)
    [(moment_ms,)] = found
    ends = [await _last_before(index, other, moment_ms + (other < number)) for other in range(streams)]
    return joined(ends).at(sequence)


async def last_sequence(index: Index) -> int:
    """The last sequence of the index; of several streams, that of the event that was stored last."""
    position = index.position
    if len(position.ends) == 1:
        return position.ends[0]
    rows = [
        row
        for number, end in enumerate(position.ends)
        for row in await select(
            index,
            "SELECT stored_ms, sequence FROM events WHERE sequence > ? AND sequence <= ? ORDER BY 2 DESC LIMIT 1",
            (base_of(number), end),
        )
    ]
    return int(max(rows)[1]) if rows else 0


async def read_raw(index: Index, sequences: Sequence[int]) -> list[tuple[int, bytes]]:
    """The bytes of some events, in order of sequence."""
    found: list[tuple[int, bytes]] = []
    for start in range(0, len(sequences), _AT_ONCE):
        part = sequences[start : start + _AT_ONCE]
        statement = f"SELECT sequence, raw FROM events WHERE sequence IN ({', '.join('?' * len(part))})"
        found += await select(index, statement, part)
    return sorted(found)


async def find_forever(index: Index, sequences: Sequence[int]) -> frozenset[int]:
    """The sequences among these of events that are kept for ever."""
    found: list[int] = []
    for start in range(0, len(sequences), _AT_ONCE):
        part = sequences[start : start + _AT_ONCE]
        marks = ", ".join("?" * len(part))
        statement = f"SELECT sequence FROM events WHERE forever AND expires_ms IS NULL AND sequence IN ({marks})"
        found += [row[0] for row in await select(index, statement, part)]
    return frozenset(found)


def encode_public(sequence: int, raw: bytes, forever: bool = False) -> msgspec.Raw:
    """The public form; with `forever` it has the retention, as an append understands it."""
    event = envelope.with_sequence(raw, sequence)
    return msgspec.Raw(b'%b,"retention":"forever"}' % event[:-1] if forever else event)


def decode(sequence: int, raw: bytes) -> Event:
    return envelope.decode(raw, sequence)


async def _last_before(index: Index, number: int, moment_ms: int) -> int:
    """The last sequence of a stream that was stored before a moment."""
    low, high = base_of(number), index.position.end_of(number)
    query = "SELECT sequence, stored_ms FROM events WHERE sequence > ? AND sequence <= ? ORDER BY sequence LIMIT 1"
    while low < high:
        middle = (low + high) // 2
        rows = await select(index, query, (middle, high))
        if rows and rows[0][1] < moment_ms:
            low = rows[0][0]
        else:
            high = middle
    return low
