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
    """How a handler is to be served at the moment. `since`: it has no business with events up to there. `held`: what is
    for it waits, and so does what comes meanwhile where it `keeps` that. `types`: the types that it may want, as
    `Catalogue.expand` gives them; None is every one. `apart_ms` is the least time between the commits of two events
    that it is given."""

    concurrency: int
    since: Position = Position()
    held: bool = False
    keeps: bool = True
    types: frozenset[str] | None = None
    apart_ms: int = 0


def subjects_of(types: Set[str] | None, names: Names) -> Sequence[str]:
    """Wildcards over the events of some types, which are as `Catalogue.expand` gives them; none, which means all, where
    they are too many to be told apart by the server."""
    if types is None or len(types) > _FEW_SUBJECTS:
        return ()
    found = [name.split(".", 1) for name in sorted(types)]
    whole = {category for category, event in found if event == "*"}
    some = [names.events_of(category, token(event)) for category, event in found if category not in whole]
    return [*map(names.events_of, sorted(whole)), *some]  # JetStream refuses those that overlap


class Outcome(msgspec.Struct):
    """What became of an attempt: its `record` for the history, if it has one; when the next attempt is due (Unix ms);
    and what else follows, which is safe to do twice and raises UnavailableError to be asked for again."""

    record: Outgoing | None = None
    retry_at_ms: int | None = None
    follows: Callable[[], Awaitable[None]] | None = None


class Service(Protocol):
    name: str
    kind: str
    """The first token of its work's subjects and of its records': `run` or `dlv`."""
    queue: str
    """Its work queue, a stream."""

    def since(self, shard: int) -> Position | None:
        """The place after which the first of a shard's handlers wants events; None where it has no handler."""

    def types(self) -> Set[str] | None:
        """The types that some handler may want, as `Catalogue.expand` gives them; None is every one."""

    def may_want(self, category: str, event: str) -> bool:
        """Whether a handler may want an event of a type, whatever is in it."""

    def plan(self, handler: str) -> Plan | None:
        """None: there is no such handler (any more)."""

    def unreadable(self) -> Iterable[str]:
        """Handlers that cannot be matched here, as their records cannot be read, say: they wait until they can."""

    async def reach(self, revision: int) -> None:
        """Returns once its copy of the registry holds a revision. Raises UnavailableError."""

    async def catch_up(self, events: Sequence[Event]) -> None:
        """Returns once its copy of the registry is as new as these events."""

    def match(self, event: Event) -> Iterable[str]:
        """The handlers that an event is for."""

    def wants(self, handler: str, event: Event) -> bool:
        """Whether it is for this one."""

    def job_id(self, handler: str, event: Event, stored_ms: int) -> str:
        """The same for the same handler and event."""

    def place(self, record: bytes) -> tuple[str, int]:
        """Which job, and which attempt at it, a record of the history is about. Raises `msgspec.DecodeError`."""

    async def left_of(self, sequence: int) -> Message | None:
        """The rest of an event that was redacted; None of one that was not."""

    def held_back(self, first: Job, count: int) -> Outgoing:
        """The record of some events one after another that came too soon for their handler."""

    async def attempt(self, job: Job) -> Outcome:
        """Raises UnavailableError where something is away: then it is asked for again."""

    async def again(self, job: Job, record: bytes) -> Outcome:
        """What is left to do of an attempt that is recorded, and was perhaps interrupted then."""

    async def parked(self, job: Job, reason: str) -> Outcome:
        """Of a job that can never be done."""
