"""Redactions without a running events service."""

import contextlib
from typing import Any

import msgspec

from crucible_core.envelope import Data, Event, Metadata, Source, decode, encode
from crucible_core.redaction import StoredEvent, mark, tombstone
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.frames import Outgoing


async def tell(bus: Bus, sequence: int) -> int:
    """Commits a tombstone as events does, then removes the event; returns the tombstone's sequence."""
    metadata = Metadata(
        id=f"evt_t{sequence}",
        timestamp="2026-11-21T10:00:00.000000Z",
        source=Source("user", "t"),
        actor="user:t",
        correlation_id="cor_t",
    )
    found = await bus.get(bus.names.events, sequence)
    assert found is not None
    payload: dict[str, Any] = {"n": 0}
    with contextlib.suppress(msgspec.DecodeError):  # of a message that only stands for an event, nothing is left
        payload |= msgspec.to_builtins(tombstone(decode(found.data, sequence), None))
    raw = encode(Event("System", Data("Redacted", payload), metadata))
    subject = bus.names.event("default", "main", "System", "Redacted", None)
    told = await bus.store(Outgoing(subject, raw, mark(StoredEvent(sequence, 0, ""))))
    await bus.remove(bus.names.events, sequence, erase=True)
    return told.sequence


async def queued(bus: Bus, stream: str, text: str) -> int:
    """How many messages of a stream have a text in them."""
    end, sequence, found = await bus.last_sequence(stream), 0, 0
    while sequence < end and (message := await bus.next(stream, sequence + 1, ">")) is not None:
        sequence = message.sequence
        found += text.encode() in message.data
    return found
