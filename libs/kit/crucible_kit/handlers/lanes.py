"""Lanes: the jobs of each handler with work, in order, with slots of its own, so that no handler waits for another."""

import asyncio
from collections import deque
from collections.abc import Mapping

import msgspec

from crucible_core.envelope import Event
from crucible_core.position import Position
from crucible_core.subjects import shard_of
from crucible_kit.nats.message import Message

CAPACITY = 1000
"""Events that wait in a lane; the others wait in the log."""
_FIRST_WINDOW = 2
UNSETTLED = 16
"""Attempts for each slot of a handler whose outcomes may be on their way to the disk."""


class Job(msgspec.Struct, eq=False):
    """One attempt at one handler's run or delivery of one event. `id` names the run or delivery in all its attempts.
    `pointer` is its message in the work queue (None where it comes from the log), and `over` is set when that may be
    acknowledged. A `suspect` may have been in work when a process was killed. `tries` counts the starts in this
    process, which repeats it while something is away. A `sequence` of 0: its event is not in the log."""

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
        """`fired_ms` is the commit time of its last event up to `position`."""
        self.handler = handler
        self.shard = shard_of(handler)
        self.fed = position
        """The position in the log up to which it has its events."""
        self.behind = False
        """True if the log has more events for it, so that it must read on by itself."""
        self.catching_up = False
        self.worked = False
        """True if a job has ended since the shard's record was written."""
        self.window = _FIRST_WINDOW
        """Slots that it may use for now: one more after an attempt that used the last one, half of them after one that
        is to be made again. So handlers that never answer take few slots, and delay none that does."""
        self.closed = False
        """True if none of its jobs begins here any more."""
        self.suspects = 0
        """Number of the next jobs from the log that a killed process may have begun."""
        self.waiting: deque[Job] = deque()
        self.pointers: deque[Job] = deque()
        self.running: dict[Job, asyncio.Task[None]] = {}
        self.ended: set[Job] = set()
        """Running jobs whose attempt has ended and whose outcome is not durable yet: they use no slot."""
        self.following: set[Job] = set()
        """Recorded jobs whose effects are not done yet."""
        self.held_back: list[Job] = []
        """Jobs that came too soon after another one, and are not recorded yet."""
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
    def slots_used(self) -> int:
        """Slots of the jobs under way."""
        return len(self.running) - len(self.ended) - len(self.following)

    def has_slot(self, concurrency: int) -> bool:
        """Returns True if one more job may begin. A killed process repeats the jobs whose outcome is not durable, so
        their number is limited, too."""
        free = self.slots_used < min(concurrency, self.window) and len(self.ended) < UNSETTLED * concurrency
        return free and len(self.following) + len(self.held_back) < CAPACITY

    def end_attempt(self, job: Job, again: bool) -> None:
        """Frees the slot of a job; `again` says that another attempt is to follow."""
        if again:
            self.window = max(1, self.window // 2)
        elif self.slots_used >= self.window:
            self.window += 1
        self.ended.add(job)

    @property
    def fired_ms(self) -> int:
        """Commit time of its last event up to its `position`."""
        position = self.position
        while len(self._fired) > 1 and position.covers(self._fired[1][0]):
            self._fired.popleft()
        return self._fired[0][1]

    @property
    def from_log(self) -> int:
        """Number of its jobs from the log that are not over."""
        return len(self._unsettled)

    @property
    def position(self) -> Position:
        """Everything up to here is over, or is work of its own in the queue."""
        return self.fed.before_first(self._unsettled)

    @property
    def began_ms(self) -> int:
        """Arrival time of the first job that is not over; 0 where all are."""
        return next(iter(self._unsettled.values()), 0)

    @property
    def full(self) -> bool:
        return len(self.waiting) >= CAPACITY

    @property
    def pointers_full(self) -> bool:
        """True if the limit of waiting jobs from the work queue is reached."""
        return len(self.pointers) >= CAPACITY

    def put(self, job: Job, now_ms: int) -> None:
        """Adds the next job from the log."""
        self.waiting.append(job)
        self._unsettled[job.sequence] = now_ms
        self.fed = self.fed.after(job.sequence)

    @property
    def empty(self) -> bool:
        return not (self.pointers or self.waiting)

    def take(self) -> Job:
        """Removes and returns the next job, unless it is empty."""
        return (self.pointers or self.waiting).popleft()

    def fires(self, job: Job, apart_ms: int) -> bool:
        """Returns True if the next event from the log comes late enough after the last one. It is called for each event
        in order, and compares commit times, so that another reading of the log decides alike."""
        if job.stored_ms < self._fired[-1][1] + apart_ms:
            return False
        self._fired.append((job.sequence, job.stored_ms))
        return True

    def settle(self, job: Job) -> None:
        """Notes that the job is over, and that this is durable."""
        self.worked = True
        if job.pointer is None:
            self._unsettled.pop(job.sequence, None)

    def skip(self, since: Position) -> list[Job]:
        """Drops the waiting jobs up to a position in the log, and returns them; running jobs go on."""
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
        """Continues from another position. Drops the waiting jobs, and returns them; running jobs go on."""
        dropped = list(self.waiting)
        self.waiting.clear()
        for job in dropped:
            self._unsettled.pop(job.sequence, None)
        self.fed = at
        self.give_up_joining()
        return dropped

    # ---- from behind to the front

    def begin_to_join(self, reader_at: Position) -> None:
        """Keeps the jobs that the shared reader brings after `reader_at` from now on, until this lane has come so
        far."""
        self._ahead, self._ahead_from = [], reader_at

    def keep(self, job: Job) -> None:
        """Keeps a job for a lane that is behind."""
        if self._ahead is not None:
            self._ahead.append(job)
            if len(self._ahead) > CAPACITY:
                self._ahead = None

    def join(self, reader_at: Position, now_ms: int) -> bool:
        """Joins the shared reader, once the lane has everything up to the start of joining. Returns False if it
        cannot."""
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
