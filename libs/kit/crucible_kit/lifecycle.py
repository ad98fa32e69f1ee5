"""What a service tells the log of itself: that it started, what went wrong in it, and that it shuts down."""

import asyncio
import contextlib
import importlib.metadata
import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from crucible_core.access import service_principal
from crucible_core.envelope import Source
from crucible_core.errors import CrucibleError, UnavailableError
from crucible_core.ids import derive_id
from crucible_core.protocol.events import NewEvent
from crucible_kit.clock import fresh_id, now_ms
from crucible_kit.events import append
from crucible_kit.nats.bus import Bus

log = logging.getLogger(__name__)

TOLD_AGAIN_S = 60.0
"""An error of the same place in the code is told once in so many seconds; the next time tells how often it happened."""
MOST_TOLD = 100
"""Errors that wait to be told; more are only logged."""
_PLACES = 1000
_PAUSE_S = 1.0
_PATIENCE_S = 2.0
_SHOWN = 2000


@contextlib.asynccontextmanager
async def announce_lifecycle(
    app: Any, bus: Bus, service: str, change: Mapping[str, Any] | None = None
) -> AsyncIterator[None]:
    """System.Started, then System.Error for each error that is logged, then System.Shutdown, where the app runs as a
    process of its own (`app.state.is_process`). Nothing waits for them: `events` may start later, and end earlier.

    `change` is the payload of a System.ConfigChanged that the start made.
    """
    if not getattr(app.state, "is_process", False):
        yield
        return
    life = _Life(bus, service)
    if change is not None:
        life.note(life.event("ConfigChanged", change, "start"))
    handler = _ErrorHandler(life)
    telling = asyncio.create_task(life.tell())
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        telling.cancel()
        with contextlib.suppress(CrucibleError, TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await life.append(life.event("Shutdown", {}))


class _Life:
    """One process's life in the log: its events share a correlation id, and its start is the cause of the others."""

    def __init__(self, bus: Bus, service: str) -> None:
        self._bus = bus
        self._service = service
        self._principal = service_principal(service)
        self._instance = fresh_id("ins")
        self._began_ms = now_ms()
        self._started = derive_id("evt", self._began_ms, self._instance, "Started")
        self.errors: asyncio.Queue[NewEvent] = asyncio.Queue(MOST_TOLD)
        self.loop = asyncio.get_running_loop()

    def event(self, name: str, payload: Mapping[str, Any], at: str = "") -> NewEvent:
        """The same event each time for the same `at`, so that it may be appended again."""
        about = {"service": self._service}
        if name != "ConfigChanged":
            about |= {"instance": self._instance, "version": _version()}
        return NewEvent(
            type=f"System.{name}",
            payload=msgspec.Raw(msgspec.json.encode({**about, **payload})),
            id=self._started if name == "Started" else derive_id("evt", now_ms(), self._instance, name, at),
            source=Source("system", self._service),
            actor=f"system:{self._service}",
            correlation_id=f"cor_{self._started[4:]}",
            causation_id=None if name == "Started" else self._started,
            entity=self._service,
        )

    async def tell(self) -> None:
        """Runs until cancelled."""
        waiting = self.event("Started", {})
        while True:
            try:
                await self.append(waiting)
            except UnavailableError:
                await asyncio.sleep(_PAUSE_S)
            except CrucibleError as error:
                log.warning("%s is not recorded: %s", waiting.type, error)
                waiting = await self.errors.get()
            else:
                waiting = await self.errors.get()

    async def append(self, event: NewEvent) -> None:
        await append(self._bus, self._principal, [event], timeout=_PATIENCE_S)

    def note(self, event: NewEvent) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self.errors.put_nowait(event)


class _ErrorHandler(logging.Handler):
    """Makes System.Error of what our own code logs as an error. The text of an exception may hold what somebody sent,
    and that may have to be redacted: its type is told, and the log has the rest."""

    def __init__(self, life: _Life) -> None:
        super().__init__(logging.ERROR)
        self._life = life
        self._told: dict[tuple[str, int], tuple[float, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("crucible"):
            return
        place, now = (record.pathname, record.lineno), time.monotonic()
        told_at, more = self._told.get(place, (float("-inf"), 0))
        if now < told_at + TOLD_AGAIN_S:
            self._told[place] = told_at, more + 1
            return
        if len(self._told) >= _PLACES:
            self._told.clear()
        self._told[place] = now, 0
        payload = {
            "message": " ".join(record.getMessage().split())[:_SHOWN],
            "code": record.name[:200],
            "error": record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None,
            "metadata": {"not_told_before": more} if more else None,
        }
        known = {name: value for name, value in payload.items() if value is not None}
        event = self._life.event("Error", known, f"{record.created}:{record.lineno}")
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._life.loop.call_soon_threadsafe(self._life.note, event)


def _version() -> str:
    return importlib.metadata.version("crucible-kit")
