"""Lifecycle events of a service: it appends its start, its errors and its shutdown to the log."""

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

REPEAT_AFTER_S = 60.0
"""One line of code appends an error once in so many seconds; the next event counts the errors in between."""
MAX_WAITING = 100
"""Errors that wait to be appended; more are only logged."""
_MAX_LINES = 1000
_PAUSE_S = 1.0
_TIMEOUT_S = 2.0
_SHOWN = 2000


@contextlib.asynccontextmanager
async def announce_lifecycle(
    app: Any, bus: Bus, service: str, change: Mapping[str, Any] | None = None
) -> AsyncIterator[None]:
    """Appends System.Started, a System.Error for each logged error, and System.Shutdown, where the app runs as a
    process of its own (`app.state.is_process`). Nothing waits for them: `events` may start later, and end earlier.

    `change` is the payload of a System.ConfigChanged that results from the start.
    """
    if not getattr(app.state, "is_process", False):
        yield
        return
    life = _Life(bus, service)
    if change is not None:
        life.enqueue(life.event("ConfigChanged", change, "start"))
    handler = _ErrorHandler(life)
    appending = asyncio.create_task(life.run())
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        appending.cancel()
        with contextlib.suppress(CrucibleError, TimeoutError):
            async with asyncio.timeout(_TIMEOUT_S):
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
        self.errors: asyncio.Queue[NewEvent] = asyncio.Queue(MAX_WAITING)
        self.loop = asyncio.get_running_loop()

    def event(self, name: str, payload: Mapping[str, Any], at: str = "") -> NewEvent:
        """Returns the same event for the same `at`, so that it may be appended again."""
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

    async def run(self) -> None:
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
        await append(self._bus, self._principal, [event], timeout=_TIMEOUT_S)

    def enqueue(self, event: NewEvent) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self.errors.put_nowait(event)


class _ErrorHandler(logging.Handler):
    """Makes a System.Error of each error that our own code logs. The text of an exception may hold personal data, so
    the event has only its type, and the log has the rest."""

    def __init__(self, life: _Life) -> None:
        super().__init__(logging.ERROR)
        self._life = life
        self._reported: dict[tuple[str, int], tuple[float, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("crucible"):
            return
        line, now = (record.pathname, record.lineno), time.monotonic()
        reported_at, more = self._reported.get(line, (float("-inf"), 0))
        if now < reported_at + REPEAT_AFTER_S:
            self._reported[line] = reported_at, more + 1
            return
        if len(self._reported) >= _MAX_LINES:
            self._reported.clear()
        self._reported[line] = now, 0
        payload = {
            "message": " ".join(record.getMessage().split())[:_SHOWN],
            "code": record.name[:200],
            "error": record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None,
            "metadata": {"not_told_before": more} if more else None,
        }
        present = {name: value for name, value in payload.items() if value is not None}
        event = self._life.event("Error", present, f"{record.created}:{record.lineno}")
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._life.loop.call_soon_threadsafe(self._life.enqueue, event)


def _version() -> str:
    return importlib.metadata.version("crucible-kit")
