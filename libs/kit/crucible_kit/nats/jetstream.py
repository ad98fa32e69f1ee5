"""JetStream over a connection's requests: storing messages, looking them up, keeping streams and consumers."""

import abc
import asyncio
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from crucible_core import subjects
from crucible_core.errors import (
    ConflictError,
    CrucibleError,
    NotFoundError,
    StorageFullError,
    TooLargeError,
    UnavailableError,
)
from crucible_core.position import in_stream
from crucible_core.subjects import first_of
from crucible_kit.nats.budget import Flow
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.message import Message, Stored
from crucible_kit.nats.storage import Storage

MAX_BATCH = 1000
"""Messages in one atomic batch, the server's limit."""
_PART_BYTES = 8 * 1024 * 1024
_LOOKED_UP_BYTES = 2 * 1024 * 1024
"""More than an event has in an answer, where it is base64."""
# nats-server's error codes (server/errors.json).
_WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
_DUPLICATE_IN_BATCH = 10201
_TOO_LARGE = frozenset({10054, 10097})
_STORAGE_FULL = frozenset({10023, 10047})
_STORE_FAILED = 10077
_NO_MESSAGE = 10037
_NOT_DELETED = frozenset({10043, 10057})
_NAME_IN_USE = 10058
_REMOVING = frozenset({"STREAM.PURGE", "STREAM.MSG.DELETE", "STREAM.DELETE"})

_SECONDS = frozenset({"max_age", "duplicate_window", "subject_delete_marker_ttl", "ack_wait", "inactive_threshold"})
"""Options that are seconds here and nanoseconds on the wire."""


class DuplicateError(CrucibleError):
    """A message id of an atomic batch is known already; nothing of the batch was stored."""

    code = "duplicate"


