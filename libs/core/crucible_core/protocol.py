"""The requests and replies that services exchange over NATS: one Struct each, and the records they keep in KV.

The subject of each is `Names.rpc(service, operation)`; both words are in the section's heading.
A refused request is answered with a `Problem` (see `errors`).
"""

from typing import Any, Literal

import msgspec

from .envelope import DEFAULT_ROOM, DEFAULT_WORLD, Source
from .errors import Problem


class _Message(msgspec.Struct, kw_only=True, omit_defaults=True):
    pass


# ---- events.append ---------------------------------------------------------------------------------------------------


class NewEvent(_Message):
    """An event that wants to be committed; everything that is None is stamped by `events`.

    `payload` is JSON, passed through untouched. `expected_sequence` is that of the entity's last event (0: none yet).
    """

    type: str
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    id: str | None = None
    timestamp: str | None = None
    version: str | None = None
    source: Source | None = None
    actor: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    hop: int = 0
    world_id: str = DEFAULT_WORLD
    room_id: str = DEFAULT_ROOM
    entity: str | None = None
    traceparent: str | None = None
    expected_sequence: int | None = None
    retention: Literal["default", "forever"] = "default"
    idempotency_key: str | None = None


class AppendRequest(_Message):
    events: list[NewEvent]
    atomic: bool = False


class Appended(_Message):
    """One event's outcome: committed (`sequence` set), known already (`duplicate`), or refused (`error`)."""

    id: str | None = None
    sequence: int | None = None
    type: str | None = None
    correlation_id: str | None = None
    duplicate: bool = False
    error: Problem | None = None


class AppendReply(_Message):
    """`results` has one entry for each event asked, in order. An atomic append is refused as a whole, by an error."""

    results: list[Appended]


# ---- events.query, events.get, events.trace, events.types ------------------------------------------------------------


class QueryRequest(_Message):
    """`type` holds names, aliases or wildcards; times are RFC 3339; `after` is an exclusive sequence."""

    type: list[str] = []
    actor: str | None = None
    correlation_id: str | None = None
    entity: str | None = None
    world_id: str | None = None
    room_id: str | None = None
    from_time: str | None = None
    to_time: str | None = None
    after: int | None = None
    order: Literal["asc", "desc"] = "asc"
    filter: dict[str, Any] | None = None
    limit: int = 100
    cursor: str | None = None
    min_sequence: int | None = None


class QueryReply(_Message, omit_defaults=False):
    """`events` are public forms (with `sequence`), passed through."""

    events: list[msgspec.Raw]
    next_cursor: str | None = None


class GetRequest(_Message):
    """`events.get`, `memory.get`, `hooks.get`, `webhooks.get`, …: one thing by its id or name."""

    id: str


class TraceRequest(_Message):
    correlation_id: str
    min_sequence: int | None = None


class TraceNode(_Message, omit_defaults=False):
    """An event and what it caused, each in order of sequence. `elapsed_ms` counts from the chain's first event."""

    event: msgspec.Raw
    elapsed_ms: float
    effects: list["TraceNode"] = []


class TraceReply(_Message, omit_defaults=False):
    correlation_id: str
    count: int
    truncated: bool
    roots: list[TraceNode]


class EventType(_Message, omit_defaults=False):
    """`schema` is JSON Schema of the payload; `open` says whether other payload fields are accepted."""

    type: str
    description: str
    aliases: list[str]
    open: bool
    schema: dict[str, Any]


class TypesReply(_Message):
    types: list[EventType]


# ---- hooks.intercept -------------------------------------------------------------------------------------------------


class InterceptRequest(_Message):
    """`event` is the stamped, uncommitted event; `hooks` the names that `events` found to match, with the KV revision
    that it had seen: a replica of `hooks` that is behind that revision catches up before it answers."""

    event: msgspec.Raw
    hooks: list[str]
    revision: int = 0


class InterceptReply(_Message):
    """Allowed; `payload` is the changed payload, if a hook changed it. A denial is a `DeniedError`."""

    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class GuardedRequest(_Message):
    """`events.guarded`, asked of every replica: answered, with the same, once the replica's copy of the `hooks` bucket
    holds the revision. So a hook that is answered as registered judges the very next event."""

    revision: int


