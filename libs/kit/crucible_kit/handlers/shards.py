"""Shards: the 64 parts of a service's handlers, each owned by one replica at a time, and how far each has come.

A shard's record, in the bucket `shards`, names its owner and is written on condition that nobody else wrote it: who has
lost a shard learns so from its next write. Replicas tell each other by messages that nobody stores that they are alive.
A shard goes to the replica that rendezvous hashing names (Thaler and Ravishankar, 1998), so that few move when one
comes or goes.
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
"""A replica that was not heard of for so long owns nothing any more, and knows it by its own clock."""
CHECKPOINT_S = 1.0
_HEARD_S = 2 * BEAT_S
"""Within so long every replica that lives is heard of."""


class ShardRecord(msgspec.Struct, omit_defaults=True):
    """What the bucket holds of a shard. Every handler of it has had the log up to `position`, except for those in
    `lanes`, which have had it up to theirs. `fired` is when (Unix ms) the last event up to there was committed that a
    handler was given whose events must be some time apart. What was begun and is not over began at `began_ms` or
    later. `released`: its owner has ended all that it had begun. `log` is when the log's streams were made."""

    owner: str
    position: Encoded
    lanes: dict[str, Encoded] = {}
    fired: dict[str, int] = {}
    began_ms: int = 0
    released: bool = False
    log: list[str] = []


class Shard(msgspec.Struct, eq=False):
    """A shard that this replica owns. `dead` is its owner before where that ended without a word."""

    number: int
    record: ShardRecord
    revision: int
    dead: str = ""


class Ownership:
    """Keeps to the shards that are this replica's, until cancelled.

    `taken` is awaited with shards that were claimed, before they are worked on; `dropped` with those to be given up: it
    returns once nothing of them is worked on. `told` gives a shard's present record to be written.
    """

    def __init__(
        self,
        bus: Bus,
        bucket: Bucket,
        service: str,
        taken: Callable[[list[Shard]], Awaitable[None]],
        dropped: Callable[[list[Shard]], Awaitable[None]],
        told: Callable[[Shard], ShardRecord],
        first: Callable[[int], Awaitable[Position]],
        count: int = SHARDS,
    ) -> None:
        """`first` gives the place where a shard begins that has never had an owner; `count` is how many there are."""
        self.replica = secrets.token_hex(6)
        self.owned: dict[int, Shard] = {}
        self._untaken: list[Shard] = []
        """Shards that are claimed and not worked on yet."""
        self._doubtful: dict[int, str] = {}
        """The owner that ended without a word, of shards that this replica has tried to claim."""
        self.begun = asyncio.Event()
        """Set once this replica has taken what nobody else had."""
        self.moved = asyncio.Event()
        """Set when `owned` has changed."""
        self._bus = bus
        self._bucket = bucket
        self._service = service
        self._count = count
        self._taken, self._dropped, self._told, self._first = taken, dropped, told, first
        self._heard: dict[str, float] = {}
        self._beaten = 0.0
        self._listening = math.inf
        self._looked = asyncio.Event()
        self._settled: tuple[frozenset[str], frozenset[int]] | None = None
        self._writing = asyncio.Lock()

    @property
    def is_alive(self) -> bool:
        """Whether the others take this replica for alive: after it was stopped for a while, it must look first."""
        return time.monotonic() - self._beaten < DEAD_S

    @property
    def alone(self) -> bool:
        """Whether there is no other replica: each would have been heard of by now."""
        heard = time.monotonic() - self._listening > _HEARD_S
        return heard and self.begun.is_set() and self._living() <= {self.replica}

    async def wait_alive(self) -> None:
        """Returns once this replica has looked at what is still its own."""
        while not self.is_alive:
            self._looked.clear()
            await self._looked.wait()

    async def run(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(await self._bus.listen(self._subject, self._hear))
            self._listening = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._beat())
                await self.wait_alive()
                if await self._is_owned():
                    await asyncio.sleep(_HEARD_S)  # the others are heard of before it is decided what is ours
                try:
                    await self._keep()
                finally:
                    await self._leave()

    async def _keep(self) -> None:
        checkpointed = time.monotonic()
        while True:
            await self.wait_alive()  # who has not been heard of, himself included, would have no shard left
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
        """Whether some shard has an owner; where none has, there is nobody to be heard of first."""
        try:
            entries = await self._bucket.entries()
        except CrucibleError:
            return True
        found = [entries.get(shard_key(self._service, number)) for number in range(self._count)]
        return not all(read_shard(entry).released for entry in found if entry is not None)

    async def checkpoint(self) -> None:
        """Writes the records that have changed. A shard whose record somebody else has written is given up."""
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
                self._looked.set()
            except CrucibleError as error:
                log.info("%s: the others are not told that this replica lives: %s", self._service, error)
            await asyncio.sleep(BEAT_S)

    def _living(self) -> frozenset[str]:
        now = time.monotonic()
        return frozenset(replica for replica, heard in self._heard.items() if now - heard < DEAD_S)

    def _wanted(self, living: frozenset[str]) -> frozenset[int]:
        return frozenset(number for number in range(self._count) if _owner(number, living) == self.replica)

    # ---- taking and giving up

    async def _reconcile(self) -> None:
        living = self._living()
        wanted = self._wanted(living)
        if self._settled == (living, wanted):
            return
        surplus = [shard for number, shard in self.owned.items() if number not in wanted]
        if surplus:
            await self._release(surplus)
        missing = wanted - self.owned.keys()
        if missing:
            missing -= {shard.number for shard in await self._claim(missing, living)}
        self._settled = None if missing else (living, wanted)

    async def _claim(self, numbers: frozenset[int], living: frozenset[str]) -> list[Shard]:
        """Returns the shards that are this replica's from now on. Where something is away in the middle of it, nothing
        is forgotten: what was claimed is taken the next time."""
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
        """The shard, if nobody who lives has it."""
        if entry is None:
            return Shard(number, ShardRecord("", (await self._first(number)).encoded, released=True), 0)
        record = read_shard(entry)
        if not record.released and record.owner == self.replica:  # whether the claim was stored was not known
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
        async with self._writing:  # what this replica is writing itself is no loss
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
        record = msgspec.structs.replace(self._told(shard), owner=self.replica, released=released)
        return record == shard.record or await self._put(shard, record)

    async def _put(self, shard: Shard, record: ShardRecord) -> bool:
        """False where the shard is somebody else's by now."""
        try:
            value = msgspec.json.encode(record)
            shard.revision = await self._bucket.update(shard_key(self._service, shard.number), value, shard.revision)
        except ConflictError:
            return False
        shard.record = record
        return True


async def begin_at(bucket: Bucket, service: str, position: Position, fired: Mapping[str, int]) -> None:
    """Gives those shards their place in the log that have never had an owner. Safe to do twice."""
    for number in range(SHARDS):
        own = {handler: at_ms for handler, at_ms in fired.items() if shard_of(handler) == number}
        record = ShardRecord("", position.encoded, fired=own, released=True)
        with contextlib.suppress(ConflictError):
            await bucket.create(shard_key(service, number), msgspec.json.encode(record))


def shard_key(service: str, number: int) -> str:
    return f"{service}.{number:02d}"


async def _all(writes: Iterable[Awaitable[bool]]) -> list[bool]:
    """Pipelined; raises the first failure once all were tried."""
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
