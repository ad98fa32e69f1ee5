"""Replays into handlers: stored events become work of one handler, a bounded number at a time, so that what is live
never waits behind a long past."""

import logging
from collections.abc import Callable, Sequence

import msgspec

from crucible_core.envelope import Event, decode
from crucible_core.protocol.replays import ReplayBatch, ReplayedEvent, ReplayTaken

from .bus import Bus
from .frames import Outgoing

log = logging.getLogger(__name__)

MOST_WAITING = 1000
"""Work of one handler, what is live among it, beyond which a replay waits."""

Work = Callable[[Event, ReplayedEvent], Outgoing | None]


class Queue(msgspec.Struct, frozen=True):
    """Where the work of one handler waits, now or put aside; `handler` and `work` name it in errors: "hook tidy",
    "runs"."""

    stream: str
    subjects: Sequence[str]
    handler: str
    work: str
    enabled: bool


async def enqueue(bus: Bus, queue: Queue, request: ReplayBatch, work: Work) -> ReplayTaken:
    """Stores what `work` makes of a batch's events, as far as there is room; None skips an event. It may be repeated
    where the messages have ids."""
    waiting = sum([(await bus.backlog(queue.stream, subject))[0] for subject in queue.subjects])
    messages: list[Outgoing] = []
    skipped = 0
    for replayed in request.events:
        event = _decoded(replayed)
        message = None if event is None else work(event, replayed)
        if message is None:
            skipped += 1
        elif len(messages) + waiting < MOST_WAITING:
            messages.append(message)
        else:
            break
    if messages:
        await bus.store_all(messages)
    taken = len(messages) + skipped
    disabled = "" if queue.enabled else ", which is disabled"
    full = f"{waiting + len(messages)} {queue.work} wait for {queue.handler}{disabled}"
    reason = None if taken == len(request.events) else full
    return ReplayTaken(taken=taken, sent=len(messages), skipped=skipped, waiting=reason)


def _decoded(replayed: ReplayedEvent) -> Event | None:
    try:
        return decode(bytes(replayed.event), replayed.sequence)
    except msgspec.DecodeError as error:
        log.error("event %d cannot be read: %s", replayed.sequence, error)
        return None
