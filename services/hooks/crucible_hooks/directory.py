"""The watched directory of hook files: walking, reading and watching it, and the plan of the records that follow."""

import asyncio
import contextlib
import logging
import os
import stat
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from watchfiles import awatch

from crucible_core.errors import CrucibleError, InvalidError, MalformedError
from crucible_core.hookfile import NO_HOOK, is_hook_file, read_hook, with_default_name
from crucible_core.limits import HOOK_FILE_BYTES, HOOK_FILES, HOOK_FOLDERS
from crucible_core.protocol.hooks import HookRecord
from crucible_core.text import decode_text
from crucible_core.types.catalogue import CATALOGUE, Catalogue
from crucible_hooks.hook import Hook, compile_hook, read_definition
from crucible_hooks.registry import API, Registry
from crucible_hooks.review import Reviewer
from crucible_kit.clock import timestamp

log = logging.getLogger(__name__)


_STEP_MS = 150
_GATHER_MS = 150
_RESCAN_MS = 1000
"""The interval at which the files are read anyway: network mounts report no changes."""
_AGAIN_S = 0.3
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""The flags with which opening a pipe that nobody writes to does not wait for ever."""

Stamp = tuple[str, int, int, int]
"""The state of a file: path, time of its last change (also of its permissions), size, inode."""
_PAUSE_S = 1.0
_MAX_WARNED = 1000


class OtherKindError(Exception):
    """The path is that of a pipe, a socket or a device."""


class Tree(NamedTuple):
    """`paths` are sorted; `unread` are the directories that cannot be listed, `folders` all of them."""

    paths: list[str]
    unread: list[str]
    folders: list[str]


def walk(root: str) -> Tree:
    """Everything below `root` but directories and what is hidden; links to directories are not followed. Raises OSError
    where `root` itself cannot be listed."""
    unread: list[str] = []

    def fail(error: OSError) -> None:
        if error.filename == root:
            raise error
        if not isinstance(error, FileNotFoundError | NotADirectoryError):  # those are gone since their parent was read
            unread.append(error.filename)

    files, listed = [], []
    for folder, folders, names in os.walk(root, onerror=fail):
        listed.append(folder)
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [os.path.join(folder, name) for name in names if not name.startswith(".")]
    return Tree(sorted(files), unread, sorted(listed))


def stamp(path: str) -> Stamp:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return path, 0, 0, 0
    return path, max(status.st_mtime_ns, status.st_ctime_ns), status.st_size, status.st_ino


def read_text(path: str, limit: int) -> str:
    """The text of a regular file of at most `limit` bytes. Raises InvalidError, and OtherKindError for what is no
    regular file; neither waits for a writer nor touches a device."""
    name = os.path.basename(path)
    try:
        data = _read(path, limit + 1)
    except (OSError, ValueError) as error:
        raise InvalidError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if data is None or len(data) > limit:
        raise InvalidError(f"{name} is larger than {limit // 1024} KiB")
    try:
        return decode_text(data)
    except MalformedError as error:
        raise InvalidError(f"{name}: {error.detail}") from None


def _read(path: str, most: int) -> bytes | None:
    """Up to `most` bytes of a regular file; None, unread, where it says that it has more."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # a device may act when it is opened
        raise OtherKindError(path)
    descriptor = os.open(path, _OPEN)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OtherKindError(path)
        return None if status.st_size > most else file.read(most)


async def watch_changes(root: str) -> AsyncGenerator[None, None]:
    """Yields when something may have changed below `root`, and every second anyway. Ends with the system's watch, with
    other directories, or with another one at that path: then all is to be read and watched again."""
    watched = stamp(root)[3]
    folders = await _folders(root)
    watch = awatch(
        *folders,
        watch_filter=None,
        recursive=False,  # it would follow links, and stand still until it has seen all of what they lead to
        step=_STEP_MS,
        debounce=_GATHER_MS,
        rust_timeout=_RESCAN_MS,
        yield_on_timeout=True,
        ignore_permission_denied=True,
    )
    try:
        async with contextlib.aclosing(watch):
            async for changes in watch:
                if stamp(root)[3] != watched or (changes and await _folders(root) != folders):
                    return
                yield
    except Exception as error:
        # A name that is not UTF-8 ends the watch, and so does a system that grants no more watches.
        log.info("%s is read at intervals, not watched: %s", root, _first(error))
        await asyncio.sleep(_AGAIN_S)


async def _folders(root: str) -> list[str]:
    """The watched directories: a bounded number, as the system grants no more."""
    return (await asyncio.to_thread(walk, root)).folders[:HOOK_FOLDERS]


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


class HookFile(msgspec.Struct, frozen=True):
    """A hook file: its definition, or the error. `name` is the one that it gives itself, where that can be read."""

    origin: str
    name: str | None
    definition: dict[str, object] | None = None
    error: str | None = None


