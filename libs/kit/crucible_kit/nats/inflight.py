"""Messages of a durable consumer in flight: heartbeats while they are worked on, one answer for each, and parking."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import msgspec

from crucible_core import subjects
from crucible_core.errors import CrucibleError, LimitedError, TooLargeError, UnavailableError
from crucible_core.limits import CRASHES, IN_HAND_BYTES, PARK_AFTER
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.message import Handler, Message

log = logging.getLogger(__name__)

_NAK_S = 1.0
_LONGEST_NAK_S = 30.0
_REMEMBERED = 10_000
_OWN_HEADERS = "Nats-"
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError)


class PoisonError(Exception):
    """A message that can never be handled, and is parked. The text is the reason that is stored with it."""


class InFlight:
    """The messages that were delivered here and are not answered yet, by their sequence in the stream."""

    def __init__(self, bus: Bus, durable: str) -> None:
        self.durable = durable
        self._bus = bus
        self._alone = asyncio.Lock()
        self._returned: set[int] = set()
        self._replies: dict[int, str] = {}
        self._sizes: dict[int, int] = {}
        self._failures: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._replies)

    @property
    def full(self) -> bool:
        """True while the process holds so many bytes that a consumer with work takes no more."""
        return len(self._replies) > 0 and self._bus.flow.held_bytes > IN_HAND_BYTES

    def take(self, message: Message) -> bool:
        """Adds a message. Returns False where it is in flight already: it came again, as a heartbeat was lost."""
        new = message.sequence not in self._replies
        self._replies[message.sequence] = message.reply
        if new:
            self._sizes[message.sequence] = len(message.data)
            self._bus.flow.held_bytes += len(message.data)
        return new

    def suspects(self, message: Message) -> bool:
        """Returns True if a process ended while it held the message, which may be the cause."""
        return message.delivered > 1 and message.sequence not in self._returned

    async def handle(self, handler: Handler, message: Message) -> None:
        """Handles one message, up to its acknowledgement, parking or redelivery."""
        if self.suspects(message):
            async with self._alone:
                await self._handle_suspect(handler, message)
        else:
            await self._handle(handler, message)

    async def _handle_suspect(self, handler: Handler, message: Message) -> None:
        """Handles a suspect while no other suspect is worked on, so that the cause of a process's end is known. A mark
        is stored before it begins; a process that is killed from outside hardly ever hits the same message twice."""
        subject = self._bus.names.trial(self.durable, str(message.sequence))
        try:
            last = await self._bus.last(self._bus.names.attempts, subject)
            ended = int(last.data) if last else 0
            if ended < CRASHES:
                await self._bus.store(Outgoing(subject, b"%d" % (ended + 1)))
        except CrucibleError as error:
            log.info("%s: message %d waits: %s", self.durable, message.sequence, error)
            await self.answer(message, _nak(_NAK_S))
            return
        if ended >= CRASHES:
            await self.answer(message, await self._park(message, f"{ended} processes ended while they worked on it"))
            return
        try:
            await self._handle(handler, message)
        finally:
            if message.sequence in self._returned:  # this process is still there
                with contextlib.suppress(CrucibleError):
                    await self._bus.store(Outgoing(subject, b"%d" % ended))

    async def _handle(self, handler: Handler, message: Message) -> None:
        answer = subjects.NAK
        try:
            await handler(message)
            answer = subjects.ACK
        except (PoisonError, *_UNDECODABLE) as error:
            answer = await self._park(message, str(error))
        except Exception as error:
            answer = await self._handle_failure(message, error)
        finally:  # cancelled: given back
            await self.answer(message, answer)

    async def answer(self, message: Message, word: bytes) -> None:
        reply = self._replies.pop(message.sequence, None)
        self._bus.flow.held_bytes -= self._sizes.pop(message.sequence, 0)
        if word == subjects.ACK:
            self._failures.pop(message.sequence, None)
            self._returned.discard(message.sequence)
        else:
            if len(self._returned) >= _REMEMBERED:
                self._returned.clear()
            self._returned.add(message.sequence)
        if reply is not None:
            await self._say(reply, word)

    async def give_back(self) -> None:
        """Returns all messages in flight, for immediate redelivery to any replica."""
        replies, self._replies = self._replies, {}
        self._bus.flow.held_bytes -= sum(self._sizes.values())
        self._sizes.clear()
        for reply in replies.values():
            await self._say(reply, subjects.NAK)

    async def keep(self, every: float) -> None:
        """Sends heartbeats for all messages in flight, begun or waiting, until cancelled."""
        while True:
            await asyncio.sleep(every)
            for reply in list(self._replies.values()):
                await self._say(reply, subjects.IN_PROGRESS)

    async def _handle_failure(self, message: Message, error: Exception) -> bytes:
        log.warning(
            "%s: message %d failed (delivery %d): %s",
            self.durable,
            message.sequence,
            message.delivered,
            error,
            exc_info=not isinstance(error, CrucibleError),
        )
        if not isinstance(error, LimitedError | UnavailableError):
            failures = self._failures.pop(message.sequence, 0) + 1
            if failures >= PARK_AFTER:
                return await self._park(message, f"failed {failures} times: {error}")
            if len(self._failures) >= _REMEMBERED:  # most of them went to other replicas since
                self._failures.clear()
            self._failures[message.sequence] = failures
        # Not a retry of an effect (those are schedules): the machinery itself failed, and may again at once.
        return _nak(min(_NAK_S * message.delivered, _LONGEST_NAK_S))

    async def _park(self, message: Message, reason: str) -> bytes:
        try:
            await park(self._bus, self.durable, message, reason)
        except CrucibleError as error:
            log.warning("%s: message %d cannot be parked yet: %s", self.durable, message.sequence, error)
            return _nak(_NAK_S)
        return subjects.ACK

    async def _say(self, reply: str, word: bytes) -> None:
        # Where the answer cannot be sent, JetStream delivers the message again after ack_wait.
        try:
            await self._bus.publish(reply, word)
        except CrucibleError as error:
            log.info("%s: an acknowledgement was lost: %s", self.durable, error)


@contextlib.asynccontextmanager
async def open_in_flight(bus: Bus, durable: str, ack_wait: float) -> AsyncIterator[InFlight]:
    """Holds the messages of a consumer, and returns the rest at the end."""
    in_flight = InFlight(bus, durable)
    keeper = asyncio.create_task(in_flight.keep(ack_wait / 3))
    try:
        yield in_flight
    finally:
        keeper.cancel()
        await in_flight.give_back()


async def park(bus: Bus, durable: str, message: Message, reason: str) -> None:
    """Stores a message in ATTEMPTS, with its headers, the reason and its origin, so that it does not block its
    consumer. Of a message that is too large, only the reason and the origin are stored."""
    log.error("%s: parked message %d: %s", durable, message.sequence, reason)
    headers = {name: value for name, value in message.headers.items() if not name.startswith(_OWN_HEADERS)}
    headers |= {subjects.REASON: reason[:500], subjects.ORIGIN: f"{message.subject} {message.sequence}"}
    subject, msg_id = bus.names.parked(durable), f"{durable}:{message.sequence}"
    try:
        await bus.store(Outgoing(subject, message.data, headers, msg_id))
    except TooLargeError:
        await bus.store(Outgoing(subject, b"", headers, msg_id))
    bus.note_parked()


def _nak(delay_s: float) -> bytes:
    return subjects.NAK + b' {"delay": %d}' % int(delay_s * 1e9)
