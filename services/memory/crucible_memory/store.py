"""Store: an SQLite index of the Memory events, with each memory's state, tags, links, names and words."""

import logging
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import msgspec

from crucible_core.envelope import DEFAULT_WORLD
from crucible_core.ids import is_id
from crucible_core.protocol.memory import Link, MemoryView, SkippedEvent
from crucible_core.redaction import redacted_event
from crucible_core.subjects import ACCESSED
from crucible_kit.index.connections import Reader
from crucible_kit.index.file import insert
from crucible_kit.index.index import Index, unwritable
from crucible_kit.nats.bus import Message
from crucible_memory.changes import Location
from crucible_memory.graph import edges
from crucible_memory.projection import Recorded, fold, read_recorded
from crucible_memory.search import words
from crucible_memory.search.visibility import Visibility
from crucible_memory.state import Memory, clean_name, note_id

log = logging.getLogger(__name__)

VERSION = f"4 {words.VERSION}"
SCHEMA = f"""
{edges.SCHEMA}
CREATE TABLE IF NOT EXISTS memories (
  key INTEGER PRIMARY KEY, id TEXT NOT NULL, world TEXT NOT NULL, room TEXT NOT NULL, content TEXT NOT NULL,
  state BLOB NOT NULL, UNIQUE (id, world)
);
CREATE TABLE IF NOT EXISTS tags (tag TEXT, memory INTEGER, PRIMARY KEY (tag, memory)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tags_by_memory ON tags (memory);
CREATE TABLE IF NOT EXISTS names (
  world TEXT, name TEXT, kind INTEGER, memory INTEGER, spelled TEXT NOT NULL, PRIMARY KEY (world, name, kind, memory)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS names_by_memory ON names (memory);
CREATE TABLE IF NOT EXISTS notes (
  world TEXT, root TEXT, path TEXT, memory INTEGER, PRIMARY KEY (world, root, path, memory)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS notes_by_memory ON notes (memory);
CREATE VIRTUAL TABLE IF NOT EXISTS texts USING fts5(title, content, words, content='', tokenize='porter ascii');
CREATE TABLE IF NOT EXISTS skipped (sequence INTEGER PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS refolds (
  id TEXT, world TEXT, seen INTEGER NOT NULL, PRIMARY KEY (id, world)
) WITHOUT ROWID;
"""
"""`state` is the Memory without its content; `tags` and `names` hold keys, `spelled` is the text of a name's key.
`texts` has the full text from `words.index_words`; its `words` are tags and entities. `skipped` has the events that
cannot be read, `refolds` the memories with a redacted event, and the last of their events that the index has: see
`redaction`."""

_PATH, _FILE, _TITLE, _ALIAS, _FORMER = range(5)
"""The kinds of names, the strongest first."""
_MAX_FOLDERS = 16
_AT_ONCE = 1000

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Memory)
_NOTES = "SELECT m.state, m.content FROM notes n JOIN memories m ON m.key = n.memory"
Key = tuple[str, str]
"""A memory's id and its world."""
NoteKey = tuple[str, Location]
"""A world, and the location of a note."""


# ---- writing ---------------------------------------------------------------------------------------------------------


def apply(skipped: Callable[[], None], writer: sqlite3.Connection, messages: list[Message]) -> None:
    """Folds a batch of events into the index. It skips messages that are no Memory events: calls `skipped`, logs them,
    and stores them in the table of that name; the index itself parks events that it cannot write."""
    events = [event for event in (_read(message, skipped, writer) for message in messages) if event]
    before = _by_key(writer.execute(*_states({(event.memory_id, event.world_id) for event in events})))
    after: dict[Key, Memory | None] = {}
    changes = []
    for event in events:
        key = (event.memory_id, event.world_id)
        was = after[key] if key in after else before.get(key)
        after[key] = fold(was, event)
        changes.append((event.sequence, edges.graph_changes(was, after[key])))
    edges.store_changes(writer, changes)
    put(writer, before.values(), after.values())
    _mark_redacted(writer, messages, events)


