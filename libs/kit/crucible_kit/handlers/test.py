"""The test of a handler: its synthetic event, the message that takes one through the work queue, and the result."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from crucible_core.envelope import Data, Event, Metadata, Source, encode
from crucible_core.protocol.parts import Check, CheckStep
from crucible_core.subjects import Names
from crucible_kit.clock import fresh_id, timestamp
from crucible_kit.handlers.pointers import pointer
from crucible_kit.nats.frames import Outgoing


def synthetic_event(
    service: str, type: str, payload: dict[str, Any], world: str, fields: Mapping[str, Any] | None = None
) -> Event:
    """An event that is not in the log; `fields` are those of its metadata that a filter asks for."""
    metadata = Metadata(
        id=fresh_id("evt"),
        timestamp=timestamp(),
        source=Source("system", service),
        actor="system:test",
        correlation_id=fresh_id("cor"),
        world_id=world,
    )
    category, _, event = type.partition(".")
    return Event(category, Data(event, payload), msgspec.structs.replace(metadata, **(fields or {})))


def event_message(
    names: Names, kind: str, handler: str, job: str, event: Event, headers: Mapping[str, str]
) -> Outgoing:
    """The message of a job with its event, which the log does not have."""
    return msgspec.structs.replace(pointer(names, kind, handler, job, 0, **headers), data=encode(event))


def summarize(name: str, began: float, steps: Sequence[CheckStep], good: str = "live", bad: str = "inert") -> Check:
    """The result of steps that began at a time of `perf_counter`: `bad` with the first that failed, else `good`."""
    broken = next((step for step in steps if not step.ok), None)
    return Check(
        name=name,
        verdict=bad if broken else good,
        reason=f"{broken.step}: {broken.detail}" if broken else None,
        duration_ms=round((time.perf_counter() - began) * 1000, 3),
        steps=list(steps),
    )
