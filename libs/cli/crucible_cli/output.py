"""The output of a supervised process: kept in its log file, which is rotated by size, with its warnings passed on."""

import contextlib
import os
import re
from collections.abc import Callable
from io import FileIO
from pathlib import Path

_MAX_BYTES = 8 * 1024 * 1024
_KEPT = 3
_CHUNK = 64 * 1024
_MAX_LINE = 400
_BURST = 20
# A line of our services (`time level service message`), the end of a Python traceback, or one of nats-server's.
_GRAVE = re.compile(
    r"\S+ (?:warning|error|critical) "
    r"|[A-Za-z_][\w.]*(?:Error|Exception)\b|\S+: No module "
    r"|.*\[(?:WRN|ERR|FTL)\]|nats-server: "
)


class Output:
    """One process's pipe and log. `write_end` is what the process prints to; it outlives the process's restarts.

    `warn` gets each line that is a warning or worse, at most 20 of them until `calm` is called; `heard` gets all.
    """

    def __init__(
        self,
        file: Path,
        warn: Callable[[str], None],
        max_bytes: int = _MAX_BYTES,
        heard: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.file = file
        self.last_grave = ""
        """The last line that was a warning or worse."""
        self._warn = warn
        self._heard = heard
        self._max_bytes = max_bytes
        self._rest = b""
        self._warned = 0
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._log = self._open()

    def fileno(self) -> int:
        """The end to watch: `drain` when it is readable."""
        return self._read_end

    def drain(self) -> None:
        """Take in what was printed; never blocks. A full disk costs the log its lines, and nothing else."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._read_end, _CHUNK):
                self._pass_on(chunk)
                with contextlib.suppress(OSError):
                    self._keep(chunk)
                if len(chunk) < _CHUNK:
                    break

    def calm(self) -> None:
        """Allow warnings again after a burst."""
        self._warned = 0

    def close(self) -> None:
        self.drain()
        os.close(self.write_end)
        os.close(self._read_end)
        with contextlib.suppress(OSError):
            self._log.close()

    def _open(self) -> FileIO:
        with contextlib.suppress(OSError):
            if self.file.stat().st_size > self._max_bytes:
                rotate(self.file)
        return FileIO(self.file, "ab", opener=_private)

    def _keep(self, chunk: bytes) -> None:
        self._log.write(chunk)
        if self._log.tell() > self._max_bytes:
            self._log.close()
            self._log = self._open()

    def _pass_on(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        self._rest = self._rest[-_CHUNK:]
        for line in lines:
            text = line.decode("utf-8", "replace").rstrip()
            self._heard(text)
            if not _GRAVE.match(text):
                continue
            self.last_grave = text[:_MAX_LINE]
            if self._warned <= _BURST:
                self._warned += 1
                more = f"(more of this in {self.file})"
                self._warn(more if self._warned > _BURST else text[:_MAX_LINE])


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def rotate(file: Path, kept: int = _KEPT) -> None:
    """`x.log` becomes `x.log.1`, `x.log.1` becomes `x.log.2`, …; what is beyond `kept` goes."""
    for number in range(kept - 1, 0, -1):
        older = file.with_name(f"{file.name}.{number}")
        if older.exists():
            older.replace(file.with_name(f"{file.name}.{number + 1}"))
    if file.exists():
        file.replace(file.with_name(f"{file.name}.1"))
