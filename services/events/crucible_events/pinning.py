"""Expected sequences of entities that share a subject with others: looked up in an index, and pinned to the last
sequence of their bucket, so that JetStream refuses the commit where anything has come to it meanwhile."""

from collections.abc import Sequence

from crucible_core.errors import ConflictError, UnavailableError
from crucible_kit.bus import Bus, Stored

from .candidates import Candidate, entities_of
from .committer import Committer
from .lookup import Lookup

_ATTEMPTS = 100


async def commit(
    bus: Bus, lookup: Lookup, committer: Committer, candidates: Sequence[Candidate], *, whole: bool = False
) -> list[Stored]:
    """Commits candidates together, again and again while only neighbours of their entities come between.

    Raises ConflictError where an expectation does not hold; `whole` says in it which event's.
    """
    pins = await _pins(bus, lookup, candidates, whole)
    for _ in range(_ATTEMPTS):
        left = dict(pins)
        messages = [candidate.outgoing(bus.names, left) for candidate in candidates]
        try:
            return await committer.submit(messages, entities_of(candidates))
        except ConflictError:
            before, pins = pins, await _pins(bus, lookup, candidates, whole)
            if pins == before:  # it was about something else
                raise
    raise UnavailableError("too many appends come between; try again", retry_after=1)


async def _pins(bus: Bus, lookup: Lookup, candidates: Sequence[Candidate], whole: bool) -> dict[str, int]:
    """By subject of a bucket, a sequence after which nothing may have come to it. Raises ConflictError."""
    pins: dict[str, int] = {}
    for candidate in candidates:
        if not candidate.shares:
            continue
        about, subject = candidate.stamped.event.metadata, candidate.versions(bus.names)
        if subject not in pins:
            last = await bus.last(bus.names.stream_of(about.world_id), subject)
            pins[subject] = last.sequence if last else 0
        entity = about.world_id, candidate.stamped.event.type, about.entity or ""
        current = await lookup.last_of(*entity, through=pins[subject])
        if current != candidate.stamped.expected_sequence:
            raise candidate.conflict(current, whole)
    return pins
