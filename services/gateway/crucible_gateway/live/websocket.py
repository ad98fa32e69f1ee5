"""The WebSocket protocol of the event stream: messages, frames, and many subscriptions a socket."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec

from crucible_core.access import Principal, Sight
from crucible_core.decode import decode
from crucible_core.errors import (
    ConflictError,
    CrucibleError,
    InvalidError,
    LimitedError,
    NotFoundError,
    TooLargeError,
)
from crucible_core.filters.matcher import compile_filters
from crucible_core.limits import EVENT_BYTES, SUBSCRIPTIONS
from crucible_core.position import Position
from crucible_core.protocol.parts import TypeFilter
from crucible_core.protocol.replays import Replay, ReplayTarget, StartReplay, SteerReplay
from crucible_core.suggest import nearest
from crucible_gateway.body.json import decode_strictly
from crucible_gateway.context import check_place
from crucible_gateway.live.feed import Feed, follow
from crucible_gateway.live.hub import Hub
from crucible_gateway.live.replays import Recipients
from crucible_gateway.live.subscription import (
    CaughtUp,
    Gap,
    Item,
    Record,
    Selection,
    Start,
    position_fields,
    read_start,
)
from crucible_gateway.params import Name
from crucible_gateway.problems import document
from crucible_kit.clock import fresh_id
from crucible_kit.rpc import call
from crucible_kit.types import Types

log = logging.getLogger(__name__)


class Subscribe(msgspec.Struct, tag_field="action", tag="subscribe", rename={"start": "from"}):
    filters: list[TypeFilter] = msgspec.field(default_factory=lambda: [TypeFilter(event_type="*")])
    start: int | str = "now"
    world_id: Name | None = None
    room_id: Name | None = None


class Unsubscribe(msgspec.Struct, tag_field="action", tag="unsubscribe"):
    subscription: str


class RequestReplay(msgspec.Struct, tag_field="action", tag="replay", rename={"start": "from"}):
    """A replay to this socket, under a subscription of its own."""

    filters: list[TypeFilter] | None = None
    start: int | str = 0
    to: int | str = "now"
    rate: float | None = None
    world_id: Name | None = None
    room_id: Name | None = None


class Ping(msgspec.Struct, tag_field="action", tag="ping"):
    pass


Message = Subscribe | Unsubscribe | RequestReplay | Ping
_ACTIONS: dict[str, type[Message]] = {
    "subscribe": Subscribe,
    "unsubscribe": Unsubscribe,
    "replay": RequestReplay,
    "ping": Ping,
}


class _Action(msgspec.Struct):
    action: Any = None


def read_message(raw: bytes) -> Message:
    """The client's message. Raises MalformedError, InvalidError, TooLargeError."""
    if len(raw) > EVENT_BYTES:
        raise TooLargeError(f"a message may have {EVENT_BYTES} bytes")
    try:
        action = decode(raw, _Action, what="message").action
    except InvalidError as error:
        raise InvalidError('a message is an object with an "action"') if not error.errors[0].path else error from None
    kind = _ACTIONS.get(action) if isinstance(action, str) else None
    if kind is None:
        suggestion = nearest(str(action), _ACTIONS)
        message = f"must be one of {', '.join(_ACTIONS)}"
        raise InvalidError.field("action", message, suggestion)
    return decode_strictly(raw, kind, what="message")


class Client(NamedTuple):
    """`send` waits while the client's connection is full; `writable` returns when it is not."""

    send: Callable[[bytes], Awaitable[None]]
    writable: Callable[[], Awaitable[Any]]


