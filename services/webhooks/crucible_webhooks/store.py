"""The SQLite index of delivery attempts: by webhook, newest first, and their counters."""

import logging
import sqlite3

import msgspec

from crucible_core.errors import InvalidError
from crucible_core.limits import PAGE, WEBHOOK_TRACED
from crucible_core.protocol.parts import Counters
from crucible_core.protocol.webhooks import AttemptList, AttemptRecord
from crucible_kit.index.index import Index
from crucible_kit.nats.bus import Message

log = logging.getLogger(__name__)

_COUNTED = 10_000
VERSION = 2
SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (
  sequence INTEGER PRIMARY KEY, webhook_id TEXT NOT NULL, delivery_id TEXT NOT NULL, outcome TEXT NOT NULL,
  started_at TEXT NOT NULL, correlation_id TEXT NOT NULL, record BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS attempts_by_webhook ON attempts (webhook_id, sequence);
CREATE INDEX IF NOT EXISTS attempts_by_correlation ON attempts (correlation_id, sequence);
CREATE TABLE IF NOT EXISTS counters (
  webhook_id TEXT PRIMARY KEY, deliveries INTEGER NOT NULL, attempts INTEGER NOT NULL, ok INTEGER NOT NULL,
  failed INTEGER NOT NULL, last_fired TEXT
) WITHOUT ROWID;
"""
_FINAL_FAILURES = ("failed", "exhausted")
_NOT_SENT = ("dry", "skipped")


def apply(writer: sqlite3.Connection, messages: list[Message]) -> None:
    """Writes attempts; one that cannot be decoded is passed over and logged."""
    for message in messages:
        try:
            record = msgspec.json.decode(message.data, type=AttemptRecord)
        except msgspec.DecodeError as error:
            log.error("attempt %d cannot be read: %s", message.sequence, error)
            continue
        row = (message.sequence, record.webhook_id, record.delivery_id, record.outcome, record.started_at)
        writer.execute(
            "INSERT OR IGNORE INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, record.correlation_id, message.data)
        )
        writer.execute(
            "INSERT INTO counters VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (webhook_id) DO UPDATE SET"
            " deliveries = deliveries + excluded.deliveries, attempts = attempts + excluded.attempts,"
            " ok = ok + excluded.ok, failed = failed + excluded.failed,"
            " last_fired = coalesce(excluded.last_fired, last_fired)",
            (
                record.webhook_id,
                record.attempt == 1,
                record.outcome not in _NOT_SENT,
                record.outcome == "delivered",
                record.outcome in _FINAL_FAILURES,
                None if record.outcome in _NOT_SENT else record.started_at,
            ),
        )


async def attempts(index: Index, webhook_id: str, limit: int, cursor: str | None) -> AttemptList:
    """The newest first; `cursor` is the sequence that the page before ended at."""
    if not 1 <= limit <= PAGE:
        raise InvalidError.field("limit", f"must be 1 to {PAGE}", detail=f"limit must be 1 to {PAGE}")
    if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise InvalidError.field("cursor", "is not one of ours", detail="cursor is not one of ours")
    before = int(cursor) if cursor else 2**62
    await index.flush_gathered()
    query = "SELECT sequence, record FROM attempts WHERE webhook_id = ? AND sequence < ? ORDER BY sequence DESC LIMIT ?"
    rows = list(await index.reader.execute_fetchall(query, (webhook_id, before, limit + 1)))
    page = rows[:limit]
    records = [msgspec.json.decode(row[1], type=AttemptRecord) for row in page]
    return AttemptList(attempts=records, next_cursor=str(page[-1][0]) if len(rows) > limit else None)


async def latest_attempts(index: Index, correlation_id: str) -> list[AttemptRecord]:
    """The latest attempt of each delivery of the events with that correlation id, at most WEBHOOK_TRACED."""
    query = (
        "SELECT record, max(sequence) FROM attempts WHERE correlation_id = ? GROUP BY delivery_id"
        " ORDER BY min(sequence) LIMIT ?"
    )
    rows = await index.reader.execute_fetchall(query, (correlation_id, WEBHOOK_TRACED))
    return [msgspec.json.decode(row[0], type=AttemptRecord) for row in rows]


async def scheduled(index: Index, webhook_id: str, now: str) -> int:
    """The number of deliveries that wait for the time of their next attempt, over the latest attempts."""
    query = (
        "SELECT count(*) FROM"
        " (SELECT outcome, record FROM attempts WHERE webhook_id = ? ORDER BY sequence DESC LIMIT ?)"
        " WHERE outcome = 'retrying' AND json_extract(CAST(record AS TEXT), '$.next_attempt_at') > ?"
    )
    rows = await index.reader.execute_fetchall(query, (webhook_id, _COUNTED, now))
    return int(next(iter(rows))[0])


async def counters(index: Index, webhook_id: str | None = None) -> dict[str, Counters]:
    """By webhook id, of all or of one. `matched` counts deliveries begun, `invoked` attempts."""
    query = "SELECT webhook_id, deliveries, attempts, ok, failed, last_fired FROM counters"
    one = ("", ()) if webhook_id is None else (" WHERE webhook_id = ?", (webhook_id,))
    rows = await index.reader.execute_fetchall(query + one[0], one[1])
    return {
        row[0]: Counters(matched=row[1], invoked=row[2], ok=row[3], failed=row[4], last_fired=row[5]) for row in rows
    }
