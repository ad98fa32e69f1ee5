"""Files that people name: opened without waiting for anybody, and read up to a limit."""

import errno
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from crucible_cli.display import clean
from crucible_core.errors import InvalidError, MalformedError
from crucible_core.text import decode_text

_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""Opening a pipe that nobody writes to would wait for ever."""
_STREAM = re.compile(r"/dev/(stdin|fd/\d+)|/proc/(self|\d+)/fd/\d+")
"""A shell's name for the output of a command, as in `<(make-hook)`: it is open already."""


def open_file(path: str | Path) -> BinaryIO:
    """A regular file, or a stream that this process was started with, to read bytes from. Raises OSError, also for a
    pipe, a socket or a device: one never ends, another never begins."""
    status = os.stat(path)
    if _STREAM.fullmatch(os.fspath(path)) and not stat.S_ISDIR(status.st_mode):
        return Path(path).open("rb")
    _check(status, path)  # a device may act when it is opened
    descriptor = os.open(path, _OPEN)
    try:
        _check(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_bytes(path: str | Path, limit: int) -> bytes:
    """All of a file. Raises OSError, and InvalidError for more than `limit` bytes."""
    with open_file(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise InvalidError(f"{clean(os.fspath(path), 400)} is larger than {limit // 1024} KiB")
    return data


def read_text(path: str | Path, limit: int) -> str:
    """The text of a file, by its byte order mark. Raises InvalidError with the reason, whatever it is."""
    name = clean(os.fspath(path), 400)
    try:
        return decode_text(read_bytes(path, limit))
    except (OSError, ValueError) as error:
        raise InvalidError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error
    except MalformedError as error:
        raise InvalidError(f"cannot read {name}: {error.detail}") from error


def _check(status: os.stat_result, path: str | Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory", os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, and no file", os.fspath(path))
