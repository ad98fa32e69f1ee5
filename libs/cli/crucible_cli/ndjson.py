"""Files of events, one a line: read a line at a time however long, and written so that half of one is never left."""

import codecs
import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import typer

from crucible_cli.display import clean
from crucible_cli.files import open_file
from crucible_core.limits import EVENT_BYTES

_LONGEST = EVENT_BYTES + 1024
"""A line that the gateway refuses anyway is cut off here, and never held whole."""


class Line(NamedTuple):
    """`number` counts from 1; `size` is what it takes in the file."""

    number: int
    raw: bytes
    size: int


def lines(file: BinaryIO) -> Iterator[Line]:
    """The lines that are not blank."""
    number = 0
    while part := file.readline(_LONGEST):
        number += 1
        size = len(part)
        begun = part.removeprefix(codecs.BOM_UTF8) if number == 1 else part
        while not part.endswith(b"\n") and (part := file.readline(_LONGEST)):
            size += len(part)
        if begun.strip():
            yield Line(number, begun.strip(), size)


@contextlib.contextmanager
def open_input(name: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """A file, or stdin for `-`, and its size where that is known. A usage error where it cannot be read."""
    if name == "-":
        if sys.stdin is None:
            raise typer.BadParameter("cannot read stdin: it is closed")
        yield sys.stdin.buffer, None
        return
    try:
        file = open_file(Path(name).expanduser())
    except (OSError, ValueError, RuntimeError) as error:  # ~nobody has no home
        reason = getattr(error, "strerror", None) or clean(str(error), 400)
        raise typer.BadParameter(f"cannot read {clean(name, 400)}: {reason}") from error
    with file:
        status = os.fstat(file.fileno())
        yield file, status.st_size if stat.S_ISREG(status.st_mode) else None


@contextlib.contextmanager
def open_output(name: str) -> Iterator[BinaryIO]:
    """A file that appears under its name once it is complete, or stdout for `-`. A pipe or a device is written to, and
    a link stays one."""
    if name == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    given = Path(name).expanduser()
    if given.exists() and not given.is_file() and not given.is_dir():
        with _write_through(name, given) as file:
            yield file
        return
    path = given.resolve()
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise typer.BadParameter(f"cannot write {name}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _write_through(name: str, path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("wb") as file:
            yield file
    except OSError as error:
        raise typer.BadParameter(f"cannot write {name}: {error.strerror}") from error
