"""The worlds and rooms that a reader names: `events` knows which there are."""

from crucible_core.access import Principal
from crucible_core.envelope import DEFAULT_ROOM, DEFAULT_WORLD
from crucible_core.protocol.worlds import PlaceRequest
from crucible_kit.bus import Bus
from crucible_kit.rpc import call

_PATIENCE_S = 5.0
_ALWAYS_THERE = ((None, None), (DEFAULT_WORLD, None), (None, DEFAULT_ROOM), (DEFAULT_WORLD, DEFAULT_ROOM))


async def check_place(bus: Bus, principal: Principal, world_id: str | None, room_id: str | None) -> None:
    """Raises InvalidError, with the nearest name, where there never was such a world or room that the principal may
    see. None is any."""
    if not principal.scope.everything or (world_id, room_id) not in _ALWAYS_THERE:
        asked = PlaceRequest(world_id=world_id, room_id=room_id)
        await call(bus, principal, "events", "place", asked, bytes, timeout=_PATIENCE_S)