class Session:
    """One open socket and its subscriptions. One of them at a time makes a frame and sends it, once the client takes
    more: so a client that does not read costs one frame, whatever waits for it."""

    def __init__(
        self,
        hub: Hub,
        recipients: Recipients,
        types: Types,
        principal: Principal,
        sight: Sight,
        queue: int,
        client: Client,
        correlation_id: str,
    ) -> None:
        self._hub = hub
        self._recipients = recipients
        self._types = types
        self._principal = principal
        self._sight = sight
        self._correlation_id = correlation_id
        self._queue = queue
        self._client = client
        self._turn = asyncio.Lock()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._replays: dict[str, str] = {}
        """The replays that were asked for here, by their subscriptions."""

    async def handle(self, raw: bytes) -> None:
        """Acts on one message. What is wrong with it is answered, and never ends the session."""
        try:
            match read_message(raw):
                case Subscribe() as message:
                    await self._subscribe(message)
                case Unsubscribe(subscription):
                    await self._unsubscribe(subscription)
                case RequestReplay() as message:
                    await self._replay(message)
                case Ping():
                    await self._send_json({"type": "pong"})
        except CrucibleError as error:
            await self._send_error(error)

    async def close(self) -> None:
        for subscription, task in self._running.items():
            self._recipients.leave(subscription)
            task.cancel()
        for subscription in self._replays:
            self._recipients.leave(subscription)
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _subscribe(self, message: Subscribe) -> None:
        self._check_limit()
        filters = await self._types.resolve(
            lambda catalogue: compile_filters(message.filters, at="filters", catalogue=catalogue)
        )
        warning = self._types.catalogue.warning(entry.event_type for entry in message.filters)
        selection = Selection(filters, message.world_id, message.room_id, self._sight)
        await check_place(self._hub.bus, self._principal, message.world_id, message.room_id)
        start = await read_start(message.start, self._hub.bus, await self._hub.head())
        subscription = fresh_id("sub")
        position = {} if start.since_ms is not None else position_fields(start.after)
        warnings = {"warnings": [warning]} if warning else {}
        await self._send_json({"type": "subscribed", "subscription": subscription, **position, **warnings})
        self._recipients.join(subscription, self._principal, self._sight, self._send).announced.set()
        self._running[subscription] = asyncio.create_task(self._pump(subscription, selection, start))

    async def _replay(self, message: RequestReplay) -> None:
        self._check_limit()
        subscription = fresh_id("sub")
        recipient = self._recipients.join(subscription, self._principal, self._sight, self._send)
        question = StartReplay(
            target=ReplayTarget(subscription=subscription),
            start=message.start,
            to=message.to,
            filters=message.filters,
            rate=message.rate,
            world_id=message.world_id,
            room_id=message.room_id,
        )
        try:
            replay = await call(self._hub.bus, self._principal, "events", "replay", question, Replay)
        except BaseException:
            self._recipients.leave(subscription)
            raise
        self._replays[subscription] = replay.id
        recipient.ended = lambda: self._forget(subscription)
        about = {"from": replay.start, "to": replay.to, "total": replay.total}
        await self._send_json({"type": "replay", "replay": replay.id, "subscription": subscription, **about})
        recipient.announced.set()

    def _forget(self, subscription: str) -> None:
        self._replays.pop(subscription, None)
        self._recipients.leave(subscription)

    def _check_limit(self) -> None:
        if len(self._running) + len(self._replays) >= SUBSCRIPTIONS:
            raise LimitedError(f"a socket may have {SUBSCRIPTIONS} subscriptions", retry_after=1)

    async def _unsubscribe(self, subscription: str) -> None:
        if (replay := self._replays.get(subscription)) is not None:
            self._forget(subscription)
            question = SteerReplay(id=replay, action="cancel")
            with contextlib.suppress(ConflictError):  # it has ended by itself
                await call(self._hub.bus, self._principal, "events", "replay_steer", question, Replay)
            await self._send_json({"type": "unsubscribed", "subscription": subscription})
            return
        task = self._running.pop(subscription, None)
        if task is None:
            raise NotFoundError(f"this socket has no subscription {subscription[:64]}")
        self._recipients.leave(subscription)
        task.cancel()
        await asyncio.wait([task])
        await self._send_json({"type": "unsubscribed", "subscription": subscription})

    async def _pump(self, subscription: str, selection: Selection, start: Start) -> None:
        try:
            async with follow(self._hub, selection, start, self._queue) as feed:
                while True:
                    await feed.ready()
                    await self._send_next(subscription, feed)
                    await asyncio.sleep(0)  # a client that takes everything at once must not keep the others waiting
        except CrucibleError as error:
            self._end(subscription)
            await self._send_error(error, subscription)
        except OSError:
            log.debug("a client left %s", subscription)
        except Exception:
            log.exception("subscription %s failed", subscription)
            self._end(subscription)
            await self._send_error(CrucibleError("the subscription failed"), subscription)

    async def _send_next(self, subscription: str, feed: Feed) -> None:
        async with self._turn:
            await self._client.writable()
            if (item := await feed.next()) is not None:
                await self._client.send(frame(subscription, item, feed.position))

    def _end(self, subscription: str) -> None:
        self._running.pop(subscription, None)
        self._recipients.leave(subscription)

    async def _send_error(self, error: CrucibleError, subscription: str | None = None) -> None:
        about = {} if subscription is None else {"subscription": subscription}
        problem = document(error, self._correlation_id)
        await self._send_json({"type": "error", **about, "detail": error.detail, "error": problem})

    async def _send(self, raw: bytes) -> None:
        async with self._turn:
            await self._client.send(raw)

    async def _send_json(self, message: dict[str, Any]) -> None:
        # Who has left needs no answer.
        with contextlib.suppress(OSError):
            await self._send(msgspec.json.encode(message))


def frame(subscription: str, item: Item, position: Position) -> bytes:
    """`position` is where it goes on after the item; frames have it where the sequence does not say it."""
    name = subscription.encode()
    position_field = b',"position":"%b"' % position.text.encode() if position.several else b""
    match item:
        case Record():
            fields = (name, item.sequence, position_field, item.public)
            return b'{"type":"event","subscription":"%b","sequence":%d%b,"event":%b}' % fields
        case CaughtUp():
            return b'{"type":"caught_up","subscription":"%b","sequence":%d%b}' % (name, item.sequence, position_field)
        case Gap(dropped):
            return b'{"type":"gap","subscription":"%b","dropped":%d}' % (name, dropped)
