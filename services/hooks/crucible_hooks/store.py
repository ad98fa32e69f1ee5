"""What is remembered of runs: an SQLite index of ATTEMPTS, by the hook that owns them, newest first, and counters."""

import json
import logging
import re
import sqlite3

import msgspec

from crucible_core.errors import ConflictError, FieldError, InvalidError, NotFoundError
from crucible_core.limits import FAILING_AFTER
from crucible_core.protocol.hooks import RunList, RunRecord
from crucible_core.protocol.shared import Counters
from crucible_kit.bus import Message
from crucible_kit.index import Index

from .failures import brief
from .hook import handler_key

log = logging.getLogger(__name__)

VERSION = 3
SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
  sequence INTEGER PRIMARY KEY, hook TEXT NOT NULL, run_id TEXT NOT NULL, record BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS runs_by_hook ON runs (hook, sequence);
CREATE INDEX IF NOT EXISTS runs_by_id ON runs (run_id);
CREATE TABLE IF NOT EXISTS counters (
  hook TEXT PRIMARY KEY, matched INTEGER NOT NULL, invoked INTEGER NOT NULL, ok INTEGER NOT NULL,
  failed INTEGER NOT NULL, skipped INTEGER NOT NULL, last_fired TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS streaks (
  hook TEXT PRIMARY KEY, way TEXT NOT NULL, reason TEXT NOT NULL, times TEXT NOT NULL
) WITHOUT ROWID;
"""
_COUNT = """
INSERT INTO counters VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (hook) DO UPDATE SET
  matched = matched + excluded.matched, invoked = invoked + excluded.invoked, ok = ok + excluded.ok,
  failed = failed + excluded.failed, skipped = skipped + excluded.skipped,
  last_fired = coalesce(excluded.last_fired, last_fired)
"""
STARTED = "json_extract(CAST(record AS TEXT), '$.started_at')"
_MAX_LIMIT = 1000
_FAILURES = frozenset({"failed", "retrying", "parked"})
_VARYING = re.compile(r"\d+")
_SHOWN = 300


class Streak(msgspec.Struct, frozen=True):
    """The latest runs of a hook, all of which failed the same way: why, and when each of them began (the last ten)."""

    reason: str
    times: list[str]

    def since(self, changed_at: str) -> str | None:
        """The reason where ten runs have failed so since the hook was changed."""
        return self.reason if sum(time >= changed_at for time in self.times) >= FAILING_AFTER else None


def apply(writer: sqlite3.Connection, messages: list[Message]) -> None:
    """Writes run records; one that cannot be decoded is passed over and logged."""
    for message in messages:
        try:
            record = msgspec.json.decode(message.data, type=RunRecord)
        except msgspec.DecodeError as error:
            log.error("run record %d cannot be read: %s", message.sequence, error)
            continue
        hook = handler_key(record.hook, record.hook_id)
        row = (message.sequence, hook, record.run_id, message.data)
        writer.execute("INSERT OR IGNORE INTO runs VALUES (?, ?, ?, ?)", row)
        writer.execute(_COUNT, (hook, *counted(record)))
        _note_streak(writer, hook, record)


def _note_streak(writer: sqlite3.Connection, hook: str, record: RunRecord) -> None:
    """Continues the streak of a hook's failures, or ends it: a run that went well does, and so does, of a condition
    that failed, one that it answered."""
    error = record.error or ""
    if record.outcome in ("ok", "denied"):
        writer.execute("DELETE FROM streaks WHERE hook = ?", (hook,))
    elif record.outcome == "skipped" and error == "condition: false":
        writer.execute("DELETE FROM streaks WHERE hook = ? AND way LIKE 'condition: %'", (hook,))
    elif record.attempt == 1 and (record.outcome in _FAILURES or error.startswith("condition: false: ")):
        reason = brief(error)[-_SHOWN:]
        way = _VARYING.sub("#", reason)
        row = writer.execute("SELECT times FROM streaks WHERE hook = ? AND way = ?", (hook, way)).fetchone()
        times = [*(json.loads(row[0]) if row else ()), record.started_at][-FAILING_AFTER:]
        writer.execute("INSERT OR REPLACE INTO streaks VALUES (?, ?, ?, ?)", (hook, way, reason, json.dumps(times)))


class Known(msgspec.Struct, frozen=True):
    """What is known of hooks from their runs, by key."""

    counters: dict[str, Counters]
    streaks: dict[str, Streak]

    def failing(self, key: str, changed_at: str) -> str | None:
        """Why a hook fails again and again; None where it does not, or was changed since."""
        streak = self.streaks.get(key)
        return streak.since(changed_at) if streak else None


async def failing(index: Index, key: str, changed_at: str) -> str | None:
    """The same of one hook."""
    rows = await index.reader.execute_fetchall("SELECT reason, times FROM streaks WHERE hook = ?", (key,))
    return next((Streak(row[0], json.loads(row[1])).since(changed_at) for row in rows), None)


async def known(index: Index, key: str | None = None) -> Known:
    """Of all hooks, or of one."""
    one = ("", ()) if key is None else (" WHERE hook = ?", (key,))
    query = "SELECT hook, reason, times FROM streaks"
    rows = await index.reader.execute_fetchall(query + one[0], one[1])
    streaks = {row[0]: Streak(row[1], json.loads(row[2])) for row in rows}
    query = "SELECT hook, matched, invoked, ok, failed, skipped, last_fired FROM counters"
    rows = await index.reader.execute_fetchall(query + one[0], one[1])
    names = ("matched", "invoked", "ok", "failed", "skipped", "last_fired")
    return Known({row[0]: Counters(**dict(zip(names, row[1:], strict=True))) for row in rows}, streaks)


def counted(record: RunRecord) -> tuple[int, int, int, int, int, str | None]:
    """What one record adds to matched, invoked, ok, failed and skipped, and when the hook fired.

    `matched` counts triggers, `invoked` attempts. A denial is a gate's success. A trigger that debounce or a condition
    held back, the depth limit stopped, or a dry replay only tried, is matched and not invoked.
    """
    if record.outcome == "skipped":
        held = record.output.get("events", 1) if isinstance(record.output, dict) else 1
        return held, 0, 0, 0, held, None
    if record.outcome == "dry":
        return 1, 0, 0, 0, 1, None
    if record.outcome == "stopped":
        return 1, 0, 0, 1, 0, None
    first = int(record.attempt <= 1)
    ok, failed = int(record.outcome in ("ok", "denied")), int(record.outcome in ("failed", "parked"))
    return first, 1, ok, failed, 0, record.started_at


async def runs(index: Index, key: str, limit: int, cursor: str | None) -> RunList:
    """The newest first; `cursor` is the sequence that the page before ended at."""
    if not 1 <= limit <= _MAX_LIMIT:
        raise InvalidError(f"limit must be 1 to {_MAX_LIMIT}", errors=[FieldError("limit", f"1 to {_MAX_LIMIT}")])
    if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise InvalidError("cursor is not one of ours", errors=[FieldError("cursor", "is not one of ours")])
    before = int(cursor) if cursor else 2**62
    await index.take_gathered()
    query = "SELECT sequence, record FROM runs WHERE hook = ? AND sequence < ? ORDER BY sequence DESC LIMIT ?"
    rows = list(await index.reader.execute_fetchall(query, (key, before, limit + 1)))
    page = rows[:limit]
    records = [msgspec.json.decode(row[1], type=RunRecord) for row in page]
    return RunList(runs=records, next_cursor=str(page[-1][0]) if len(rows) > limit else None)


def no_run(beginning: str) -> NotFoundError:
    return NotFoundError(f"no run has an id that begins with {beginning}")


async def run(index: Index, beginning: str, owners: list[str] | None = None) -> RunList:
    """The attempts at the one run whose id is, or begins with, `beginning`: the latest first. Of some `owners` only,
    where they are not None. Raises NotFoundError, and ConflictError where several ids begin so."""
    theirs = "" if owners is None else " AND hook IN (SELECT value FROM json_each(?))"
    query = f"SELECT DISTINCT run_id FROM runs WHERE run_id >= ? AND run_id < ?{theirs} LIMIT 4"
    values = (beginning, beginning + "\U0010ffff", *([] if owners is None else [json.dumps(owners)]))
    ids = [row[0] for row in await index.reader.execute_fetchall(query, values)]
    found = [id for id in ids if id == beginning] or ids
    if not found:
        raise no_run(beginning)
    if len(found) > 1:
        raise ConflictError(f"{beginning} may be any of {', '.join(found)}{' …' if len(found) > 3 else ''}")
    query = "SELECT record FROM runs WHERE run_id = ? ORDER BY sequence DESC LIMIT ?"
    rows = await index.reader.execute_fetchall(query, (found[0], _MAX_LIMIT))
    return RunList(runs=[msgspec.json.decode(row[0], type=RunRecord) for row in rows])
