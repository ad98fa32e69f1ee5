"""Outcomes in group commit: what ends at the same time shares one write to the history."""

import asyncio
from collections.abc import Sequence

from crucible_core.errors import CrucibleError, UnavailableError
from crucible_kit.bus import MAX_BATCH, Bus, DuplicateError
from crucible_kit.frames import Outgoing

FEW = 12
"""Up to so many are stored one by one, pipelined: to open a batch takes the server longer."""
_GATHER_S = 0.01
"""After a batch, how long more may come for the next one: each costs the server some files, and a sync of the disk that
appends wait for, too."""


class Outcomes:
    """One write is under way at a time: what comes meanwhile is the next one."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: list[tuple[Outgoing, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def store(self, message: Outgoing) -> None:
        """Returns once the message, which has an id, is stored. Raises UnavailableError: it may be, and may be stored
        again."""
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((message, stored))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        await stored

    async def _write(self) -> None:
        try:
            while self._waiting:
                taken, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                try:
                    await self._store([message for message, _ in taken])
                except CrucibleError as error:
                    _resolve(taken, error)
                else:
                    _resolve(taken, None)
                if len(taken) > FEW:
                    await asyncio.sleep(_GATHER_S)
        finally:
            self._writing = None
            _resolve(self._waiting, UnavailableError("this process is ending"))

    async def _store(self, messages: Sequence[Outgoing]) -> None:
        if len(messages) > FEW:
            try:
                await self._bus.commit(messages)
                return
            except DuplicateError:  # one of them is stored already: which, shows one by one
                pass
        await self._bus.store_all(messages)


def _resolve(taken: Sequence[tuple[Outgoing, "asyncio.Future[None]"]], error: Exception | None) -> None:
    for _, stored in taken:
        if not stored.done():
            if error is None:
                stored.set_result(None)
            else:
                stored.set_exception(error)
