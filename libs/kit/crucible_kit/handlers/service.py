"""The part that a service brings to the engine: its handlers, its attempts, and how they are recorded."""

from collections.abc import Awaitable, Callable, Iterable, Sequence, Set
from typing import Protocol

import msgspec

from crucible_core.envelope import Event
from crucible_core.position import Position
from crucible_core.subjects import Names, token
from crucible_kit.handlers.lanes import Job
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.message import Message

_FEW_SUBJECTS = 32


class Plan(msgspec.Struct, frozen=True):
    """The present plan of a handler. It gets no events up to `since`. While it is `held` its jobs wait, and new ones
    too where it `keeps` them. `types` are those that it may want, as `Catalogue.expand` returns them; None is every
    one. `apart_ms` is the least time between the commits of two of its events."""

    concurrency: int
    since: Position = Position()
    held: bool = False
    keeps: bool = True
    types: frozenset[str] | None = None
    apart_ms: int = 0


def subjects_of(types: Set[str] | None, names: Names) -> Sequence[str]:
    """Wildcards over the events of some types, which are as `Catalogue.expand` returns them; none, which means all,
    where there are too many for the server."""
    if types is None or len(types) > _FEW_SUBJECTS:
        return ()
    found = [name.split(".", 1) for name in sorted(types)]
    whole = {category for category, event in found if event == "*"}
    some = [names.events_of(category, token(event)) for category, event in found if category not in whole]
    return [*map(names.events_of, sorted(whole)), *some]  # JetStream refuses those that overlap


class Outcome(msgspec.Struct):
    """The outcome of an attempt: its `record` for the history, if it has one; the time of the next attempt (Unix ms);
    and the effects that follow, which are safe to run twice and raise UnavailableError to be run again."""

    record: Outgoing | None = None
    retry_at_ms: int | None = None
    follows: Callable[[], Awaitable[None]] | None = None


class Service(Protocol):
    name: str
    kind: str
    """The first token of the subjects of its work and its records: `run` or `dlv`."""
    queue: str
    """Its work queue, a stream."""

    def since(self, shard: int) -> Position | None:
        """The position after which the first of a shard's handlers wants events; None where it has no handler."""

    def types(self) -> Set[str] | None:
        """The types that some handler may want, as `Catalogue.expand` gives them; None is every one."""

    def may_want(self, category: str, event: str) -> bool:
        """Returns True if a handler may want an event of a type, whatever its payload."""

    def plan(self, handler: str) -> Plan | None:
        """The plan of a handler; None where it does not exist (any more)."""

    def unreadable(self) -> Iterable[str]:
        """Handlers that cannot be matched here, whose records cannot be read, for example: their events wait."""

    async def reach(self, revision: int) -> None:
        """Waits until its copy of the registry holds a revision. Raises UnavailableError."""

    async def catch_up(self, events: Sequence[Event]) -> None:
        """Waits until its copy of the registry is as new as these events."""

    def match(self, event: Event) -> Iterable[str]:
        """The handlers that an event matches."""

    def wants(self, handler: str, event: Event) -> bool:
        """Returns True if an event matches this handler."""

    def job_id(self, handler: str, event: Event, stored_ms: int) -> str:
        """The id of a job, always the same for the same handler and event."""

    def identify(self, record: bytes) -> tuple[str, int]:
        """The job and the attempt of a record of the history. Raises `msgspec.DecodeError`."""

    async def left_of(self, sequence: int) -> Message | None:
        """The rest of a redacted event; None for any other event."""

    def held_back(self, first: Job, count: int) -> Outgoing:
        """The record of consecutive events that came too soon for their handler."""

    async def attempt(self, job: Job) -> Outcome:
        """Runs an attempt. Raises UnavailableError where something is away: then it is repeated."""

    async def again(self, job: Job, record: bytes) -> Outcome:
        """Finishes an attempt that is recorded, and may have been interrupted after that."""

    async def parked(self, job: Job, reason: str) -> Outcome:
        """The outcome of a parked job."""
