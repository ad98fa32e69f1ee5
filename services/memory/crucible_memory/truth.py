"""How far the index must be to answer: what the log itself says of a memory, and waiting until the index has it."""

import asyncio

from crucible_kit.bus import Bus
from crucible_kit.future import is_near, past_end
from crucible_kit.index import Index

_PAUSE_S = 0.02


async def last_of(bus: Bus, id: str, world: str | None) -> int:
    """The sequence of a memory's last event, 0 if there is none; without a world, of any world's."""
    found = await bus.last(bus.names.events, bus.names.versions(world, "Memory", id))
    return found.sequence if found else 0


async def last_change(bus: Bus) -> int:
    """The sequence of the last Memory event."""
    found = await bus.last(bus.names.events, bus.names.events_of("Memory"))
    return found.sequence if found else 0


async def settle(bus: Bus, index: Index, sequence: int, timeout: float = 5.0) -> None:
    """Returns once the index holds every Memory event up to `sequence`, which may be that of any event.

    Raises UnavailableError when that takes too long, and InvalidError for a sequence that the log has not reached.
    """
    if index.sequence >= sequence:
        return
    last = 0
    try:
        async with asyncio.timeout(timeout):
            # Asked before the last change: what comes in between only makes the wait longer than needed.
            while (last := await bus.last_sequence(bus.names.events)) < sequence:
                if not is_near(sequence, last):
                    raise past_end(last)
                await asyncio.sleep(_PAUSE_S)
    except TimeoutError:
        raise past_end(last) from None
    await index.reach(min(sequence, await last_change(bus)), timeout)
