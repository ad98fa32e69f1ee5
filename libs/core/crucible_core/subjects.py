"""Every name on the bus: subjects, streams, durables, buckets and headers, built by functions."""

import base64
import functools
import hashlib
import re
import zlib
from collections.abc import Sequence

import msgspec

from crucible_core.position import Encoded as EncodedPosition
from crucible_core.position import Position, base_of, decoded, in_stream, stream_number

HASH_BUCKETS = 64
VERSIONED = frozenset({"Memory", "Graph"})
"""Categories whose entities have checked versions: their entity id is a token of the subject."""

ACCESSED = "Accessed"
"""An event of a versioned category that leaves its entity's version alone: to read is not to change."""

REDACTED = "Redacted"
"""The event of a tombstone; its category is the redacted event's where entities are versioned, else System."""

DLV = "dlv"
"""The kind of work that a delivery of a webhook is."""
RUN = "run"
"""The kind of work that a run of a hook is."""

# Our own headers.
JOB = "Crucible-Job"
"""The run or delivery that a message of a work queue is an attempt at."""
ERROR = "Crucible-Error"
ATTEMPT = "Crucible-Attempt"
OLD_JOBS = {DLV: "Crucible-Delivery", RUN: "Crucible-Run"}
"""The value of `JOB`, of the work that the version before the work engine has left, by kind."""
EVENT_ID = "Crucible-Event-Id"
EVENT_SEQUENCE = "Crucible-Event-Sequence"
CAUSE = "Crucible-Cause"
DRY_RUN = "Crucible-Dry-Run"
REPLAY = "Crucible-Replay"
NO_REACTION = "Crucible-No-Reaction"
REDACTS = "Crucible-Redacts"
REPLY_TO = "Crucible-Reply-To"
DEADLINE = "Crucible-Deadline"
"""The milliseconds that the sender of a request waits, from `SENT` on."""
SENT = "Crucible-Sent"
"""The time at which a request was sent: Unix milliseconds by the NATS server's clock."""
PRINCIPAL = "Crucible-Principal"
"""Who asks, as `access.Principal.header` has it."""
WORKING = "Crucible-Working"
REPLICA = "Crucible-Replica"
RECEIVED = "Crucible-Received"
"""Says that a large request has arrived: its sender may send another."""
PACED = "Crucible-Paced"
"""Says that a large answer may be offered by its `SIZE`, and is sent when the caller asks for it."""
SIZE = "Crucible-Size"
FINGERPRINT = "Crucible-Fingerprint"
REGISTRATION = "Crucible-Registration"
"""The id of the hook that a run is of which the version before the work engine has left."""
KEY = "Crucible-Key"
"""The stand-in for an event's idempotency key, where its message id does not."""
REASON = "Crucible-Reason"
ORIGIN = "Crucible-Origin"
CORRELATION = "Crucible-Correlation"
KEEP = "Crucible-Keep"
"""The seconds for which an event is kept that JetStream keeps for ever: no TTL goes past a stream's `max_age`."""
HOP = "Crucible-Hop"
"""Of outgoing HTTP requests, and of requests to the gateway: how deep in a chain of effects the event is that the
request is about."""
CORRELATION_ID = "Crucible-Correlation-Id"
"""Beside `HOP`: the event's correlation id, percent-encoded where a header could not hold it."""
TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

# JetStream's (docs.nats.io, ADR-8, ADR-43, ADR-50, ADR-51).
MSG_ID = "Nats-Msg-Id"
EXPECTED_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"
BATCH_ID = "Nats-Batch-Id"
BATCH_SEQUENCE = "Nats-Batch-Sequence"
BATCH_COMMIT = "Nats-Batch-Commit"
SCHEDULE = "Nats-Schedule"
SCHEDULE_TARGET = "Nats-Schedule-Target"
TTL = "Nats-TTL"
STREAM_SEQUENCE = "Nats-Sequence"
LAST_SEQUENCE = "Nats-Last-Sequence"
STORED_SUBJECT = "Nats-Subject"

_SHORT = 128
_SAFE = re.compile(r"[A-Za-z0-9_-]{1,120}")


