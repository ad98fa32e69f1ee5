"""Registry of replays: their records in the `replays` bucket, which every replica follows, their views, and the targets
that they send to."""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Sequence

import msgspec

from crucible_core.access import OPERATOR_ID, Principal
from crucible_core.errors import ConflictError, CrucibleError, FieldError, InvalidError, NotFoundError
from crucible_core.ids import is_id
from crucible_core.limits import REPLAYS_ENDED, REPLAYS_ENDED_MS
from crucible_core.position import Encoded, counted
from crucible_core.protocol.parts import GetRequest, Owned, TypeFilter
from crucible_core.protocol.replays import Replay, Replayable, ReplayBatch, ReplayedEvent, ReplayTaken, ReplayTarget
from crucible_core.suggest import did_you_mean
from crucible_events.append.stamp import EVENTS
from crucible_kit.buckets import Bucket, Change, View
from crucible_kit.clock import fresh_id
from crucible_kit.nats.bus import Bus, Message
from crucible_kit.rpc import call, call_all

log = logging.getLogger(__name__)

_TOMBSTONE_TTL = "3600s"
_KEYS = "key_"
_KEYS_TTL = f"{REPLAYS_ENDED_MS // 1000}s"
"""Of entries of the bucket that hold the id of an idempotency key's replay."""

SEND_S = 20.0
"""The time that a target may take over a batch."""
_END_S = 2.0
_SERVICES = {"hook": "hooks", "webhook": "webhooks"}
_KINDS = (*_SERVICES, "subscription")

RUNNING, PAUSED, DONE, CANCELLED, FAILED = "running", "paused", "done", "cancelled", "failed"


class Target(msgspec.Struct, frozen=True):
    """`kind` is hook, webhook or subscription; `id` the name or id under which batches are handed over."""

    kind: str
    id: str

    @property
    def endpoint(self) -> tuple[str, str]:
        """Service and operation: a subscription is served by the one gateway that has it."""
        return (_SERVICES[self.kind], "replay") if self.kind in _SERVICES else ("gateway", self.id)


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The entry of the bucket under a replay's id. `seen` counts the messages that are done, up to `position`.

    `owner` is the replica that works on it, until `lease_until_ms` (Unix) unless it renews the lease. The target gets
    the events that `principal` may see, who started the replay; the operator where that is empty.
    """

    id: str
    state: str = RUNNING
    start: Encoded
    to: Encoded
    position: Encoded
    seen: int = 0
    matched: int = 0
    sent: int = 0
    skipped: int = 0
    total: int
    wanted: ReplayTarget
    target: Target
    filters: list[TypeFilter]
    rate: float | None = None
    world_id: str | None = None
    room_id: str | None = None
    created_at: str
    updated_at: str
    changed_ms: int
    error: str | None = None
    owner: str = ""
    principal: str = ""
    lease_until_ms: int = 0

    @property
    def owned(self) -> Owned:
        return Owned(owner=self.principal)

    @property
    def finished(self) -> bool:
        return self.state in (DONE, CANCELLED, FAILED)


def view(record: Record, *, duplicate: bool = False) -> Replay:
    total = max(record.total, record.seen)
    progress = 1.0 if record.state == DONE or not total else min(record.seen / total, 1.0)
    return Replay(
        id=record.id,
        state=f"{FAILED}: {record.error}" if record.state == FAILED else record.state,
        start=counted(record.start),
        to=counted(record.to),
        position=counted(record.position),
        matched=record.matched,
        sent=record.sent,
        skipped=record.skipped,
        total=total,
        progress=round(progress, 4),
        target=record.wanted,
        filters=record.filters,
        rate=record.rate,
        world_id=record.world_id,
        room_id=record.room_id,
        created_at=record.created_at,
        updated_at=record.updated_at,
        owner=record.principal or OPERATOR_ID,
        error=record.error,
        duplicate=duplicate,
    )


class Replays:
    """This process's copy of the bucket, and compare-and-set changes of its records.

    It calls `changed` with a replay's id after each change that reaches this process.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._revisions: dict[str, int] = {}
        self.view = View(bucket, self._apply)
        self.records: dict[str, Record] = {}
        self.changed: Callable[[str], None] = lambda _: None

    def get(self, replay: str, principal: Principal = EVENTS) -> Record:
        """Raises NotFoundError with the nearest id, of those that are the principal's."""
        record = self.records.get(replay)
        if record is None or not principal.owns(record.owned):
            known = self.records if principal.admin else [one.id for one in self.of(principal)]
            raise NotFoundError(f"there is no replay {replay[:100]!r}{did_you_mean(replay, known)}")
        return record

    def of(self, principal: Principal) -> list[Record]:
        return [record for record in self.records.values() if principal.owns(record.owned)]

    async def id_of(self, idempotency_key: str) -> str:
        """The id of the replay of an idempotency key: created when the key is first used, and stored beside the
        records."""
        key = _KEYS + hashlib.sha256(idempotency_key.encode()).hexdigest()[:40]
        fresh = fresh_id("rpl")
        try:
            await self._bucket.create(key, fresh.encode(), _KEYS_TTL)
        except ConflictError:
            found = await self._bucket.get(key)
            return found.value.decode() if found else fresh
        return fresh

    async def create(self, record: Record) -> None:
        """Raises ConflictError where there is one with that id."""
        revision = await self._bucket.create(record.id, msgspec.json.encode(record))
        self._put(record, revision)
        self.changed(record.id)

    async def change(self, replay: str, change: Callable[[Record], Record | None]) -> Record:
        """The record after the change. `change` is called again where another process changed the record meanwhile;
        None changes nothing. Raises NotFoundError, and the errors of `change`."""
        while True:
            record = change(self.get(replay))
            if record is None:
                return self.get(replay)
            try:
                value = msgspec.json.encode(record)
                revision = await self._bucket.update(replay, value, self._revisions[replay])
            except ConflictError:
                await self.view.refresh()
            else:
                self._put(record, revision)
                self.changed(replay)
                return record

    async def forget_old(self, now_ms: int) -> None:
        """Removes finished replays that are old, or of which there are many newer ones."""
        finished = [record for record in self.records.values() if record.finished]
        newest = sorted(finished, key=lambda record: record.changed_ms, reverse=True)
        for index, record in enumerate(newest):
            if index >= REPLAYS_ENDED or record.changed_ms < now_ms - REPLAYS_ENDED_MS:
                await self._bucket.delete(record.id, _TOMBSTONE_TTL)

    def _apply(self, change: Change) -> None:
        if change.key.startswith(_KEYS):
            return
        if change.revision < self._revisions.get(change.key, 0):
            return  # this process has written a newer one
        record = None if change.value is None else _record(change.key, change.value)
        if record is None:
            self.records.pop(change.key, None)
            self._revisions.pop(change.key, None)
        else:
            self._put(record, change.revision)
        self.changed(change.key)

    def _put(self, record: Record, revision: int) -> None:
        if revision >= self._revisions.get(record.id, 0):
            self.records[record.id] = record
            self._revisions[record.id] = revision