class _ApiError(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _ApiError | None = None

    @property
    def sequence(self) -> int:
        return first_of(self.stream) + self.seq


class _StoredMessage(msgspec.Struct):
    subject: str
    seq: int
    time: str
    data: bytes = b""
    hdrs: bytes = b""


class _Lost(msgspec.Struct, frozen=True):
    msgs: tuple[int, ...] | None = None
    bytes: int = 0


class _State(msgspec.Struct, frozen=True):
    last_seq: int = 0
    last_ts: str = ""
    messages: int = 0
    num_deleted: int = 0
    subjects: dict[str, int] | None = None
    lost: _Lost | None = None


class _Delivered(msgspec.Struct, frozen=True):
    stream_seq: int = 0


class _Reply(msgspec.Struct):
    """The fields of the API's answers that are read here."""

    error: _ApiError | None = None
    created: str = ""
    ts: str = ""
    state: _State = _State()
    config: dict[str, Any] = {}
    message: _StoredMessage | None = None
    num_pending: int = 0
    num_ack_pending: int = 0
    delivered: _Delivered = _Delivered()
    ack_floor: _Delivered = _Delivered()
    consumers: list[str] | None = None
    streams: list[str] | None = None
    total: int = 0


class StreamState(msgspec.Struct, frozen=True):
    """`created` tells a stream from another one of the same name; `now_ms` is the server's clock, by which it forgets
    what is older than `max_age_ms` (0: nothing). `removed` counts the gaps between the first message and the last."""

    created: str
    last_sequence: int
    now_ms: int = 0
    max_age_ms: int = 0
    messages: int = 0
    removed: int = 0
    touched_ms: int = 0
    """Time of its creation, or of the last message in it."""


class Unreadable(msgspec.Struct, frozen=True):
    """The part of a stream's files that JetStream could not read: bytes, and the sequences that it knows of."""

    bytes: int = 0
    sequences: tuple[int, ...] = ()


_ack_decoder = msgspec.json.Decoder(_Ack)
_reply_decoder = msgspec.json.Decoder(_Reply)


class JetStream(abc.ABC):
    """Every method raises UnavailableError when NATS or JetStream is away, StorageFullError when its storage is full.

    Sequences are those of the API: in the streams of the log, unique over all of them (see `crucible_core.position`).
    """

    names: subjects.Names
    storage: Storage
    flow: Flow

    @abc.abstractmethod
    async def request(
        self,
        subject: str,
        data: bytes = b"",
        *,
        timeout: float = 5.0,
        headers: Mapping[str, str] | None = None,
        effect: bool = False,
    ) -> Message: ...

    @abc.abstractmethod
    async def _send_batch(self, messages: Sequence[Outgoing], timeout: float) -> Message: ...

    # ---- writing

    async def store(self, message: Outgoing, *, timeout: float = 5.0) -> Stored:
        """Stores one message; returns once JetStream has acknowledged it. ConflictError: another sequence expected.
        UnknownOutcomeError leaves open whether it is stored; any other UnavailableError says that it is not."""
        headers = message.header_lines() or None
        answer = await self.request(message.subject, message.data, timeout=timeout, headers=headers, effect=True)
        ack = self._read_ack(answer)
        return Stored(ack.sequence, ack.duplicate)

    async def store_all(self, messages: Sequence[Outgoing], *, timeout: float = 5.0) -> list[Stored]:
        """Stores many, pipelined, each acknowledged; raises the first failure after all were tried."""
        if len(messages) == 1:
            return [await self.store(messages[0], timeout=timeout)]
        stored: list[Stored] = []
        failure: BaseException | None = None
        for part in _parts(messages):
            results = await asyncio.gather(*(self.store(m, timeout=timeout) for m in part), return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    failure = failure or result
                else:
                    stored.append(result)
        if failure:
            try:
                raise failure
            finally:
                del failure, results, result  # their tracebacks lead to this frame, and to the messages
        return stored

    async def commit(self, messages: Sequence[Outgoing], *, timeout: float = 5.0) -> list[int]:
        """Stores at most 1,000 messages as one atomic batch and returns their sequences.

        DuplicateError (a known message id), ConflictError (an expected sequence) and TooLargeError say that nothing was
        stored. UnknownOutcomeError leaves it open; message ids make the repetition safe.
        """
        if not messages:
            return []
        if len(messages) > MAX_BATCH:
            raise TooLargeError(f"{len(messages)} messages in an atomic batch, at most {MAX_BATCH}")
        last = self._read_ack(await self._send_batch(messages, timeout)).sequence
        return list(range(last - len(messages) + 1, last + 1))

    async def probe(self) -> None:
        """Stores a small mark, which replaces the one before. Raises StorageFullError."""
        await self.store(Outgoing(subjects.kv_subject(self.names.bucket("marks"), "room"), b""))

    async def schedule(
        self, subject: str, target: str, at_ms: int, data: bytes, headers: Mapping[str, str], msg_id: str | None = None
    ) -> None:
        """Stores `data` so that JetStream delivers it to `target` at a moment (Unix ms). `subject` names the schedule:
        another one there replaces it. Both belong to the same stream."""
        lines = {**headers, subjects.SCHEDULE: f"@at {_rfc3339(at_ms)}", subjects.SCHEDULE_TARGET: target}
        await self.store(Outgoing(subject, data, lines, msg_id))

    # ---- looking up

    async def get(self, stream: str, sequence: int) -> Message | None:
        """The message at a sequence, from the stream's leader."""
        return await self._stored_message(stream, {"seq": in_stream(sequence)})

    async def last(self, stream: str, subject: str) -> Message | None:
        """The last message of a subject, which may have wildcards, from the stream's leader."""
        return await self._stored_message(stream, {"last_by_subj": subject})

    async def next(self, stream: str, sequence: int, subject: str) -> Message | None:
        """The first message of a subject, which may have wildcards, at a sequence or after it."""
        return await self._stored_message(stream, {"seq": in_stream(sequence), "next_by_subj": subject})

    async def last_sequence(self, stream: str) -> int:
        return (await self.stream_state(stream)).last_sequence

    async def stream_state(self, stream: str) -> StreamState:
        reply = await self._api("STREAM.INFO", stream)
        now_ms = _unix_ms(reply.ts) if reply.ts else 0
        max_age_ms = reply.config.get("max_age", 0) // 1_000_000
        state, last = reply.state, first_of(stream) + reply.state.last_seq
        touched_ms = max(_unix_ms(time) for time in (reply.created, state.last_ts) if time)
        return StreamState(reply.created, last, now_ms, max_age_ms, state.messages, state.num_deleted, touched_ms)

    async def unreadable(self, stream: str) -> Unreadable:
        """The unreadable part. The server sends it with all gaps of the stream: call it where there are few."""
        lost = (await self._api("STREAM.INFO", stream, body={"deleted_details": True})).state.lost
        return Unreadable(lost.bytes, lost.msgs or ()) if lost else Unreadable()

    async def stream_options(self, stream: str) -> dict[str, Any]:
        """A stream's options as they are on the wire."""
        return (await self._api("STREAM.INFO", stream)).config

    async def backlog(self, stream: str, subject: str) -> tuple[int, int]:
        """Numbers of messages of a stream on the subjects that match, and on others."""
        reply = await self._api("STREAM.INFO", stream, body={"subjects_filter": subject})
        found = sum((reply.state.subjects or {}).values())
        return found, max(reply.state.messages - found, 0)

    async def subjects(self, stream: str, filter: str) -> list[str]:
        """The subjects of a stream that match and have a message; at most as many as one answer holds (100,000)."""
        reply = await self._api("STREAM.INFO", stream, body={"subjects_filter": filter})
        return list(reply.state.subjects or {})

    async def acknowledged(self, stream: str, consumer: str) -> int:
        """The sequence up to which a consumer has had everything acknowledged. NotFoundError if there is none such."""
        return first_of(stream) + (await self._api("CONSUMER.INFO", stream, consumer)).ack_floor.stream_seq

    async def consumer_names(self, stream: str) -> list[str]:
        names: list[str] = []
        while True:
            reply = await self._api("CONSUMER.NAMES", stream, body={"offset": len(names)})
            names += reply.consumers or []
            if not reply.consumers or len(names) >= reply.total:
                return names

    async def delivered(self, stream: str, consumer: str) -> int:
        """The sequence of the last message that a consumer has delivered. NotFoundError if there is none such."""
        return first_of(stream) + (await self._api("CONSUMER.INFO", stream, consumer)).delivered.stream_seq

    async def _stored_message(self, stream: str, query: dict[str, Any]) -> Message | None:
        with await self.flow.inflow.take(_LOOKED_UP_BYTES):
            answer = await self.request(subjects.js_message(stream), msgspec.json.encode(query))
        reply = _reply_decoder.decode(answer.data)
        if reply.error is not None:
            if reply.error.err_code == _NO_MESSAGE:
                return None
            raise _translate_error(reply.error, stream)
        assert reply.message is not None
        found = reply.message
        headers, sequence = _stored_headers(found.hdrs), first_of(stream) + found.seq
        return Message(found.subject, found.data, headers, sequence=sequence, time_ms=_unix_ms(found.time))

    # ---- streams and consumers

    async def ensure_stream(self, name: str, *, update: bool = True, **options: Any) -> None:
        """Creates the stream; with `update`, brings an existing one to these options. Idempotent.

        The options are those of the JetStream API, with durations in seconds."""
        config = _on_the_wire({"name": name, **options})
        reply = await self._api_reply("STREAM.CREATE", name, body=config)
        if reply.error is not None and reply.error.err_code == _NAME_IN_USE:
            if not update:
                return
            reply = await self._api_reply("STREAM.UPDATE", name, body=config)
        if reply.error is not None:
            raise _translate_error(reply.error, name)

    async def create_stream(self, name: str, **options: Any) -> None:
        """Creates a stream. Raises ConflictError where there is one of that name with other options."""
        reply = await self._api_reply("STREAM.CREATE", name, body=_on_the_wire({"name": name, **options}))
        if reply.error is not None and reply.error.err_code == _NAME_IN_USE:
            raise ConflictError(f"there is a stream {name}")
        if reply.error is not None:
            raise _translate_error(reply.error, name)

    async def ensure_consumer(self, stream: str, name: str, **options: Any) -> int:
        """Creates or updates a consumer; returns how many messages wait for it. Durations are in seconds."""
        body = {"stream_name": stream, "config": _on_the_wire({"name": name, **options})}
        return (await self._api("CONSUMER.CREATE", stream, name, body=body)).num_pending

    async def consumer_options(self, stream: str, consumer: str) -> dict[str, Any]:
        """A consumer's options as they are on the wire. NotFoundError if there is no such consumer."""
        return (await self._api("CONSUMER.INFO", stream, consumer)).config

    async def consumer_backlog(self, stream: str, consumer: str) -> tuple[int, int]:
        """(not delivered yet, delivered but not acknowledged). NotFoundError if there is no such consumer."""
        reply = await self._api("CONSUMER.INFO", stream, consumer)
        return reply.num_pending, reply.num_ack_pending

    async def delete_consumer(self, stream: str, consumer: str) -> None:
        """Idempotent."""
        await self._delete("CONSUMER.DELETE", stream, consumer)

    async def purge(self, stream: str, subject: str, through: int | None = None) -> None:
        """Removes every message of a subject, or those up to a sequence."""
        upto = {} if through is None else {"seq": in_stream(through) + 1}
        await self._api("STREAM.PURGE", stream, body={"filter": subject, **upto})

    async def remove(self, stream: str, sequence: int, *, erase: bool = False) -> None:
        """Removes one message; with `erase`, the server also writes over its bytes. Idempotent."""
        reply = await self._api_reply(
            "STREAM.MSG.DELETE", stream, body={"seq": in_stream(sequence), "no_erase": not erase}
        )
        if reply.error is None:
            return
        gone = reply.error.err_code in _NOT_DELETED and await self.get(stream, sequence) is None
        if not gone:
            raise _translate_error(reply.error, stream)

    async def delete_stream(self, stream: str) -> None:
        """Idempotent."""
        await self._delete("STREAM.DELETE", stream)

    async def stream_names(self, subject: str = ">") -> list[str]:
        """The names of the streams that take a subject, which may have wildcards."""
        names: list[str] = []
        while True:
            reply = await self._api("STREAM.NAMES", body={"offset": len(names), "subject": subject})
            names += reply.streams or []
            if not reply.streams or len(names) >= reply.total:
                return names

    # ---- internals

    def _read_ack(self, answer: Message) -> _Ack:
        try:
            ack = _ack_decoder.decode(answer.data)
        except msgspec.DecodeError as error:
            raise UnavailableError("JetStream answered with something other than an acknowledgement") from error
        if ack.error is not None:
            raise self._note_refusal(ack.error)
        return ack

    def _note_refusal(self, error: _ApiError) -> CrucibleError:
        refusal = _translate_error(error, "message")
        if isinstance(refusal, StorageFullError):
            self.storage.record_refusal(refusal.detail)
        return refusal

    async def _delete(self, operation: str, *tokens: str) -> None:
        reply = await self._api_reply(operation, *tokens)
        if reply.error is not None and reply.error.code != 404:
            raise _translate_error(reply.error, tokens[-1])

    async def _api(self, operation: str, *tokens: str, body: Mapping[str, Any] | None = None) -> _Reply:
        reply = await self._api_reply(operation, *tokens, body=body)
        if reply.error is not None:
            raise _translate_error(reply.error, tokens[-1] if tokens else operation)
        return reply

    async def _api_reply(self, operation: str, *tokens: str, body: Mapping[str, Any] | None = None) -> _Reply:
        data = msgspec.json.encode(body) if body else b""
        answer = await self.request(subjects.js_api(operation, *tokens), data, effect=operation in _REMOVING)
        return _reply_decoder.decode(answer.data)


def _parts(messages: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    """Splits messages into parts that are sent before the first acknowledgement."""
    part: list[Outgoing] = []
    size = 0
    for message in messages:
        if len(part) >= MAX_BATCH or (part and size + len(message.data) > _PART_BYTES):
            yield part
            part, size = [], 0
        part.append(message)
        size += len(message.data)
    if part:
        yield part


def _translate_error(error: _ApiError, what: str) -> CrucibleError:
    """JetStream's error as ours."""
    if error.err_code in _WRONG_LAST_SEQUENCE:
        return ConflictError(f"another event was first: {error.description}")
    if error.err_code == _DUPLICATE_IN_BATCH:
        return DuplicateError("a message id of the batch is known already")
    if error.err_code in _TOO_LARGE:
        return TooLargeError(error.description)
    full = error.err_code == _STORE_FAILED and "maximum bytes" in error.description
    if full or error.err_code in _STORAGE_FULL:
        return StorageFullError(f"JetStream has no room for it: {error.description} ({error.err_code})", retry_after=2)
    if error.code == 404:
        return NotFoundError(f"JetStream has no {what}")
    return UnavailableError(f"JetStream ({what}): {error.description} ({error.err_code})")


def _on_the_wire(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that are None are left to the server."""
    return {
        name: int(value * 1e9) if name in _SECONDS else _rfc3339_of(value) if isinstance(value, datetime) else value
        for name, value in options.items()
        if value is not None
    }


def _stored_headers(encoded: bytes) -> dict[str, str]:
    lines = encoded.decode("utf-8", "replace").split("\r\n")[1:]
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines if line)}


def _unix_ms(time: str) -> int:
    """JetStream's RFC 3339 with up to nine digits of a second, cut off as the reply subjects' times are."""
    whole, _, fraction = time.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return seconds * 1000 + int(fraction[:3].ljust(3, "0"))


def _rfc3339(at_ms: int) -> str:
    return _rfc3339_of(datetime.fromtimestamp(at_ms / 1000, UTC))


def _rfc3339_of(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
