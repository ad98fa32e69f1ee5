"""Losses of the log and the other streams: a bucket keeps them, and /readyz reports them until an operator accepts
them."""

import logging
from collections.abc import Callable, Iterable, Sequence

import msgspec

from crucible_core.errors import ConflictError, UnavailableError
from crucible_core.limits import LOSSES
from crucible_core.protocol.losses import Loss, LossList
from crucible_core.protocol.parts import Trouble
from crucible_kit.buckets import Bucket, Change, View
from crucible_kit.clock import timestamp

log = logging.getLogger(__name__)

BUCKET = "losses"
_KEY = "log"
_TRIES = 20
_SHOWN = 5


class Losses:
    """This process's copy of the bucket, and changes to it."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self.all: Sequence[Loss] = ()
        self.on_accepted: Callable[[], None] = lambda: None
        """Called once the last open loss is accepted."""
        self.view = View(bucket, self._changed)

    @property
    def open(self) -> list[Loss]:
        """The losses that nobody has accepted."""
        return [loss for loss in self.all if loss.accepted_at is None]

    def troubles(self) -> list[Trouble]:
        """The troubles that /readyz reports."""
        if not (found := self.open):
            return []
        streams = dict.fromkeys(loss.stream for loss in found)
        summaries = [_summary(stream, [loss for loss in found if loss.stream == stream]) for stream in streams]
        return [Trouble("losses", f"{'; '.join(summaries)}; `crucible doctor` says what to do")]

    async def record(self, found: Iterable[Loss]) -> None:
        """Records the losses that are not known yet."""
        new = list(found)

        def change(known: Sequence[Loss]) -> Sequence[Loss]:
            return _limit_records([*known, *(loss for loss in new if not any(_covers(one, loss) for one in known))])

        await self._change(change)

    async def accept(self) -> list[Loss]:
        """Accepts all open losses, and returns them."""
        before: list[Loss] = []
        now = timestamp()

        def change(known: Sequence[Loss]) -> Sequence[Loss]:
            before[:] = [loss for loss in known if loss.accepted_at is None]
            return [msgspec.structs.replace(loss, accepted_at=loss.accepted_at or now) for loss in known]

        await self._change(change)
        await self.view.refresh()
        return before

    async def _change(self, change: Callable[[Sequence[Loss]], Sequence[Loss]]) -> None:
        for _ in range(_TRIES):
            entry = await self._bucket.get(_KEY)
            known = _read(entry.value) if entry else []
            changed = list(change(known))
            if changed == known:
                return
            value = msgspec.json.encode(LossList(losses=changed))
            try:
                if entry is None:
                    await self._bucket.create(_KEY, value)
                else:
                    await self._bucket.update(_KEY, value, entry.revision)
            except ConflictError:
                continue
            return
        raise UnavailableError("the losses of the log are being noted by others", retry_after=1)

    def _changed(self, change: Change) -> None:
        if change.key != _KEY:
            return
        before = self.open
        self.all = _read(change.value) if change.value is not None else ()
        for loss in self.open:
            if loss not in before:
                log.error("%s has lost %s", loss.stream or "the log", describe_loss(loss))
        if before and not self.open:
            self.on_accepted()


def _summary(stream: str, found: Sequence[Loss]) -> str:
    count = sum(loss.count for loss in found)
    ranges = ", ".join(describe_loss(loss) for loss in found[:_SHOWN])
    more = f" and {len(found) - _SHOWN} ranges more" if len(found) > _SHOWN else ""
    what = "message" if stream else "event"
    lost = f"one {what}: " if count == 1 else f"{count:,} {what}s: " if count else ""
    return f"{stream or 'the log'} has lost {lost}{ranges}{more}"


def describe_loss(loss: Loss) -> str:
    """Describes a loss to people."""
    if not loss.count:
        return f"{loss.bytes:,} bytes that JetStream cannot read"
    sequences = f"sequence {loss.first}" if loss.first == loss.last else f"sequences {loss.first} to {loss.last}"
    gone = f" of a {'stream' if loss.stream else 'log'} that is gone"
    of = {"end": " at its end", "log": gone}.get(loss.kind, "")
    some = f" ({loss.count:,} of them)" if loss.count != loss.last - loss.first + 1 else ""
    return f"{sequences}{some}{of}"


def _covers(known: Loss, loss: Loss) -> bool:
    same = (known.stream, known.kind, known.log, known.bytes) == (loss.stream, loss.kind, loss.log, loss.bytes)
    return same and known.first <= loss.first and loss.last <= known.last


def _limit_records(losses: list[Loss]) -> list[Loss]:
    """Limits the number of records: all open losses stay, neighbours as one record where there are too many."""
    if len(losses) <= LOSSES:
        return losses
    opened = [loss for loss in losses if loss.accepted_at is None]
    accepted = [loss for loss in losses if loss.accepted_at is not None]
    if len(opened) <= LOSSES // 2:
        return accepted[-(LOSSES - len(opened)) :] + opened
    return [*accepted[-LOSSES // 2 :], *map(_merge, _group(opened))]


def _group(losses: list[Loss]) -> list[list[Loss]]:
    """Groups losses by stream, kind and log."""
    found: dict[tuple[str, str, str], list[Loss]] = {}
    for loss in losses:
        found.setdefault((loss.stream, loss.kind, loss.log), []).append(loss)
    return list(found.values())


def _merge(losses: list[Loss]) -> Loss:
    return msgspec.structs.replace(
        losses[0],
        first=min(loss.first for loss in losses),
        last=max(loss.last for loss in losses),
        count=sum(loss.count for loss in losses),
        bytes=sum(loss.bytes for loss in losses),
    )


def _read(value: bytes) -> list[Loss]:
    try:
        return msgspec.json.decode(value, type=LossList).losses
    except msgspec.DecodeError as error:
        log.error("the losses of the log cannot be read: %s", error)
        return []
