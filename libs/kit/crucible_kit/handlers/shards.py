"""Shards: the 64 parts of a service's handlers, each owned by one replica at a time, with its progress in the log.

A shard's record, in the bucket `shards`, names its owner; a write fails if somebody else wrote it meanwhile, so an
owner that lost a shard learns so from its next write. Replicas announce that they are alive by messages that nobody
stores. A shard goes to the replica that rendezvous hashing names (Thaler and Ravishankar, 1998), so that few move when
one comes or goes.
"""

import asyncio
import contextlib
import hashlib
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

import msgspec

from crucible_core.errors import ConflictError, CrucibleError
from crucible_core.position import Encoded, Position
from crucible_core.subjects import SHARDS, shard_of
from crucible_kit.buckets import Bucket, Entry
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.message import Message

log = logging.getLogger(__name__)

BEAT_S = 0.3
DEAD_S = 1.2
"""A replica without a heartbeat for so long owns nothing any more, and knows it by its own clock."""
CHECKPOINT_S = 1.0
_HEARD_S = 2 * BEAT_S
"""Within so long every replica that lives sends a heartbeat."""


class ShardRecord(msgspec.Struct, omit_defaults=True):
    """The record of a shard in the bucket. Its handlers have had the log up to `position`, those in `lanes` up to
    theirs. `fired` is the commit time (Unix ms) of the last event of each handler whose events must be some time apart.
    Jobs that are not over began at `began_ms` or later. `released`: its owner has ended all its jobs. `log` has the
    creation times of the log's streams."""

    owner: str
    position: Encoded
    lanes: dict[str, Encoded] = {}
    fired: dict[str, int] = {}
    began_ms: int = 0
    released: bool = False
    log: list[str] = []


class Shard(msgspec.Struct, eq=False):
    """A shard that this replica owns. `dead` is the previous owner where that was killed."""

    number: int
    record: ShardRecord
    revision: int
    dead: str = ""