class Directory:
    def __init__(self, root: Path, registry: Registry, reviewer: Reviewer) -> None:
        self._root = root
        self._reviewer = reviewer
        self._registry = registry
        self._read: dict[str, tuple[tuple[Stamp, ...], HookFile | None]] = {}
        self._unread: list[str] = []
        self._warned: set[tuple[str, str]] = set()
        self._settled: list[HookFile] | None = None
        self._catalogue = registry.types.catalogue
        self.synced = False

    def note_change(self, name: str, before: HookRecord | None, after: HookRecord | None, revision: int) -> None:
        """A name may be free now, or taken."""
        self._settled = None

    async def follow(self) -> None:
        """Keeps the records in step with the files until cancelled, whatever lies in the directory."""
        root = str(self._root)
        while True:
            try:
                if not self._has_records():
                    await asyncio.to_thread(self._root.mkdir, parents=True, exist_ok=True)
                await self.sync()
                async with contextlib.aclosing(watch_changes(root)) as changes:
                    async for _ in changes:
                        await self.sync()
                continue
            except (OSError, ValueError) as error:
                # A directory that is away, such as one that is not mounted, says nothing of its hooks: all are kept.
                self.synced = False
                self._warn_once(root, f"it cannot be read, and its hooks stay as they are: {error}")
            except CrucibleError as error:
                log.info("hook files are read again: %s", error)
            except Exception:
                log.exception("hook files are read again")
            await asyncio.sleep(_PAUSE_S)

    async def sync(self) -> None:
        """Reads what has changed and writes what differs. Raises UnavailableError, or ConflictError where a record was
        changed meanwhile."""
        catalogue, loop = self._registry.types.catalogue, asyncio.get_running_loop()

        def check(hook: Hook) -> None:
            record = self._registry.records.get(hook.name)
            if record is None or record.definition != msgspec.to_builtins(hook.definition):
                asyncio.run_coroutine_threadsafe(self._reviewer.review(hook, catalogue), loop).result()

        found = await asyncio.to_thread(self._scan, catalogue, check)
        if found == self._settled:
            return
        await self._registry.view.refresh()
        writes, deletes = plan(found, self._registry.records, str(self._root), timestamp(), self._unread)
        for record in writes:
            log.info("hook %s from %s%s", record.name, record.origin, f": {record.error}" if record.error else "")
            await self._registry.save(record)
        for name in deletes:
            log.info("hook %s is gone with its file", name)
            await self._registry.delete(name)
        self.synced = True
        self._settled = found if not writes and not deletes else None

    def _has_records(self) -> bool:
        origin = f"{self._root}/"
        return any(record.origin.startswith(origin) for record in self._registry.records.values())

    def _warn_once(self, path: str, reason: str) -> None:
        """Logs once the reason for which a path is passed over."""
        if (path, reason) not in self._warned:
            if len(self._warned) >= _MAX_WARNED:
                self._warned.clear()
            self._warned.add((path, reason))
            log.warning("%s: %s", os.fsencode(path).decode(errors="backslashreplace"), reason)

    def _paths(self) -> list[str]:
        """The files that may be hooks. Raises OSError where the directory cannot be read."""
        tree = walk(str(self._root))
        self._unread = tree.unread
        for folder in tree.unread:
            self._warn_once(folder, "it cannot be read, and its hooks stay as they are")
        found = [path for path in tree.paths if is_hook_file(path)]
        for path in found:
            if not _is_unicode(path):
                self._warn_once(path, "its name is not UTF-8, and it is passed over: rename it")
        found = [path for path in found if _is_unicode(path)]
        if len(found) > HOOK_FILES:
            self._warn_once(str(self._root), f"it has more than {HOOK_FILES} hook files, and the rest is passed over")
        return found[:HOOK_FILES]

    def _scan(self, catalogue: Catalogue, check: Callable[[Hook], None]) -> list[HookFile]:
        root = os.path.realpath(self._root)
        paths = self._paths()
        before_scan, self._read = self._read, {}
        before, self._catalogue = self._catalogue, catalogue
        if before is not catalogue:  # a file may have been refused for a type that is there now
            before_scan = {
                origin: (stamps, one) for origin, (stamps, one) in before_scan.items() if one and not one.error
            }
        for path in paths:
            stamps, one = before_scan.get(path, ((), None))
            if not stamps or tuple(stamp(name) for name, *_ in stamps) != stamps:
                stamps, one = read_file(path, root, catalogue, check)
                if one is None:
                    self._warn_once(path, "it is no hook file, and it is passed over")
            self._read[path] = (stamps, one)
        return [one for _, one in self._read.values() if one is not None]


