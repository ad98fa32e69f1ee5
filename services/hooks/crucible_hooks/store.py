"""The SQLite index of runs: by hook, newest first, their counters, and streaks of failures. The runs of Pre hooks are
read from the log, all others from ATTEMPTS."""

import json
import logging
import re
import sqlite3

import msgspec

from crucible_core.errors import ConflictError, InvalidError, NotFoundError
from crucible_core.limits import FAILING_AFTER, PAGE
from crucible_core.position import numbered, stream_number
from crucible_core.protocol.hooks import RunList, RunRecord
from crucible_core.protocol.parts import Counters
from crucible_core.redaction import redacted_event
from crucible_core.subjects import NO_REACTION, REDACTED, RUN, Names
from crucible_hooks.errors import shorten_error
from crucible_hooks.hook import handler_key
from crucible_hooks.records import read_answer
from crucible_kit.index.index import Index
from crucible_kit.nats.bus import Message

log = logging.getLogger(__name__)

VERSION = 4
SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
  sequence INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, hook TEXT NOT NULL, run_id TEXT NOT NULL,
  attempt INTEGER NOT NULL, outcome TEXT NOT NULL, record BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS runs_by_hook ON runs (hook, at_ms, sequence);
CREATE UNIQUE INDEX IF NOT EXISTS runs_by_id ON runs (run_id, attempt, outcome);
CREATE TABLE IF NOT EXISTS counters (
  hook TEXT PRIMARY KEY, matched INTEGER NOT NULL, invoked INTEGER NOT NULL, ok INTEGER NOT NULL,
  failed INTEGER NOT NULL, skipped INTEGER NOT NULL, last_fired TEXT NOT NULL, went_well TEXT NOT NULL,
  declined TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS streaks (
  hook TEXT PRIMARY KEY, way TEXT NOT NULL, reason TEXT NOT NULL, times TEXT NOT NULL, since TEXT NOT NULL
) WITHOUT ROWID;
"""
_COUNT = """
INSERT INTO counters VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (hook) DO UPDATE SET
  matched = matched + excluded.matched, invoked = invoked + excluded.invoked, ok = ok + excluded.ok,
  failed = failed + excluded.failed, skipped = skipped + excluded.skipped,
  last_fired = max(last_fired, excluded.last_fired), went_well = max(went_well, excluded.went_well),
  declined = max(declined, excluded.declined)
"""
"""The last three are when the latest run of a kind began: any, one that went well, one whose condition said no."""
_STREAKS = """
SELECT hook, reason, times, CASE WHEN way LIKE 'condition: %' THEN max(went_well, declined) ELSE went_well END
FROM streaks JOIN counters USING (hook)
"""
STARTED = "json_extract(CAST(record AS TEXT), '$.started_at')"
_FAILURES = frozenset({"failed", "retrying", "parked"})
_VARYING = re.compile(r"\d+")
_CURSOR = re.compile(r"[0-9]{1,18}\.[0-9]{1,18}")
_SHOWN = 300


class Streak(msgspec.Struct, frozen=True):
    """The latest runs of a hook, all of which failed the same way: the reason, the times at which the last ten began,
    and the beginning of the last run that went well, before which none counts."""

    reason: str
    times: list[str]
    after: str

    def since(self, changed_at: str) -> str | None:
        """The reason where ten runs have failed so since the hook was changed."""
        return self.reason if sum(self.after < time >= changed_at for time in self.times) >= FAILING_AFTER else None


def sources(names: Names) -> list[str]:
    """The subjects of which the index is made, as wildcards."""
    runs = [names.events_of("Hook", event) for event in ("Executed", "Failed")]
    return [names.attempts_of(RUN), *runs, names.events_of("System", REDACTED)]


def wants(message: Message) -> bool:
    """False for the event of a Post hook's run, which the index has from ATTEMPTS."""
    is_run = stream_number(message.sequence) and redacted_event(message.headers) is None
    return not is_run or b'"timing":"Pre"' in message.data


def apply(writer: sqlite3.Connection, messages: list[Message]) -> None:
    """Writes runs, in whatever order the two sources come, and each once: versions before this one have put answers of
    Pre hooks into both. A message that cannot be decoded is passed over and logged."""
    for message in messages:
        number = stream_number(message.sequence)
        if (erased := redacted_event(message.headers)) is not None:
            writer.execute("DELETE FROM runs WHERE sequence = ?", (numbered(number, erased.sequence),))
        elif NO_REACTION not in message.headers:  # the runs of an import are not this installation's
            try:
                record = read_answer(message.data) if number else msgspec.json.decode(message.data, type=RunRecord)
            except msgspec.DecodeError as error:
                log.error("run record %d cannot be read: %s", message.sequence, error)
                continue
            if record is not None:
                _write(writer, message, record)


def _write(writer: sqlite3.Connection, message: Message, record: RunRecord) -> None:
    hook = handler_key(record.hook, record.hook_id)
    columns = (message.sequence, message.time_ms, hook, record.run_id, record.attempt, record.outcome)
    value = msgspec.json.encode(record) if stream_number(message.sequence) else message.data
    if writer.execute("INSERT OR IGNORE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)", (*columns, value)).rowcount:
        well = record.outcome in ("ok", "denied")
        declined = record.outcome == "skipped" and record.error == "condition: false"
        ends = (record.started_at if well else "", record.started_at if declined else "")
        writer.execute(_COUNT, (hook, *count_run(record), *ends))
        _continue_streak(writer, hook, record)


def _continue_streak(writer: sqlite3.Connection, hook: str, record: RunRecord) -> None:
    """Continues the streak of a hook's failures, or begins one. The result is the same in whatever order runs come: the
    times of the latest way of failing, since the last failure of another one."""
    error, at = record.error or "", record.started_at
    if record.attempt == 1 and (record.outcome in _FAILURES or error.startswith("condition: false: ")):
        reason = shorten_error(error)[-_SHOWN:]
        way = _VARYING.sub("#", reason)
        row = writer.execute("SELECT way, reason, times, since FROM streaks WHERE hook = ?", (hook,)).fetchone()
        before, latest, times, since = (*row[:2], json.loads(row[2]), row[3]) if row else (way, reason, [], "")
        last = max(times, default=since)
        if before == way:
            times.append(at)
        elif at > last:
            times, since = [at], last
        else:
            way, reason, since = before, latest, max(since, at)
        times = json.dumps(sorted(time for time in times if time > since)[-FAILING_AFTER:])
        writer.execute("INSERT OR REPLACE INTO streaks VALUES (?, ?, ?, ?, ?)", (hook, way, reason, times, since))


class Statistics(msgspec.Struct, frozen=True):
    """Counters and streaks of failures, by the key of the hook."""

    counters: dict[str, Counters]
    streaks: dict[str, Streak]

    def failing(self, key: str, changed_at: str) -> str | None:
        """The reason for which a hook fails again and again; None where it does not, or was changed since."""
        streak = self.streaks.get(key)
        return streak.since(changed_at) if streak else None


async def failing(index: Index, key: str, changed_at: str) -> str | None:
    """The same for one hook."""
    return (await statistics(index, key)).failing(key, changed_at)


async def statistics(index: Index, key: str | None = None) -> Statistics:
    """Of all hooks, or of one."""
    one = ("", ()) if key is None else (" WHERE hook = ?", (key,))
    rows = await index.reader.execute_fetchall(_STREAKS + one[0], one[1])
    streaks = {row[0]: Streak(row[1], json.loads(row[2]), row[3]) for row in rows}
    query = "SELECT hook, matched, invoked, ok, failed, skipped, nullif(last_fired, '') FROM counters"
    rows = await index.reader.execute_fetchall(query + one[0], one[1])
    names = ("matched", "invoked", "ok", "failed", "skipped", "last_fired")
    return Statistics({row[0]: Counters(**dict(zip(names, row[1:], strict=True))) for row in rows}, streaks)


def count_run(record: RunRecord) -> tuple[int, int, int, int, int, str]:
    """The addition of one record to matched, invoked, ok, failed and skipped, and when the hook fired, if so.

    `matched` counts triggers, `invoked` attempts. A denial is a Pre hook's success. A trigger that debounce or a
    condition held back, the depth limit stopped, or a dry replay only tested, is matched and not invoked.
    """
    if record.outcome == "skipped":
        held = record.output.get("events", 1) if isinstance(record.output, dict) else 1
        return held, 0, 0, 0, held, ""
    if record.outcome == "dry":
        return 1, 0, 0, 0, 1, ""
    if record.outcome == "stopped":
        return 1, 0, 0, 1, 0, ""
    first = int(record.attempt <= 1)
    ok, failed = int(record.outcome in ("ok", "denied")), int(record.outcome in ("failed", "parked"))
    return first, 1, ok, failed, 0, record.started_at


async def runs(index: Index, key: str, limit: int, cursor: str | None) -> RunList:
    """The newest first; `cursor` is the time (Unix ms) and the sequence that the page before ended at."""
    if not 1 <= limit <= PAGE:
        raise InvalidError.field("limit", f"1 to {PAGE}", detail=f"limit must be 1 to {PAGE}")
    if cursor is not None and not _CURSOR.fullmatch(cursor):
        raise InvalidError.field("cursor", "is not one of ours", detail="cursor is not one of ours")
    before = cursor.split(".") if cursor else (2**62, 0)
    await index.flush_gathered()
    query = "SELECT record, at_ms, sequence FROM runs WHERE hook = ? AND (at_ms, sequence) < (?, ?)"
    values = (key, *map(int, before), limit + 1)
    rows = await index.reader.execute_fetchall(f"{query} ORDER BY at_ms DESC, sequence DESC LIMIT ?", values)
    records = [msgspec.json.decode(row[0], type=RunRecord) for row in rows[:limit]]
    return RunList(runs=records, next_cursor="{1}.{2}".format(*rows[limit - 1]) if len(rows) > limit else None)


def no_run_error(beginning: str) -> NotFoundError:
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
        raise no_run_error(beginning)
    if len(found) > 1:
        raise ConflictError(f"{beginning} may be any of {', '.join(found)}{' …' if len(found) > 3 else ''}")
    query = "SELECT record FROM runs WHERE run_id = ? ORDER BY at_ms DESC, sequence DESC LIMIT ?"
    rows = await index.reader.execute_fetchall(query, (found[0], PAGE))
    return RunList(runs=[msgspec.json.decode(row[0], type=RunRecord) for row in rows])
