"""Expected sequences of entities that share a subject with others: looked up in the index, and pinned to the last
sequence of their bucket, so that JetStream refuses the commit where anything has come to it meanwhile."""

from collections.abc import Sequence

from crucible_core.errors import ConflictError, UnavailableError
from crucible_kit.bus import Bus, Stored
from crucible_kit.index import Index

from . import store
from .candidates import Candidate, entities_of
from .committer import Committer

_ATTEMPTS = 100


async def commit(
    bus: Bus, index: Index, committer: Committer, candidates: Sequence[Candidate], *, whole: bool = False
) -> list[Stored]:
    """Commits candidates together, again and again while only neighbours of their entities come between.

    Raises ConflictError where an expectation does not hold; `whole` says in it which event's.
    """
    pins = await _pins(bus, index, candidates, whole)
    for _ in range(_ATTEMPTS):
        left = dict(pins)
        messages = [candidate.outgoing(bus.names, left) for candidate in candidates]
        try:
            return await committer.submit(messages, entities_of(candidates))
        except ConflictError:
            before, pins = pins, await _pins(bus, index, candidates, whole)
            if pins == before:  # it was about something else
                raise
    raise UnavailableError("too many appends come between; try again", retry_after=1)


async def _pins(bus: Bus, index: Index, candidates: Sequence[Candidate], whole: bool) -> dict[str, int]:
    """By subject of a bucket, a sequence after which nothing may have come to it. Raises ConflictError."""
    pins: dict[str, int] = {}
    for candidate in candidates:
        if not candidate.shares:
            continue
        subject = candidate.versions(bus.names)
        if subject not in pins:
            last = await bus.last(index.stream, subject)
            pins[subject] = last.sequence if last else 0
            await index.reach(pins[subject])
        about = candidate.stamped.event.metadata
        current = await store.last_of(index, about.world_id, candidate.stamped.event.type, about.entity or "")
        if current != candidate.stamped.expected_sequence:
            raise candidate.conflict(current, whole)
    return pins
