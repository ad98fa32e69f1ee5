"""Key-value buckets (ADR-8): configuration that every replica watches."""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Callable, Mapping

import msgspec

from crucible_core import subjects
from crucible_core.errors import ConflictError, InvalidError, UnavailableError
from crucible_core.subjects import kv_stream, kv_subject
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.reader import read
from crucible_kit.nats.streams import declare_bucket

_KEY = re.compile(r"[-/_=A-Za-z0-9]+(\.[-/_=A-Za-z0-9]+)*")


class Entry(msgspec.Struct, frozen=True):
    key: str
    value: bytes
    revision: int


class Change(msgspec.Struct, frozen=True):
    """`value` is None where the key was deleted. The change with an empty key ends the state at the
    start."""

    key: str
    value: bytes | None
    revision: int


async def open_bucket(bus: Bus, name: str, replicas: int = 1) -> "Bucket":
    """Opens the bucket of that name, and creates it when it is missing."""
    return Bucket(bus, await declare_bucket(bus, name, replicas))


class Bucket:
    """Keys are subject tokens joined by dots; make them with `subjects.token` where they come from users. Methods raise
    InvalidError for any other key."""

    def __init__(self, bus: Bus, name: str) -> None:
        self._bus = bus
        self._name = name
        self._stream = kv_stream(name)
        self._prefix = len(kv_subject(name, ""))

    async def get(self, key: str) -> Entry | None:
        found = await self._bus.last(self._stream, self._subject(key))
        if found is None or _is_deletion(found.headers):
            return None
        return Entry(key, found.data, found.sequence)

    async def put(self, key: str, value: bytes) -> int:
        """Returns the new revision."""
        return (await self._bus.store(Outgoing(self._subject(key), value))).sequence

    async def create(self, key: str, value: bytes, ttl: str | None = None) -> int:
        """Like put, but raises ConflictError where the key exists. `ttl` is a duration such as "30s", at least a
        second."""
        try:
            return await self._put_after(key, value, 0, ttl)
        except ConflictError:
            found = await self._bus.last(self._stream, self._subject(key))
            if found is None or not _is_deletion(found.headers):
                raise
            return await self._put_after(key, value, found.sequence, ttl)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Like put, but raises ConflictError unless `revision` is the key's present one."""
        return await self._put_after(key, value, revision, None)

    async def change(self, key: str, value: bytes | None, revision: int) -> int:
        """Puts, or deletes where `value` is None. Raises ConflictError unless `revision` is that of the whole bucket,
        so that a decision that depends on all of it still holds."""
        headers = {subjects.EXPECTED_STREAM_SEQUENCE: str(revision)}
        if value is None:
            headers[subjects.KV_OPERATION] = "DEL"
        return (await self._bus.store(Outgoing(self._subject(key), value or b"", headers))).sequence

    async def delete(self, key: str, mark_ttl: str | None = None, revision: int | None = None) -> None:
        """The mark of the deletion stays for ever, or for `mark_ttl`, a duration such as "3600s". Raises ConflictError
        where `revision` is set and is not the key's present one."""
        expected = {} if revision is None else {subjects.EXPECTED_SEQUENCE: str(revision)}
        headers = {subjects.KV_OPERATION: "DEL", **expected}
        await self._bus.store(Outgoing(self._subject(key), b"", headers, ttl=mark_ttl))

    async def entries(self) -> dict[str, Entry]:
        """The whole bucket as it is now."""
        found: dict[str, Entry] = {}
        async with contextlib.aclosing(self.watch()) as changes:
            async for change in changes:
                if not change.key:
                    break
                if change.value is not None:
                    found[change.key] = Entry(change.key, change.value, change.revision)
        return found

    async def watch(self) -> AsyncGenerator[Change, None]:
        """Yields the state, a change with an empty key, then every further change, for ever. Survives reconnects.

        A key that expires by its `ttl` yields no change. Raises NotFoundError when the bucket is replaced.
        """
        # The newest revision may be that of a key whose `ttl` has ended: then it never comes.
        revision = await self.last_revision()
        filters = [kv_subject(self._name, ">")]
        reading = read(self._bus, self._stream, filters=filters, last_per_subject=True)
        async with contextlib.aclosing(reading) as batches:
            async for messages in batches:
                if not messages:
                    yield Change("", None, revision)
                for message in messages:
                    revision = max(revision, message.sequence)
                    value = None if _is_deletion(message.headers) else message.data
                    yield Change(message.subject[self._prefix :], value, message.sequence)

    async def last_revision(self) -> int:
        """The revision of the bucket's newest change, from the stream's leader."""
        return await self._bus.last_sequence(self._stream)

    def _subject(self, key: str) -> str:
        if not _KEY.fullmatch(key):  # a wildcard would name other keys
            raise InvalidError(f"not a key: {key[:100]!r}")
        return kv_subject(self._name, key)

    async def _put_after(self, key: str, value: bytes, revision: int, ttl: str | None) -> int:
        headers = {subjects.EXPECTED_SEQUENCE: str(revision)}
        return (await self._bus.store(Outgoing(self._subject(key), value, headers, ttl=ttl))).sequence


class View:
    """A process's own copy of a bucket, kept up to date by `follow`.

    `changed` is called for each change; it must not raise.
    """

    def __init__(self, bucket: Bucket, changed: Callable[[Change], None]) -> None:
        self._bucket = bucket
        self._changed = changed
        self._moved = asyncio.Condition()
        self._turn = asyncio.Lock()
        self._refreshing: asyncio.Task[int] | None = None
        self.revision = 0
        self.ready = False

    async def follow(self) -> None:
        """Runs until cancelled."""
        async for change in self._bucket.watch():
            if change.key:
                self._changed(change)
            async with self._moved:
                self.revision = max(self.revision, change.revision)
                self.ready = self.ready or not change.key
                self._moved.notify_all()

    async def reach(self, revision: int, timeout: float = 5.0) -> None:
        """Waits until the copy holds everything up to a revision. Raises UnavailableError when it does not come."""
        if self.ready and self.revision >= revision:
            return
        try:
            async with asyncio.timeout(timeout), self._moved:
                await self._moved.wait_for(lambda: self.ready and self.revision >= revision)
        except TimeoutError as error:
            raise UnavailableError("the configuration on this replica lags behind", retry_after=1) from error

    async def refresh(self) -> None:
        """Waits until the copy holds everything that was acknowledged to anybody before this call.

        Callers share a request that has not begun yet, so that many at once cost two requests.
        """
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._read_revision())
        await self.reach(await asyncio.shield(self._refreshing))

    async def _read_revision(self) -> int:
        async with self._turn:
            self._refreshing = None
            return await self._bucket.last_revision()


def _is_deletion(headers: Mapping[str, str]) -> bool:
    return bool(headers) and (headers.get(subjects.KV_OPERATION) in ("DEL", "PURGE") or subjects.KV_MARKER in headers)
