"""Free storage: on the disk of NATS where this machine has it, and by JetStream's own refusals."""

import asyncio
import contextlib
import os
from typing import Protocol

from crucible_core.errors import CrucibleError, StorageFullError
from crucible_core.limits import storage_reserve
from crucible_core.protocol.parts import Trouble

PROBE_S = 2.0
"""Interval of the probes after a refusal by JetStream."""
_RETRY_S = 2.0
_MIB = 1024 * 1024


class Probed(Protocol):
    async def probe(self) -> None:
        """Stores something small. Raises StorageFullError where the storage is full."""


class Storage:
    """`path` is a directory on the disk where NATS keeps its streams, "" where that is on no disk of this machine;
    `reserve_mib` stays free there, None for a reserve by the size of the disk."""

    def __init__(self, path: str = "", reserve_mib: float | None = None) -> None:
        self._path = path
        self._reserve_mib = reserve_mib
        self._refusal = ""
        self._refused = asyncio.Event()

    def check(self, size: int = 0) -> None:
        """Raises StorageFullError where `size` bytes more do not fit. It reads the state of the disk each time: that is
        a system call of two microseconds, and a second is long enough to fill a small disk."""
        if (shortage := self.shortage(size)) is not None:
            raise StorageFullError(shortage, retry_after=_RETRY_S)

    def shortage(self, size: int = 0) -> str | None:
        """The reason why the storage is full, for people; None where it is not."""
        if not self._path:
            return self._refusal or None
        try:
            disk = os.statvfs(self._path)
        except OSError:
            return self._refusal or None  # NATS is about to make it
        free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        reserve = storage_reserve(total) if self._reserve_mib is None else int(self._reserve_mib * _MIB)
        if free - size >= reserve:
            return self._refusal or None
        return f"the disk of {self._path} is full but for {_mib(free)}, and {_mib(reserve)} are kept free"

    def troubles(self) -> list[Trouble]:
        """The troubles that /readyz reports."""
        shortage = self.shortage()
        return [] if shortage is None else [Trouble("storage", f"nothing more is stored: {shortage}")]

    def record_refusal(self, reason: str) -> None:
        """Notes a refusal of JetStream."""
        self._refusal = reason
        self._refused.set()

    async def watch(self, nats: Probed) -> None:
        """Probes JetStream after a refusal until it stores again. Runs until cancelled."""
        while True:
            await self._refused.wait()
            await asyncio.sleep(PROBE_S)
            self._refused.clear()
            with contextlib.suppress(CrucibleError):
                await nats.probe()
            if not self._refused.is_set():
                self._refusal = ""


def _mib(size: int) -> str:
    return f"{size / _MIB:,.0f} MiB" if size >= 10 * _MIB else f"{size / _MIB:,.1f} MiB"
