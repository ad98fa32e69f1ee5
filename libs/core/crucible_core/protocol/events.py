"""Requests to `events`: append, redact, query, count, get, trace and the types; those between its two roles; and
its records in KV."""

from typing import Any, Literal, NamedTuple

import msgspec

from crucible_core.attributes import Extensions
from crucible_core.envelope import DEFAULT_ROOM, DEFAULT_WORLD, Redaction, Source
from crucible_core.errors import Problem
from crucible_core.limits import EVENTS_PAGE
from crucible_core.position import Encoded
from crucible_core.protocol.parts import Message, Owned


class NewEvent(Message):
    """An event that wants to be committed; everything that is None is stamped by `events`.

    `payload` is JSON, passed through untouched. `expected_sequence` is that of the entity's last event (0: none yet).
    Without `react` it is only recorded: Post hooks, webhooks and the reader of notes pass it over. One that comes
    `redacted`, as an export has it, has the payload `{}`, whatever its type, and is only recorded too. With a
    `fingerprint` of what was sent, another one under the same idempotency key is refused. One that comes from `outside`
    (a client, a script) may be of a category that Crucible alone writes only where nothing reacts to it; where it names
    a cause that the log has, it is one effect deeper than that, and has its correlation id unless it brings one.
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
    extensions: Extensions = {}
    expected_sequence: int | None = None
    retention: Literal["default", "forever"] = "default"
    idempotency_key: str | None = None
    fingerprint: str | None = None
    react: bool = True
    redacted: Redaction | None = None
    outside: bool = False


class AppendRequest(Message):
    """`apart`: the events are of several requests, none of which waits for what another needs. An event that needs more
    than a look at the catalogue, the index and the free storage is not appended: its outcome says `alone`."""

    events: list[NewEvent]
    atomic: bool = False
    apart: bool = False


class Appended(Message):
    """One event's outcome: committed (`sequence` set), known already (`duplicate`), refused (`error`), or to be asked
    for `alone`."""

    id: str | None = None
    sequence: int | None = None
    type: str | None = None
    correlation_id: str | None = None
    duplicate: bool = False
    error: Problem | None = None
    alone: bool = False


class AppendReply(Message):
    """`results` has one entry for each event asked, in order. An atomic append is refused as a whole, by an error."""

    results: list[Appended]


class KeyedRequest(Message):
    """`events.keyed`: the outcome of the append that had an idempotency key first; all None where none had. With a
    `fingerprint`, refused as an append would be that is not the same."""

    key: str
    world_id: str = DEFAULT_WORLD
    source: Source | None = None
    actor: str | None = None
    fingerprint: str | None = None


class RedactRequest(Message):
    """Erase the payload of one event; the rest says who asks. Answered with the event in its public form."""

    id: str
    reason: str | None = None
    source: Source | None = None
    actor: str | None = None
    correlation_id: str | None = None
    hop: int = 0


class IndexedRequest(Message):
    """Answered once the replica's index holds a sequence."""

    sequence: int


class Known(NamedTuple):
    """An event of the log, by what an append answers, and the fingerprint of the request under its idempotency key."""

    sequence: int
    id: str
    type: str
    correlation_id: str
    fingerprint: str | None = None


class Chain(NamedTuple):
    """A step in a chain of effects, as an event has it."""

    hop: int
    correlation_id: str


class KnownRequest(Message):
    """`events.known`, asked by an append: the events that the log has by some ids, and by what stands for idempotency
    keys. With `settled`, all that is committed by now counts; else what JetStream itself knows need not be told."""

    ids: list[str]
    settled: bool = False


class KnownReply(Message):
    found: dict[str, Known]


class ChainsRequest(Message):
    """`events.chains`, asked by an append: how deep in which chain the causes are that events name, by their ids."""

    ids: list[str]


class ChainsReply(Message):
    found: dict[str, Chain]


class LastRequest(Message):
    """`events.last_of`, asked by an append: the sequence of an entity's last event, where an index holds `through`."""

    world_id: str
    category: str
    entity: str
    through: int


class LastReply(Message):
    sequence: int


class FindRequest(Message):
    """`events.find`: as `events.get`, in an index that holds `through`."""

    id: str
    through: int = 0


