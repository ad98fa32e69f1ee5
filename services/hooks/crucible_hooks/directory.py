"""The watched directory: hook files, and the records in the bucket that follow from them."""

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from watchfiles import awatch

from crucible_core.catalogue import CATALOGUE, Catalogue
from crucible_core.errors import CrucibleError, InvalidError
from crucible_core.protocol.hooks import HookRecord
from crucible_kit.clock import timestamp

from .definition import front_matter, typed
from .hook import compile_hook
from .registry import API, Registry

log = logging.getLogger(__name__)

MAX_FILE = 512 * 1024
MAX_FILES = 5000
_STEP_MS = 50
_GATHER_MS = 150
_RESCAN_MS = 1000
"""How often the files are looked at anyway: network mounts tell nothing of their changes."""
_PAUSE_S = 1.0

Stamp = tuple[str, int, int, int]
"""A file as it was: path, time of change, size, inode."""


class Found(msgspec.Struct, frozen=True):
    """One hook file: its definition, or why there is none. `name` is what it calls itself, as far as that is known."""

    origin: str
    name: str | None
    definition: dict[str, object] | None = None
    error: str | None = None


class Directory:
    def __init__(self, root: Path, registry: Registry) -> None:
        self._root = root
        self._registry = registry
        self._read: dict[str, tuple[tuple[Stamp, ...], Found]] = {}
        self._settled: list[Found] | None = None
        self._catalogue = registry.types.catalogue
        self.synced = False

    def registry_changed(self, name: str, before: HookRecord | None, after: HookRecord | None, revision: int) -> None:
        """A name may be free now, or taken."""
        self._settled = None

    async def follow(self) -> None:
        """Keeps the records in step with the files until cancelled."""
        while True:
            try:
                if not self._has_records():
                    await asyncio.to_thread(self._root.mkdir, parents=True, exist_ok=True)
                await self.sync()
                async for _ in awatch(
                    self._root,
                    watch_filter=None,
                    step=_STEP_MS,
                    debounce=_GATHER_MS,
                    rust_timeout=_RESCAN_MS,
                    yield_on_timeout=True,
                ):
                    await self.sync()
            except (OSError, RuntimeError) as error:
                # A directory that is away, such as one that is not mounted, says nothing of its hooks: all are kept.
                self.synced = False
                log.warning("%s cannot be read; its hooks stay as they are: %s", self._root, error)
            except CrucibleError as error:
                log.info("hook files are read again: %s", error)
            await asyncio.sleep(_PAUSE_S)

    async def sync(self) -> None:
        """Reads what has changed and writes what differs. Raises UnavailableError, or ConflictError where a record was
        changed meanwhile."""
        found = await asyncio.to_thread(self._scan, self._registry.types.catalogue)
        if found == self._settled:
            return
        await self._registry.view.refresh()
        writes, deletes = plan(found, self._registry.records, str(self._root), timestamp())
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

    def _paths(self) -> list[Path]:
        """The hook files. Raises OSError where any directory cannot be read."""

        def fail(error: OSError) -> None:
            raise error

        found = [
            Path(folder) / name
            for folder, _, names in os.walk(self._root, onerror=fail)
            for name in names
            if name.endswith(".md")
        ]
        return sorted(path for path in found if _is_shown(path.relative_to(self._root)))

    def _scan(self, catalogue: Catalogue) -> list[Found]:
        root = self._root.resolve()
        paths = self._paths()
        if len(paths) > MAX_FILES:
            log.error("%s has more than %d hook files: the rest is passed over", self._root, MAX_FILES)
        known, self._read = self._read, {}
        before, self._catalogue = self._catalogue, catalogue
        if before is not catalogue:  # a file may have been refused for a type that is there now
            known = {origin: (stamp, one) for origin, (stamp, one) in known.items() if one and not one.error}
        found = []
        for path in paths[:MAX_FILES]:
            origin = str(path)
            stamp, one = known.get(origin, ((), None))
            if one is None or tuple(_stamp(Path(name)) for name, *_ in stamp) != stamp:
                stamp, one = read_file(path, root, catalogue)
            if one is not None:
                self._read[origin] = (stamp, one)
                found.append(one)
        return found


