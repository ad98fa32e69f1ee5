"""Group commit: appends that wait at the same time share one atomic batch, and each caller gets his own outcome. Also
the commit that expects versions of entities that share a subject."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any

import msgspec

from crucible_core.errors import (
    ConflictError,
    CrucibleError,
    LimitedError,
    UnavailableError,
    UnknownOutcomeError,
    untried,
)
from crucible_core.limits import BATCH_BYTES
from crucible_core.subjects import EXPECTED_SEQUENCE
from crucible_events.append.entries import Entry, entities_of
from crucible_events.append.lookup import Lookup
from crucible_kit import deadline
from crucible_kit.deadline import Caller
from crucible_kit.nats.bus import MAX_BATCH, Bus, Stored
from crucible_kit.nats.frames import Outgoing
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.telemetry.spans import Telemetry

log = logging.getLogger(__name__)

FEW = 12
"""Up to so many messages are stored one by one, pipelined: the server takes some milliseconds to open a batch, which is
more than as many single stores take, synced or not."""

_OVERHEAD = 256
"""Bytes of headers and subject, about."""
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_ATTEMPTS = 100

Outcome = Stored | CrucibleError


class Pending(msgspec.Struct, eq=False):
    """Messages of one caller, stored `each` for itself, or together or not at all. `entities` are the names of their
    versioned entities. They fail where the messages that they come `after` could not be stored for now, and once the
    `caller` has given up."""

    messages: Sequence[Outgoing]
    outcome: "asyncio.Future[list[Any]]"
    size: int
    entities: Collection[str]
    each: bool
    after: "asyncio.Future[list[Any]] | None" = None
    caller: Caller | None = None

    @property
    def whole(self) -> bool:
        return not self.each and len(self.messages) > 1

    @property
    def expects(self) -> bool:
        return EXPECTED_SEQUENCE in self.messages[0].headers

    @property
    def ids(self) -> list[str | None]:
        return [message.msg_id for message in self.messages]


class _Queue:
    """The appends that wait for one stream of the log."""

    def __init__(self) -> None:
        self.waiting: deque[Pending] = deque()
        self.wake = asyncio.Event()
        self.committing_bytes = 0


class Committer:
    """One batch for each stream of the log is under way at a time; appends that come meanwhile are the next one. So
    nothing waits without load, the order stays, and under load batches grow. (More at a time gained nothing in
    measurements.)"""

    def __init__(self, bus: Bus, telemetry: Telemetry, metrics: Metrics, most_events: int, most_bytes: int) -> None:
        self._bus = bus
        self._telemetry = telemetry
        self._most_events = most_events
        self._most_bytes = most_bytes
        self._queues = {stream: _Queue() for stream in bus.names.log_streams}
        self._events = 0
        self._bytes = 0
        self._sizes = metrics.histogram("events_commit_events", "Events of a commit", buckets=_SIZES)
        self._seconds = metrics.histogram("events_commit_seconds", "From taking events to JetStream's acknowledgement")

    @property
    def held_bytes(self) -> int:
        """The bytes that wait for their commit, or are being committed."""
        return self._bytes + sum(queue.committing_bytes for queue in self._queues.values())

    def submit(self, messages: Sequence[Outgoing], entities: Collection[str] = ()) -> "asyncio.Future[list[Stored]]":
        """Asks for messages of one stream to be stored, several of them atomically (at most 1,000).

        Raises LimitedError at once when too much is waiting. The future raises ConflictError, DuplicateError (several
        messages, one of them known already) or UnavailableError, which is an UnknownOutcomeError where they may have
        been stored. Cancelling it may come too late.
        """
        return self._pending(messages, entities, each=False)

    def submit_each(
        self,
        messages: Sequence[Outgoing],
        entities: Collection[str] = (),
        after: "asyncio.Future[list[Any]] | None" = None,
    ) -> "asyncio.Future[list[Outcome]]":
        """The same for messages that stand each for itself, expect no sequence and have different ids, at most 1,000:
        each has an outcome of its own. None is stored where a message of the submission `after` which they come
        could not be for now: its repetition would come too late."""
        return self._pending(messages, entities, each=True, after=after)

    def _pending(
        self,
        messages: Sequence[Outgoing],
        entities: Collection[str],
        each: bool,
        after: "asyncio.Future[list[Any]] | None" = None,
    ) -> "asyncio.Future[list[Any]]":
        size = sum(len(message.data) + _OVERHEAD for message in messages)
        full = self._events + len(messages) > self._most_events or self._bytes + size > self._most_bytes
        if full and self._events:
            raise LimitedError("too many events are waiting for their commit", retry_after=1)
        outcome: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        queue = self._queues[self._bus.names.stream_with(messages[0].subject)]
        queue.waiting.append(Pending(messages, outcome, size, entities, each, after, deadline.caller()))
        self._events += len(messages)
        self._bytes += size
        queue.wake.set()
        return outcome

    async def run(self) -> None:
        """Commits until cancelled; appends that still wait then are refused."""
        try:
            # Not a task group, which cancels only once its own task runs again: a commit would be begun meanwhile.
            await asyncio.gather(*(self._commit_to(stream, queue) for stream, queue in self._queues.items()))
        finally:
            for queue in self._queues.values():
                for pending in queue.waiting:
                    _fail(pending, UnavailableError("events is shutting down", retry_after=1))

    async def _commit_to(self, stream: str, queue: _Queue) -> None:
        taken: list[Pending] = []
        try:
            while True:
                await queue.wake.wait()
                taken = self._take(queue.waiting)
                if taken:
                    await self._commit(stream, queue, taken)
                elif not queue.waiting:
                    queue.wake.clear()
        finally:
            for pending in taken:
                _fail(pending, UnknownOutcomeError("events was shut down during the commit", retry_after=1))

    # ---- batches

    def _take(self, waiting: deque[Pending]) -> list[Pending]:
        """The next batch: the appends that wait, in order, as far as they fit together."""
        taken: list[Pending] = []
        ids: set[str | None] = set()
        entities: set[str] = set()
        count = size = 0
        while waiting:
            pending = waiting[0]
            if pending.after is not None and (error := _failure_before(pending.after)):
                _fail(pending, error)
            if pending.caller is not None and pending.caller.gone:
                _fail(pending, deadline.late_error("the commit"))
            if not pending.outcome.done() and taken:
                # JetStream checks each expectation of a batch against the stream as it was before the batch, and
                # refuses a batch that has an id twice.
                clashes = not ids.isdisjoint(pending.ids) or (
                    pending.expects and not entities.isdisjoint(pending.entities)
                )
                full = count + len(pending.messages) > MAX_BATCH or size + pending.size > BATCH_BYTES
                if pending.whole or clashes or full:
                    break
            waiting.popleft()
            self._events -= len(pending.messages)
            self._bytes -= pending.size
            if pending.outcome.done():  # its caller has gone
                continue
            taken.append(pending)
            if pending.whole:
                break
            ids.update(pending.ids)
            entities.update(pending.entities)
            count += len(pending.messages)
            size += pending.size
        return taken

    # ---- storing

    async def _commit(self, stream: str, queue: _Queue, taken: list[Pending]) -> None:
        count = sum(len(pending.messages) for pending in taken)
        started = time.perf_counter()
        queue.committing_bytes = sum(pending.size for pending in taken)
        messages = (message for pending in taken for message in pending.messages)
        try:
            with self._telemetry.batch("send", stream, messages, count=count) as span:
                await self._store(taken, count)
                if span is not None and (
                    missed := next(filter(None, (_failure_before(one.outcome) for one in taken)), None)
                ):
                    span.fail(missed.code, missed.detail)
        except Exception as error:
            if not isinstance(error, CrucibleError):
                log.exception("a commit of %d events failed", count)
            for pending in taken:
                _fail(pending, error)
        queue.committing_bytes = 0
        self._sizes.observe(count)
        self._seconds.observe(time.perf_counter() - started)

    async def _store(self, taken: list[Pending], count: int) -> None:
        if taken[0].whole:
            await self._whole(taken[0])
        elif count > FEW:
            await self._batch(taken)
        else:
            await self._singly(taken)

    async def _whole(self, pending: Pending) -> None:
        with deadline.on_behalf_of(pending.caller):
            sequences = await self._bus.commit(list(pending.messages))
        _resolve(pending, [Stored(sequence) for sequence in sequences])

    async def _batch(self, taken: list[Pending]) -> None:
        try:
            messages = [message for pending in taken for message in pending.messages]
            with deadline.on_behalf_of(deadline.earliest_caller([pending.caller for pending in taken])):
                stored = map(Stored, await self._bus.commit(messages))
        except UnavailableError:
            raise
        except CrucibleError:
            # One of them spoils it for all (a known id, a version) and nothing was stored: one by one shows which.
            await self._singly(taken)
            return
        for pending in taken:
            _resolve(pending, list(islice(stored, len(pending.messages))))

    async def _singly(self, taken: list[Pending]) -> None:
        """All at once, but written in order to one connection: JetStream stores them in this order."""
        if len(taken) == 1:
            await self._alone(taken[0])
        else:
            await asyncio.gather(*map(self._alone, taken))

    async def _alone(self, pending: Pending) -> None:
        with deadline.on_behalf_of(pending.caller):
            if len(pending.messages) > 1:
                outcomes = await asyncio.gather(*map(self._one, pending.messages))
            else:
                outcomes = [await self._one(pending.messages[0])]
        _resolve(pending, outcomes)

    async def _one(self, message: Outgoing) -> Outcome:
        try:
            return await self._bus.store(message)
        except CrucibleError as error:
            return error.as_value()


async def commit_expecting(
    bus: Bus, lookup: Lookup, committer: Committer, entries: Sequence[Entry], *, whole: bool = False
) -> list[Stored]:
    """Commits entries together, again and again while only neighbours of their entities come between: JetStream checks
    that nothing came to a shared subject, and the index that the entity's last event was the expected one before.

    Raises ConflictError where an expectation does not hold; with `whole` it names the event.
    """
    expectations = await _expectations(bus, lookup, entries, whole)
    for _ in range(_ATTEMPTS):
        left = dict(expectations)
        messages = [entry.outgoing(bus.names, left) for entry in entries]
        try:
            return await committer.submit(messages, entities_of(entries))
        except ConflictError:
            before, expectations = expectations, await _expectations(bus, lookup, entries, whole)
            if expectations == before:  # the conflict is another one
                raise
    raise UnavailableError("too many appends come between; try again", retry_after=1)


async def _expectations(bus: Bus, lookup: Lookup, entries: Sequence[Entry], whole: bool) -> dict[str, int]:
    """The last sequence of each shared subject, after which nothing may have come to it. Raises ConflictError."""
    found: dict[str, int] = {}
    for entry in entries:
        if not entry.shares_subject:
            continue
        about, subject = entry.stamped.event.metadata, entry.versions(bus.names)
        if subject not in found:
            last = await bus.last(bus.names.stream_of(about.world_id), subject)
            found[subject] = last.sequence if last else 0
        entity = about.world_id, entry.stamped.event.type, about.entity or ""
        current = await lookup.last_of(*entity, through=found[subject])
        if current != entry.stamped.expected_sequence:
            raise entry.conflict(current, whole)
    return found


def _resolve(pending: Pending, outcomes: Sequence[Outcome]) -> None:
    if pending.outcome.done():
        return
    if not pending.each and isinstance(outcomes[0], CrucibleError):
        pending.outcome.set_exception(outcomes[0])
    else:
        pending.outcome.set_result(list(outcomes))


def _failure_before(before: "asyncio.Future[list[Any]]") -> CrucibleError | None:
    """The error of a message that could not be stored for now; None where all were stored, or refused for good."""
    if not before.done() or before.cancelled():
        return None
    error = before.exception()
    outcomes = [error] if error else before.result()
    return next((untried(each) for each in outcomes if isinstance(each, UnavailableError)), None)


def _fail(pending: Pending, error: Exception) -> None:
    if not pending.outcome.done():
        pending.outcome.set_exception(error)
