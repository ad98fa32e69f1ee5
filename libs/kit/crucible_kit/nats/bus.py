"""The bus: one connection to NATS, its messages and requests. Only this module imports `nats`."""

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import nats.aio.client
import nats.aio.msg
import nats.aio.subscription
import nats.errors

from crucible_core import subjects
from crucible_core.errors import (
    CrucibleError,
    InvalidError,
    Problem,
    UnavailableError,
    UnknownOutcomeError,
    from_problem,
)
from crucible_core.network import connection_reason
from crucible_core.subjects import Names
from crucible_kit import deadline
from crucible_kit.deadline import Caller
from crucible_kit.nats.budget import Flow
from crucible_kit.nats.frames import Outgoing, batch_frames, frame
from crucible_kit.nats.jetstream import MAX_BATCH, DuplicateError, JetStream
from crucible_kit.nats.message import DISCONNECTED, Handler, Message, Receiver, Stored
from crucible_kit.nats.parser import Parser
from crucible_kit.nats.replies import Doubt, PendingReply, TimeoutSweep
from crucible_kit.nats.storage import Storage
from crucible_kit.settings import credentials, without_secrets

__all__ = ["MAX_BATCH", "Bus", "DuplicateError", "Handler", "Message", "Stored", "open_bus"]

log = logging.getLogger(__name__)

_DRAIN_S = 2.0
_PROMPT_S = 0.5
"""A slower answer is too imprecise to read the server's clock from."""
_NO_RESPONDERS = "503"


@contextlib.asynccontextmanager
async def open_bus(url: str, names: Names, name: str = "crucible", patience: float = 30.0) -> AsyncIterator["Bus"]:
    """A connected bus; it reconnects for ever by itself. `url` may be several of one cluster, separated by commas.

    Raises UnavailableError when NATS stays away at first.
    """
    client = nats.aio.client.Client()
    bus = Bus(client, names, name)
    try:
        async with asyncio.timeout(patience):
            await bus._connect(url, name)
    except (TimeoutError, OSError, nats.errors.Error) as error:
        reason = client.last_error or error
        await bus._close()
        raise UnavailableError(f"NATS does not answer at {without_secrets(url)}: {_reason(reason)}") from error
    try:
        yield bus
    finally:
        await bus._close()


