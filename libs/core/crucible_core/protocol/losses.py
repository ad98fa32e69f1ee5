"""Losses of the log and the other streams, as they are recorded, listed and accepted."""

import msgspec

from crucible_core.protocol.parts import Message


class Loss(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Messages that were acknowledged and are not there any more: those of `first` to `last` that are `count`.

    `kind` says how it was noticed: `missing` in the middle of the log, its `end` (later events may have the same
    sequences), or the whole `log`, in whose place there is another. `log` tells which one it was, by the moment of its
    creation. What JetStream itself says that it cannot read is `unreadable`: so many `bytes`, of sequences that it may
    not know (0).

    `stream` is the stream that it is of, where that is not the log; the buckets' are called KV_….
    """

    kind: str
    log: str
    first: int
    last: int
    count: int
    found_at: str
    accepted_at: str | None = None
    stream: str = ""
    bytes: int = 0


class LossesRequest(Message):
    """`events.losses`: those that nobody has accepted. `events.accept_losses` accepts them, and answers which."""


class LossList(Message, omit_defaults=False):
    losses: list[Loss]