def put(writer: sqlite3.Connection, before: Iterable[Memory], after: Iterable[Memory | None]) -> None:
    """Replaces memories by others."""
    _remove(writer, before)
    present = [memory for memory in after if memory]
    insert(writer, "INSERT INTO memories VALUES", [_row(memory) for memory in present])
    insert(writer, "INSERT INTO texts (rowid, title, content, words) VALUES", [_text(memory) for memory in present])
    tags = [(key, memory.key) for memory in present for tag in memory.tags for key in words.tag_keys(tag)]
    insert(writer, "INSERT OR IGNORE INTO tags VALUES", tags)
    names = [(m.world_id, words.name_key(name), kind, m.key, name) for m in present for name, kind in _names_of(m)]
    insert(writer, "INSERT OR IGNORE INTO names VALUES", names)
    notes = [(m.world_id, m.root, m.path, m.key) for m in present if m.root is not None and m.path is not None]
    insert(writer, "INSERT INTO notes VALUES", notes)


def replace(writer: sqlite3.Connection, id: str, world: str, memory: Memory | None, last: int) -> bool:
    """Replaces a memory by the fold of its events up to `last`; False where the index has a later one of them."""
    seen = writer.execute("SELECT seen FROM refolds WHERE id = ? AND world = ?", (id, world)).fetchone()
    if seen is None or seen[0] > last:
        return False
    put(writer, _by_key(writer.execute(*_states({(id, world)}))).values(), [memory])
    return True


def optimize_texts(writer: sqlite3.Connection) -> None:
    """Removes the words of deleted memories from the full text, which only marked them as gone."""
    writer.execute("INSERT INTO texts (texts) VALUES ('optimize')")


def unmark_rebuilt(writer: sqlite3.Connection, id: str, world: str, last: int) -> None:
    writer.execute("DELETE FROM refolds WHERE id = ? AND world = ? AND seen <= ?", (id, world, last))


def _mark_redacted(writer: sqlite3.Connection, messages: list[Message], events: list[Recorded]) -> None:
    redacted = {message.sequence for message in messages if redacted_event(message.headers) is not None}
    for event in events:
        if event.sequence in redacted:
            row = (event.memory_id, event.world_id, event.sequence)
            writer.execute("INSERT OR IGNORE INTO refolds VALUES (?, ?, ?)", row)
    if writer.execute("SELECT 1 FROM refolds LIMIT 1").fetchone():
        seen = [(event.sequence, event.memory_id, event.world_id) for event in events]
        writer.executemany("UPDATE refolds SET seen = max(seen, ?) WHERE id = ? AND world = ?", seen)


async def forget_world(index: Index, world: str, through: int) -> None:
    """Forgets the memories of a world that were created up to a sequence."""
    some = "SELECT state, content FROM memories WHERE world = ? AND key <= ? LIMIT ?"

    def forget(writer: sqlite3.Connection) -> int:
        gone = [_memory(*row) for row in writer.execute(some, (world, through, _AT_ONCE))]
        _remove(writer, gone)
        return len(gone)

    try:
        while await index.writer.run(forget) == _AT_ONCE:
            pass
    except sqlite3.OperationalError as error:
        raise unwritable(error) from error


def _remove(writer: sqlite3.Connection, gone: Iterable[Memory]) -> None:
    for memory in gone:
        # A full text without a copy of its words needs the words that it is to forget.
        writer.execute(
            "INSERT INTO texts (texts, rowid, title, content, words) VALUES ('delete', ?, ?, ?, ?)", _text(memory)
        )
        for table, column in (("memories", "key"), ("tags", "memory"), ("names", "memory"), ("notes", "memory")):
            writer.execute(f"DELETE FROM {table} WHERE {column} = ?", (memory.key,))


def _read(message: Message, skipped: Callable[[], None], writer: sqlite3.Connection) -> Recorded | None:
    try:
        found = read_recorded(message.data, message.sequence)
        return None if found.data.event == ACCESSED else found
    except (msgspec.DecodeError, UnicodeError) as error:
        log.error("event %d cannot be read: %s", message.sequence, error)
        reason = str(error)[:500].encode(errors="replace").decode()
        writer.execute("INSERT OR REPLACE INTO skipped VALUES (?, ?)", (message.sequence, reason))
        skipped()
        return None


