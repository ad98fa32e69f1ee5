"""Requests to `hooks` about the decision of Pre hooks, the registry and the runs, and its records in KV."""

from typing import Any

import msgspec

from crucible_core.limits import HISTORY_PAGE
from crucible_core.position import Encoded
from crucible_core.protocol.parts import Counters, FormerTypes, Message, Owned


class InterceptRequest(Message):
    """`event` is the stamped, uncommitted event; `hooks` the names that `events` found to match, with the KV revision
    that it had seen: a replica of `hooks` that is behind that revision catches up before it answers."""

    event: msgspec.Raw
    hooks: list[str]
    revision: int = 0


class InterceptReply(Message):
    """Allowed; `payload` is the changed payload, if a hook changed it. A denial is a `DeniedError`."""

    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class GuardedRequest(Message):
    """`events.guarded`, asked of every replica: answered, with the same, once the replica's copy of the `hooks` bucket
    holds the revision. So a hook that is answered as registered judges the very next event."""

    revision: int


class HookRecord(Owned, kw_only=True):
    """The value of the `hooks` bucket under a hook's name.

    `definition` is the hook object of the contract (normalised, with its script inline), the last good one; `error`
    says why a newer one could not be taken; `origin` is the file's path, or `api`. `id` is given when the name is new:
    runs and counters belong to it, so that a later hook of the name has none of a deleted one's. `switched` are places
    in the log: events after the first are for it, those after the second are not, and so on; without any, all are.
    `former`: see `FormerTypes`.
    """

    name: str
    definition: dict[str, Any] | None = None
    enabled: bool = True
    origin: str = "api"
    error: str | None = None
    updated_at: str = ""
    id: str = ""
    switched: list[Encoded] = []
    former: list[FormerTypes] = []


class HookView(Message, omit_defaults=False):
    """A hook as users see it. `state` is `active`, `disabled`, `inert: <reason>`, or `failing: <reason>` where its
    latest runs, ten at least, have all failed the same way; that ends with a success, or with a change of the hook."""

    name: str
    state: str
    timing: str | None
    priority: int | None
    origin: str
    definition: dict[str, Any] | None
    counters: Counters
    updated_at: str
    id: str = ""
    owner: str = ""
    world_id: str | None = None
    order: int | None = None
    """The rank in the printed order of the Pre hooks; None for Post hooks."""
    warnings: list[str] = []
    """The obstacle that keeps an active hook from firing, such as a type that nobody emits."""


class HookList(Message, omit_defaults=False):
    hooks: list[HookView]
    next_cursor: str | None = None


class RegisterHook(Message):
    """`definition` is the hook object of the contract; or `markdown`, the text of a hook file."""

    definition: dict[str, Any] | None = None
    markdown: str | None = None


class UpdateHook(Message):
    """`hooks.update`: a merge patch (RFC 7396) of the hook object of that name."""

    name: str
    changes: dict[str, Any]


class RunsRequest(Message):
    name: str
    limit: int = HISTORY_PAGE
    cursor: str | None = None


class RunRecord(Message, omit_defaults=False):
    """One attempt at one run, as kept in ATTEMPTS, or made of a Pre hook's event. `outcome` is ok, failed, skipped,
    denied, retrying, stopped, dry (a replayed event whose effects were only noted) or parked (put aside, as the service
    ended over it twice). `replay` is the id of the replay that it belongs to; `hook_id` tells hooks of one name apart.
    `world_id` and `room_id` are the event's."""

    run_id: str
    hook: str
    timing: str
    event_id: str
    event_type: str
    correlation_id: str
    attempt: int
    outcome: str
    started_at: str
    duration_ms: float
    error: str | None = None
    output: Any = None
    effects: list[str] = []
    log: list[str] = []
    next_attempt_at: str | None = None
    replay: str | None = None
    hook_id: str = ""
    world_id: str | None = None
    room_id: str | None = None


class RunList(Message, omit_defaults=False):
    runs: list[RunRecord]
    next_cursor: str | None = None
