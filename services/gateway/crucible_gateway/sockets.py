"""The WebSocket protocol of the event stream: what a client may say, what it is told, many subscriptions a socket."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from crucible_core.decode import malformed
from crucible_core.envelope import MAX_EVENT_BYTES
from crucible_core.errors import CrucibleError, FieldError, InvalidError, LimitedError, NotFoundError, TooLargeError
from crucible_core.matcher import compile_filters
from crucible_core.protocol.shared import TypeFilter
from crucible_core.suggest import nearest
from crucible_kit.clock import fresh_id

from .bodies import strictly
from .following import follow
from .hub import Hub
from .params import Name
from .problems import document
from .subscriptions import CaughtUp, Gap, Item, Record, Start, Wanted, read_start

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


class Ping(msgspec.Struct, tag_field="action", tag="ping"):
    pass


Said = Subscribe | Unsubscribe | Ping
_ACTIONS: dict[str, type[Said]] = {"subscribe": Subscribe, "unsubscribe": Unsubscribe, "ping": Ping}


class _Action(msgspec.Struct):
    action: Any = None


def read_message(raw: bytes) -> Said:
    """What the client said. Raises MalformedError, InvalidError, TooLargeError."""
    if len(raw) > MAX_EVENT_BYTES:
        raise TooLargeError(f"a message may have {MAX_EVENT_BYTES} bytes")
    try:
        action = msgspec.json.decode(raw, type=_Action).action
    except msgspec.ValidationError:
        raise InvalidError('a message is an object with an "action"') from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise malformed(error, "message") from None
    kind = _ACTIONS.get(action) if isinstance(action, str) else None
    if kind is None:
        suggestion = nearest(str(action), _ACTIONS)
        message = f"must be one of {', '.join(_ACTIONS)}"
        raise InvalidError(f"action: {message}", errors=[FieldError("action", message, suggestion)])
    return strictly(raw, kind, what="message")


class Session:
    """One open socket and its subscriptions. `send` waits while the client's connection is full."""

    def __init__(self, hub: Hub, queue: int, send: Callable[[bytes], Awaitable[None]], correlation_id: str) -> None:
        self._hub = hub
        self._correlation_id = correlation_id
        self._queue = queue
        self._send = send
        self._running: dict[str, asyncio.Task[None]] = {}

    async def hear(self, raw: bytes) -> None:
        """Acts on one message. What is wrong with it is answered, and never ends the session."""
        try:
            match read_message(raw):
                case Subscribe() as wish:
                    await self._subscribe(wish)
                case Unsubscribe(subscription):
                    await self._unsubscribe(subscription)
                case Ping():
                    await self._tell({"type": "pong"})
        except CrucibleError as error:
            await self._refuse(error)

    async def close(self) -> None:
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _subscribe(self, wish: Subscribe) -> None:
        if len(self._running) >= MAX_SUBSCRIPTIONS:
            raise LimitedError(f"a socket may have {MAX_SUBSCRIPTIONS} subscriptions", retry_after=1)
        wanted = Wanted(compile_filters(wish.filters, at="filters"), wish.world_id, wish.room_id)
        start = read_start(wish.start, await self._hub.head())
        subscription = fresh_id("sub")
        await self._tell({"type": "subscribed", "subscription": subscription})
        self._running[subscription] = asyncio.create_task(self._pump(subscription, wanted, start))

    async def _unsubscribe(self, subscription: str) -> None:
        task = self._running.pop(subscription, None)
        if task is None:
            raise NotFoundError(f"this socket has no subscription {subscription[:64]}")
        task.cancel()
        await asyncio.wait([task])
        await self._tell({"type": "unsubscribed", "subscription": subscription})

    async def _pump(self, subscription: str, wanted: Wanted, start: Start) -> None:
        try:
            async with contextlib.aclosing(follow(self._hub, wanted, start, self._queue)) as items:
                async for item in items:
                    await self._send(frame(subscription, item))
        except CrucibleError as error:
            self._running.pop(subscription, None)
            await self._refuse(error, subscription)
        except OSError:
            log.debug("a client left %s", subscription)
        except Exception:
            log.exception("subscription %s failed", subscription)
            self._running.pop(subscription, None)
            await self._refuse(CrucibleError("the subscription failed"), subscription)

    async def _refuse(self, error: CrucibleError, subscription: str | None = None) -> None:
        about = {} if subscription is None else {"subscription": subscription}
        problem = document(error, self._correlation_id)
        await self._tell({"type": "error", **about, "detail": error.detail, "error": problem})

    async def _tell(self, message: dict[str, Any]) -> None:
        # Who has left needs no answer.
        with contextlib.suppress(OSError):
            await self._send(msgspec.json.encode(message))


def frame(subscription: str, item: Item) -> bytes:
    name = subscription.encode()
    match item:
        case Record():
            return b'{"type":"event","subscription":"%b","sequence":%d,"event":%b}' % (name, item.sequence, item.public)
        case CaughtUp(sequence):
            return b'{"type":"caught_up","subscription":"%b","sequence":%d}' % (name, sequence)
        case Gap(dropped):
            return b'{"type":"gap","subscription":"%b","dropped":%d}' % (name, dropped)
