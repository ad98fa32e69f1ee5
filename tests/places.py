"""Worlds and rooms that a test needs before it writes to them, with no word of them in the log."""

import msgspec

from crucible_core.protocol.worlds import RoomRecord, WorldRecord
from crucible_core.subjects import token
from crucible_kit.buckets import open_bucket
from crucible_kit.nats.bus import Bus

AT = "2026-11-21T09:00:00.000000Z"


async def make_world(bus: Bus, world: str, *rooms: str) -> None:
    """A world with these rooms, as the bucket has it."""
    bucket = await open_bucket(bus, "worlds")
    record = WorldRecord(id=world, created_at=AT, rooms=[RoomRecord(id=room, created_at=AT) for room in rooms])
    await bucket.put(token(world), msgspec.json.encode(record))
