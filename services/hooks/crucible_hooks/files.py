"""The files of a watched directory: found and read so that no name, kind or content of one holds anybody up."""

import asyncio
import contextlib
import logging
import os
import stat
from collections.abc import AsyncGenerator
from typing import NamedTuple

from watchfiles import awatch

from crucible_core.errors import InvalidError, MalformedError
from crucible_core.text import decode_text

log = logging.getLogger(__name__)

_STEP_MS = 150
_GATHER_MS = 150
_RESCAN_MS = 1000
"""How often the files are looked at anyway: network mounts tell nothing of their changes."""
_AGAIN_S = 0.3
_MOST_FOLDERS = 1000
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""Opening a pipe that nobody writes to would wait for ever."""

Stamp = tuple[str, int, int, int]
"""A file as it was: path, time of its last change (its permissions' too), size, inode."""


class OtherKindError(Exception):
    """What has the name of a file is a pipe, a socket or a device."""


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

    found, seen = [], []
    for folder, folders, names in os.walk(root, onerror=fail):
        seen.append(folder)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(folder, name) for name in names if not name.startswith(".")]
    return Tree(sorted(found), unread, sorted(seen))


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


async def hints(root: str) -> AsyncGenerator[None, None]:
    """Yields when something may have changed below `root`, and every second anyway. Ends where the system's watch does,
    there are other directories, or another one is at that path: all is to be read then, and watched again."""
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
        log.info("%s is looked at, not watched: %s", root, _first(error))
        await asyncio.sleep(_AGAIN_S)


async def _folders(root: str) -> list[str]:
    """What is watched: a bounded number, as the system grants no more."""
    return (await asyncio.to_thread(walk, root)).folders[:_MOST_FOLDERS]


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
