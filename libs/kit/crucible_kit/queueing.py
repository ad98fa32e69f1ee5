"""Messages of core NATS that wait for a handler which takes them one after another."""

import asyncio
import contextlib
import logging

from .message import Handler, Message

log = logging.getLogger(__name__)

MOST_WAITING = 32 * 1024 * 1024
"""Bytes; core NATS keeps nothing, so what comes beyond is dropped."""


class Line:
    """`received` takes a message at once; `end` lets those that wait be handled, for a while."""

    def __init__(self, subject: str, handler: Handler) -> None:
        self._subject = subject
        self._handler = handler
        self._arrived: asyncio.Queue[Message] = asyncio.Queue()
        self._bytes = 0
        self._handling = asyncio.create_task(self._handle())

    def received(self, message: Message) -> None:
        if self._bytes > MOST_WAITING:
            log.warning("the handler of %s is too slow: a message is dropped", self._subject)
            return
        self._bytes += len(message.data)
        self._arrived.put_nowait(message)

    async def end(self, grace: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._arrived.join()
        self._handling.cancel()

    async def _handle(self) -> None:
        while True:
            message = await self._arrived.get()
            self._bytes -= len(message.data)
            try:
                await self._handler(message)
            except Exception:
                log.exception("the handler of %s failed", self._subject)
            finally:
                self._arrived.task_done()