class EventsWanted(Message):
    """A selection of events of the log. `type` holds names, aliases or wildcards; `source` is a kind or `kind:id`;
    times are RFC 3339; `after` (exclusive) and `until` (inclusive) are sequences. `min_sequence` waits for the index.
    An export gives the last two as a position, which is the same where the log is one stream."""

    type: list[str] = []
    actor: str | None = None
    source: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    entity: str | None = None
    world_id: str | None = None
    room_id: str | None = None
    from_time: str | None = None
    to_time: str | None = None
    after: int | None = None
    until: Encoded | None = None
    filter: dict[str, Any] | None = None
    min_sequence: Encoded | None = None


class QueryRequest(EventsWanted):
    """`with_retention` marks the events that are kept for ever, as an import wants it."""

    order: Literal["asc", "desc"] = "asc"
    limit: int = EVENTS_PAGE
    cursor: str | None = None
    with_retention: bool = False


class QueryReply(Message, omit_defaults=False):
    """`events` are public forms (with `sequence`), passed through."""

    events: list[msgspec.Raw]
    next_cursor: str | None = None


CountBy = Literal["type", "world_id", "room_id", "actor", "day"]


class CountRequest(EventsWanted):
    by: CountBy | None = None


class CountGroup(Message, omit_defaults=False):
    """`key` is a day as `2026-11-21` (UTC), or the field's value."""

    key: str
    count: int


class CountReply(Message, omit_defaults=False):
    """`groups` are the largest first. Where the log is too long for one answer, `complete` is false, and the same
    request with `after` = `counted_to` counts on."""

    count: int
    groups: list[CountGroup]
    complete: bool
    counted_to: int


class TraceRequest(Message):
    correlation_id: str
    min_sequence: int | None = None


class TracedDelivery(Message, omit_defaults=False):
    """A webhook's delivery of an event, as its latest attempt left it. `webhook` is the name that it had;
    `ended_at` is that attempt's end."""

    delivery_id: str
    webhook_id: str
    webhook: str | None
    event_id: str
    outcome: str
    attempts: int
    ended_at: str
    status: int | None = None
    error: str | None = None
    elapsed_ms: float = 0.0


class TraceNode(Message, omit_defaults=False):
    """An event and what it caused: events in order of sequence, and deliveries. `elapsed_ms` counts from the chain's
    first event. Of one that is `hidden`, as whoever asks may not see it, only what it caused is told; `event` is null.
    """

    event: msgspec.Raw
    elapsed_ms: float
    effects: list["TraceNode"] = []
    deliveries: list[TracedDelivery] = []
    hidden: bool | msgspec.UnsetType = msgspec.UNSET


class TraceReply(Message, omit_defaults=False):
    """`complete` is false where the deliveries could not be had."""

    correlation_id: str
    count: int
    truncated: bool
    roots: list[TraceNode]
    complete: bool = True


class EventType(Message, omit_defaults=False):
    """`schema` is JSON Schema of the payload, of the latest of `versions`; `open` says whether other payload fields are
    accepted. `count` is how many events of the type the log has; for `Custom.*`, of all names without an entry. Nobody
    but a client emits what is `reserved`."""

    type: str
    description: str
    aliases: list[str]
    open: bool
    schema: dict[str, Any]
    version: str = "1.0.0"
    versions: list[str] = []
    registered: bool = False
    count: int = 0
    reserved: bool = False


class DescribedType(EventType, omit_defaults=False):
    """One type with the schema of each version."""

    schemas: dict[str, dict[str, Any]] = {}


class TypesRequest(Message):
    """`after` is the type that the part before ended with."""

    after: str | None = None


class TypesReply(Message):
    """All types, or a part of them: then `next` is what the next request's `after` must be."""

    types: list[EventType]
    next: str | None = None


class RegisterType(Message, omit_defaults=False):
    """A new type, or a later version of one. `aliases` come to those that it has; an empty description keeps it."""

    type: str
    schema: dict[str, Any]
    version: str = "1.0.0"
    description: str = ""
    aliases: list[str] = []


class RegisteredType(Message):
    """`created` is false where all of it was registered before."""

    type: DescribedType
    created: bool = True


class KnowTypes(Message):
    """`events.know_types`, `hooks.know_types`, …, asked of every replica: answered, with the same, once the replica's
    copy of the `event_types` bucket holds the revision. So a type that is answered as registered is known everywhere.
    """

    revision: int


class TypeVersion(Message):
    version: str
    schema: dict[str, Any]
    registered_at: str = ""


class TypeRecord(Owned, kw_only=True):
    """The value of the `event_types` bucket for a type: all its versions, the latest last."""

    type: str
    versions: list[TypeVersion]
    description: str = ""
    aliases: list[str] = []
    updated_at: str = ""
