"""The WebSocket protocol of the event stream: what a client may say, what it is told, many subscriptions a socket."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec

from crucible_core.access import Principal, Sight
from crucible_core.decode import decode
from crucible_core.envelope import MAX_EVENT_BYTES
from crucible_core.errors import (
    ConflictError,
    CrucibleError,
    FieldError,
    InvalidError,
    LimitedError,
    NotFoundError,
    TooLargeError,
)
from crucible_core.filters.matcher import compile_filters
from crucible_core.position import Position
from crucible_core.protocol.parts import TypeFilter
from crucible_core.protocol.replays import Replay, ReplayTarget, StartReplay, SteerReplay
from crucible_core.suggest import nearest
from crucible_gateway.body.body import strictly
from crucible_gateway.context import check_place
from crucible_gateway.live.follow import Following, follow
from crucible_gateway.live.hub import Hub
from crucible_gateway.live.replays import Audience
from crucible_gateway.live.subscription import CaughtUp, Gap, Item, Record, Start, Wanted, place_of, read_start
from crucible_gateway.params import Name
from crucible_gateway.problems import document
from crucible_kit.clock import fresh_id
from crucible_kit.rpc import call
from crucible_kit.types import Types

log = logging.getLogger(__name__)

MAX_SUBSCRIPTIONS = 100
"""Of one socket."""


class Subscribe(msgspec.Struct, tag_field="action", tag="subscribe", rename={"start": "from"}):
    filters: list[TypeFilter] = msgspec.field(default_factory=lambda: [TypeFilter(event_type="*")])
    start: int | str = "now"
    world_id: Name | None = None
    room_id: Name | None = None


class Unsubscribe(msgspec.Struct, tag_field="action", tag="unsubscribe"):
    subscription: str


class AskReplay(msgspec.Struct, tag_field="action", tag="replay", rename={"start": "from"}):
    """A replay to this socket, under a subscription of its own."""

    filters: list[TypeFilter] | None = None
    start: int | str = 0
    to: int | str = "now"
    rate: float | None = None
    world_id: Name | None = None
    room_id: Name | None = None


class Ping(msgspec.Struct, tag_field="action", tag="ping"):
    pass


Said = Subscribe | Unsubscribe | AskReplay | Ping
_ACTIONS: dict[str, type[Said]] = {
    "subscribe": Subscribe,
    "unsubscribe": Unsubscribe,
    "replay": AskReplay,
    "ping": Ping,
}


class _Action(msgspec.Struct):
    action: Any = None


def read_message(raw: bytes) -> Said:
    """The client's message. Raises MalformedError, InvalidError, TooLargeError."""
    if len(raw) > MAX_EVENT_BYTES:
        raise TooLargeError(f"a message may have {MAX_EVENT_BYTES} bytes")
    try:
        action = decode(raw, _Action, what="message").action
    except InvalidError as error:
        raise InvalidError('a message is an object with an "action"') if not error.errors[0].path else error from None
    kind = _ACTIONS.get(action) if isinstance(action, str) else None
    if kind is None:
        suggestion = nearest(str(action), _ACTIONS)
        message = f"must be one of {', '.join(_ACTIONS)}"
        raise InvalidError(f"action: {message}", errors=[FieldError("action", message, suggestion)])
    return strictly(raw, kind, what="message")


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
        audience: Audience,
        types: Types,
        principal: Principal,
        sight: Sight,
        queue: int,
        client: Client,
        correlation_id: str,
    ) -> None:
        self._hub = hub
        self._audience = audience
        self._types = types
        self._principal = principal
        self._sight = sight
        self._correlation_id = correlation_id
        self._queue = queue
        self._client = client
        self._turn = asyncio.Lock()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._replays: dict[str, str] = {}
        """The replays that were asked for here, by the subscriptions that they go to."""

    async def hear(self, raw: bytes) -> None:
        """Acts on one message. What is wrong with it is answered, and never ends the session."""
        try:
            match read_message(raw):
                case Subscribe() as wish:
                    await self._subscribe(wish)
                case Unsubscribe(subscription):
                    await self._unsubscribe(subscription)
                case AskReplay() as wish:
                    await self._replay(wish)
                case Ping():
                    await self._tell({"type": "pong"})
        except CrucibleError as error:
            await self._refuse(error)

    async def close(self) -> None:
        for subscription, task in self._running.items():
            self._audience.leave(subscription)
            task.cancel()
        for subscription in self._replays:
            self._audience.leave(subscription)
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _subscribe(self, wish: Subscribe) -> None:
        self._check_room()
        filters = await self._types.resolve(
            lambda catalogue: compile_filters(wish.filters, at="filters", catalogue=catalogue)
        )
        warning = self._types.catalogue.warning(entry.event_type for entry in wish.filters)
        wanted = Wanted(filters, wish.world_id, wish.room_id, self._sight)
        await check_place(self._hub.bus, self._principal, wish.world_id, wish.room_id)
        start = await read_start(wish.start, self._hub.bus, await self._hub.head())
        subscription = fresh_id("sub")
        position = {} if start.since_ms is not None else place_of(start.after)
        told = {"warnings": [warning]} if warning else {}
        await self._tell({"type": "subscribed", "subscription": subscription, **position, **told})
        self._audience.join(subscription, self._principal, self._sight, self._send).announced.set()
        self._running[subscription] = asyncio.create_task(self._pump(subscription, wanted, start))

    async def _replay(self, wish: AskReplay) -> None:
        self._check_room()
        subscription = fresh_id("sub")
        member = self._audience.join(subscription, self._principal, self._sight, self._send)
        asked = StartReplay(
            target=ReplayTarget(subscription=subscription),
            start=wish.start,
            to=wish.to,
            filters=wish.filters,
            rate=wish.rate,
            world_id=wish.world_id,
            room_id=wish.room_id,
        )
        try:
            replay = await call(self._hub.bus, self._principal, "events", "replay", asked, Replay)
        except BaseException:
            self._audience.leave(subscription)
            raise
        self._replays[subscription] = replay.id
        member.ended = lambda: self._forget(subscription)
        about = {"from": replay.start, "to": replay.to, "total": replay.total}
        await self._tell({"type": "replay", "replay": replay.id, "subscription": subscription, **about})
        member.announced.set()

    def _forget(self, subscription: str) -> None:
        self._replays.pop(subscription, None)
        self._audience.leave(subscription)

    def _check_room(self) -> None:
        if len(self._running) + len(self._replays) >= MAX_SUBSCRIPTIONS:
            raise LimitedError(f"a socket may have {MAX_SUBSCRIPTIONS} subscriptions", retry_after=1)

    async def _unsubscribe(self, subscription: str) -> None:
        if (replay := self._replays.get(subscription)) is not None:
            self._forget(subscription)
            asked = SteerReplay(id=replay, action="cancel")
            with contextlib.suppress(ConflictError):  # it has ended by itself
                await call(self._hub.bus, self._principal, "events", "replay_steer", asked, Replay)
            await self._tell({"type": "unsubscribed", "subscription": subscription})
            return
        task = self._running.pop(subscription, None)
        if task is None:
            raise NotFoundError(f"this socket has no subscription {subscription[:64]}")
        self._audience.leave(subscription)
        task.cancel()
        await asyncio.wait([task])
        await self._tell({"type": "unsubscribed", "subscription": subscription})

    async def _pump(self, subscription: str, wanted: Wanted, start: Start) -> None:
        try:
            async with follow(self._hub, wanted, start, self._queue) as following:
                while True:
                    await following.ready()
                    await self._send_next(subscription, following)
                    await asyncio.sleep(0)  # a client that takes everything at once must not keep the others waiting
        except CrucibleError as error:
            self._end(subscription)
            await self._refuse(error, subscription)
        except OSError:
            log.debug("a client left %s", subscription)
        except Exception:
            log.exception("subscription %s failed", subscription)
            self._end(subscription)
            await self._refuse(CrucibleError("the subscription failed"), subscription)

    async def _send_next(self, subscription: str, following: Following) -> None:
        async with self._turn:
            await self._client.writable()
            if (item := await following.next()) is not None:
                await self._client.send(frame(subscription, item, following.position))

    def _end(self, subscription: str) -> None:
        self._running.pop(subscription, None)
        self._audience.leave(subscription)

    async def _refuse(self, error: CrucibleError, subscription: str | None = None) -> None:
        about = {} if subscription is None else {"subscription": subscription}
        problem = document(error, self._correlation_id)
        await self._tell({"type": "error", **about, "detail": error.detail, "error": problem})

    async def _send(self, raw: bytes) -> None:
        async with self._turn:
            await self._client.send(raw)

    async def _tell(self, message: dict[str, Any]) -> None:
        # Who has left needs no answer.
        with contextlib.suppress(OSError):
            await self._send(msgspec.json.encode(message))


def frame(subscription: str, item: Item, position: Position) -> bytes:
    """`position` is where it goes on after the item; it is told where no sequence says so."""
    name = subscription.encode()
    place = b',"position":"%b"' % position.text.encode() if position.several else b""
    match item:
        case Record():
            words = (name, item.sequence, place, item.public)
            return b'{"type":"event","subscription":"%b","sequence":%d%b,"event":%b}' % words
        case CaughtUp():
            return b'{"type":"caught_up","subscription":"%b","sequence":%d%b}' % (name, item.sequence, place)
        case Gap(dropped):
            return b'{"type":"gap","subscription":"%b","dropped":%d}' % (name, dropped)
