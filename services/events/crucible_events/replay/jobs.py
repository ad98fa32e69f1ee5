"""The work of a replay: reading the log, handing on what it picks, batch by batch, and saying how far it has come.

A job is a record; whichever replica of `events` has its lease works on it. One that dies lets the lease run out, and
another goes on at the position that was written last: what was handed on after it is handed on twice, and known by its
ids.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence

import msgspec

from crucible_core.errors import CrucibleError, LimitedError, UnavailableError
from crucible_core.position import Position
from crucible_core.protocol.replays import ReplayTaken
from crucible_events.replay import registry
from crucible_events.replay.extent import Selection, select
from crucible_events.replay.registry import CANCELLED, DONE, FAILED, RUNNING, Record, Replays
from crucible_kit.clock import now_ms, timestamp
from crucible_kit.eventlog import passed, read_log
from crucible_kit.nats.bus import Bus, Message
from crucible_kit.principals import Principals
from crucible_kit.tasks import Turn
from crucible_kit.telemetry.metrics import Counter
from crucible_kit.types import Types

log = logging.getLogger(__name__)

LEASE_S = 10.0
_CHECKPOINT_S = 0.25
"""Not after each batch: every checkpoint is synced to disk."""
_READ = 1000
_MOST = {"hook": 200, "webhook": 200, "subscription": 1000}
"""Events in a batch, by the kind of target."""
_MOST_BYTES = 512 * 1024
_RATE_S = 0.25
"""With a rate, a batch is what may go out in this time."""
_FIRST_REST_S = 0.05
_LONGEST_REST_S = 1.0
_GONE_S = 5.0
"""How long a subscriber may not be there: its gateway may be connecting again."""


class Stopped(Exception):
    """The replay is no longer this job's to go on with: it was paused or cancelled, or somebody else has it."""


class Job:
    """One replay, while this process works on it. `nudge` wakes it where it waits, to see what has changed."""

    def __init__(
        self,
        bus: Bus,
        replays: Replays,
        types: Types,
        principals: Principals,
        record: Record,
        me: str,
        handed_on: Counter,
    ) -> None:
        self._bus = bus
        self._types = types
        self._principals = principals
        self._replays = replays
        self._record = record
        self._me = me
        self._handed_on = handed_on.labels(record.target.kind)
        self._trouble: str | None = None
        self._nudged = asyncio.Event()
        self._stopping = False
        self._saving = asyncio.Lock()
        self._saved_at = 0.0
        self._next_at = 0.0
        self._heard_at = _loop_time()
        self._rest_s = _FIRST_REST_S

    def nudge(self) -> None:
        self._nudged.set()

    def stop(self) -> None:
        """It ends at the next batch, and another replica may go on."""
        self._stopping = True
        self._nudged.set()

    async def run(self) -> None:
        """Never fails: what goes wrong ends the replay, and is its error."""
        keeper = asyncio.create_task(self._keep_lease())
        try:
            await self._hand_on_all()
            await self._end(DONE)
        except Stopped:
            pass
        except CrucibleError as error:
            await self._end(FAILED, error.detail)
        except Exception:
            log.exception("replay %s failed", self._record.id)
            await self._end(FAILED, "it failed inside the events service, whose log says why")
        finally:
            keeper.cancel()
            with contextlib.suppress(CrucibleError, Stopped):
                await self._save(release=True)

    # ---- the way through the log

    async def _hand_on_all(self) -> None:
        record, names = self._record, self._bus.names
        looked_to, to = names.position(record.position), names.position(record.to)
        if looked_to.reaches(to):
            return
        await self._principals.view.refresh()
        scope = self._principals.of(record.principal).scope
        selection = await self._types.resolve(
            lambda known: select(record.filters, record.world_id, record.room_id, names, known, scope)
        )
        reading = read_log(self._bus, after=looked_to, filters=selection.subjects, batch=_READ)
        async with contextlib.aclosing(reading) as batches:
            async for messages in batches:
                within = [message for message in messages if to.covers(message.sequence)]
                if within:
                    await self._hand_on(within, await _picked(selection, within))
                looked_to = passed(looked_to, messages)
                if not messages or looked_to.reaches(to):
                    return

    async def _hand_on(self, messages: Sequence[Message], picked: Sequence[Message]) -> None:
        """Returns once the target has taken, or refused, what is picked of some neighbouring messages."""
        seen, at = self._record.seen, {message.sequence: place for place, message in enumerate(messages)}
        before = self._bus.names.position(self._record.position)
        for part in self._parts(picked):
            waiting = part
            while waiting:
                await self._rest_until(self._next_at)
                taken = await self._taken(waiting)
                waiting = waiting[taken.taken :]
                # Everything before the next one that waits is dealt with.
                done = at[waiting[0].sequence] if waiting else at[part[-1].sequence] + 1
                self._advance(passed(before, messages[:done]), seen + done, taken)
                await self._checkpoint()
                if waiting:
                    await self._rest(taken.taken > 0)
        self._check()
        self._advance(passed(before, messages), seen + len(messages))
        await self._checkpoint()

    async def _taken(self, messages: Sequence[Message]) -> ReplayTaken:
        target = self._record.target
        try:
            taken = await registry.hand_on(self._bus, target, self._record.id, messages)
        except (UnavailableError, LimitedError) as error:
            if not self._bus.connected:
                self._heard_at = _loop_time()  # nobody could be heard
            elif target.kind == "subscription" and _loop_time() - self._heard_at > _GONE_S:
                raise CrucibleError("the subscriber has gone") from error
            self._trouble = error.detail
            return ReplayTaken(taken=0, sent=0, skipped=0)
        self._heard_at = _loop_time()
        self._trouble = taken.waiting
        self._handed_on.inc(taken.sent)
        if self._record.rate is not None:
            self._next_at = max(self._next_at, _loop_time() - _RATE_S) + taken.sent / self._record.rate
        return taken

    def _parts(self, messages: Sequence[Message]) -> Iterator[list[Message]]:
        """Batches that a request may hold and the rate allows."""
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
            raise Stopped

    async def _rest(self, moving: bool) -> None:
        """Longer each time that the target takes nothing."""
        self._rest_s = _FIRST_REST_S if moving else min(2 * self._rest_s, _LONGEST_REST_S)
        await self._rest_until(_loop_time() + self._rest_s)

    async def _rest_until(self, at: float) -> None:
        """Raises Stopped, as soon as there is a reason to."""
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

    async def _keep_lease(self) -> None:
        while True:
            await asyncio.sleep(LEASE_S / 3)
            with contextlib.suppress(CrucibleError, Stopped):
                await self._save()

    async def _end(self, state: str, error: str | None = None) -> None:
        with contextlib.suppress(Stopped):
            if state == DONE:
                self._advance(self._bus.names.position(self._record.to), self._record.seen)
            await self._save_surely(state, error)

    async def _save_surely(self, state: str, error: str | None) -> None:
        while True:
            try:
                await self._save(state=state, error=error)
            except UnavailableError:
                await self._rest(moving=False)
            else:
                return

    async def _save(self, *, state: str | None = None, error: str | None = None, release: bool = False) -> None:
        """Writes how far it has come; `state` only over a running one. Raises Stopped where somebody else has it."""

        def change(now: Record) -> Record:
            if now.owner != self._me:
                raise Stopped
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
            await registry.say_goodbye(self._bus, saved.target, saved.id, saved.state, saved.sent)


async def _picked(selection: Selection, messages: Sequence[Message]) -> list[Message]:
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
