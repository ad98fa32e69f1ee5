"""The bus: one connection to NATS, its messages, requests and stores. The only module that imports `nats`."""

import asyncio
import base64
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import nats
import nats.aio.client
import nats.aio.msg
import nats.errors
import nats.js.api
import nats.js.errors

from crucible_core import subjects
from crucible_core.errors import ConflictError, CrucibleError, NotFoundError, Problem, UnavailableError, from_problem
from crucible_core.subjects import Names

from .frames import Outgoing, batch_frames, clean

log = logging.getLogger(__name__)

MAX_BATCH = 1000
"""Messages in one atomic batch, the server's limit."""
# nats-server's error codes (server/errors.json).
_WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
_DUPLICATE_IN_BATCH = 10201
_NOT_FOUND = frozenset({10014, 10037, 10059})
_NAME_IN_USE = 10058

Handler = Callable[["Message"], Awaitable[None]]


class Message(msgspec.Struct, frozen=True):
    """A message from the bus. `sequence`, `time_ms` and the rest are set where it came from a stream.

    `pending` counts what the consumer has not delivered yet; `delivered` is 1 for the first delivery.
    """

    subject: str
    data: bytes
    headers: Mapping[str, str] = {}
    reply: str = ""
    sequence: int = 0
    time_ms: int = 0
    delivered: int = 0
    pending: int = 0
    consumer_sequence: int = 0

    @property
    def status(self) -> str | None:
        """A JetStream status such as "404", for messages that carry no data."""
        return self.headers.get(subjects.STATUS) if self.headers else None


_DISCONNECTED = Message("", b"", {subjects.STATUS: "503", subjects.DESCRIPTION: "disconnected"})


class Stored(msgspec.Struct, frozen=True):
    sequence: int
    duplicate: bool = False


class DuplicateError(CrucibleError):
    """A message id of an atomic batch is known already; nothing of the batch was stored."""

    code = "duplicate"


