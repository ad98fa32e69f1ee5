"""What is written to clients: sent once for each turn of the event loop, bounded in bytes over all of a server's
connections, and in the time that a client may take nothing of it."""

import asyncio
import contextlib
import fcntl
import logging
import termios
from collections.abc import Iterable
from typing import Any

log = logging.getLogger(__name__)

_PIECE_BYTES = 64 * 1024
"""What is kept for the end of a turn; and what a transport may hold before its writer is told to wait."""
_INT = b"\0\0\0\0"


class Corked:
    """A transport whose writes go out together once all that is ready has run, since a write is a system call; and
    which is closed within a time, whether the client takes what is left or not. In all else it is the transport.

    `connections` are the protocols of its server, this one's among them. Where their clients leave too much untaken,
    the connection that has been behind for longest is closed: so those who do not read cost a bounded amount of memory,
    and those who do are not held up.
    """

    def __init__(
        self, transport: Any, connections: Iterable[Any], linger_s: float, stall_s: float, most_unsent: int
    ) -> None:
        self.behind_since = 0.0
        """When its client began to be slower than what is written, where it is; by the event loop's clock."""
        self._transport = transport
        self._connections = connections
        self._linger_s = linger_s
        self._stall_s = stall_s
        self._most_unsent = most_unsent
        self._loop = asyncio.get_running_loop()
        self._waiting: list[bytes] = []
        self._size = 0
        self._left = 0
        """The bytes that wait now, if the client has taken none since the last look."""
        self._looking: asyncio.TimerHandle | None = None
        self._dropped = False

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self.flush)
        self._waiting.append(data)
        self._size += len(data)
        if self._size > _PIECE_BYTES:
            self.flush()

    def flush(self) -> None:
        waiting, size = self._waiting, self._size
        self._waiting, self._size = [], 0
        if waiting and not self._transport.is_closing():
            self._transport.write(waiting[0] if len(waiting) == 1 else b"".join(waiting))
            if self.is_behind:
                self._watch(size)
            elif self._looking is not None:
                self._looking.cancel()
                self._looking = None

    def write_eof(self) -> None:
        self.flush()
        self._transport.write_eof()

    def close(self) -> None:
        self.flush()
        self._transport.close()
        if self.unsent:
            self._loop.call_later(self._linger_s, self._transport.abort)

    def drop(self, why: str) -> None:
        self._dropped = True
        log.warning("the connection of %s is closed: %s", self._transport.get_extra_info("peername"), why)
        self._transport.abort()

    @property
    def is_behind(self) -> bool:
        """Whether what was written waits for the client."""
        return not self._dropped and self.unsent > _PIECE_BYTES

    @property
    def unsent(self) -> int:
        size: int = self._transport.get_write_buffer_size()
        return size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    # ---- slow clients

    def _watch(self, written: int) -> None:
        if self._looking is None:
            self.behind_since = self._loop.time()
            self._look_later()
        else:
            self._left += written
        transports = [connection.transport for connection in self._connections]
        behind = [one for one in transports if isinstance(one, Corked) and one.is_behind]
        if sum(one.unsent for one in behind) > self._most_unsent:
            slowest = min(behind, key=lambda one: one.behind_since)
            slowest.drop(f"clients leave more than {self._most_unsent} bytes untaken, and this one for longest")

    def _look_later(self) -> None:
        self._left = self.unsent + self._in_kernel()
        self._looking = self._loop.call_later(self._stall_s, self._look)

    def _look(self) -> None:
        self._looking = None
        if not self.is_behind:
            return
        if self.unsent + self._in_kernel() >= self._left:
            self.drop(f"its client has taken nothing for {self._stall_s:g} s, and {self.unsent} bytes wait")
        else:
            self._look_later()

    def _in_kernel(self) -> int:
        """What the system holds for the client: it takes more from us only once a good part of that has gone."""
        with contextlib.suppress(OSError, AttributeError):
            queue = fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, _INT)
            return int.from_bytes(queue, "little")
        return 0