# ---- hooks.* (registry) ----------------------------------------------------------------------------------------------


class TypeFilter(_Message, omit_defaults=False):
    """One alternative of a subscription: a type, alias or wildcard, and a filter on its payload."""

    event_type: str
    filter: dict[str, Any] = {}


class HookRecord(_Message):
    """What the `hooks` bucket holds under a hook's name.

    `definition` is the hook object of the contract (normalised, with its script inline), the last good one; `error`
    says why a newer one could not be taken; `origin` is the file's path, or `api`.
    """

    name: str
    definition: dict[str, Any] | None = None
    enabled: bool = True
    origin: str = "api"
    error: str | None = None
    updated_at: str = ""


class Counters(_Message, omit_defaults=False):
    matched: int = 0
    invoked: int = 0
    ok: int = 0
    failed: int = 0
    skipped: int = 0
    last_fired: str | None = None


class HookView(_Message, omit_defaults=False):
    """A hook as users see it. `state` is `active`, `disabled` or `inert: <reason>`."""

    name: str
    state: str
    timing: str | None
    priority: int | None
    origin: str
    definition: dict[str, Any] | None
    counters: Counters
    updated_at: str
    order: int | None = None
    """The place in the printed order of the Pre hooks; None for Post hooks."""


class HookList(_Message):
    hooks: list[HookView]


class RegisterHook(_Message):
    """`definition` is the hook object of the contract; or `markdown`, the text of a hook file."""

    definition: dict[str, Any] | None = None
    markdown: str | None = None


class EnableHook(_Message):
    name: str
    enabled: bool


class RunsRequest(_Message):
    name: str
    limit: int = 50
    cursor: str | None = None


class RunRecord(_Message, omit_defaults=False):
    """One attempt at one run, as kept in ATTEMPTS. `outcome` is ok, failed, skipped, denied, retrying or stopped."""

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


class RunList(_Message, omit_defaults=False):
    runs: list[RunRecord]
    next_cursor: str | None = None


class Check(_Message, omit_defaults=False):
    """What `doctor` learns of one handler from a synthetic event: `verdict` is live, disabled or inert; `steps` are the
    links of the chain in order, each with whether it held."""

    name: str
    verdict: str
    reason: str | None = None
    duration_ms: float | None = None
    steps: list["CheckStep"] = []


class CheckStep(_Message, omit_defaults=False):
    step: str
    ok: bool
    detail: str = ""


class TestRequest(_Message):
    """`hooks.test`, `webhooks.test`: fire one synthetic event (or `event`, a payload) through a handler.

    With `dry_run` nothing outside is changed: a script's effects are recorded, not made; a webhook's endpoint is only
    connected to.
    """

    id: str
    dry_run: bool = True
    payload: dict[str, Any] | None = None


# ---- webhooks.* ------------------------------------------------------------------------------------------------------


class Auth(_Message):
    """`hmac` uses `secret`, `bearer` needs `token`, `basic` needs `username` and `password`. All are signed."""

    type: Literal["hmac", "bearer", "basic"] = "hmac"
    secret: str | None = None
    algorithm: Literal["sha256"] = "sha256"
    token: str | None = None
    username: str | None = None
    password: str | None = None


class WebhookOptions(_Message, omit_defaults=False):
    """`timeout_ms` bounds the whole exchange; `retry_delays_s` are the waits between attempts, in seconds."""

    timeout_ms: int = 15000
    retry_delays_s: list[float] = msgspec.field(default_factory=lambda: [2.0, 4.0, 8.0, 16.0])
    concurrency: int = 8


class WebhookRecord(_Message):
    """What the `webhooks` bucket holds under a webhook's id, secret included."""

    id: str
    name: str
    url: str
    event_filters: list[TypeFilter]
    auth: Auth
    options: WebhookOptions
    enabled: bool = True
    disabled_reason: str | None = None
    created_at: str = ""
    updated_at: str = ""


class CreateWebhook(_Message):
    name: str
    url: str
    event_filters: list[TypeFilter]
    auth: Auth | None = None
    options: WebhookOptions | None = None


