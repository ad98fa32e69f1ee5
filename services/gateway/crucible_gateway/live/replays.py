"""The subscriptions of this process as targets of replays: which there are, and the batches that they are handed."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping

from crucible_core.access import Principal, Sight
from crucible_core.envelope import decode, with_sequence
from crucible_core.errors import NotFoundError, UnavailableError
from crucible_core.position import Position
from crucible_core.protocol.parts import GetRequest, Owned
from crucible_core.protocol.replays import ReplayBatch, ReplayTaken
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import Context, Endpoint, serve
from crucible_kit.telemetry.spans import Telemetry

Send = Callable[[bytes], Awaitable[None]]

_SOON_S = 5.0
"""A batch that a slow client has not taken whole by then is answered with what it has taken."""


class Recipient:
    """One subscription. Batches are sent one after another; what came already, of a batch that comes twice, is not."""

    def __init__(self, subscription: str, principal: Principal, sight: Sight, send: Send, start: Position) -> None:
        self.principal = principal
        self._sight = sight
        self._start = start
        self._name = subscription.encode()
        self._send = send
        self._turn = asyncio.Lock()
        self._reached: dict[str, Position] = {}
        self.announced = asyncio.Event()
        self.gone = False
        self.inbox: contextlib.AsyncExitStack | None = None
        self.opening = asyncio.Lock()
        self.ended: Callable[[], None] = lambda: None

    async def take(self, request: ReplayBatch, context: Context) -> ReplayTaken:
        """Returns once the client's connection has taken the frames. Raises UnavailableError where it is gone."""
        await self.announced.wait()
        async with self._turn:
            try:
                if request.end is not None:
                    return await self._end(request)
                return await self._pass_on(request)
            except OSError as error:
                raise UnavailableError("the client has left") from error

    async def _pass_on(self, request: ReplayBatch) -> ReplayTaken:
        """Whoever asked for the replay, the client gets what it may see."""
        clock = asyncio.get_running_loop().time
        until = clock() + _SOON_S
        reached, skipped = self._reached.get(request.replay, self._start), 0
        scope = self._sight()
        for taken, replayed in enumerate(request.events, 1):
            if self.gone:
                raise UnavailableError("the subscription has ended")
            if not scope.everything and not scope.sees(decode(bytes(replayed.event))):
                skipped += 1
            elif not reached.covers(replayed.sequence):
                await self._send(_frame(self._name, replayed.sequence, bytes(replayed.event)))
                reached = self._reached[request.replay] = reached.after(replayed.sequence)
            if clock() > until:
                return ReplayTaken(taken=taken, sent=taken - skipped, skipped=skipped)
        return ReplayTaken(taken=len(request.events), sent=len(request.events) - skipped, skipped=skipped)

    async def _end(self, request: ReplayBatch) -> ReplayTaken:
        self._reached.pop(request.replay, None)
        words = (self._name, request.replay.encode(), (request.end or "").encode(), request.sent)
        await self._send(b'{"type":"replayed","subscription":"%b","replay":"%b","state":"%b","sent":%d}' % words)
        self.ended()
        return ReplayTaken(taken=0, sent=0, skipped=0)


class Recipients:
    """A subscription gets a subject of its own once a replay asks for it: most never need one."""

    def __init__(self, bus: Bus, telemetry: Telemetry) -> None:
        self._bus = bus
        self._telemetry = telemetry
        self._recipients: dict[str, Recipient] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def endpoints(self) -> Mapping[str, Endpoint]:
        return {"attach": Endpoint(GetRequest, self.attach, every_replica=True)}

    def join(self, subscription: str, principal: Principal, sight: Sight, send: Send) -> Recipient:
        """It is handed nothing before it is `announced`."""
        recipient = self._recipients[subscription] = Recipient(
            subscription, principal, sight, send, self._bus.names.start
        )
        return recipient

    def leave(self, subscription: str) -> None:
        recipient = self._recipients.pop(subscription, None)
        if recipient is not None:
            recipient.gone = True
            closing = asyncio.create_task(self._close(recipient))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        for subscription in list(self._recipients):
            self.leave(subscription)
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def attach(self, request: GetRequest, context: Context) -> GetRequest:
        """Answered once batches for the subscription arrive here. Raises NotFoundError where another process has it, or
        it is somebody else's."""
        recipient = self._recipients.get(request.id)
        if recipient is None or not context.principal.owns(Owned(owner=recipient.principal.id)):
            raise NotFoundError("this gateway has no such subscription")
        async with recipient.opening:
            if recipient.inbox is None:
                inbox = contextlib.AsyncExitStack()
                endpoint = Endpoint(ReplayBatch, recipient.take, every_replica=True)
                await inbox.enter_async_context(serve(self._bus, "gateway", {request.id: endpoint}, self._telemetry))
                recipient.inbox = inbox
        return request

    async def _close(self, recipient: Recipient) -> None:
        async with recipient.opening:
            if recipient.inbox is not None:
                await recipient.inbox.aclose()


def _frame(subscription: bytes, sequence: int, raw: bytes) -> bytes:
    return b'{"type":"event","subscription":"%b","sequence":%d,"event":%b,"replay":true}' % (
        subscription,
        sequence,
        with_sequence(raw, sequence),
    )
