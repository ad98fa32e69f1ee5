"""Replays: what `events` is asked about them, what it shows, and how it hands events to their targets."""

from typing import Literal

import msgspec

from crucible_core.protocol.parts import Message, TypeFilter

ReplayPolicy = Literal["run", "skip", "dry"]
"""The treatment of replayed events by a handler: as with any other, nothing, or everything but the effects."""


class ReplayTarget(Message):
    """Exactly one of them: a hook's name, a webhook's id or name, or the id of a live subscription."""

    hook: str | None = None
    webhook: str | None = None
    subscription: str | None = None


class StartReplay(Message, rename={"start": "from"}):
    """`events.replay`. `start` (exclusive) and `to` (inclusive) are sequences, RFC 3339 times, `start` or `now`; `rate`
    is in events a second. The same key again is answered with the replay that it started."""

    target: ReplayTarget
    start: int | str = 0
    to: int | str = "now"
    filters: list[TypeFilter] | None = None
    rate: float | None = None
    world_id: str | None = None
    room_id: str | None = None
    idempotency_key: str | None = None


class Replay(Message, rename={"start": "from"}, omit_defaults=False):
    """A replay as users see it. `state` is running, paused, done, cancelled or `failed: <reason>`.

    `start`, `to` and `position` are sequences: it hands on what comes after the first, up to and with the second, and
    has come to the third. (Where the log is in several streams, each counts the events of all of them until there.)
    `total` counts the messages to be looked at, `matched` those that its filters let through, `sent` those that the
    target took, and `skipped` those that the target's own filters refused. `error` says why it failed, or what it waits
    for.
    """

    id: str
    state: str
    start: int
    to: int
    position: int
    matched: int
    sent: int
    skipped: int
    total: int
    progress: float
    target: ReplayTarget
    filters: list[TypeFilter]
    rate: float | None
    world_id: str | None
    room_id: str | None
    created_at: str
    updated_at: str
    owner: str = ""
    error: str | None = None
    duplicate: bool = False
    """The same idempotency key has started it before."""


class ReplayList(Message):
    """The newest first."""

    replays: list[Replay]


class SteerReplay(Message):
    """`events.replay_steer`."""

    id: str
    action: Literal["pause", "resume", "cancel"]


class Replayable(Message):
    """The answer of `hooks.replayable` and `webhooks.replayable` (to a `GetRequest`) about a handler that takes
    replays, by the name or id under which batches are to be handed to it. A handler that takes none is an error that
    says why."""

    id: str


class ReplayedEvent(Message):
    """`event` is the stored form, passed through; `time_ms` (Unix) the moment of its commit."""

    sequence: int
    time_ms: int
    event: msgspec.Raw


class ReplayBatch(Message):
    """`hooks.replay`, `webhooks.replay`, and `gateway.<subscription>`: events for a target, in order.

    `end` says that it was the last batch, and in which state the replay has come to its end; `sent` then counts all.
    """

    replay: str
    target: str
    events: list[ReplayedEvent] = []
    end: str | None = None
    sent: int = 0


class ReplayTaken(Message, omit_defaults=False):
    """The number of events of the batch, from its first one, that are dealt with: `sent` on, or `skipped`. Fewer than
    all: there is no capacity for more at the moment. `waiting` says why where somebody has to act."""

    taken: int
    sent: int
    skipped: int
    waiting: str | None = None