def token(text: str) -> str:
    """`text` as one subject token, injectively: safe characters stay, others become `=XX`, long texts a hash."""
    return _remembered_token(text) if len(text) <= _SHORT else _token(text)


def _token(text: str) -> str:
    if _SAFE.fullmatch(text):
        return text
    quoted = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else _quote(c) for c in text)
    if 0 < len(quoted) <= 120:
        return quoted
    return "=h" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]


_remembered_token = functools.lru_cache(maxsize=4096)(_token)
"""Worlds, rooms and types come again with every event. What senders make as long as they like is not remembered."""


@functools.lru_cache(maxsize=1024)
def _place(prefix: str, streams: int, world: str, room: str, category: str, event: str) -> str:
    """All of an event's subject but its last token: few, and each of many events. Their names have been checked."""
    root = _root(_number_of(token(world), streams))
    return Names(prefix)._subject(root, token(world), token(room), category, token(event))


def _root(number: int) -> str:
    return f"evt{number}" if number else "evt"


def _number_of(world: str, streams: int) -> int:
    return zlib.crc32(world.encode()) % streams if streams > 1 else 0


_LOG_STREAM = re.compile(r"(?:.*_)?EVENTS_([0-9]+)")


@functools.lru_cache(maxsize=1024)
def first_of(stream: str) -> int:
    """The number from which a stream's sequences are counted: 0, but in those of the log beside its first."""
    found = _LOG_STREAM.fullmatch(stream)
    return base_of(int(found[1])) if found else 0


