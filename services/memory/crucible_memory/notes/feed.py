"""Feed of File events: one replica at a time takes them in order, and commits what follows from each before its
position advances. Any replica may read an event again, as often as it likes: see `committer`.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from crucible_core.envelope import decode
from crucible_core.errors import CrucibleError, LimitedError, NotFoundError, UnavailableError
from crucible_core.position import Position, counted
from crucible_core.subjects import NO_REACTION
from crucible_kit.buckets import Bucket
from crucible_kit.eventlog import log_end, position_after, read_log
from crucible_kit.handlers.shards import Ownership, Shard, ShardRecord
from crucible_kit.nats.bus import Bus, Message
from crucible_kit.nats.inflight import park
from crucible_kit.tasks import finish
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.telemetry.spans import Telemetry
from crucible_memory.notes.committer import NoteCommitter
from crucible_memory.notes.edits import Edit, FilePayload, cause_of, edits_of, folder_of
from crucible_memory.writer import Writer

log = logging.getLogger(__name__)

T = TypeVar("T")

AT_ONCE = 200
"""Events of one batch."""
CHECKPOINT = 100
"""Sequences after which the position is stored, also within a second."""
SUSPECTS = AT_ONCE + CHECKPOINT
"""Events that a killed process may have begun."""
DEADLY = 2
"""Processes that may end while they work on one event alone, before it is parked."""
PARK_AFTER = 5
"""Failures of this service itself after which an event is parked."""
_KINDS = ("Created", "Modified", "Deleted", "Renamed", "DirectoryDeleted")
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError)
_GRACE_S = 10.0
_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0


class FileFeed:
    """Takes File events as long as this replica is the one that does: their order is one for all folders."""

    def __init__(self, bus: Bus, bucket: Bucket, writer: Writer, telemetry: Telemetry, metrics: Metrics) -> None:
        self._bus = bus
        self._writer = writer
        self._telemetry = telemetry
        self._committer = NoteCommitter(writer, metrics)
        self._shards = Ownership(
            bus,
            bucket,
            "memory",
            taken=self._begin,
            dropped=self._stop,
            record_of=self._told,
            first=self._first,
            count=1,
        )
        self._name = bus.names.durable("memory-files")
        self._position = self._checkpoint = self._end = bus.names.start
        self._suspects = 0
        """The number of next events, as far as `_end`, of which one may have killed a process. They are taken again
        together, which is recorded; where another process ends over that, they are taken alone."""
        self._alone = False
        self._ended: dict[str, int] = {}
        """The number of processes that ended, by the event that was taken alone; by "0" for events taken together."""
        self._following: asyncio.Task[None] | None = None
        self._taking: asyncio.Task[None] | None = None
        """Takes the batch that was read last; an older task stops between two of its events."""

    async def run(self) -> None:
        await self._shards.run()

    # ---- ownership

    async def _first(self, shard: int) -> Position:
        """The position of the version before, which had a consumer."""
        with contextlib.suppress(NotFoundError):
            return self._bus.names.position(await self._bus.acknowledged(self._bus.names.events, self._name))
        return self._bus.names.start

    async def _begin(self, shards: list[Shard]) -> None:
        [shard] = shards
        self._end = await log_end(self._bus)
        await self._bus.delete_consumer(self._bus.names.events, self._name)
        self._position = self._checkpoint = self._bus.names.position(shard.record.position).least(self._end)
        self._suspects = SUSPECTS if shard.dead else 0
        self._alone = bool(shard.dead and shard.record.lanes)
        self._ended = {key: counted(times) for key, times in shard.record.lanes.items()} if self._alone else {}
        self._following = asyncio.create_task(self._follow())

    async def _stop(self, shards: list[Shard]) -> None:
        taking, self._taking = self._taking, None
        if self._following is not None:
            self._following.cancel()
            if taking is not asyncio.current_task():  # which may be the task that lost the shard
                await finish({self._following}, _GRACE_S)

    def _told(self, shard: Shard) -> ShardRecord:
        self._checkpoint = self._position
        return ShardRecord(shard.record.owner, self._position.encoded, dict(self._ended))

    # ---- reading

    async def _follow(self) -> None:
        names = self._bus.names
        filters = [names.events_of("File", kind) for kind in _KINDS]
        while True:
            try:
                reading = read_log(self._bus, after=self._position, filters=filters, batch=AT_ONCE)
                async with contextlib.aclosing(reading) as batches:
                    async for messages in batches:
                        await self._finish(messages)
            except NotFoundError as error:
                log.error("notes: the log is another one: %s", error)
            except CrucibleError as error:
                log.warning("notes: reading again: %s", error)
            except Exception:
                log.exception("notes: reading broke off; it begins again")
            await asyncio.sleep(_PAUSE_S)

    async def _finish(self, messages: Sequence[Message]) -> None:
        """Takes the messages to the end, though the reading is cancelled."""
        taking = self._taking = asyncio.create_task(self._take(messages))
        try:
            await asyncio.shield(taking)
        except asyncio.CancelledError:
            await finish({taking}, _GRACE_S)
            raise

    @property
    def _superseded(self) -> bool:
        return self._taking is not asyncio.current_task()

    async def _take(self, messages: Sequence[Message]) -> None:
        waiting = list(messages)
        while waiting and not self._superseded:
            if not self._end.covers(waiting[0].sequence):
                self._suspects, self._ended = 0, {}
            if self._suspects and self._alone:
                await self._take_suspect(waiting[0])
                taken = 1
            else:
                if self._suspects and not self._ended:
                    await self._record_ended({"0": 1})
                taken = await self._take_together(waiting)
            self._position = position_after(self._position, waiting[:taken])
            del waiting[:taken]
            self._suspects = max(0, self._suspects - taken)
            if not self._suspects:
                self._ended = {}
            if not self._checkpoint.is_near(self._position, CHECKPOINT):
                await self._persist(self._shards.checkpoint)

    async def _take_suspect(self, message: Message) -> None:
        ended = self._ended.get(str(message.sequence), 0)
        if ended >= DEADLY:
            await self._park(message, f"{ended} processes ended while they worked on it")
            return
        await self._record_ended({str(message.sequence): ended + 1})
        await self._take_one(message)

    async def _record_ended(self, ended: dict[str, int]) -> None:
        """Called before the work that may end this process."""
        self._ended = ended
        await self._persist(self._shards.checkpoint)

    async def _take_together(self, messages: Sequence[Message]) -> int:
        """Takes the first events together, and returns their number. Where that fails, it takes the first alone."""
        try:
            return await self._persist(lambda: self._commit_notes(messages))
        except Exception as error:
            if self._superseded:
                raise
            log.warning("notes: %d events are taken one by one: %s", len(messages), error)
            await self._take_one(messages[0])
            return 1

    async def _take_one(self, message: Message) -> None:
        for failures in range(1, PARK_AFTER + 1):
            try:
                await self._persist(lambda: self._commit_notes([message]))
                return
            except _UNDECODABLE as error:
                reason = str(error)
                break
            except Exception as error:
                if self._superseded:
                    raise
                log.warning("notes: event %d failed: %s", message.sequence, error, exc_info=True)
                reason = f"failed {failures} times: {error}"
            await asyncio.sleep(_PAUSE_S * 2**failures)
        await self._park(message, reason)

    async def _commit_notes(self, messages: Sequence[Message]) -> int:
        """Returns the number that it took: the edits of a folder depend on all events before."""
        edits: list[Edit] = []
        taken = 0
        with self._telemetry.batch("process", self._bus.names.events, messages, count=len(messages), group=self._name):
            for message in messages:
                event = decode(message.data, message.sequence)
                payload = msgspec.convert(event.data.payload, FilePayload)
                folder = folder_of(event, payload)
                if folder is not None and edits:
                    break
                taken += 1
                below = await self._writer.paths_below(event.metadata.world_id, folder) if folder is not None else []
                found = [] if NO_REACTION in message.headers else edits_of(event, payload, cause_of(event), below)
                if not found:
                    self._committer.count("ignored")
                edits += found
                if folder is not None:
                    break
            await self._committer.commit(edits)
        return taken

    async def _park(self, message: Message, reason: str) -> None:
        await self._persist(lambda: park(self._bus, self._name, message, reason))

    async def _persist(self, step: Callable[[], Awaitable[T]]) -> T:
        """Repeats a step until everything that it needs is there."""
        pause_s = _PAUSE_S
        while True:
            try:
                return await step()
            except (LimitedError, UnavailableError) as error:
                if self._superseded:
                    raise
                log.warning("notes wait: %s", error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