def read_file(
    path: str, root: str, catalogue: Catalogue = CATALOGUE, check: Callable[[Hook], None] = lambda hook: None
) -> tuple[tuple[Stamp, ...], HookFile | None]:
    """The hook of a file, None where it is none, and the stamps of all files that it is made of. `check` raises
    InvalidError for a hook that cannot work."""
    # Stamped before they are read: a change in between is found the next time.
    used = [stamp(path)]
    source: dict[str, object] | None = None

    def read_script(name: str) -> str:
        script = os.path.realpath(os.path.join(os.path.dirname(path), name))
        if not script.startswith(os.path.join(root, "")):
            raise InvalidError(f"{name} is outside of the hooks directory")
        used.append(stamp(script))
        try:
            return read_text(script, HOOK_FILE_BYTES)
        except OtherKindError:
            raise InvalidError(f"{name} is no regular file") from None

    error = None
    definition = None
    try:
        source = read_hook(read_text(path, HOOK_FILE_BYTES))
        if source is None:
            if not path.lower().endswith((".md", ".markdown")) or os.path.basename(path).lower() == "readme.md":
                return tuple(used), None
            raise InvalidError(NO_HOOK)
        source = with_default_name(source, path)
        checked = read_definition(source, read_script)
        check(compile_hook(checked, os.path.dirname(path), catalogue=catalogue))
        definition = msgspec.to_builtins(checked)
    except OtherKindError:
        return tuple(used), None
    except CrucibleError as refused:
        error = refused.detail
    except Exception:
        log.exception("%s cannot be read", path)
        error = "the file cannot be read; the log of the hooks service says why"
    name = (source or with_default_name({}, path))["name"] if definition is None else definition["name"]
    return tuple(used), HookFile(path, name if isinstance(name, str) else None, definition, error)


def plan(
    found: Sequence[HookFile], records: Mapping[str, HookRecord], root: str, now: str, unread: Sequence[str] = ()
) -> tuple[list[HookRecord], list[str]]:
    """The records to write and the names to delete, so that the bucket follows the files under `root`. The records of
    files below the directories in `unread` stay as they are.

    A broken file keeps the last definition that was good. Of two that claim one name the one that has it keeps it; the
    other is inert under its path. A file that is new, or whose `enabled` has changed, enables or disables its
    hook; otherwise the API's last word stays.
    """
    mine = {record.origin: record for record in records.values() if _inside(record.origin, root)}
    mine = {origin: record for origin, record in mine.items() if not any(_inside(origin, away) for away in unread)}
    planned: dict[str, HookRecord] = {}
    for one in sorted(found, key=lambda one: (not _holds(one, records), one.origin)):
        before = mine.get(one.origin)
        name = _name(one, before)
        holder = planned.get(name) or records.get(name)
        taken = holder is not None and holder.origin != one.origin and (name in planned or holder not in mine.values())
        if taken and holder is not None:
            where = "over the API" if holder.origin == API else f"by {holder.origin}"
            one = HookFile(one.origin, None, error=f"the name {name} is taken {where}")
            name, before = os.path.relpath(one.origin, root), None
        elif before is None and name in records:
            before = records[name]  # the file has been moved
        record = _record(one, name, before, now, records[name].id if name in records else "")
        planned[record.name] = record
    writes = [record for record in planned.values() if _differs(record, records.get(record.name))]
    deletes = [record.name for record in mine.values() if record.name not in planned]
    return writes, deletes


def _record(one: HookFile, name: str, before: HookRecord | None, now: str, id: str) -> HookRecord:
    earlier = before.definition if before else None
    definition = one.definition or (earlier if before and before.name == name else None)
    enabled, world = bool((definition or {}).get("enabled", True)), (definition or {}).get("world_id")
    if before is not None and (earlier or {}).get("enabled", True) == enabled:
        enabled = before.enabled
    return HookRecord(
        name=name,
        definition=definition,
        enabled=enabled,
        origin=one.origin,
        error=one.error,
        updated_at=now,
        id=id,
        world_id=world if isinstance(world, str) else None,
    )


def _name(one: HookFile, before: HookRecord | None) -> str:
    """A file that cannot be read keeps the name that it had."""
    if one.definition is not None:
        return str(one.definition["name"])
    return before.name if before else (one.name or Path(one.origin).stem)[:200]


def _holds(one: HookFile, records: Mapping[str, HookRecord]) -> bool:
    record = records.get(one.name or "")
    return record is not None and record.origin == one.origin


def _differs(record: HookRecord, other: HookRecord | None) -> bool:
    if other is None:
        return True
    own = {"updated_at": other.updated_at, "switched": other.switched, "former": other.former}
    return msgspec.structs.replace(record, **own) != other


def _inside(origin: str, root: str) -> bool:
    return origin != API and Path(origin).is_relative_to(root)


def _is_unicode(path: str) -> bool:
    """False for a path that is not UTF-8: it has half a surrogate pair for each odd byte."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