def _quote(char: str) -> str:
    return "".join(f"={byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))


class Names(msgspec.Struct, frozen=True):
    """The names of one installation; `prefix` keeps several apart on one server (each test has its own). `streams` is
    how many hold its worlds."""

    prefix: str = ""
    streams: int = 1

    def _subject(self, *tokens: str) -> str:
        return ".".join((self.prefix, *tokens) if self.prefix else tokens)

    def _name(self, name: str) -> str:
        return f"{self.prefix}_{name}" if self.prefix else name

    # The log: one stream, or several of which each holds some worlds
    def stream_of(self, world: str) -> str:
        """The stream that holds a world."""
        return self.log_streams[self.number_of(world)]

    def number_of(self, world: str) -> int:
        """The same by its place among the log's streams."""
        return _number_of(token(world), self.streams)

    def stream_at(self, sequence: int) -> str:
        """The stream that holds a sequence."""
        return self.log_streams[stream_number(sequence)]

    def stream_with(self, subject: str) -> str:
        """The stream of a subject of events, which may have wildcards."""
        if self.streams == 1:
            return self.log_streams[0]
        root = subject.removeprefix(self._subject("")).partition(".")[0]
        return self.log_streams[int(root[3:] or 0)]

    @property
    def log_streams(self) -> tuple[str, ...]:
        return _log_streams(self.prefix, self.streams)

    @property
    def start(self) -> Position:
        """Before the first event."""
        return Position.start(self.streams)

    def position(self, encoded: EncodedPosition) -> Position:
        """The position in the log that a record has."""
        return decoded(encoded, self.streams)

    def subjects_in(self, stream: str, subjects: Sequence[str]) -> list[str]:
        """Wildcards over events, as they are in one stream of the log: those of worlds that it does not hold are left
        out, and those over the history; in the history, all but these are."""
        if stream == self.attempts:
            return [subject for subject in subjects if subject.startswith(self._subject("att."))]
        number = self.log_streams.index(stream)
        found = []
        for subject in subjects:
            root, world, *rest = subject.removeprefix(self._subject("")).split(".", 2)
            if root == "att":
                continue
            if world in ("*", ">") or _number_of(world, self.streams) == number:
                found.append(self._subject(_root(number), world, *rest))
        return found

    def expected(self, world: str, sequence: int) -> int:
        """A sequence of a world's stream as JetStream counts there; of another stream, one that never comes."""
        here = stream_number(sequence) == self.number_of(world) or not sequence
        return in_stream(sequence) if here else in_stream(-1)

    # Streams
    @property
    def events(self) -> str:
        """The log's first stream, after which the log is called."""
        return self._name("EVENTS")

    @property
    def hook_runs(self) -> str:
        return self._name("HOOK_RUNS")

    @property
    def deliveries(self) -> str:
        return self._name("DELIVERIES")

    @property
    def attempts(self) -> str:
        return self._name("ATTEMPTS")

    # Buckets
    def bucket(self, name: str) -> str:
        """`hooks`, `flows`, `webhooks`, `keys`, `artifacts`, `event_types`, `marks`, `replays`,
        `worlds`, `retention` or `losses`."""
        return self._name(name)

    # Snapshots of indexes: each an object in a store of its own (ADR-20)
    def snapshots(self, index: str) -> str:
        """The beginning of the names of an index's snapshot stores; a number follows."""
        return self._name(f"{index}-")

    # Durable consumers
    def durable(self, name: str) -> str:
        return self._name(token(name))

    # Subjects of committed events
    def event(self, world: str, room: str, category: str, event: str, entity: str | None) -> str:
        """`evt.<world>.<room>.<Category>.<Event>.<key>`."""
        key = _bucket(entity) if event == ACCESSED else event_key(category, entity)
        return f"{_place(self.prefix, self.streams, world, room, category, event)}.{key}"

    def versions(self, world: str | None, category: str, entity: str) -> str:
        """Every event of one versioned entity, for expected-sequence checks and its last event. Without a world: of
        every entity with that id."""
        where = "*" if world is None else token(world)
        return self._subject(self._root_of(where), where, "*", category, "*", event_key(category, entity))

    def events_of(self, category: str = "*", event: str = "*", world: str = "*", room: str = "*") -> str:
        """A wildcard over committed events, of one world (as a token) in its stream; of all in the first, see
        `subjects_in`."""
        return self._subject(self._root_of(world), world, room, category, event, "*")

    def events_in(self, world: str) -> str:
        """Every event of one world."""
        return self._subject(self._root_of(token(world)), token(world), ">")

    def _root_of(self, world: str) -> str:
        return "evt" if world == "*" else _root(_number_of(world, self.streams))

    @property
    def all_events(self) -> str:
        return self._subject("evt", ">")

    def type_of(self, subject: str) -> tuple[str, str]:
        """Category and event of a committed event's subject; the event as a token."""
        _, category, event, _ = subject.rsplit(".", 3)
        return category, event

    @property
    def tombstones(self) -> list[str]:
        """Wildcards over the events that may be a tombstone."""
        return [self.events_of(category, REDACTED) for category in (*sorted(VERSIONED), "System")]

    # Work of handlers in their shards; `kind` is DLV or RUN.
    def work(self, kind: str, handler: str) -> str:
        return self._subject(kind, _shard(handler), token(handler))

    def work_of(self, kind: str, shard: int) -> str:
        return self._subject(kind, _BUCKETS[shard], "*")

    def all_work(self, kind: str) -> str:
        return self._subject(kind, "*", "*")

    def schedule(self, kind: str, handler: str, job: str) -> str:
        """The subject on which a job waits for its time."""
        return self._subject("sched", kind, _shard(handler), token(handler), token(job))

    def schedules_of(self, kind: str, handler: str) -> str:
        return self._subject("sched", kind, _shard(handler), token(handler), "*")

    def all_schedules(self, kind: str) -> str:
        return self._subject("sched", kind, ">")

    def held(self, kind: str, handler: str) -> str:
        """The subject for work that its handler has no capacity for; nobody consumes it there."""
        return self._subject("held", kind, _shard(handler), token(handler))

    def all_held(self, kind: str) -> str:
        return self._subject("held", kind, ">")

    def handler_of(self, subject: str) -> str:
        """The handler, as a token, that a message of a work queue or of the history is about."""
        tokens = subject.removeprefix(self._subject("")).split(".")
        return tokens[3] if tokens[0] in ("sched", "held") else tokens[2]

    def old_handler_of(self, subject: str) -> str:
        """The same of work that the version before the work engine has left: a webhook's id, a hook's name."""
        tokens = subject.removeprefix(self._subject("")).split(".")
        return tokens[2] if tokens[0] == "sched" else tokens[1]

    # History
    def attempt(self, kind: str, handler: str, job: str) -> str:
        return self._subject("att", kind, token(handler), token(job))

    def attempts_of(self, kind: str) -> str:
        return self._subject("att", kind, ">")

    def parked(self, durable: str) -> str:
        """The subject for messages that cannot be decoded."""
        return self._subject("att", "parked", token(durable))

    @property
    def all_parked(self) -> str:
        return self._subject("att", "parked", "*")

    def trial(self, durable: str, work: str) -> str:
        """The subject of the note that something is worked on alone, since a process has ended that had it in hand."""
        return self._subject("att", "trial", token(durable), token(work))

    @property
    def all_attempts(self) -> str:
        return self._subject("att", ">")

    # Requests
    def rpc(self, service: str, operation: str) -> str:
        return self._subject("rpc", service, operation)

    def rpc_alive(self, service: str, operation: str) -> str:
        """The subject on which each replica listens that answers an operation, or drains, and nobody is ever
        answered."""
        return self._subject("rpc", service, operation, "alive")


@functools.lru_cache(maxsize=64)
def _log_streams(prefix: str, streams: int) -> tuple[str, ...]:
    first = Names(prefix).events
    return (first, *(f"{first}_{number}" for number in range(1, streams)))


_BUCKETS = [f"b{number:02d}" for number in range(HASH_BUCKETS)]


def event_key(category: str, entity: str | None) -> str:
    """The last token of an event's subject: the entity where versions are checked, else one of 64 buckets."""
    return token(entity) if category in VERSIONED and entity else _bucket(entity)


SHARDS = len(_BUCKETS)


def shard_of(handler: str) -> int:
    """The part of a service's handlers that one belongs to."""
    return zlib.crc32(handler.encode()) % SHARDS


def _shard(handler: str) -> str:
    return _BUCKETS[shard_of(handler)]


def _bucket(entity: str | None) -> str:
    return _BUCKETS[zlib.crc32(entity.encode("utf-8", "surrogatepass")) % HASH_BUCKETS if entity else 0]


# JetStream's own API (docs.nats.io, "JetStream wire API reference") and the key-value mapping (ADR-8).


def js_next(stream: str, consumer: str) -> str:
    return f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"


def js_message(stream: str) -> str:
    return f"$JS.API.STREAM.MSG.GET.{stream}"


def js_api(operation: str, *tokens: str) -> str:
    """An operation such as `STREAM.CREATE` and what it is about."""
    return ".".join(("$JS.API", operation, *tokens))


def kv_stream(bucket: str) -> str:
    return f"KV_{bucket}"


def kv_subject(bucket: str, key: str) -> str:
    return f"$KV.{bucket}.{key}"


# And its mapping of objects (ADR-20).
ALL_OBJECTS = "$O.>"


def object_stream(store: str) -> str:
    return f"OBJ_{store}"


def object_chunks(store: str, nuid: str) -> str:
    return f"$O.{store}.C.{nuid}"


def object_info(store: str, name: str) -> str:
    """The subject of an object's description; `*` is every object."""
    return f"$O.{store}.M.{name if name == '*' else base64.urlsafe_b64encode(name.encode()).decode()}"


KV_OPERATION = "KV-Operation"
KV_MARKER = "Nats-Marker-Reason"
EXPECTED_STREAM_SEQUENCE = "Nats-Expected-Last-Sequence"
STATUS = "Status"
DESCRIPTION = "Description"
"""Names that nats-py gives the parts of an inline status."""
PENDING_MESSAGES = "Nats-Pending-Messages"
LAST_CONSUMER = "Nats-Last-Consumer"
ACK_PREFIX = "$JS.ACK."
"""The beginning of a stream message's reply subject; its tokens carry the message's metadata."""
ACK, NAK, TERM, IN_PROGRESS = b"+ACK", b"-NAK", b"+TERM", b"+WPI"
