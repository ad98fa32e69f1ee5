"""Snapshots of an index in JetStream's object store: a replica without a file begins with the newest snapshot, and
reads only later messages from the stream.

Each is an object in a store of its own (ADR-20), which is removed as a whole. It is complete once its description is
there, which is stored last and names the index's schema, its stream, its position and its checksum.
"""

import asyncio
import base64
import contextlib
import hashlib
import logging
import os
import secrets
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec

from crucible_core.errors import ConflictError, CrucibleError, InvalidError, NotFoundError
from crucible_core.position import Position, parsed
from crucible_core.subjects import ALL_OBJECTS, object_chunks, object_info, object_stream
from crucible_kit.index.index import Index
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.reader import read
from crucible_kit.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

_CHUNK_BYTES = 128 * 1024
_AT_ONCE = 32
"""Chunks in flight at once."""
CHECK_EVERY_S = 2.0
_REST = 20.0
"""The pause after a snapshot is so many times its duration: it takes at most a twentieth of the time, however large the
index is."""
STALE_S = 30.0
"""The maker of a snapshot stores chunks all the time; without one for so long, it has ended."""
_IDENTITY = "crucible.identity"
_POSITION = "crucible.position"
_INDEX = "index.sqlite"


class SnapshotInfo(msgspec.Struct):
    """The description of an object, by the names of ADR-20. `metadata` has the identity of the index and its
    position."""

    name: str
    bucket: str
    nuid: str
    size: int
    chunks: int
    digest: str
    metadata: dict[str, str] = {}

    @property
    def identity(self) -> str:
        return self.metadata.get(_IDENTITY, "")

    @property
    def position(self) -> Position:
        """The position of the snapshot; the start of the log where it cannot be read."""
        text = self.metadata.get(_POSITION, "")
        return parsed(text, text.count(".") + 1) or Position.start(1)


class StoredSnapshot(msgspec.Struct):
    """A store by its number; `info` is None where its snapshot is not complete."""

    number: int
    stream: str
    info: SnapshotInfo | None
    touched_ms: int


class SnapshotStore:
    """The snapshots of one index on the bus."""

    def __init__(self, bus: Bus, index: str, replicas: int, max_age_s: float, stale_s: float = STALE_S) -> None:
        """`max_age_s` is the age limit of the stream's messages: no snapshot holds them longer."""
        self._bus = bus
        self._prefix = bus.names.snapshots(index)
        self._replicas = replicas
        self._max_age_s = max_age_s
        self._stale_ms = stale_s * 1000

    async def all(self) -> list[StoredSnapshot]:
        """All stores, the newest first. One whose description cannot be read counts as incomplete."""
        found = []
        for stream in await self._bus.stream_names(ALL_OBJECTS):
            number = stream.removeprefix(object_stream(self._prefix))
            if number != stream and number.isdecimal():
                with contextlib.suppress(NotFoundError):  # somebody has just removed it
                    state = await self._bus.stream_state(stream)
                    found.append(StoredSnapshot(int(number), stream, await self._info(int(number)), state.touched_ms))
        return sorted(found, key=lambda one: one.number, reverse=True)

    async def _info(self, number: int) -> SnapshotInfo | None:
        store = self._name(number)
        message = await self._bus.last(object_stream(store), object_info(store, _INDEX))
        try:
            return None if message is None else msgspec.json.decode(message.data, type=SnapshotInfo)
        except msgspec.DecodeError as error:
            log.warning("the description of the snapshot %s cannot be read: %s", store, error)
            return None

    async def begin(self, number: int) -> None:
        """Makes the store. Raises ConflictError where another process has taken the number."""
        store = self._name(number)
        await self._bus.create_stream(
            object_stream(store),
            description="Crucible: a snapshot of an index",
            subjects=[object_chunks(store, "*"), object_info(store, "*")],
            num_replicas=self._replicas,
            max_age=self._max_age_s,
            discard="new",
            compression="s2",
            allow_rollup_hdrs=True,
            allow_direct=True,
            metadata={"crucible.maker": secrets.token_hex(8)},
        )

    async def put(self, number: int, path: Path, metadata: dict[str, str]) -> None:
        """Stores a file, and then the description that makes it complete."""
        store, nuid, digest = self._name(number), secrets.token_hex(11), hashlib.sha256()
        size = chunks = 0
        with await asyncio.to_thread(path.open, "rb") as file:
            while parts := await asyncio.to_thread(_read_chunks, file, digest):
                await self._bus.store_all([Outgoing(object_chunks(store, nuid), part) for part in parts])
                chunks, size = chunks + len(parts), size + sum(map(len, parts))
        info = SnapshotInfo(_INDEX, store, nuid, size, chunks, _digest_text(digest), metadata)
        await self._bus.store(Outgoing(object_info(store, _INDEX), msgspec.json.encode(info)))

    async def fetch(self, info: SnapshotInfo, path: Path) -> None:
        """Writes a snapshot to a path. Raises InvalidError where it is broken, NotFoundError where it is gone."""
        digest, size, chunks = hashlib.sha256(), 0, 0
        with await asyncio.to_thread(_create_file, path) as file:
            async with contextlib.aclosing(self._chunks(info)) as batches:
                async for parts in batches:
                    await asyncio.to_thread(_write_chunks, file, digest, parts)
                    chunks, size = chunks + len(parts), size + sum(map(len, parts))
        if (chunks, size, _digest_text(digest)) != (info.chunks, info.size, info.digest):
            raise InvalidError(f"it has {size:,} of {info.size:,} bytes, or others than it should")

    async def _chunks(self, info: SnapshotInfo) -> AsyncGenerator[list[bytes], None]:
        stream, left = object_stream(info.bucket), info.chunks
        reading = read(self._bus, stream, filters=[object_chunks(info.bucket, info.nuid)], batch=_AT_ONCE)
        async with contextlib.aclosing(reading) as batches:
            async for messages in batches:
                yield [message.data for message in messages[:left]]
                left -= len(messages)
                if left <= 0 or not messages:
                    return

    async def remove(self, number: int) -> None:
        await self._bus.delete_stream(object_stream(self._name(number)))

    async def remove_all(self) -> None:
        """Removes all stores, incomplete ones too, whose makers fail."""
        for one in await self.all():
            await self.remove(one.number)

    def check_space(self, size: int) -> None:
        """Raises StorageFullError."""
        self._bus.storage.check(size)

    def is_stale(self, one: StoredSnapshot) -> bool:
        """Returns True if a store is incomplete, and its maker has ended."""
        return one.info is None and one.touched_ms < self._bus.now_ms() - self._stale_ms

    def _name(self, number: int) -> str:
        return f"{self._prefix}{number:06d}"


