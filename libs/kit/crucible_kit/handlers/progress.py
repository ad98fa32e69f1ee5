"""How far the handlers of one shard have come in the log: their lanes, and the record of the shard that follows."""

from crucible_core.position import Position
from crucible_core.subjects import Names
from crucible_kit.clock import now_ms
from crucible_kit.eventlog import LogState
from crucible_kit.handlers.lanes import UNSETTLED, Job, Lane
from crucible_kit.handlers.service import Service
from crucible_kit.handlers.shards import Shard, ShardRecord

NEAR = 10_000
"""Events that a lane may be behind and still be served by the one reading of the log; a shard without work tells of its
place after so many."""
CLOCKS_DIFFER_MS = 2000


class Progress:
    """Of a shard that this replica owns. Its handlers have had the log up to where the one reading of it is, those with
    a lane apart; or up to `ahead`, while it is not as far as that."""

    def __init__(self, shard: Shard, service: Service, names: Names, log: LogState) -> None:
        record = shard.record
        at = log.translate(names.position(record.position), record.log)
        self._log = log
        self._service = service
        self._names = names
        self.ahead: Position | None = at
        self.lanes: dict[str, Lane] = {}
        """Of handlers that have work."""
        self.suspect_to = log.end if shard.dead else names.start
        """Where its owner was killed: what that may have begun with is no later."""
        self.worked = False
        """Whether something has ended since its record was written, in a lane that is no more."""
        self._fired = dict(record.fired)
        """When the last event was committed that a handler without a lane was given."""
        for handler, place in record.lanes.items():
            lane = self.open(handler, log.translate(names.position(place), record.log))
            lane.behind = not lane.fed.is_near(at, NEAR) or self._is_kept(handler)
            lane.suspects = self._held_by_the_dead(handler) if shard.dead else 0

    def at(self, read_to: Position) -> Position:
        return read_to if self.ahead is None else read_to.most(self.ahead)

    def pass_to(self, read_to: Position) -> None:
        """The one reading of the log has come so far."""
        if self.ahead is not None and read_to.reaches(self.ahead):
            self.ahead = None

    def start_over(self, log: LogState, read_to: Position) -> list[Job]:
        """Takes its place in another log, or in what is left of it. Returns what is not to be done any more."""
        before, self._log = self._log.created, log
        self.ahead = log.translate(self.at(read_to), before)
        dropped = []
        for lane in self.lanes.values():
            dropped += lane.start_over(log.translate(lane.fed, before))
        return dropped

    def stop(self, read_to: Position) -> None:
        """Nothing more is handed to its lanes here."""
        self.ahead, self.worked = self.at(read_to), True

    def lane(self, handler: str, read_to: Position) -> Lane:
        """The handler's, opened where it is not there."""
        return self.lanes.get(handler) or self.open(handler, self.at(read_to))

    def open(self, handler: str, at: Position) -> Lane:
        lane = self.lanes[handler] = Lane(handler, at, self._fired.pop(handler, 0))
        return lane

    def open_for(self, job: Job, read_to: Position) -> Lane:
        """For the first job from the log of a handler."""
        lane = self.open(job.handler, self.at(read_to))
        if self.suspect_to.covers(job.sequence):
            lane.suspects = self._held_by_the_dead(job.handler)
        return lane

    def close_idle(self, lane: Lane, read_to: Position) -> None:
        """Ends a lane that has nothing more to do, and has had all that the handlers without a lane have had."""
        if not lane.idle or self.ahead is not None or not read_to.reaches(lane.fed):
            return
        if self.lanes.pop(lane.handler, None) is not None:
            self.worked |= lane.worked
            if lane.fired_ms:
                self._fired[lane.handler] = lane.fired_ms

    def is_settled(self, to: Position, read_to: Position) -> bool:
        """Whether everything up to there is over, for every handler."""
        places = (self.at(read_to), *(lane.position for lane in self.lanes.values()))
        return all(place.reaches(to) for place in places)

    def record(self, before: ShardRecord, read_to: Position, bus_now_ms: float) -> ShardRecord:
        """The record that the bucket is to hold: the one that it held, where nothing worth telling has happened."""
        at, lanes = self.at(read_to), self.lanes.values()
        places = {lane.handler: lane.position.encoded for lane in lanes if not lane.position.reaches(at)}
        quiet = not places and not before.lanes and not (self.worked or any(lane.worked for lane in lanes))
        if quiet and self._names.position(before.position).is_near(at, NEAR):
            return before
        self.worked = False
        for lane in lanes:
            lane.worked = False
        began = min((lane.began_ms for lane in lanes if lane.began_ms), default=now_ms())
        self._forget_old(bus_now_ms - CLOCKS_DIFFER_MS)
        fired = self._fired | {lane.handler: lane.fired_ms for lane in lanes if lane.fired_ms}
        return ShardRecord(before.owner, at.encoded, places, fired, began, log=list(self._log.created))

    def _forget_old(self, before_ms: float) -> None:
        """Nothing can come too soon any more after what was given so long ago."""
        for handler, at_ms in list(self._fired.items()):
            plan = self._service.plan(handler)
            if plan is None or at_ms + plan.apart_ms < before_ms:
                del self._fired[handler]

    def _is_kept(self, handler: str) -> bool:
        """Whether it may not even be matched for now, so that nothing would be offered to it."""
        plan = self._service.plan(handler)
        return plan is not None and plan.held and plan.keeps

    def _held_by_the_dead(self, handler: str) -> int:
        """How many of a handler's jobs a process may have begun that was killed."""
        plan = self._service.plan(handler)
        return (1 + UNSETTLED) * plan.concurrency if plan is not None else 0
