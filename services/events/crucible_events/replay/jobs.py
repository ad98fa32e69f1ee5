"""Jobs of replays: each reads the log, sends the selected events to the target in batches, and stores its position.

A job is a record; the replica of `events` that has its lease works on it. One that dies lets the lease run out, and
another goes on at the stored position: events after it are sent twice, and the target knows them by their ids.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Iterator, Sequence

import msgspec

from crucible_core.errors import CrucibleError, LimitedError, UnavailableError
from crucible_core.limits import REPLAYS_RUNNING
from crucible_core.position import Position
from crucible_core.protocol.replays import ReplayTaken
from crucible_events.replay import registry
from crucible_events.replay.extent import Selection, select
from crucible_events.replay.registry import CANCELLED, DONE, FAILED, RUNNING, Record, Replays
from crucible_kit.clock import now_ms, timestamp
from crucible_kit.eventlog import position_after, read_log
from crucible_kit.nats.bus import Bus, Message
from crucible_kit.principals import Principals
from crucible_kit.tasks import Turn, finish
from crucible_kit.telemetry.metrics import Counter, Metrics
from crucible_kit.types import Types

log = logging.getLogger(__name__)

LEASE_S = 10.0
_START_S = 30.0
_LOOK_S = 1.0
_TIDY_S = 60.0
_GRACE_S = 5.0
_CHECKPOINT_S = 0.25
"""Not after each batch: every checkpoint is synced to disk."""
_READ = 1000
_MOST = {"hook": 200, "webhook": 200, "subscription": 1000}
"""Events in a batch, by the kind of target."""
_MOST_BYTES = 512 * 1024
_RATE_S = 0.25
"""With a rate, a batch has the events of this time."""
_FIRST_REST_S = 0.05
_LONGEST_REST_S = 1.0
_GONE_S = 5.0
"""The time that a subscriber may be away: its gateway may be connecting again."""


class StoppedError(Exception):
    """This job must not go on: the replay was paused or cancelled, or another replica has it."""


class Job:
    """One replay, while this process works on it. `nudge` wakes it, to read the changed record."""

    def __init__(
        self,
        bus: Bus,
        replays: Replays,
        types: Types,
        principals: Principals,
        record: Record,
        me: str,
        sent: Counter,
    ) -> None:
        self._bus = bus
        self._types = types
        self._principals = principals
        self._replays = replays
        self._record = record
        self._me = me
        self._sent = sent.labels(record.target.kind)
        self._trouble: str | None = None
        self._nudged = asyncio.Event()
        self._stopping = False
        self._saving = asyncio.Lock()
        self._saved_at = 0.0
        self._next_at = 0.0
        self._answered_at = _loop_time()
        self._rest_s = _FIRST_REST_S

    def nudge(self) -> None:
        self._nudged.set()

    def stop(self) -> None:
        """Ends the job at the next batch; another replica may go on."""
        self._stopping = True
        self._nudged.set()

    async def run(self) -> None:
        """Never fails: an exception ends the replay, and is its error."""
        renewal = asyncio.create_task(self._renew_lease())
        try:
            await self._send_all()
            await self._end(DONE)
        except StoppedError:
            pass
        except CrucibleError as error:
            await self._end(FAILED, error.detail)
        except Exception:
            log.exception("replay %s failed", self._record.id)
            await self._end(FAILED, "it failed inside the events service, whose log says why")
        finally:
            renewal.cancel()
            with contextlib.suppress(CrucibleError, StoppedError):
                await self._save(release=True)

    # ---- the log

    async def _send_all(self) -> None:
        record, names = self._record, self._bus.names
        position, to = names.position(record.position), names.position(record.to)
        if position.reaches(to):
            return
        await self._principals.view.refresh()
        scope = self._principals.of(record.principal).scope
        selection = await self._types.resolve(
            lambda known: select(record.filters, record.world_id, record.room_id, names, known, scope)
        )
        reading = read_log(self._bus, after=position, filters=selection.subjects, batch=_READ)
        async with contextlib.aclosing(reading) as batches:
            async for messages in batches:
                within = [message for message in messages if to.covers(message.sequence)]
                if within:
                    await self._send(within, await _select(selection, within))
                position = position_after(position, messages)
                if not messages or position.reaches(to):
                    return

    async def _send(self, messages: Sequence[Message], picked: Sequence[Message]) -> None:
        """Returns once the target has taken, or refused, the `picked` ones of some neighbouring messages."""
        seen, at = self._record.seen, {message.sequence: index for index, message in enumerate(messages)}
        before = self._bus.names.position(self._record.position)
        for part in self._parts(picked):
            waiting = part
            while waiting:
                await self._rest_until(self._next_at)
                taken = await self._send_batch(waiting)
                waiting = waiting[taken.taken :]
                # All messages before the next one that waits are done.
                done = at[waiting[0].sequence] if waiting else at[part[-1].sequence] + 1
                self._advance(position_after(before, messages[:done]), seen + done, taken)
                await self._checkpoint()
                if waiting:
                    await self._rest(taken.taken > 0)
        self._check()
        self._advance(position_after(before, messages), seen + len(messages))
        await self._checkpoint()

    async def _send_batch(self, messages: Sequence[Message]) -> ReplayTaken:
        target = self._record.target
        try:
            taken = await registry.send(self._bus, target, self._record.id, messages)
        except (UnavailableError, LimitedError) as error:
            if not self._bus.connected:
                self._answered_at = _loop_time()  # no answer could arrive
            elif target.kind == "subscription" and _loop_time() - self._answered_at > _GONE_S:
                raise CrucibleError("the subscriber has gone") from error
            self._trouble = error.detail
            return ReplayTaken(taken=0, sent=0, skipped=0)
        self._answered_at = _loop_time()
        self._trouble = taken.waiting
        self._sent.inc(taken.sent)
        if self._record.rate is not None:
            self._next_at = max(self._next_at, _loop_time() - _RATE_S) + taken.sent / self._record.rate
        return taken

    def _parts(self, messages: Sequence[Message]) -> Iterator[list[Message]]:
        """Batches within the limits of a request and the rate."""
        most, rate = _MOST[self._record.target.kind], self._record.rate
        if rate is not None:
            most = max(1, min(most, int(rate * _RATE_S)))
        part: list[Message] = []
        size = 0
        for message in messages:
            if part and (len(part) >= most or size + len(message.data) > _MOST_BYTES):
                yield part
                part, size = [], 0
            part.append(message)
            size += len(message.data)
        if part:
            yield part

    # ---- waiting

    def _check(self) -> None:
        now = self._replays.records.get(self._record.id)
        if self._stopping or now is None or now.state != RUNNING or now.owner != self._me:
            raise StoppedError

    async def _rest(self, moving: bool) -> None:
        """Longer each time that the target takes nothing."""
        self._rest_s = _FIRST_REST_S if moving else min(2 * self._rest_s, _LONGEST_REST_S)
        await self._rest_until(_loop_time() + self._rest_s)

    async def _rest_until(self, at: float) -> None:
        """Raises StoppedError as soon as the job must not go on."""
        while True:
            self._check()
            if at <= _loop_time():
                return
            self._nudged.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(at):
                    await self._nudged.wait()

    # ---- the record

    def _advance(self, position: Position, seen: int, taken: ReplayTaken | None = None) -> None:
        record = self._record
        if taken is not None:
            record = msgspec.structs.replace(
                record,
                matched=record.matched + taken.taken,
                sent=record.sent + taken.sent,
                skipped=record.skipped + taken.skipped,
            )
        position = position.most(self._bus.names.position(record.position))
        self._record = msgspec.structs.replace(record, position=position.encoded, seen=seen)

    async def _checkpoint(self) -> None:
        if _loop_time() - self._saved_at > _CHECKPOINT_S:
            with contextlib.suppress(UnavailableError):  # the work goes on; the lease tells when it must not
                await self._save()

    async def _renew_lease(self) -> None:
        while True:
            await asyncio.sleep(LEASE_S / 3)
            with contextlib.suppress(CrucibleError, StoppedError):
                await self._save()

    async def _end(self, state: str, error: str | None = None) -> None:
        with contextlib.suppress(StoppedError):
            if state == DONE:
                self._advance(self._bus.names.position(self._record.to), self._record.seen)
            await self._save_until_stored(state, error)

    async def _save_until_stored(self, state: str, error: str | None) -> None:
        while True:
            try:
                await self._save(state=state, error=error)
            except UnavailableError:
                await self._rest(moving=False)
            else:
                return

    async def _save(self, *, state: str | None = None, error: str | None = None, release: bool = False) -> None:
        """Stores the position; `state` only over a running one. Raises StoppedError where another replica has it."""

        def change(now: Record) -> Record:
            if now.owner != self._me:
                raise StoppedError
            ends = state is not None and now.state == RUNNING
            mine = self._record
            return msgspec.structs.replace(
                now,
                position=mine.position,
                seen=mine.seen,
                matched=mine.matched,
                sent=mine.sent,
                skipped=mine.skipped,
                state=state if ends and state is not None else now.state,
                error=error if ends else self._trouble if now.state == RUNNING else now.error,
                owner="" if release else self._me,
                lease_until_ms=0 if release else now_ms() + int(LEASE_S * 1000),
                updated_at=timestamp(),
                changed_ms=now_ms(),
            )

        async with self._saving:
            saved = await self._replays.change(self._record.id, change)
            self._saved_at = _loop_time()
        if release and saved.state in (DONE, CANCELLED, FAILED):
            await registry.announce_end(self._bus, saved.target, saved.id, saved.state, saved.sent)


class Jobs:
    """The jobs of this replica, each of which holds a lease."""

    def __init__(self, bus: Bus, replays: Replays, types: Types, principals: Principals, metrics: Metrics) -> None:
        self._bus = bus
        self._types = types
        self._replays = replays
        self._principals = principals
        self._me = secrets.token_hex(8)
        self._jobs: dict[str, tuple[Job, asyncio.Task[None]]] = {}
        self._news = asyncio.Event()
        self._sent = metrics.counter("replayed_events", "Events that replays handed on", ("target",))
        metrics.gauge("replays_running", "Replays that this process works on").set_function(lambda: len(self._jobs))
        replays.changed = self._wake

    async def run(self) -> None:
        """Works on replays until cancelled; then other replicas may go on with them."""
        await self._replays.view.reach(0, timeout=_START_S)
        tidy_at = 0.0
        try:
            while True:
                self._news.clear()
                with contextlib.suppress(CrucibleError):
                    await self._begin()
                    if (now := asyncio.get_running_loop().time()) >= tidy_at:
                        tidy_at = now + _TIDY_S
                        await self._replays.forget_old(now_ms())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._news.wait()
        finally:
            for job, _ in self._jobs.values():
                job.stop()
            await finish({task for _, task in self._jobs.values()}, _GRACE_S)

    async def _begin(self) -> None:
        for record in sorted(self._replays.records.values(), key=lambda record: record.created_at):
            if len(self._jobs) >= REPLAYS_RUNNING:
                return
            if record.id not in self._jobs and _is_free(record):
                claimed = await self._replays.change(record.id, self._claim)
                if claimed.owner == self._me:
                    self._start(claimed)

    def _claim(self, record: Record) -> Record | None:
        if not _is_free(record):
            return None
        return msgspec.structs.replace(record, owner=self._me, lease_until_ms=now_ms() + int(LEASE_S * 1000))

    def _start(self, record: Record) -> None:
        job = Job(self._bus, self._replays, self._types, self._principals, record, self._me, self._sent)
        task = asyncio.create_task(job.run())
        self._jobs[record.id] = (job, task)
        task.add_done_callback(lambda _: self._remove(record.id))

    def _remove(self, replay: str) -> None:
        self._jobs.pop(replay, None)
        self._news.set()

    def _wake(self, replay: str) -> None:
        running = self._jobs.get(replay)
        if running is not None:
            running[0].nudge()
        else:
            self._news.set()


def _is_free(record: Record) -> bool:
    """True for a running replay that no replica works on: it has no owner, or the owner's lease has ended."""
    return record.state == RUNNING and (not record.owner or record.lease_until_ms < now_ms())


async def _select(selection: Selection, messages: Sequence[Message]) -> list[Message]:
    found, turn = [], Turn()
    for message in messages:
        if turn.over:
            await turn.pass_on()
        if _picks(selection, message):
            found.append(message)
    return found


def _picks(selection: Selection, message: Message) -> bool:
    try:
        return selection.picks(message)
    except msgspec.DecodeError as error:
        log.error("event %d cannot be read: %s", message.sequence, error)
        return False


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