class WebhookView(_Message, omit_defaults=False):
    """A webhook as users see it; `secret` only in the answer that made it. Credentials never come back."""

    id: str
    name: str
    url: str
    event_filters: list[TypeFilter]
    auth_type: str
    options: WebhookOptions
    state: str
    counters: Counters
    created_at: str
    updated_at: str
    secret: str | msgspec.UnsetType = msgspec.UNSET


class WebhookList(_Message):
    webhooks: list[WebhookView]


class AttemptsRequest(_Message):
    id: str
    limit: int = 50
    cursor: str | None = None


class AttemptRecord(_Message, omit_defaults=False):
    """One attempt at one delivery, as kept in ATTEMPTS. `outcome` is delivered, retrying, failed or exhausted."""

    delivery_id: str
    webhook_id: str
    event_id: str
    event_type: str
    event_sequence: int
    correlation_id: str
    attempt: int
    outcome: str
    started_at: str
    duration_ms: float
    status: int | None = None
    error: str | None = None
    response: str | None = None
    next_attempt_at: str | None = None


class AttemptList(_Message, omit_defaults=False):
    attempts: list[AttemptRecord]
    next_cursor: str | None = None


# ---- memory.* --------------------------------------------------------------------------------------------------------


class Link(_Message, omit_defaults=False):
    """`target` is a memory id, or a note's title or path until something has that name."""

    target: str
    type: str = "related"
    weight: float | None = None


class CreateMemory(_Message):
    content: str
    tags: list[str] = []
    entities: list[str] = []
    links: list[Link] = []
    metadata: dict[str, Any] = {}


class UpdateMemory(_Message):
    """None leaves a field as it is."""

    content: str | None = None
    tags: list[str] | None = None
    entities: list[str] | None = None
    links: list[Link] | None = None
    metadata: dict[str, Any] | None = None


class Cause(_Message):
    """Who asks for an effect and why; it becomes the effect event's metadata. `key` makes the effect idempotent."""

    source: Source | None = None
    actor: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    hop: int = 0
    world_id: str = DEFAULT_WORLD
    room_id: str = DEFAULT_ROOM
    traceparent: str | None = None
    key: str | None = None


class WriteMemory(_Message):
    """`memory.create` (`create`), `memory.update` (`id` and `update`), `memory.delete` (`id`), `memory.link` (`id` and
    `link`), `memory.tag` (`id` and `tag`). `expected_sequence` is the memory's last sequence, as in If-Match."""

    id: str | None = None
    create: CreateMemory | None = None
    update: UpdateMemory | None = None
    link: Link | None = None
    tag: str | None = None
    expected_sequence: int | None = None
    cause: Cause = msgspec.field(default_factory=Cause)


class WrittenMemory(_Message, omit_defaults=False):
    """`changed` is false where the memory was so already (the link or tag existed)."""

    id: str
    sequence: int
    changed: bool = True
    duplicate: bool = False


class MemoryView(_Message, omit_defaults=False):
    """`sequence` is the memory's last event, which its ETag carries. `title` and `path` are those of a note's file.

    A link's target is a memory's id where its title, path or alias leads to one.
    """

    id: str
    content: str
    tags: list[str]
    entities: list[str]
    links: list[Link]
    metadata: dict[str, Any]
    world_id: str
    room_id: str
    created_at: str
    updated_at: str
    sequence: int
    title: str | None = None
    path: str | None = None


class MemoryQuery(_Message):
    """`mode` is text (FTS5, BM25) until vectors arrive; `filter` is the filter language over the memory's fields."""

    text: str | None = None
    mode: Literal["auto", "text"] = "auto"
    tags: list[str] = []
    filter: dict[str, Any] | None = None
    limit: int = 10
    min_sequence: int | None = None
    world_id: str = DEFAULT_WORLD
    room_id: str | None = None


class ScoredMemory(MemoryView, omit_defaults=False):
    """`score` is in (0, 1], 1 the best match of the answer; 1 everywhere where no text was asked."""

    score: float = 1.0


class MemoryList(_Message):
    memories: list[ScoredMemory]


# ---- the `keys` bucket -----------------------------------------------------------------------------------------------


class KeyRecord(_Message):
    """An API key under the SHA-256 (hex) of its text, which is never stored."""

    id: str
    name: str
    created_at: str
    disabled: bool = False
