"""The messages of a durable consumer that a process holds: kept while they are worked on, and each answered once."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import msgspec

from crucible_core import subjects
from crucible_core.errors import CrucibleError, LimitedError, TooLargeError, UnavailableError
from crucible_core.limits import CRASHES, PARK_AFTER
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.message import Handler, Message

log = logging.getLogger(__name__)

HELD_BYTES = 32 * 1024 * 1024
"""What messages in hand may come to, over all consumers of a process. Each may have one, whatever the others have."""
_NAK_S = 1.0
_LONGEST_NAK_S = 30.0
_REMEMBERED = 10_000
_OWN_HEADERS = "Nats-"
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError)


class PoisonError(Exception):
    """This message can never be handled: park it. The text is the reason that is kept beside it."""


class InFlight:
    """What has been delivered here and not been answered, by its sequence in the stream."""

    def __init__(self, bus: Bus, durable: str) -> None:
        self.durable = durable
        self._bus = bus
        self._alone = asyncio.Lock()
        self._asked_again: set[int] = set()
        self._replies: dict[int, str] = {}
        self._sizes: dict[int, int] = {}
        self._failures: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._replies)

    @property
    def full(self) -> bool:
        """Whether the process holds so much that whoever has something to do takes no more for now."""
        return len(self._replies) > 0 and self._bus.flow.held_bytes > HELD_BYTES

    def take(self, message: Message) -> bool:
        """False: it is in hand already, and was delivered again because a heartbeat did not get through."""
        new = message.sequence not in self._replies
        self._replies[message.sequence] = message.reply
        if new:
            self._sizes[message.sequence] = len(message.data)
            self._bus.flow.held_bytes += len(message.data)
        return new

    def suspects(self, message: Message) -> bool:
        """Whether a process that had the message in hand has ended without a word of it. It may be why."""
        return message.delivered > 1 and message.sequence not in self._asked_again

    async def handle(self, handler: Handler, message: Message) -> None:
        """One message through its handler, to its acknowledgement, its parking or its redelivery."""
        if self.suspects(message):
            async with self._alone:
                await self._try(handler, message)
        else:
            await self._handle(handler, message)

    async def _try(self, handler: Handler, message: Message) -> None:
        """A suspect, while no other one is worked on, so that of a process that ends here it is known why. That is
        noted before it begins; a process that is ended from outside can hit the same message twice hardly ever."""
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
            await self.answer(message, await self._parked(message, f"{ended} processes ended while they worked on it"))
            return
        try:
            await self._handle(handler, message)
        finally:
            if message.sequence in self._asked_again:  # this process is still there
                with contextlib.suppress(CrucibleError):
                    await self._bus.store(Outgoing(subject, b"%d" % ended))

    async def _handle(self, handler: Handler, message: Message) -> None:
        answer = subjects.NAK
        try:
            await handler(message)
            answer = subjects.ACK
        except (PoisonError, *_UNDECODABLE) as error:
            answer = await self._parked(message, str(error))
        except Exception as error:
            answer = await self._failed(message, error)
        finally:  # cancelled: given back
            await self.answer(message, answer)

    async def answer(self, message: Message, word: bytes) -> None:
        reply = self._replies.pop(message.sequence, None)
        self._bus.flow.held_bytes -= self._sizes.pop(message.sequence, 0)
        if word == subjects.ACK:
            self._failures.pop(message.sequence, None)
            self._asked_again.discard(message.sequence)
        else:
            if len(self._asked_again) >= _REMEMBERED:
                self._asked_again.clear()
            self._asked_again.add(message.sequence)
        if reply is not None:
            await self._say(reply, word)

    async def give_back(self) -> None:
        """Whatever is in hand is delivered again, to anybody, at once."""
        replies, self._replies = self._replies, {}
        self._bus.flow.held_bytes -= sum(self._sizes.values())
        self._sizes.clear()
        for reply in replies.values():
            await self._say(reply, subjects.NAK)

    async def keep(self, every: float) -> None:
        """Heartbeats for all that is in hand, begun or waiting, until cancelled."""
        while True:
            await asyncio.sleep(every)
            for reply in list(self._replies.values()):
                await self._say(reply, subjects.IN_PROGRESS)

    async def _failed(self, message: Message, error: Exception) -> bytes:
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
                return await self._parked(message, f"failed {failures} times: {error}")
            if len(self._failures) >= _REMEMBERED:  # most of them went to other replicas since
                self._failures.clear()
            self._failures[message.sequence] = failures
        # Not a retry of an effect (those are schedules): the machinery itself failed, and may again at once.
        return _nak(min(_NAK_S * message.delivered, _LONGEST_NAK_S))

    async def _parked(self, message: Message, reason: str) -> bytes:
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
    """What is still in hand at the end is given back."""
    hand = InFlight(bus, durable)
    keeper = asyncio.create_task(hand.keep(ack_wait / 3))
    try:
        yield hand
    finally:
        keeper.cancel()
        await hand.give_back()


async def park(bus: Bus, durable: str, message: Message, reason: str) -> None:
    """Puts a message aside in ATTEMPTS, with its headers, its reason and its origin, so that it never blocks its
    consumer. One that is too large for that leaves only its reason and origin."""
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
