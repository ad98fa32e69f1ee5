"""Running an ASGI app as a process: uvicorn, signals, logging, and the exit when the app's lifespan fails."""

import asyncio
import contextlib
import ctypes
import gc
import logging
import math
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crucible_core.errors import CrucibleError, InvalidError
from crucible_kit.http.connection import Connection
from crucible_kit.settings import KitSettings, load
from crucible_kit.telemetry.logs import describe_error, leaves, setup_logging

__all__ = ["WEBSOCKET", "main", "run", "setup_logging"]

log = logging.getLogger(__name__)

WEBSOCKET = "crucible_kit.http.websocket:WebSocket"
"""By name: loading it costs a process 2 MB, which only one with sockets has to pay."""
_COLLECT_AFTER = 20_000
_SWITCH_S = 0.0005
"""An SQLite thread asks for the interpreter's lock after every row: with Python's own 5 ms, a busy event loop makes
each of them wait that long."""

_M_MMAP_THRESHOLD = -3
"""malloc.h"""
_LARGE_BYTES = 128 * 1024

S = TypeVar("S", bound=KitSettings)


def main(service: str, kind: type[S], create_app: Callable[[S], Any]) -> None:
    """A service's `python -m`: reads the settings from the environment, then runs it. Bad settings end it with one line
    and exit code 78 (`EX_CONFIG` of sysexits.h): a restart would not help."""
    setup_logging(service)
    try:
        settings = load(kind)
        app = create_app(settings)
        app.state.is_process = True
    except CrucibleError as error:
        log.error("cannot start: %s", error.detail)
        raise SystemExit(os.EX_CONFIG) from None
    run(app, settings, service)


def run(app: Any, settings: KitSettings, service: str = "") -> None:
    """Serve `app` until SIGTERM or SIGINT, then let open requests end and drain its lifespan.

    Exits with code 1, after one line, if the lifespan fails: at the start, or later when one of its tasks does, since a
    service without its consumers must not look alive. `service` defaults to `app.state.service`. Where the app has an
    `asyncio.Event` in `app.state.stopping`, it is set as the shutdown begins: answers without an end should end then.
    """
    sys.setswitchinterval(_SWITCH_S)
    _return_freed_memory()
    # A batch makes thousands of objects that live until it is answered, none of them in a cycle: looking through all
    # that was ever imported every few batches finds nothing.
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    setup_logging(service or getattr(app.state, "service", "crucible"), settings.log_level)
    # uvicorn's own notes on starting and stopping say nothing that our line does not.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    # uvicorn raises the signals that it caught again once it is done: then they mean a clean exit.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    watcher = LifespanWatcher(app)
    server = Server(_config(app, watcher, settings), watcher, getattr(app.state, "stopping", None))
    try:
        server.run()
    except SystemExit as stop:
        raise SystemExit(watcher.code if stop.code and not watcher.stopped else 0) from None
    if watcher.failed:
        raise SystemExit(watcher.code)


class LifespanWatcher:
    """The app; logs the failure of its lifespan as one line in place of uvicorn's traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.started = False
        self.failed = False
        self.stopped = False
        self.code = 1
        """Exit code of the process after a failure."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def quiet_send(message: Message) -> None:
            self.started = self.started or message["type"] == "lifespan.startup.complete"
            await send({"type": message["type"]} if message["type"].endswith(".failed") else message)

        try:
            await self._app(scope, receive, quiet_send)
        except Exception as error:
            self._report(error)
            raise
        except SystemExit:
            # A signal that came while the app's own code was running: uvicorn would call it a failure.
            self.stopped = True
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            raise

    def _report(self, error: Exception) -> None:
        self.failed = True
        what = "stopped by a failure" if self.started else "cannot start"
        if not self.started and any(isinstance(leaf, InvalidError) for leaf in leaves(error)):
            self.code = os.EX_CONFIG  # a setting that does not fit the data: a restart would not help
        if all(isinstance(leaf, CrucibleError) for leaf in leaves(error)):
            log.error("%s: %s", what, "; ".join(str(leaf) for leaf in leaves(error)))
        else:
            log.error("%s: %s", what, describe_error(error), exc_info=error)
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it would say the same again, at length


class Server(uvicorn.Server):
    """uvicorn, which also stops when the lifespan has failed, and at once while it is still starting."""

    def __init__(self, config: uvicorn.Config, watcher: LifespanWatcher, stopping: asyncio.Event | None) -> None:
        super().__init__(config)
        self._watcher = watcher
        self._stopping = stopping
        self._ending = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)

    async def shutdown(self, sockets: Any = None) -> None:
        if self._stopping:
            self._stopping.set()
        await super().shutdown(sockets)

    async def main_loop(self) -> None:
        # uvicorn looks ten times a second whether it is to end: that is most of what an idle process does.
        self._loop = asyncio.get_running_loop()
        while not (await self.on_tick(0) or self._watcher.failed):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._ending.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if not self.started:
            _exit(sig, frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._ending.set)


def _config(app: Any, watcher: LifespanWatcher, settings: KitSettings) -> uvicorn.Config:
    return uvicorn.Config(
        watcher,
        host=settings.host,
        port=settings.port,
        loop="auto",
        http=Connection,
        ws=WEBSOCKET if _has_websockets(app) else "none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_grace_s),
    )


def _has_websockets(app: Any) -> bool:
    """Returns True if the app may have WebSocket routes."""
    return not isinstance(app, Starlette) or any(isinstance(route, WebSocketRoute) for route in app.routes)


def _return_freed_memory() -> None:
    """Lets malloc keep large blocks apart, so that each goes back to the system when it is freed. glibc by itself
    raises that threshold with each block, until a body of 1 MiB leaves its hole in the heap."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def _exit(sig: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)