def _row(memory: Memory) -> tuple[Any, ...]:
    state = _encoder.encode(msgspec.structs.replace(memory, content=""))
    return (memory.key, memory.id, memory.world_id, memory.room_id, memory.content, state)


def _text(memory: Memory) -> tuple[int, str, str, str]:
    also = " ".join([*memory.tags, *memory.entities])
    return memory.key, words.index_words(memory.title or ""), words.index_words(memory.content), words.index_words(also)


# ---- reading ---------------------------------------------------------------------------------------------------------


async def count(reader: Reader, visible: Visibility) -> int:
    """The number of memories that are visible by their worlds and rooms."""
    rows = await reader.execute_fetchall(f"SELECT count(*) FROM memories m WHERE {visible.sql or '1'}", visible.values)
    return int(next(iter(rows))[0])


async def status(reader: Reader, most: int) -> tuple[int, int, list[SkippedEvent]]:
    """(number of memories, number of skipped events, the latest of these)."""
    [(memories, skipped)] = await reader.execute_fetchall(
        "SELECT (SELECT count(*) FROM memories), (SELECT count(*) FROM skipped)"
    )
    rows = await reader.execute_fetchall("SELECT sequence, reason FROM skipped ORDER BY sequence DESC LIMIT ?", (most,))
    return memories, skipped, [SkippedEvent(sequence=sequence, reason=reason) for sequence, reason in rows]


async def find(reader: Reader, id: str, world: str) -> Memory | None:
    return (await find_all(reader, {(id, world)})).get((id, world))


async def find_all(reader: Reader, keys: Collection[Key]) -> dict[Key, Memory]:
    return _by_key(await reader.execute_fetchall(*_states(keys)))


async def find_anywhere(reader: Reader, id: str, visible: Visibility) -> Memory | None:
    """The memory with an id, of the visible ones; of several worlds' the default world's, else the oldest."""
    limit = f" AND {visible.sql}" if visible.sql else ""
    query = f"SELECT state, content FROM memories m WHERE id = ?{limit} ORDER BY world != ?, key LIMIT 1"
    values = (id, *visible.values, DEFAULT_WORLD)
    return next((_memory(*row) for row in await reader.execute_fetchall(query, values)), None)


async def read_memories(reader: Reader, keys: Sequence[int]) -> list[Memory]:
    """In the order of the keys; those that have gone meanwhile are left out."""
    query = f"SELECT state, content FROM memories WHERE key IN ({_marks(keys)})"
    found = {memory.key: memory for memory in [_memory(*row) for row in await reader.execute_fetchall(query, keys)]}
    return [found[key] for key in keys if key in found]


async def notes_at(reader: Reader, notes: Collection[NoteKey]) -> dict[NoteKey, list[Memory]]:
    """The memories of some notes, at most 5,000; of several at one location, first the one that changed last."""
    wanted = {(world, root, location.path) for world, location in notes for root in (location.root, "")}
    where = f"(n.world, n.root, n.path) IN (VALUES {', '.join(['(?, ?, ?)'] * len(wanted)) or '(NULL, NULL, NULL)'})"
    rows = await reader.execute_fetchall(f"{_NOTES} WHERE {where}", [part for row in wanted for part in row])
    alike: dict[tuple[str, str | None], list[Memory]] = {}
    for memory in sorted((_memory(*row) for row in rows), key=lambda memory: -memory.sequence):
        alike.setdefault((memory.world_id, memory.path), []).append(memory)
    return {
        (world, location): [memory for memory in alike.get((world, location.path), []) if _is_of(memory, location.root)]
        for world, location in notes
    }


async def notes_below(reader: Reader, world: str, root: str, folder: str) -> list[Memory]:
    """The memories of the notes in a folder and in its subfolders, by path."""
    where = "n.world = ? AND n.root IN (?, '') AND n.path > ? AND n.path < ?"
    rows = await reader.execute_fetchall(f"{_NOTES} WHERE {where}", (world, root, f"{folder}/", f"{folder}0"))
    found = [memory for memory in [_memory(*row) for row in rows] if _is_of(memory, root)]
    return sorted(found, key=lambda memory: (memory.path or "", -memory.sequence))


