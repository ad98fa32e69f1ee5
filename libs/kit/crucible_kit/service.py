"""Common parts of every service: its tracing, its connection to NATS, its streams, and its report of readiness."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from crucible_core.errors import CrucibleError
from crucible_core.protocol.parts import Trouble
from crucible_core.subjects import Names
from crucible_kit.http.asgi import unready
from crucible_kit.nats.bus import Bus, open_bus
from crucible_kit.nats.storage import Storage
from crucible_kit.nats.streams import declare_streams
from crucible_kit.settings import KitSettings
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.telemetry.spans import Telemetry, open_telemetry

_CLOCK_S = 30.0
"""Interval between comparisons with the clock of the NATS server, by which requests are late."""


@contextlib.asynccontextmanager
async def open_service(service: str, settings: KitSettings, metrics: Metrics) -> AsyncIterator[tuple[Bus, Telemetry]]:
    """Opens the parts. Raises UnavailableError when NATS stays away."""
    async with contextlib.AsyncExitStack() as stack:
        telemetry = open_telemetry(service, metrics)
        stack.push_async_callback(asyncio.to_thread, telemetry.close)
        names = Names(settings.bus_prefix, settings.streams)
        bus = await stack.enter_async_context(open_bus(settings.nats_url, names, service))
        bus.storage = Storage(settings.nats_store, settings.storage_reserve_mib)
        bus.note_parked = metrics.counter("messages_parked", "Messages that this process put aside").inc
        await declare_streams(bus, settings, service)
        await bus.set_clock()
        for task in [asyncio.create_task(_keep_clock(bus)), asyncio.create_task(bus.storage.watch(bus))]:
            stack.callback(task.cancel)
        yield bus, telemetry


def report_readiness(
    app: Any, bus: Bus, parts: Callable[[], Mapping[str, bool]], *troubles: Callable[[], Sequence[Trouble]]
) -> None:
    """Lets /readyz name the `parts` that are not ready, and the troubles; it adds those of NATS and its disk."""
    app.state.ready = lambda: unready({"nats": bus.connected, **parts()})
    app.state.troubles = lambda: [trouble for report in (bus.storage.troubles, *troubles) for trouble in report()]


async def _keep_clock(bus: Bus) -> None:
    while True:
        await asyncio.sleep(1)
        bus.clock_doubted.clear()
        with contextlib.suppress(CrucibleError):
            await bus.set_clock()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOCK_S):
                await bus.clock_doubted.wait()