def read_file(path: Path, root: Path, catalogue: Catalogue = CATALOGUE) -> tuple[tuple[Stamp, ...], Found | None]:
    """What a file holds, and the stamp of every file that it was made of; None for a text that is no hook."""
    # Stamped before they are read: a change in between is found the next time.
    used = [_stamp(path)]
    given: dict[str, object] | None = None

    def read_script(name: str) -> str:
        script = (path.parent / name).resolve()
        if not script.is_relative_to(root):
            raise InvalidError(f"{name} is outside of the hooks directory")
        used.append(_stamp(script))
        return _text(script)

    error = None
    definition = None
    try:
        given = front_matter(_text(path))
        if given is None:
            if path.name.lower() == "readme.md":
                return tuple(used), None
            raise InvalidError("there is no front matter: a hook file begins with YAML between two lines of ---")
        checked = typed({"name": path.stem, **given}, read_script)
        compile_hook(checked, catalogue=catalogue)
        definition = msgspec.to_builtins(checked)
    except CrucibleError as refused:
        error = refused.detail
    except Exception:
        log.exception("%s cannot be read", path)
        error = "the file cannot be read; the log of the hooks service says why"
    name = (given or {}).get("name", path.stem) if definition is None else definition["name"]
    return tuple(used), Found(str(path), name if isinstance(name, str) else None, definition, error)


def plan(
    found: Sequence[Found], records: Mapping[str, HookRecord], root: str, now: str
) -> tuple[list[HookRecord], list[str]]:
    """The records to write and the names to delete, so that the bucket follows the files under `root`.

    A broken file keeps the last definition that was good. Of two that claim one name the one that has it keeps it; the
    other is inert under its path. Whether a hook is enabled is the file's to say when it is new or says so anew, and
    otherwise stays what the API has made of it.
    """
    mine = {record.origin: record for record in records.values() if _inside(record.origin, root)}
    kept: dict[str, HookRecord] = {}
    for one in sorted(found, key=lambda one: (not _holds(one, records), one.origin)):
        before = mine.get(one.origin)
        name = _name(one, before)
        holder = kept.get(name) or records.get(name)
        taken = holder is not None and holder.origin != one.origin and (name in kept or holder not in mine.values())
        if taken and holder is not None:
            where = "over the API" if holder.origin == API else f"by {holder.origin}"
            one = Found(one.origin, None, error=f"the name {name} is taken {where}")
            name, before = os.path.relpath(one.origin, root), None
        elif before is None and name in records:
            before = records[name]  # the file has been moved
        record = _record(one, name, before, now)
        kept[record.name] = record
    writes = [record for record in kept.values() if _differs(record, records.get(record.name))]
    deletes = [record.name for record in mine.values() if record.name not in kept]
    return writes, deletes


def _record(one: Found, name: str, before: HookRecord | None, now: str) -> HookRecord:
    earlier = before.definition if before else None
    definition = one.definition or (earlier if before and before.name == name else None)
    enabled = bool((definition or {}).get("enabled", True))
    if before is not None and (earlier or {}).get("enabled", True) == enabled:
        enabled = before.enabled
    return HookRecord(
        name=name, definition=definition, enabled=enabled, origin=one.origin, error=one.error, updated_at=now
    )


def _name(one: Found, before: HookRecord | None) -> str:
    """A file that cannot be read keeps the name that it had."""
    if one.definition is not None:
        return str(one.definition["name"])
    return before.name if before else (one.name or Path(one.origin).stem)[:200]


def _holds(one: Found, records: Mapping[str, HookRecord]) -> bool:
    record = records.get(one.name or "")
    return record is not None and record.origin == one.origin


def _differs(record: HookRecord, other: HookRecord | None) -> bool:
    return other is None or msgspec.structs.replace(record, updated_at=other.updated_at) != other


def _inside(origin: str, root: str) -> bool:
    return origin != API and Path(origin).is_relative_to(root)


def _is_shown(relative: Path) -> bool:
    """Whether a file counts: no part of its path is hidden, and all of it is text."""
    return str(relative).isprintable() and not any(part.startswith(".") for part in relative.parts)


def _text(path: Path) -> str:
    """Raises InvalidError, for a file that is not there too."""
    try:
        if path.stat().st_size > MAX_FILE:
            raise InvalidError(f"{path.name} is larger than {MAX_FILE // 1024} KiB")
        return path.read_text("utf-8")
    except OSError as error:
        raise InvalidError(f"{path.name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidError(f"{path.name} is not UTF-8") from None


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return str(path), 0, 0, 0
    return str(path), status.st_mtime_ns, status.st_size, status.st_ino
