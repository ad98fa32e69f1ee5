"""Freshness of the index: the last events of memories in the log itself, and the wait until the index has them."""

from crucible_core.position import Position, stream_number
from crucible_kit.eventlog import last_events, position_after, wait_for_sequence
from crucible_kit.index.index import Index
from crucible_kit.nats.bus import Bus


async def last_of(bus: Bus, id: str, world: str) -> int:
    """The sequence of a memory's last event, 0 if there is none."""
    found = await bus.last(bus.names.stream_of(world), bus.names.versions(world, "Memory", id))
    return found.sequence if found else 0


async def last_anywhere(bus: Bus, id: str) -> Position:
    """The position after the last event of each memory with that id, in all worlds."""
    return position_after(bus.names.start, await last_events(bus, bus.names.versions(None, "Memory", id)))


async def last_change(bus: Bus) -> Position:
    """The position after the last Memory event."""
    return position_after(bus.names.start, await last_events(bus, bus.names.events_of("Memory")))


async def settle(bus: Bus, index: Index, sequence: int, timeout: float = 5.0) -> None:
    """Returns once the index holds every Memory event up to `sequence`, which may be that of any event.

    Raises UnavailableError when that takes too long, and InvalidError for a sequence that the log has not reached.
    """
    if index.position.covers(sequence):
        return
    # Before `last_change`: events that come in between only make the wait longer.
    await wait_for_sequence(bus, sequence, timeout)
    changed = await last_change(bus)
    await index.reach(sequence if changed.covers(sequence) else changed.end_of(stream_number(sequence)), timeout)