class Ownership:
    """Keeps to the shards that are this replica's, until cancelled.

    `taken` is awaited with claimed shards, before they are worked on; `dropped` with shards to be given up: it returns
    once no work on them is left. `record_of` returns a shard's present record.
    """

    def __init__(
        self,
        bus: Bus,
        bucket: Bucket,
        service: str,
        taken: Callable[[list[Shard]], Awaitable[None]],
        dropped: Callable[[list[Shard]], Awaitable[None]],
        record_of: Callable[[Shard], ShardRecord],
        first: Callable[[int], Awaitable[Position]],
        count: int = SHARDS,
    ) -> None:
        """`first` returns the position where a shard without a previous owner begins; `count` is the number of
        shards."""
        self.replica = secrets.token_hex(6)
        self.owned: dict[int, Shard] = {}
        self._untaken: list[Shard] = []
        """Claimed shards that are not worked on yet."""
        self._doubtful: dict[int, str] = {}
        """The killed owner of each shard that this replica has tried to claim."""
        self.begun = asyncio.Event()
        """Set once this replica has claimed the shards that are free."""
        self.moved = asyncio.Event()
        """Set when `owned` has changed."""
        self._bus = bus
        self._bucket = bucket
        self._service = service
        self._count = count
        self._taken, self._dropped, self._record_of, self._first = taken, dropped, record_of, first
        self._heard: dict[str, float] = {}
        self._beaten = 0.0
        self._listening = math.inf
        self._checked = asyncio.Event()
        self._settled: tuple[frozenset[str], frozenset[int]] | None = None
        self._writing = asyncio.Lock()

    @property
    def is_alive(self) -> bool:
        """True while the others take this replica for alive. After a pause it must check its shards first."""
        return time.monotonic() - self._beaten < DEAD_S

    @property
    def alone(self) -> bool:
        """True if there is no other replica: it would have sent a heartbeat by now."""
        heard = time.monotonic() - self._listening > _HEARD_S
        return heard and self.begun.is_set() and self._living() <= {self.replica}

    async def wait_alive(self) -> None:
        """Waits until this replica is alive, and has checked which shards it still owns."""
        while not self.is_alive:
            self._checked.clear()
            await self._checked.wait()

    async def run(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(await self._bus.listen(self._subject, self._hear))
            self._listening = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._beat())
                await self.wait_alive()
                if await self._is_owned():
                    await asyncio.sleep(_HEARD_S)  # the heartbeats of the others come before the decision
                try:
                    await self._keep()
                finally:
                    await self._leave()

    async def _keep(self) -> None:
        checkpointed = time.monotonic()
        while True:
            await self.wait_alive()  # without a heartbeat, its own included, it would have no shard left
            try:
                await self._reconcile()
                self.begun.set()
                if time.monotonic() - checkpointed >= CHECKPOINT_S:
                    checkpointed = time.monotonic()
                    await self.checkpoint()
            except CrucibleError as error:
                log.info("%s: shards stay as they are for now: %s", self._service, error)
            await asyncio.sleep(BEAT_S)

    async def _is_owned(self) -> bool:
        """Returns True if some shard has an owner, whose heartbeat must be awaited first."""
        try:
            entries = await self._bucket.entries()
        except CrucibleError:
            return True
        found = [entries.get(shard_key(self._service, number)) for number in range(self._count)]
        return not all(read_shard(entry).released for entry in found if entry is not None)

    async def checkpoint(self) -> None:
        """Writes the changed records. Gives up the shards whose records somebody else has written."""
        async with self._writing:
            shards = list(self.owned.values())
            lost = [shard for shard, kept in zip(shards, await _all(map(self._write, shards)), strict=True) if not kept]
        if lost:
            await self._lose(lost)

    # ---- who lives

    @property
    def _subject(self) -> str:
        return self._bus.names.rpc(self._service, "alive")

    def _hear(self, message: Message) -> None:
        word, _, replica = message.data.decode().partition(" ")
        if word == "alive":
            self._heard[replica] = time.monotonic()
        else:
            self._heard.pop(replica, None)

    async def _beat(self) -> None:
        while True:
            try:
                await self._bus.publish(self._subject, f"alive {self.replica}".encode())
                if self._beaten and not self.is_alive:
                    log.warning("%s: this replica stood still; it looks at what is still its own", self._service)
                    await self._verify()
                self._beaten = time.monotonic()
                self._heard[self.replica] = self._beaten
                self._checked.set()
            except CrucibleError as error:
                log.info("%s: the others are not record_of that this replica lives: %s", self._service, error)
            await asyncio.sleep(BEAT_S)

    def _living(self) -> frozenset[str]:
        now = time.monotonic()
        return frozenset(replica for replica, heard in self._heard.items() if now - heard < DEAD_S)

    def _share_of(self, living: frozenset[str]) -> frozenset[int]:
        return frozenset(number for number in range(self._count) if _owner(number, living) == self.replica)

    # ---- taking and giving up

    async def _reconcile(self) -> None:
        living = self._living()
        own = self._share_of(living)
        if self._settled == (living, own):
            return
        surplus = [shard for number, shard in self.owned.items() if number not in own]
        if surplus:
            await self._release(surplus)
        missing = own - self.owned.keys()
        if missing:
            missing -= {shard.number for shard in await self._claim(missing, living)}
        self._settled = None if missing else (living, own)

    async def _claim(self, numbers: frozenset[int], living: frozenset[str]) -> list[Shard]:
        """Claims free shards, and returns those that are this replica's from now on. After a failure halfway, the next
        call takes the shards that are claimed already."""
        entries = await self._bucket.entries()
        untaken = {shard.number for shard in self._untaken}
        found = {n: entries.get(shard_key(self._service, n)) for n in sorted(numbers - untaken)}
        free = [self._free(n, entry, living) for n, entry in found.items()]
        tried = [shard for shard in await asyncio.gather(*free) if shard is not None]
        results = await asyncio.gather(*map(self._take, tried), return_exceptions=True)
        self._untaken += [shard for shard, won in zip(tried, results, strict=True) if won is True]
        self._doubtful |= {shard.number: shard.dead for shard in tried}
        if self._untaken:
            await self._taken(self._untaken)
        claimed, self._untaken = self._untaken, []
        if claimed:
            self.owned |= {shard.number: shard for shard in claimed}
            self.moved.set()
        for failure in results:
            if isinstance(failure, BaseException):
                raise failure
        return claimed

    async def _take(self, shard: Shard) -> bool:
        return await self._put(shard, msgspec.structs.replace(shard.record, owner=self.replica, released=False))

    async def _free(self, number: int, entry: Entry | None, living: frozenset[str]) -> Shard | None:
        """The shard, if no living replica owns it."""
        if entry is None:
            return Shard(number, ShardRecord("", (await self._first(number)).encoded, released=True), 0)
        record = read_shard(entry)
        if not record.released and record.owner == self.replica:  # the outcome of the claim was unknown
            return Shard(number, record, entry.revision, dead=self._doubtful.get(number, ""))
        if not record.released and record.owner in living:
            return None
        return Shard(number, record, entry.revision, dead="" if record.released else record.owner)

    async def _release(self, shards: list[Shard]) -> None:
        for shard in shards:
            self.owned.pop(shard.number, None)
        self.moved.set()
        await self._dropped(shards)
        async with self._writing:
            await _all(self._write(shard, released=True) for shard in shards)

    async def _lose(self, shards: list[Shard]) -> None:
        for shard in shards:
            self.owned.pop(shard.number, None)
        self._settled = None
        self.moved.set()
        await self._dropped(shards)

    async def _verify(self) -> None:
        async with self._writing:  # a write of this replica itself is no loss
            revisions = {key: entry.revision for key, entry in (await self._bucket.entries()).items()}
        owned = self.owned.values()
        lost = [one for one in owned if revisions.get(shard_key(self._service, one.number)) != one.revision]
        if lost:
            await self._lose(lost)

    async def _leave(self) -> None:
        with contextlib.suppress(CrucibleError):
            await self._release(list(self.owned.values()))
            await self._bus.publish(self._subject, f"gone {self.replica}".encode())

    async def _write(self, shard: Shard, released: bool = False) -> bool:
        record = msgspec.structs.replace(self._record_of(shard), owner=self.replica, released=released)
        return record == shard.record or await self._put(shard, record)

    async def _put(self, shard: Shard, record: ShardRecord) -> bool:
        """Writes a record. Returns False where the shard has another owner by now."""
        try:
            value = msgspec.json.encode(record)
            shard.revision = await self._bucket.update(shard_key(self._service, shard.number), value, shard.revision)
        except ConflictError:
            return False
        shard.record = record
        return True


async def begin_at(bucket: Bucket, service: str, position: Position, fired: Mapping[str, int]) -> None:
    """Sets the position of shards without a record. Safe to do twice."""
    for number in range(SHARDS):
        own = {handler: at_ms for handler, at_ms in fired.items() if shard_of(handler) == number}
        record = ShardRecord("", position.encoded, fired=own, released=True)
        with contextlib.suppress(ConflictError):
            await bucket.create(shard_key(service, number), msgspec.json.encode(record))


def shard_key(service: str, number: int) -> str:
    return f"{service}.{number:02d}"


async def _all(writes: Iterable[Awaitable[bool]]) -> list[bool]:
    """Awaits all writes at once; raises the first failure once all have ended."""
    results = await asyncio.gather(*writes, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result is True for result in results]


def _owner(number: int, living: frozenset[str]) -> str:
    def weight(replica: str) -> bytes:
        return hashlib.blake2b(f"{replica}/{number}".encode(), digest_size=8).digest()

    return max(living, key=weight, default="")


def read_shard(entry: Entry) -> ShardRecord:
    return msgspec.json.decode(entry.value, type=ShardRecord)