class _ApiError(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    seq: int = 0
    duplicate: bool = False
    count: int = 0
    error: _ApiError | None = None


class _StoredMessage(msgspec.Struct):
    subject: str
    seq: int
    time: str = ""
    data: str = ""
    hdrs: str = ""


class _GetReply(msgspec.Struct):
    message: _StoredMessage | None = None
    error: _ApiError | None = None


_ack_decoder = msgspec.json.Decoder(_Ack)
_get_decoder = msgspec.json.Decoder(_GetReply)


@contextlib.asynccontextmanager
async def open_bus(url: str, names: Names, name: str = "crucible", patience: float = 30.0) -> AsyncIterator["Bus"]:
    """A connected bus; it reconnects for ever by itself. Raises UnavailableError when NATS stays away at first."""
    client = nats.aio.client.Client()
    bus = Bus(client, names)
    try:
        async with asyncio.timeout(patience):
            await client.connect(
                url,
                name=name,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.2,  # type: ignore[arg-type]  # seconds, fractions are honoured
                connect_timeout=2,
                ping_interval=5,
                max_outstanding_pings=2,
                pending_size=64 * 1024 * 1024,
                error_cb=_on_error,
                disconnected_cb=bus._lost,
                reconnected_cb=bus._found,
            )
    except (TimeoutError, OSError, nats.errors.Error) as error:
        await client.close()
        raise UnavailableError(f"NATS does not answer at {_without_secret(url)}: {error or 'timeout'}") from error
    await bus._found()
    try:
        yield bus
    finally:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(2):
                await client.flush()
        await client.close()


class Bus:
    """One connection. Every method raises UnavailableError when NATS is away; none waits longer than its timeout."""

    def __init__(self, client: nats.aio.client.Client, names: Names) -> None:
        self.names = names
        self._client = client
        self._js = client.jetstream(timeout=5)
        self._up = asyncio.Event()
        self._inboxes: set[asyncio.Queue[Message]] = set()

    @property
    def connected(self) -> bool:
        return self._client.is_connected

    @property
    def max_payload(self) -> int:
        """The bytes that the server takes in one message, headers included."""
        return self._client.max_payload

    async def wait_connected(self) -> None:
        """Returns at once while connected; retry loops wait here rather than fail in a circle."""
        await self._up.wait()

    # ---- core NATS

    async def request(
        self, subject: str, data: bytes = b"", *, timeout: float = 5.0, headers: Mapping[str, str] | None = None
    ) -> Message:
        """The answer to a request. An answer that is a Problem is raised as the error that it describes."""
        self._check_connected()
        try:
            answer = await self._client.request(subject, data, timeout=timeout, headers=_plain(headers))
        except nats.errors.NoRespondersError as error:
            raise UnavailableError(f"nothing answers {subject} at the moment") from error
        except (nats.errors.TimeoutError, TimeoutError) as error:
            raise UnavailableError(f"{subject} did not answer within {timeout:g} s") from error
        except nats.errors.Error as error:
            raise UnavailableError(f"NATS went away during {subject}: {error}") from error
        message = _message(answer)
        if subjects.ERROR in message.headers:
            raise from_problem(msgspec.json.decode(message.data, type=Problem))
        return message

    async def publish(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Core NATS: no acknowledgement, nobody need be listening."""
        self._check_connected()
        try:
            await self._client.publish(subject, data, headers=_plain(headers))
        except nats.errors.Error as error:
            raise UnavailableError(f"cannot publish to {subject}: {error}") from error

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Callable[[], Awaitable[None]]:
        """Calls `handler` for each message, one after another; returns what ends it. Survives reconnects."""

        async def received(message: nats.aio.msg.Msg) -> None:
            await handler(_message(message))

        subscription = await self._client.subscribe(subject, queue=queue, cb=received)
        await self._client.flush()

        async def unsubscribe() -> None:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

        return unsubscribe

    @contextlib.asynccontextmanager
    async def inbox(self) -> AsyncIterator[tuple[str, asyncio.Queue[Message]]]:
        """A private subject and the queue of what arrives there, in order. Bounded by what its owner asks for."""
        queue: asyncio.Queue[Message] = asyncio.Queue()
        subject = self._client.new_inbox()

        async def received(message: Message) -> None:
            queue.put_nowait(message)

        unsubscribe = await self.subscribe(subject, received)
        self._inboxes.add(queue)
        try:
            yield subject, queue
        finally:
            self._inboxes.discard(queue)
            await unsubscribe()

    async def ask(self, subject: str, data: bytes, reply: str) -> None:
        """Publishes a request whose answers go to an `inbox`."""
        self._check_connected()
        try:
            await self._client.publish(subject, data, reply=reply)
        except nats.errors.Error as error:
            raise UnavailableError(f"cannot publish to {subject}: {error}") from error

    # ---- JetStream: writing

    async def store(self, message: Outgoing, *, timeout: float = 5.0) -> Stored:
        """Stores one message; returns once JetStream has acknowledged it. ConflictError: another sequence expected."""
        headers = message.header_lines() or None
        answer = await self.request(message.subject, message.data, timeout=timeout, headers=headers)
        ack = _acknowledged(answer)
        return Stored(ack.seq, ack.duplicate)

    async def store_all(self, messages: Sequence[Outgoing], *, timeout: float = 5.0) -> list[Stored]:
        """Stores many, pipelined, each acknowledged; raises the first failure after all were tried."""
        if len(messages) == 1:
            return [await self.store(messages[0], timeout=timeout)]
        stored: list[Stored] = []
        for start in range(0, len(messages), MAX_BATCH):
            part = messages[start : start + MAX_BATCH]
            results = await asyncio.gather(*(self.store(m, timeout=timeout) for m in part), return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
                stored.append(result)
        return stored

    async def commit(self, messages: list[Outgoing], *, timeout: float = 5.0) -> list[int]:
        """Stores at most 1,000 messages as one atomic batch and returns their sequences.

        DuplicateError (a known message id) and ConflictError (an expected sequence) say that nothing was stored.
        UnavailableError leaves it open; message ids make the repetition safe.
        """
        self._check_connected()
        async with self.inbox() as (reply, answers):
            await self._write(batch_frames(messages, secrets.token_hex(12), reply))
            try:
                async with asyncio.timeout(timeout):
                    answer = await answers.get()
                    # The first message's answer is empty once the batch is open; the last one's acknowledges.
                    while not answer.data and answer.status is None:
                        answer = await answers.get()
            except TimeoutError as error:
                raise UnavailableError(f"JetStream did not acknowledge a batch within {timeout:g} s") from error
        ack = _acknowledged(answer)
        return list(range(ack.seq - len(messages) + 1, ack.seq + 1))

    async def schedule(
        self, subject: str, target: str, at_ms: int, data: bytes, headers: Mapping[str, str], msg_id: str | None = None
    ) -> None:
        """Stores `data` so that JetStream delivers it to `target` at a moment (Unix ms). `subject` names the schedule:
        another one there replaces it. Both belong to the same stream."""
        lines = {**headers, subjects.SCHEDULE: f"@at {_rfc3339(at_ms)}", subjects.SCHEDULE_TARGET: target}
        await self.store(Outgoing(subject, data, lines, msg_id))

    # ---- JetStream: reading

    async def get(self, stream: str, sequence: int) -> Message | None:
        """The message at a sequence, from the stream's leader."""
        return await self._stored_message(stream, {"seq": sequence})

    async def last(self, stream: str, subject: str) -> Message | None:
        """The last message of a subject, which may have wildcards, from the stream's leader."""
        return await self._stored_message(stream, {"last_by_subj": subject})

    async def last_sequence(self, stream: str) -> int:
        async with _translated(stream):
            return (await self._js.stream_info(stream)).state.last_seq
        raise AssertionError

    async def stream_identity(self, stream: str) -> str:
        """The moment of the stream's creation: another stream of the same name has another."""
        async with _translated(stream):
            return str((await self._js.stream_info(stream)).created)
        raise AssertionError

    async def _stored_message(self, stream: str, query: dict[str, Any]) -> Message | None:
        answer = await self.request(subjects.js_message(stream), msgspec.json.encode(query))
        reply = _get_decoder.decode(answer.data)
        if reply.error is not None:
            if reply.error.err_code in _NOT_FOUND:
                return None
            raise UnavailableError(f"JetStream: {reply.error.description}")
        assert reply.message is not None
        found = reply.message
        return Message(found.subject, base64.b64decode(found.data), _stored_headers(found.hdrs), sequence=found.seq)

    # ---- JetStream: streams and consumers

    async def ensure_stream(self, name: str, **options: Any) -> None:
        """Creates the stream, or brings an existing one to these options (nats-py's StreamConfig). Idempotent."""
        if source := options.pop("republish", None):
            options["republish"] = nats.js.api.RePublish(src=source[0], dest=source[1])
        config = nats.js.api.StreamConfig(name=name, **options)
        async with _translated(name):
            try:
                await self._js.add_stream(config)
            except nats.js.errors.BadRequestError as error:
                if error.err_code != _NAME_IN_USE:
                    raise
                await self._js.update_stream(config)

    async def ensure_consumer(self, stream: str, name: str, **options: Any) -> int:
        """Creates or updates a consumer (options: nats-py's ConsumerConfig); returns how many messages wait for it."""
        config = nats.js.api.ConsumerConfig(name=name, **options)
        async with _translated(stream):
            return (await self._js.add_consumer(stream, config)).num_pending or 0
        raise AssertionError

    async def consumer_backlog(self, stream: str, consumer: str) -> tuple[int, int]:
        """(not delivered yet, delivered but not acknowledged). NotFoundError if there is no such consumer."""
        async with _translated(consumer):
            info = await self._js.consumer_info(stream, consumer)
            return info.num_pending or 0, info.num_ack_pending or 0
        raise AssertionError

    async def delete_consumer(self, stream: str, consumer: str) -> None:
        with contextlib.suppress(NotFoundError):
            async with _translated(consumer):
                await self._js.delete_consumer(stream, consumer)

    async def purge(self, stream: str, subject: str) -> None:
        """Removes every message of a subject."""
        async with _translated(stream):
            await self._js.purge_stream(stream, subject=subject)

    async def delete_stream(self, stream: str) -> None:
        with contextlib.suppress(NotFoundError):
            async with _translated(stream):
                await self._js.delete_stream(stream)

    async def stream_names(self) -> list[str]:
        async with _translated("streams"):
            return [info.config.name or "" for info in await self._js.streams_info()]
        raise AssertionError

    # ---- internals

    def _check_connected(self) -> None:
        if not self._client.is_connected:
            raise UnavailableError("NATS is away; reconnecting", retry_after=1)

    async def _found(self) -> None:
        log.info("nats: connected")
        self._up.set()

    async def _lost(self) -> None:
        """What was under way when the connection broke will not be answered: its callers hear so at once."""
        log.warning("nats: disconnected")
        self._up.clear()
        for waiting in list(self._client._resp_map.values()):
            if not waiting.done():
                waiting.set_exception(nats.errors.ConnectionReconnectingError())
        for queue in self._inboxes:
            queue.put_nowait(_DISCONNECTED)

    async def _write(self, frames: bytes) -> None:
        # nats-py has no public way to write finished frames, and its header encoder is slower than the server.
        await self._client._send_command(frames)
        await self._client._flush_pending()


@contextlib.asynccontextmanager
async def _translated(what: str) -> AsyncIterator[None]:
    """nats-py's errors as ours."""
    try:
        yield
    except nats.js.errors.NotFoundError as error:
        raise NotFoundError(f"JetStream has no {what}") from error
    except nats.js.errors.APIError as error:
        raise UnavailableError(f"JetStream ({what}): {error.description}") from error
    except (nats.errors.Error, TimeoutError) as error:
        raise UnavailableError(f"JetStream ({what}) did not answer: {error}") from error


def _message(message: nats.aio.msg.Msg) -> Message:
    headers: Mapping[str, str] = message.headers or {}
    if not message.reply.startswith(subjects.ACK_PREFIX):
        return Message(message.subject, message.data, headers, message.reply)
    fields = message.reply.split(".")
    numbers = fields[4:9] if len(fields) == 9 else fields[6:11]  # a domain and an account may come before
    delivered, sequence, consumer_sequence, time_ns, pending = map(int, numbers)
    return Message(
        message.subject,
        message.data,
        headers,
        message.reply,
        sequence,
        time_ns // 1_000_000,
        delivered,
        pending,
        consumer_sequence,
    )


def _acknowledged(answer: Message) -> _Ack:
    if answer.status is not None:
        raise UnavailableError(f"JetStream has no stream for this subject (status {answer.status})")
    try:
        ack = _ack_decoder.decode(answer.data)
    except msgspec.DecodeError as error:
        raise UnavailableError("JetStream answered with something other than an acknowledgement") from error
    if ack.error is None:
        return ack
    if ack.error.err_code in _WRONG_LAST_SEQUENCE:
        raise ConflictError(f"another event was first: {ack.error.description}")
    if ack.error.err_code == _DUPLICATE_IN_BATCH:
        raise DuplicateError("a message id of the batch is known already")
    raise UnavailableError(f"JetStream refused: {ack.error.description} ({ack.error.err_code})")


def _stored_headers(encoded: str) -> dict[str, str]:
    if not encoded:
        return {}
    lines = base64.b64decode(encoded).decode("utf-8", "replace").split("\r\n")[1:]
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines if line)}


def _plain(headers: Mapping[str, str] | None) -> dict[str, Any] | None:
    return {name: clean(value) for name, value in headers.items()} if headers else None


def _rfc3339(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _without_secret(url: str) -> str:
    scheme, _, rest = url.rpartition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


async def _on_error(error: Exception) -> None:
    log.warning("nats: %s", error)