async def restore(store: SnapshotStore, path: Path, identity: str) -> bool:
    """Puts the newest snapshot of an index to a path, all of it or nothing. Returns False where none can be used; the
    log has the reasons."""
    arriving = path.with_name(f"{path.name}.restoring")
    try:
        for one in await store.all():
            if one.info is None:
                continue
            if one.info.identity != identity:
                log.warning("snapshot %s is of another log or version (%s)", one.info.bucket, one.info.identity)
                continue
            try:
                await store.fetch(one.info, arriving)
            except (InvalidError, NotFoundError) as error:
                log.error("snapshot %s is not used: %s", one.info.bucket, error)
                continue
            await asyncio.to_thread(arriving.replace, path)
            log.info("the index begins with snapshot %s, at %s", one.info.bucket, one.info.position.text)
            return True
    except (CrucibleError, OSError) as error:
        log.warning("no snapshot of the index can be had: %s", error)
    finally:
        _remove(arriving)
    return False


class Snapshots:
    """Makes snapshots while the index grows: one replica at a time, which is the one that created the next store."""

    def __init__(
        self,
        index: Index,
        store: SnapshotStore,
        path: Path,
        every: int,
        metrics: Metrics,
        check_every_s: float = CHECK_EVERY_S,
    ) -> None:
        """`path` is for a temporary copy of the index; `every` is the number of messages between snapshots, 0 for
        none."""
        self._index = index
        self._store = store
        self._path = path
        self._every = every
        self._check_every_s = check_every_s
        self._newest = 0
        """Number of events in the newest snapshot."""
        self._removals = 0
        metrics.gauge("index_snapshot_sequence", "How many messages the newest snapshot has seen").set_function(
            lambda: self._newest
        )

    async def run(self) -> None:
        """Runs until cancelled."""
        clock = asyncio.get_running_loop().time
        _remove(self._path)
        while self._every:
            await asyncio.sleep(self._check_every_s)
            if not self._due:
                continue
            began = clock()
            try:
                await self._make()
            except ConflictError:
                log.info("another replica makes a snapshot")
            except (CrucibleError, OSError) as error:
                log.warning("no snapshot of the index is made for now: %s", error)
            finally:
                _remove(self._path)
            await asyncio.sleep(_REST * (clock() - began))

    @property
    def _due(self) -> bool:
        return self._index.caught_up and self._index.position.count - self._newest >= self._every

    async def remove(self) -> None:
        """Removes all snapshots, since they hold erased data; one that is being made here, too. Other replicas remove
        theirs once they hear of it."""
        self._removals += 1
        self._newest = 0
        await self._store.remove_all()

    async def _make(self) -> None:
        there = await self._store.all()
        whole = [one.info.position.count for one in there if one.info and one.info.identity == self._index.identity]
        self._newest = max(whole, default=0)
        if not self._due:
            return
        if any(one.info is None and not self._store.is_stale(one) for one in there):
            raise ConflictError("it is being made")
        self._store.check_space(2 * await self._index.size())
        number = max((one.number for one in there), default=0) + 1
        removals = self._removals
        await self._store.begin(number)
        try:
            position = await self._put(number)
        except BaseException:
            with contextlib.suppress(CrucibleError):
                await self._store.remove(number)
            raise
        if removals != self._removals:
            await self._store.remove(number)
            return
        self._newest = position.count
        log.info("snapshot %d of the index is made, at %s", number, position.text)
        for one in there:
            await self._store.remove(one.number)

    async def _put(self, number: int) -> Position:
        position = await self._index.copy(self._path)
        await self._store.put(number, self._path, {_IDENTITY: self._index.identity, _POSITION: position.text})
        return position


def _digest_text(digest: Any) -> str:
    return f"SHA-256={base64.urlsafe_b64encode(digest.digest()).decode()}"


def _remove(path: Path) -> None:
    """Removes a file without a thread, so that a cancelled task does it too."""
    path.unlink(missing_ok=True)


def _create_file(path: Path) -> Any:
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb")


def _read_chunks(file: Any, digest: Any) -> list[bytes]:
    parts = [part for _ in range(_AT_ONCE) if (part := file.read(_CHUNK_BYTES))]
    for part in parts:
        digest.update(part)
    return parts


def _write_chunks(file: Any, digest: Any, parts: list[bytes]) -> None:
    for part in parts:
        file.write(part)
        digest.update(part)
