"""How far the index must be to answer: what the log itself says of a memory, and waiting until the index has it."""

import asyncio

from crucible_core.position import Position, stream_number
from crucible_kit.eventlog import is_near, last_events, log_end, passed, past_end
from crucible_kit.index.index import Index
from crucible_kit.nats.bus import Bus

_PAUSE_S = 0.02


async def last_of(bus: Bus, id: str, world: str) -> int:
    """The sequence of a memory's last event, 0 if there is none."""
    found = await bus.last(bus.names.stream_of(world), bus.names.versions(world, "Memory", id))
    return found.sequence if found else 0


async def last_anywhere(bus: Bus, id: str) -> Position:
    """The place after the last event of each memory with that id, of whatever world."""
    return passed(bus.names.start, await last_events(bus, bus.names.versions(None, "Memory", id)))


async def last_change(bus: Bus) -> Position:
    """The place after the last Memory event."""
    return passed(bus.names.start, await last_events(bus, bus.names.events_of("Memory")))


async def settle(bus: Bus, index: Index, sequence: int, timeout: float = 5.0) -> None:
    """Returns once the index holds every Memory event up to `sequence`, which may be that of any event.

    Raises UnavailableError when that takes too long, and InvalidError for a sequence that the log has not reached.
    """
    if index.position.covers(sequence):
        return
    end = bus.names.start
    try:
        async with asyncio.timeout(timeout):
            # Asked before the last change: what comes in between only makes the wait longer than needed.
            while not (end := await log_end(bus)).covers(sequence):
                if not is_near(sequence, end):
                    raise past_end(end)
                await asyncio.sleep(_PAUSE_S)
    except TimeoutError:
        raise past_end(end) from None
    changed = await last_change(bus)
    await index.reach(sequence if changed.covers(sequence) else changed.end_of(stream_number(sequence)), timeout)