def _is_of(memory: Memory, root: str) -> bool:
    """True where a note's memory is of a watched folder; earlier versions have the folder only in the memory's id."""
    return memory.root == root or memory.id == note_id(memory.world_id, memory.path or "", root)


async def resolve_links(reader: Reader, world: str, targets: Iterable[str]) -> dict[str, str]:
    """The memories that links' targets lead to by path, file, title or alias, in this order; of several those that are
    spelled like the target, then the oldest."""
    wanted = {target: words.name_key(target) for target in targets if not is_id("mem", target)}
    found: dict[str, list[tuple[str, int, str]]] = {}
    keys = list(set(wanted.values()))
    for start in range(0, len(keys), _AT_ONCE):
        part = keys[start : start + _AT_ONCE]
        query = (
            "SELECT n.name, n.spelled, n.kind, m.id FROM names n JOIN memories m ON m.key = n.memory"
            f" WHERE n.world = ? AND n.name IN ({_marks(part)}) ORDER BY n.kind, m.key"
        )
        for name, *named in await reader.execute_fetchall(query, (world, *part)):
            found.setdefault(name, []).append(tuple(named))
    return {target: _best(clean_name(target), found[key]) for target, key in wanted.items() if key in found}


def _best(target: str, named: list[tuple[str, int, str]]) -> str:
    _, strongest, first = named[0]
    return next((id for spelled, kind, id in named if kind == strongest and spelled == target), first)


async def views(reader: Reader, found: Sequence[Memory]) -> list[MemoryView]:
    """Memories of one world as users see them, with links that lead to memories by id."""
    targets = {link.target for memory in found for link in memory.links}
    ids = await resolve_links(reader, found[0].world_id, targets) if targets else {}
    return [_view(memory, ids) for memory in found]


def _view(memory: Memory, ids: dict[str, str]) -> MemoryView:
    links: dict[tuple[str, str], Link] = {}
    for link in memory.links:
        target = ids.get(link.target, link.target)
        links.setdefault((target, link.type), msgspec.structs.replace(link, target=target))
    fields = {name: getattr(memory, name) for name in MemoryView.__struct_fields__}
    return MemoryView(**fields | {"links": list(links.values())})


def _states(keys: Collection[Key]) -> tuple[str, list[str]]:
    """The query for the memories with some keys, and its values."""
    marks = ", ".join(["(?, ?)"] * len(keys)) or "(NULL, NULL)"
    query = f"SELECT state, content FROM memories WHERE (id, world) IN (VALUES {marks})"
    return query, [part for key in keys for part in key]


def _by_key(rows: Iterable[Any]) -> dict[Key, Memory]:
    return {(memory.id, memory.world_id): memory for memory in [_memory(*row) for row in rows]}


def _memory(state: bytes, content: str) -> Memory:
    return msgspec.structs.replace(_decoder.decode(state), content=content)


def _marks(items: Sequence[Any]) -> str:
    return ", ".join("?" * len(items))


# ---- names -----------------------------------------------------------------------------------------------------------


def _names_of(memory: Memory) -> list[tuple[str, int]]:
    """The names of a memory in links, and the kind of each."""
    names = []
    if memory.path:
        names += [(name, kind) for kind, parts in _tails(memory.path) for name in _path_names(parts)]
    for path in memory.former_paths:
        names += [(name, _FORMER) for _, parts in _tails(path) for name in _path_names(parts)]
    if memory.title:
        names.append((memory.title, _TITLE))
    aliases = memory.metadata.get("aliases")
    names += [(alias, _ALIAS) for alias in aliases if isinstance(alias, str)] if isinstance(aliases, list) else []
    return [(clean_name(name), kind) for name, kind in names]


def _path_names(parts: tuple[str, ...]) -> Iterator[str]:
    path = PurePosixPath(*parts)
    yield str(path)
    yield str(path.with_suffix("") if path.name else path)


def _tails(path: str) -> list[tuple[int, tuple[str, ...]]]:
    """The whole path, then its ends: `c/b/a.md` is also `b/a.md` and `a.md`."""
    parts = PurePosixPath(path).parts
    shorter = [(_FILE, parts[-length:]) for length in range(min(len(parts) - 1, _MAX_FOLDERS), 0, -1)]
    return [(_PATH, parts), *shorter]
