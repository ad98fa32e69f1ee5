"""Lanes: the work of each handler that has any, in order, with places of its own, so that nobody waits for another."""

import asyncio
from collections import deque
from collections.abc import Mapping

import msgspec

from crucible_core.envelope import Event
from crucible_core.position import Position
from crucible_core.subjects import shard_of
from crucible_kit.nats.message import Message

ROOM = 1000
"""Events that wait in a lane; the others wait in the log."""
UNSETTLED = 16
"""Attempts for each place of a handler whose outcomes may be on their way to the disk."""
HELD_BYTES = 32 * 1024 * 1024
"""Bytes that the events in all lanes of a process may come to. Each lane may have one, whatever the others have."""


class Job(msgspec.Struct, eq=False):
    """One attempt at one handler's run or delivery of one event. `id` names the run or delivery in all its attempts.
    `pointer` is the message of the work queue that it comes from (None where it comes from the log), and `over` is told
    when it may be acknowledged. A `suspect` was perhaps being worked on when a process was killed. `tries` counts how
    often this process has begun with it, since something was away. A `sequence` of 0: its event is not in the log."""

    handler: str
    id: str
    attempt: int
    event: Event
    raw: bytes
    sequence: int
    stored_ms: int
    headers: Mapping[str, str] = {}
    pointer: Message | None = None
    over: asyncio.Future[None] | None = None
    suspect: bool = False
    tries: int = 0

    @property
    def traceparent(self) -> str:
        return self.event.metadata.traceparent or ""


class Lane:
    """A handler's jobs. Those from the log are in its order; retries and others from the work queue go first."""

    def __init__(self, handler: str, position: Position, fired_ms: int = 0) -> None:
        """`fired_ms` is when the last event up to `position` was committed that it was given."""
        self.handler = handler
        self.shard = shard_of(handler)
        self.fed = position
        """The place in the log up to which it has been given what is for it."""
        self.behind = False
        """Whether there is more for it in the log than it has been given, so that it must read on by itself."""
        self.catching_up = False
        self.worked = False
        """Whether something has ended since the shard's record was written."""
        self.has_ended = False
        """Whether any attempt of it has ended, however."""
        self.closed = False
        """Whether nothing more of it is begun here."""
        self.suspects = 0
        """How many of the next jobs from the log a process was perhaps killed by that had begun with them."""
        self.waiting: deque[Job] = deque()
        self.pointers: deque[Job] = deque()
        self.running: dict[Job, asyncio.Task[None]] = {}
        self.ended: set[Job] = set()
        """Those of them that have been attempted, and wait for their outcome to be durable: they take no place."""
        self.following: set[Job] = set()
        """Those that are recorded, and have only things left to do that follow from it."""
        self.held_back: list[Job] = []
        """Those that came too soon after another one, and are not recorded yet."""
        self.recording: asyncio.Task[None] | None = None
        self._unsettled: dict[int, int] = {}
        self._fired: deque[tuple[int, int]] = deque([(0, fired_ms)])
        self._ahead: list[Job] | None = None
        self._ahead_from = position
        self._skipped = Position()

    @property
    def idle(self) -> bool:
        busy = self.waiting or self.pointers or self.running or self.held_back or self.recording
        return not (busy or self.behind or self.catching_up)

    @property
    def taken(self) -> int:
        """Places that something has that is under way."""
        return len(self.running) - len(self.ended) - len(self.following)

    def has_place(self, concurrency: int) -> bool:
        """Whether one more may begin. Of what has ended and is not durable, a killed process has made too much, so that
        it is bounded, too."""
        free = self.taken < concurrency and len(self.ended) < UNSETTLED * concurrency
        return free and len(self.following) + len(self.held_back) < ROOM

    @property
    def fired_ms(self) -> int:
        """When the last event up to its `position` was committed that it was given."""
        position = self.position
        while len(self._fired) > 1 and position.covers(self._fired[1][0]):
            self._fired.popleft()
        return self._fired[0][1]

    @property
    def from_log(self) -> int:
        """What it was given from the log and is not over."""
        return len(self._unsettled)

    @property
    def position(self) -> Position:
        """Everything up to here is over, or is work of its own in the queue."""
        return self.fed.before_first(self._unsettled)

    @property
    def began_ms(self) -> int:
        """When the first of what is not over came here; 0 where all is."""
        return next(iter(self._unsettled.values()), 0)

    @property
    def full(self) -> bool:
        return len(self.waiting) >= ROOM

    @property
    def crowded(self) -> bool:
        """Whether as much waits from the work queue as may."""
        return len(self.pointers) >= ROOM

    def put(self, job: Job, now_ms: int) -> None:
        """Takes the next job from the log."""
        self.waiting.append(job)
        self._unsettled[job.sequence] = now_ms
        self.fed = self.fed.after(job.sequence)

    @property
    def empty(self) -> bool:
        return not (self.pointers or self.waiting)

    def take(self) -> Job:
        """The next job to begin with, unless it is empty."""
        return (self.pointers or self.waiting).popleft()

    def fires(self, job: Job, apart_ms: int) -> bool:
        """Whether the next event from the log comes late enough after the last one that it was given; asked of each, in
        their order. Told by the times of their commits, so that whoever reads the log again decides alike."""
        if job.stored_ms < self._fired[-1][1] + apart_ms:
            return False
        self._fired.append((job.sequence, job.stored_ms))
        return True

    def settle(self, job: Job) -> None:
        """The job is over, and that is durable."""
        self.worked = True
        if job.pointer is None:
            self._unsettled.pop(job.sequence, None)

    def skip(self, since: Position) -> list[Job]:
        """Leaves out what waits and is no later than a place in the log; what is begun goes on."""
        if since == self._skipped or self.position.reaches(since):
            self._skipped = since
            return []
        dropped = [job for job in self.waiting if since.covers(job.sequence)]
        self.waiting = deque(job for job in self.waiting if not since.covers(job.sequence))
        for job in dropped:
            self._unsettled.pop(job.sequence, None)
        self.fed = self.fed.most(since)
        return dropped

    def start_over(self, at: Position) -> list[Job]:
        """Goes on from another place; what waits is not what is there. What is begun goes on."""
        dropped = list(self.waiting)
        self.waiting.clear()
        for job in dropped:
            self._unsettled.pop(job.sequence, None)
        self.fed = at
        self.give_up_joining()
        return dropped

    # ---- from behind to the front

    def begin_to_join(self, reader_at: Position) -> None:
        """From now on, what the reader of the log brings after `reader_at` is kept for when this lane has come so
        far."""
        self._ahead, self._ahead_from = [], reader_at

    def keep(self, job: Job) -> None:
        """A job for a lane that is behind."""
        if self._ahead is not None:
            self._ahead.append(job)
            if len(self._ahead) > ROOM:
                self._ahead = None

    def join(self, reader_at: Position, now_ms: int) -> bool:
        """It has been given everything up to where it began to join: whether it is at the front now."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return False
        self.fed = self.fed.most(self._ahead_from)
        for job in ahead:
            if not self.fed.covers(job.sequence):
                self.put(job, now_ms)
        self.fed = self.fed.most(reader_at)
        self.behind = False
        return True

    def give_up_joining(self) -> None:
        self._ahead = None
