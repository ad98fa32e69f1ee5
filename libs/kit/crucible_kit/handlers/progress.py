"""Progress of one shard in the log: the lanes of its handlers, and the record that results from them."""

from crucible_core.position import Position
from crucible_core.subjects import Names
from crucible_kit.clock import now_ms
from crucible_kit.eventlog import LogState
from crucible_kit.handlers.lanes import UNSETTLED, Job, Lane
from crucible_kit.handlers.service import Service
from crucible_kit.handlers.shards import Shard, ShardRecord

NEAR = 10_000
"""The shared reader of the log serves lanes that are at most so many events behind; a shard without work records its
position after so many."""
CLOCKS_DIFFER_MS = 2000


class Progress:
    """Progress of a shard that this replica owns. Its handlers without a lane have had the log up to the position of
    the shared reader, or up to `ahead` while the reader is behind that."""

    def __init__(self, shard: Shard, service: Service, names: Names, log: LogState) -> None:
        record = shard.record
        at = log.translate(names.position(record.position), record.log)
        self._log = log
        self._service = service
        self._names = names
        self.ahead: Position | None = at
        self.lanes: dict[str, Lane] = {}
        """By handler with work."""
        self.suspect_to = log.end if shard.dead else names.start
        """Where its owner was killed, the end of the events that it may have begun."""
        self.worked = False
        """True if a job has ended since the last record, in a lane that is closed."""
        self._fired = dict(record.fired)
        """Commit time of the last event of each handler without a lane."""
        for handler, encoded in record.lanes.items():
            lane = self.open(handler, log.translate(names.position(encoded), record.log))
            lane.behind = not lane.fed.is_near(at, NEAR) or self._is_kept(handler)
            lane.suspects = self._held_by_the_dead(handler) if shard.dead else 0

    def at(self, read_to: Position) -> Position:
        return read_to if self.ahead is None else read_to.most(self.ahead)

    def pass_to(self, read_to: Position) -> None:
        """Notes the position of the shared reader."""
        if self.ahead is not None and read_to.reaches(self.ahead):
            self.ahead = None

    def start_over(self, log: LogState, read_to: Position) -> list[Job]:
        """Moves to another log, or to the rest of the present one. Returns the jobs that are dropped."""
        before, self._log = self._log.created, log
        self.ahead = log.translate(self.at(read_to), before)
        dropped = []
        for lane in self.lanes.values():
            dropped += lane.start_over(log.translate(lane.fed, before))
        return dropped

    def stop(self, read_to: Position) -> None:
        """Fixes the position: its lanes get nothing more here."""
        self.ahead, self.worked = self.at(read_to), True

    def lane(self, handler: str, read_to: Position) -> Lane:
        """The handler's lane, which is opened where there is none."""
        return self.lanes.get(handler) or self.open(handler, self.at(read_to))

    def open(self, handler: str, at: Position) -> Lane:
        lane = self.lanes[handler] = Lane(handler, at, self._fired.pop(handler, 0))
        return lane

    def open_for(self, job: Job, read_to: Position) -> Lane:
        """Opens a lane for the first job of a handler from the log."""
        lane = self.open(job.handler, self.at(read_to))
        if self.suspect_to.covers(job.sequence):
            lane.suspects = self._held_by_the_dead(job.handler)
        return lane

    def close_idle(self, lane: Lane, read_to: Position) -> None:
        """Closes a lane that is idle, and has had the log as far as the handlers without a lane."""
        if not lane.idle or self.ahead is not None or not read_to.reaches(lane.fed):
            return
        if self.lanes.pop(lane.handler, None) is not None:
            self.worked |= lane.worked
            if lane.fired_ms:
                self._fired[lane.handler] = lane.fired_ms

    def is_settled(self, to: Position, read_to: Position) -> bool:
        """Returns True if every handler has settled the log up to a position."""
        positions = (self.at(read_to), *(lane.position for lane in self.lanes.values()))
        return all(position.reaches(to) for position in positions)

    def record(self, before: ShardRecord, read_to: Position, bus_now_ms: float) -> ShardRecord:
        """The record for the bucket; the same as `before` where nothing worth a write has happened."""
        at, lanes = self.at(read_to), self.lanes.values()
        positions = {lane.handler: lane.position.encoded for lane in lanes if not lane.position.reaches(at)}
        quiet = not positions and not before.lanes and not (self.worked or any(lane.worked for lane in lanes))
        if quiet and self._names.position(before.position).is_near(at, NEAR):
            return before
        self.worked = False
        for lane in lanes:
            lane.worked = False
        began = min((lane.began_ms for lane in lanes if lane.began_ms), default=now_ms())
        self._forget_old(bus_now_ms - CLOCKS_DIFFER_MS)
        fired = self._fired | {lane.handler: lane.fired_ms for lane in lanes if lane.fired_ms}
        return ShardRecord(before.owner, at.encoded, positions, fired, began, log=list(self._log.created))

    def _forget_old(self, before_ms: float) -> None:
        """Drops times so old that no further event can come too soon after them."""
        for handler, at_ms in list(self._fired.items()):
            plan = self._service.plan(handler)
            if plan is None or at_ms + plan.apart_ms < before_ms:
                del self._fired[handler]

    def _is_kept(self, handler: str) -> bool:
        """Returns True if a held handler keeps its events, and may not be matched for now."""
        plan = self._service.plan(handler)
        return plan is not None and plan.held and plan.keeps

    def _held_by_the_dead(self, handler: str) -> int:
        """Upper bound of the jobs of a handler that a killed process may have begun."""
        plan = self._service.plan(handler)
        return (1 + UNSETTLED) * plan.concurrency if plan is not None else 0