class Bus(JetStream):
    """One connection. Every method raises UnavailableError when NATS is away; none waits longer than its timeout."""

    def __init__(self, client: nats.aio.client.Client, names: Names, service: str) -> None:
        self.names = names
        self.service = service
        self.storage = Storage()
        self.note_parked: Callable[[], None] = lambda: None
        """Called for each message that this process parks."""
        self.flow = Flow()
        self._client = client
        self._up = asyncio.Event()
        self.connections = 0
        """Number of connections so far: each may be to another server."""
        self._closing = False
        self._complaint = ""
        self._replies = ""
        self._numbers = itertools.count()
        self._outgoing: list[bytes] = []
        # By index in it: frames that are dropped once their caller has given up, and the wait for their answer.
        self._revocable: dict[int, tuple[Caller, PendingReply]] = {}
        self._sweep = TimeoutSweep()
        self._clock_ms = (time.time() - time.monotonic()) * 1000
        self.clock_doubted = asyncio.Event()
        """Set while the server's clock may differ from `now_ms`."""
        # By subject of ours; each receiver also hears when the connection breaks.
        self._receivers: dict[str, Receiver] = {}
        # nats-py has no public way to read faster than it does: see `parser`.
        self._parser = Parser(client._ps, client._process_msg, self._cut)
        client._ps = self._parser  # type: ignore[assignment]

    @property
    def connected(self) -> bool:
        return self._client.is_connected

    @property
    def max_payload(self) -> int:
        """The bytes that the server takes in one message, headers included."""
        return self._client.max_payload

    async def wait_connected(self) -> None:
        """Waits for a connection; retry loops wait here rather than fail in a circle.

        Raises UnavailableError when the server has closed the connection for good: only a new process helps then.
        """
        await self._up.wait()
        if self._client.is_closed:
            raise UnavailableError(f"NATS closed the connection for good: {self._client.last_error or 'no reason'}")

    def now_ms(self) -> float:
        """Unix ms by the clock of the NATS server, which is one for all that are connected to it; by this machine's
        until `set_clock`."""
        return time.monotonic() * 1000 + self._clock_ms

    async def set_clock(self) -> None:
        """Compares clocks with the server. A slow answer changes nothing."""
        began = time.monotonic()
        now_ms = (await self.stream_state(self.names.events)).now_ms
        ended = time.monotonic()
        if now_ms and ended - began < _PROMPT_S:
            self._clock_ms = now_ms - (began + ended) * 500

    # ---- core NATS

    async def request(
        self,
        subject: str,
        data: bytes = b"",
        *,
        timeout: float = 5.0,
        silence: float | None = None,
        headers: Mapping[str, str] | None = None,
        effect: bool = False,
        arrived: Callable[[], None] | None = None,
        doubt: Doubt | None = None,
    ) -> Message:
        """Sends a request, and returns its answer. Raises the error that a Problem describes.

        An answer that is only offered (`subjects.SIZE`) is fetched once the budget allows it. `arrived` is called when
        the request is known to have arrived.

        `silence` limits the time without a sign of work (`subjects.WORKING`): a killed process never answers. A request
        with an `effect` is not sent once the caller of the present task has given up. Raises UnavailableError when
        nobody answers (UnknownOutcomeError where that has an effect), TooLargeError when the server would not take it.
        """
        began = time.monotonic()
        answer = await self._answer(
            subject,
            lambda reply: frame(subject, data, headers, reply, self._client.max_payload),
            timeout,
            silence,
            effect=effect,
            arrived=arrived,
            doubt=doubt,
        )
        if not answer.headers:
            return answer
        if subjects.SIZE in answer.headers:
            answer = await self._fetch_offer(subject, answer, timeout - (time.monotonic() - began), effect)
        if answer.status == _NO_RESPONDERS:
            raise UnavailableError(f"nothing answers {subject} at the moment", retry_after=1)
        if subjects.ERROR in answer.headers:
            raise _problem(answer)
        return answer

    async def publish(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> None:
        """Core NATS: no acknowledgement, nobody need be listening."""
        await self._publish(subject, data, headers, reply)

    async def ask(self, subject: str, data: bytes, reply: str) -> None:
        """Publishes a request, with the subject of an `inbox` or of `receive` for its answers."""
        await self._publish(subject, data, None, reply)

    async def listen(self, subject: str, received: Receiver, queue: str = "") -> Callable[[], Awaitable[None]]:
        """Calls `received` with each message the moment that it is read; it must neither block nor raise. Survives
        reconnects. Returns the function that ends it."""
        subscription = await self._listen(subject, received, queue)
        try:
            await self._round_trip()  # then it is known to the server
        except BaseException:
            await self._unlisten(subscription)
            raise
        return lambda: self._unlisten(subscription)

    @contextlib.asynccontextmanager
    async def inbox(self) -> AsyncIterator[tuple[str, asyncio.Queue[Message]]]:
        """A private subject and the queue of the messages that arrive there, in order. Its owner's requests bound it.

        When the connection breaks, a message with the status 503 arrives.
        """
        queue: asyncio.Queue[Message] = asyncio.Queue()
        with self._expect(queue.put_nowait) as reply:
            yield reply, queue

    @contextlib.asynccontextmanager
    async def receive(self, received: Receiver) -> AsyncIterator[str]:
        """A subject of its own. `received` is called with its messages, and with DISCONNECTED.

        The server learns of its end, and delivers no more; messages on their way still arrive.
        """
        subject = self._client.new_inbox()

        subscription = await self._listen(subject, received)
        self._receivers[subject] = received
        try:
            yield subject
        finally:
            del self._receivers[subject]
            await self._unlisten(subscription)

    # ---- answers

    async def _answer(
        self,
        what: str,
        frames: Callable[[str], bytes],
        timeout: float,
        silence: float | None = None,
        *,
        skip_empty: bool = False,
        effect: bool = False,
        arrived: Callable[[], None] | None = None,
        doubt: Doubt | None = None,
    ) -> Message:
        """Sends `frames(reply)`, and waits for the answer at that reply subject; see `PendingReply`."""
        waiting = PendingReply(
            what, timeout, silence, skip_empty=skip_empty, effect=effect, arrived=arrived, doubt=doubt
        )
        reply = f"{self._replies}.{next(self._numbers)}"
        self._receivers[reply] = waiting.received
        self._sweep.add(waiting)
        try:
            if effect:
                deadline.check_deadline(what)
            await self._send(frames(reply), waiting if effect else None, waiting.until)
            answer = await waiting.answered
        except TimeoutError:
            raise waiting.late() from None
        finally:
            del self._receivers[reply]
            self._sweep.remove(waiting)
        if isinstance(answer, CrucibleError):
            raise answer
        return answer

    async def _fetch_offer(self, what: str, offer: Message, timeout: float, effect: bool) -> Message:
        unanswered = UnknownOutcomeError if effect else UnavailableError
        try:
            async with asyncio.timeout(timeout):
                with await self.flow.inflow.take(int(offer.headers[subjects.SIZE])):
                    return await self._answer(
                        what, lambda reply: frame(offer.reply, b"", None, reply, self._client.max_payload), timeout
                    )
        except (TimeoutError, UnavailableError) as error:
            raise unanswered(f"the answer of {what} did not come", retry_after=1) from error

    @contextlib.contextmanager
    def _expect(self, received: Receiver) -> Iterator[str]:
        # One subscription serves all: a new one for each request would cost a round trip.
        reply = f"{self._replies}.{next(self._numbers)}"
        self._receivers[reply] = received
        try:
            yield reply
        finally:
            del self._receivers[reply]

    def _receive_reply(self, message: Message) -> None:
        if received := self._receivers.get(message.subject):
            received(message)

    async def _round_trip(self) -> None:
        """Waits until the server has seen everything that was sent before.

        The client's own `flush` must not be cancelled: its late answer would end the client's reading.
        """
        await self._answer("NATS", lambda reply: frame(reply, b"", None, "", self._client.max_payload), 5.0)

    # ---- the client

    async def _publish(self, subject: str, data: bytes, headers: Mapping[str, str] | None, reply: str) -> None:
        await self._send(frame(subject, data, headers, reply, self._client.max_payload))

    async def _send_batch(self, messages: Sequence[Outgoing], timeout: float) -> Message:
        def frames(reply: str) -> bytes:
            return batch_frames(messages, secrets.token_hex(12), reply, self._client.max_payload)

        # The first message's answer is empty once the batch is open; the last one's acknowledges.
        answer = await self._answer("a batch", frames, timeout, skip_empty=True, effect=True)
        if answer.status == _NO_RESPONDERS:
            raise UnavailableError(f"no stream takes {messages[0].subject} at the moment", retry_after=1)
        return answer

    async def _send(self, frames: bytes, revocable: PendingReply | None = None, until: float | None = None) -> None:
        """nats-py has no public way to write finished frames; its header encoder is slower than the server, and a task
        of its own writes a little later. With `revocable`, the frames are dropped once the caller of the present task
        has given up. Raises TimeoutError where the connection is congested `until` then, by the event loop's clock."""
        self._check_connected()
        try:
            if self._client._pending:  # the library's own commands were first
                await self._client._send_command(frames)
                await self._client._flush_pending()
                return
            if not self._outgoing:
                asyncio.get_running_loop().call_soon(self._write)
            if revocable is not None and (caller := deadline.caller()) is not None:
                self._revocable[len(self._outgoing)] = (caller, revocable)
            self._outgoing.append(frames)
            if self._has_unsent:  # at once, unless too much waits
                async with asyncio.timeout_at(until):
                    await self._client._transport.drain()  # type: ignore[union-attr]
        except TimeoutError:
            raise
        except (OSError, nats.errors.Error) as error:
            raise UnavailableError(f"NATS cannot be written to: {_reason(error)}", retry_after=1) from error

    @property
    def _has_unsent(self) -> bool:
        writer = getattr(self._client._transport, "_io_writer", None)
        return writer is None or writer.transport.get_write_buffer_size() > 0

    def _write(self) -> None:
        """Once for each turn of the event loop: a write is a system call."""
        outgoing, self._outgoing = self._outgoing, []
        revocable, self._revocable = self._revocable, {}
        for index, (caller, waiting) in revocable.items():
            if caller.gone:  # this process was stopped in between
                outgoing[index] = b""
                waiting.drop()
        with contextlib.suppress(RuntimeError):  # uvloop: it broke just now, as all who wait hear in a moment
            if self.connected:
                self._client._transport.write(b"".join(outgoing))  # type: ignore[union-attr]

    async def _listen(self, subject: str, received: Receiver, queue: str = "") -> nats.aio.subscription.Subscription:
        self._check_connected()
        try:
            subscription = await self._client.subscribe(subject, queue=queue, cb=_ignore)
            self._parser.receivers[subscription._id] = received
            return subscription
        except nats.errors.BadSubjectError as error:
            raise InvalidError(f"{subject[:100]!r} cannot be subscribed to") from error
        except nats.errors.Error as error:
            raise UnavailableError(f"cannot subscribe to {subject}: {error}", retry_after=1) from error

    async def _unlisten(self, subscription: nats.aio.subscription.Subscription) -> None:
        """Ends a subscription once its messages on their way have been received."""
        leaving = subscription.drain if self.connected else subscription.unsubscribe
        ending = asyncio.ensure_future(leaving())  # type: ignore[no-untyped-call]
        ending.add_done_callback(_retrieve_error)
        await asyncio.wait({ending}, timeout=_DRAIN_S)  # which never cancels: see `_round_trip`
        if not ending.done():  # the connection broke meanwhile: the next one must not subscribe again
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()
        self._parser.receivers.pop(subscription._id, None)

    def _check_connected(self) -> None:
        if not self._client.is_connected:
            raise UnavailableError("NATS is away; reconnecting", retry_after=1)

    async def _connect(self, url: str, name: str) -> None:
        urls = [part.strip() for part in url.split(",") if part.strip()]
        await self._client.connect(
            urls,
            name=name,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.2,  # type: ignore[arg-type]  # seconds, fractions are honoured
            connect_timeout=2,
            ping_interval=5,
            max_outstanding_pings=2,
            pending_size=64 * 1024 * 1024,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_connected,
            closed_cb=self._on_closed,
            **credentials(urls[0]) if urls else {},
        )
        self._replies = self._client.new_inbox()
        await self._listen(f"{self._replies}.*", self._receive_reply)
        await self._on_connected()

    async def _close(self) -> None:
        self._closing = True
        if self.connected:
            flushing = asyncio.ensure_future(self._client.flush())
            flushing.add_done_callback(_retrieve_error)
            await asyncio.wait({flushing}, timeout=_DRAIN_S)
        closing = asyncio.ensure_future(self._client.close())
        closing.add_done_callback(_retrieve_error)
        await asyncio.wait({closing}, timeout=_DRAIN_S)
        if not closing.done():
            self._cut()
            await asyncio.wait({closing}, timeout=_DRAIN_S)

    def _cut(self) -> None:
        """Aborts a connection. nats-py sends its pending bytes before it connects again: a server that vanished never
        takes them, and TCP gives up after a quarter of an hour."""
        if (writer := getattr(self._client._transport, "_io_writer", None)) is not None:
            writer.transport.abort()

    async def _on_connected(self) -> None:
        log.info("nats: connected")
        self.connections += 1
        self._complaint = ""
        self._up.set()
        self.clock_doubted.set()

    async def _on_disconnected(self) -> None:
        """Ends all waits at once: pending requests get no answer any more."""
        if not self._closing:
            log.warning("nats: disconnected")
        self._up.clear()
        for received in list(self._receivers.values()):
            received(DISCONNECTED)

    async def _on_closed(self) -> None:
        if not self._closing:
            log.critical("nats: the server closed the connection for good: %s", self._client.last_error)
        self._up.set()

    async def _on_error(self, error: Exception) -> None:
        if self._client._transport and not self.connected:
            # The greeting failed: nats-py leaves that connection open, and connects again over it.
            self._client._transport.close()  # type: ignore[no-untyped-call]
        # A server that stays away is tried five times a second, and said to be away once.
        complaint = str(error) or type(error).__name__
        if complaint != self._complaint and not self._closing:
            log.warning("nats: %s", complaint)
        self._complaint = complaint


async def _ignore(message: nats.aio.msg.Msg) -> None:
    """A callback that is never called: with one, nats-py makes no queue for a subscription."""


def _problem(answer: Message) -> CrucibleError:
    try:
        return from_problem(msgspec.json.decode(answer.data, type=Problem))
    except (msgspec.DecodeError, TypeError):
        return UnavailableError("an error came back that cannot be read: is that service of another version?")


def _reason(error: BaseException) -> str:
    """The reason for a failed connection, in words for users."""
    if isinstance(error, OSError) and error.errno is not None:
        return connection_reason(error.errno)
    return str(error).removeprefix("nats: ") or "timeout"


def _retrieve_error(ending: "asyncio.Future[Any]") -> None:
    """Retrieves the error of a step at the end: the connection may be gone already."""
    if not ending.cancelled():
        ending.exception()