async def find_target(bus: Bus, principal: Principal, wanted: ReplayTarget, traceparent: str) -> Target:
    """Raises NotFoundError with the nearest name, InvalidError where it takes no replay, UnavailableError."""
    named = [(kind, name) for kind in _KINDS if (name := getattr(wanted, kind)) is not None]
    if len(named) != 1:
        message = 'must be one of {"hook": name}, {"webhook": id or name} and {"subscription": id}'
        raise InvalidError.field("target", message)
    kind, name = named[0]
    if kind in _SERVICES:
        request = GetRequest(id=name)
        found = await call(bus, principal, _SERVICES[kind], "replayable", request, Replayable, traceparent=traceparent)
        return Target(kind, found.id)
    if not is_id("sub", name) or not await call_all(bus, principal, "gateway", "attach", GetRequest(id=name)):
        errors = [FieldError("target.subscription", "there is no such live subscription")]
        raise NotFoundError(f"there is no live subscription {name[:100]!r}", errors=errors)
    return Target(kind, name)


async def send(bus: Bus, target: Target, replay: str, messages: Sequence[Message]) -> ReplayTaken:
    """Raises the target's errors, and UnavailableError where it does not answer."""
    events = [
        ReplayedEvent(sequence=message.sequence, time_ms=message.time_ms, event=msgspec.Raw(message.data))
        for message in messages
    ]
    batch = ReplayBatch(replay=replay, target=target.id, events=events)
    return await call(bus, EVENTS, *target.endpoint, batch, ReplayTaken, timeout=SEND_S)


async def announce_end(bus: Bus, target: Target, replay: str, state: str, sent: int) -> None:
    """Tells a subscriber that its replay ended, if it is still there."""
    if target.kind == "subscription":
        batch = ReplayBatch(replay=replay, target=target.id, end=state, sent=sent)
        with contextlib.suppress(CrucibleError):
            await call(bus, EVENTS, *target.endpoint, batch, ReplayTaken, timeout=_END_S)


def _record(key: str, value: bytes) -> Record | None:
    try:
        return msgspec.json.decode(value, type=Record)
    except msgspec.DecodeError as error:
        log.error("replay %s cannot be read, so it is not worked on here: %s", key, error)
        return None
