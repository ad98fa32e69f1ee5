"""The asynchronous client: the same calls, awaited."""

import asyncio
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

import httpx
import websockets.asyncio.client as asyncio_client
from httpx_sse import EventSource, SSEError

from crucible_client.batches import BATCH_EVENTS, PendingBatch
from crucible_client.batches import packed_async as packed
from crucible_client.calls import events, hooks, memory, replays, webhooks, worlds
from crucible_client.calls.events import Count, CountSum, Wanted
from crucible_client.errors import unreachable
from crucible_client.export import Export
from crucible_client.request import Call, Json, described, request_of
from crucible_client.response import raise_for
from crucible_client.results import BatchItem, Page
from crucible_client.retries import Backoff, Retries, wait_s
from crucible_client.settings import settings_from
from crucible_client.subscription import OnNotice, Subscription
from crucible_client.websocket import open_async_socket
from crucible_core.envelope import Event
from crucible_core.errors import CrucibleError, UnavailableError
from crucible_core.limits import SDK_AWAY_S, SDK_CONNECT_RETRIES, SDK_IDLE_S, SDK_TIMEOUT_S
from crucible_core.protocol.events import CountBy

P = ParamSpec("P")
T = TypeVar("T")


class AsyncCrucible:
    """A connection to a gateway, safe to share between tasks; close it, or use it in an `async with`.

    `url` and `api_key` come from CRUCIBLE_URL and CRUCIBLE_API_KEY when not given. Requests raise the errors of
    `crucible_core.errors`; those that may safely arrive twice are sent again as `retries` says.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = SDK_TIMEOUT_S,
        retries: Retries | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        settings = settings_from(url, api_key, environ)
        self.url = settings.url
        self.retries = retries or Retries()
        self._settings = settings
        self._http = httpx.AsyncClient(
            base_url=settings.url,
            headers={"authorization": f"Bearer {settings.api_key}"} if settings.api_key else {},
            timeout=timeout_s,
            transport=transport or httpx.AsyncHTTPTransport(retries=SDK_CONNECT_RETRIES),
        )
        self.events = AsyncEvents(self)
        self.replays = AsyncReplays(self)
        self.hooks = AsyncHooks(self)
        self.webhooks = AsyncWebhooks(self)
        self.memory = AsyncMemory(self)
        self.worlds = AsyncWorlds(self)
        self.rooms = AsyncRooms(self)
        self.retention = AsyncRetention(self)
        self.losses = AsyncLosses(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def send(self, call: Call[T]) -> T:
        """Sends one call, again where that is safe and worth it."""
        attempt = 1
        while True:
            try:
                return await self._send_once(call)
            except CrucibleError as error:
                wait = wait_s(self.retries, attempt, error, repeatable=call.repeatable, jitter=random.random())
                if wait is None:
                    raise
            await asyncio.sleep(wait)
            attempt += 1

    @asynccontextmanager
    async def open(self, call: Call[bytes]) -> AsyncIterator[httpx.Response]:
        """An answer whose body is read as it comes, for as long as the block lasts."""
        request = request_of(self._http, call, httpx.Timeout(SDK_IDLE_S, connect=10.0))
        try:
            response = await self._http.send(request, stream=True)
            try:
                if response.status_code >= 300:
                    raise_for(response.status_code, response.headers, await response.aread())
                yield response
            finally:
                await response.aclose()
        except httpx.TransportError as error:
            raise unreachable(error, self.url) from error

    def socket(self) -> AbstractAsyncContextManager[asyncio_client.ClientConnection]:
        """A WebSocket of the event stream."""
        return open_async_socket(self._settings)

    async def _send_once(self, call: Call[T]) -> T:
        try:
            response = await self._http.send(request_of(self._http, call, self._http.timeout))
        except httpx.TransportError as error:
            raise unreachable(error, self.url) from error
        raise_for(response.status_code, response.headers, response.content)
        return call.read(response.content)


class _Namespace:
    def __init__(self, client: AsyncCrucible) -> None:
        self._client = client


def _sends(call: Callable[P, Call[T]]) -> Callable[Concatenate[_Namespace, P], Coroutine[Any, Any, T]]:
    async def method(self: _Namespace, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._client.send(call(*args, **kwargs))

    described(method, call)
    return method


def _pages(call: Callable[P, Call[Page[T]]]) -> Callable[Concatenate[_Namespace, P], AsyncIterator[T]]:
    """All items, page after page, each page asked for when it is reached."""

    async def method(self: _Namespace, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        page = await self._client.send(call(*args, **kwargs))
        for item in page.items:
            yield item
        while page.next_cursor is not None:
            kwargs["cursor"] = page.next_cursor
            page = await self._client.send(call(*args, **kwargs))
            for item in page.items:
                yield item

    described(method, call)
    return method


def _whole(call: Callable[P, Call[Page[T]]]) -> Callable[Concatenate[_Namespace, P], Coroutine[Any, Any, list[T]]]:
    """All items of all pages."""
    pages = _pages(call)

    async def method(self: _Namespace, /, *args: P.args, **kwargs: P.kwargs) -> list[T]:
        return [item async for item in pages(self, *args, **kwargs)]

    described(method, call)
    return method


class AsyncEvents(_Namespace):
    """The event log: append, read, follow."""

    append = _sends(events.append)
    append_batch = _sends(events.append_batch)
    get = _sends(events.get_event)
    redact = _sends(events.redact_event)
    resend = _sends(webhooks.resend_event)
    list = _pages(events.list_events)
    page = _sends(events.list_events)
    trace = _sends(events.trace)
    types = _sends(events.event_types)
    register_type = _sends(events.register_event_type)
    get_type = _sends(events.get_event_type)
    delete_type = _sends(events.delete_event_type)
    replay = _sends(replays.start_replay)

    async def count(self, *types: str, by: CountBy | None = None, **wanted: Unpack[Wanted]) -> Count:
        """The number of events that are wanted (see `Wanted`), also by type, world, room, actor or day (UTC)."""
        total = CountSum(types, by, wanted)
        while True:
            found = total.take(await self._client.send(total.call()))
            if found is not None:
                return found

    async def append_many(
        self,
        events: Iterable[Json | bytes] | AsyncIterable[Json | bytes],
        *,
        batch_size: int = BATCH_EVENTS,
        react: bool = True,
    ) -> AsyncGenerator[BatchItem, None]:
        """Appends events as they come, a batch at a time, and gives each one's outcome, in order.

        An event is an object in the short or the full form, or a line of JSON as bytes (an export's, say); each gets an
        id when it has none. One that is refused does not raise: its item has the error. What is refused because a
        service is away is sent again for a while. Without `react` events are only recorded: Post hooks, webhooks and
        the reader of notes pass them over. A gateway that goes away is waited for, a minute at most: then, or where it
        is away from the start, UnavailableError is raised.
        """
        backoff = Backoff(SDK_AWAY_S, from_start=True)
        async for lines in packed(events, batch_size):
            batch = PendingBatch(lines, react)
            while True:
                try:
                    answer = await self._client.send(batch.call())
                except CrucibleError as error:
                    await asyncio.sleep(backoff.wait_s(error, time.monotonic()))
                    continue
                backoff.succeeded()
                wait = batch.take(answer, self._client.retries, random.random())
                if wait is None:
                    break
                await asyncio.sleep(wait)
            for item in batch.results:
                yield item

    async def export(self, *types: str, **wanted: Unpack[Wanted]) -> AsyncGenerator[bytes, None]:
        """The events that are committed by now and wanted (see `Wanted`), in the log's order, each as a line of JSON
        without its end: `append_many(lines, react=False)` puts them back. It goes on by itself when it breaks."""
        export = Export(types, wanted)
        while not export.complete:
            try:
                async with self._client.open(export.call()) as response:
                    async for chunk in response.aiter_bytes():
                        for line in export.take(chunk):
                            yield line
                export.ended()
            except CrucibleError as error:
                await asyncio.sleep(export.failed(error, time.monotonic()))

    async def stream(
        self,
        *types: str,
        filter: Json | None = None,
        start: str | int = "now",
        world_id: str | None = None,
        room_id: str | None = None,
        patience_s: float | None = SDK_AWAY_S,
        on_notice: OnNotice | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Events as they are committed, for ever, each once and with no hole; it reconnects by itself.

        `start` is `now`, `start`, a sequence (exclusive) or a time (RFC 3339). `on_notice` is told what happens besides
        (see `Notice`). A gateway that is away for longer than `patience_s` seconds (None: no limit), or at the start,
        raises UnavailableError. These are server-sent events; `subscribe` is the same over a WebSocket.
        """
        subscription = Subscription(
            types, filter, start, patience_s, world_id=world_id, room_id=room_id, on_notice=on_notice
        )
        while True:
            try:
                async with self._client.open(subscription.call()) as response:
                    source = EventSource(response)
                    subscription.opened()
                    async for frame in source.aiter_sse():
                        event = subscription.take(frame.event, frame.data, frame.id)
                        if event is not None:
                            yield event
                wait = subscription.failed(UnavailableError("the gateway closed the stream"), time.monotonic())
            except SSEError as error:
                raise CrucibleError(f"no event stream at {self._client.url}: is it a gateway of Crucible?") from error
            except CrucibleError as error:
                wait = subscription.failed(error, time.monotonic())
            await asyncio.sleep(wait)

    async def subscribe(
        self,
        *types: str,
        filter: Json | None = None,
        from_: str | int = "now",
        world_id: str | None = None,
        room_id: str | None = None,
        patience_s: float | None = SDK_AWAY_S,
        on_notice: OnNotice | None = None,
    ) -> AsyncGenerator[Event, None]:
        """As `stream`, over a WebSocket; `from_` is what `start` is there."""
        subscription = Subscription(
            types, filter, from_, patience_s, world_id=world_id, room_id=room_id, on_notice=on_notice
        )
        while True:
            try:
                async with self._client.socket() as socket:
                    await socket.send(subscription.message())
                    async for frame in socket:
                        event = subscription.take("", frame)
                        subscription.opened()
                        if event is not None:
                            yield event
                wait = subscription.failed(UnavailableError("the gateway closed the stream"), time.monotonic())
            except CrucibleError as error:
                wait = subscription.failed(error, time.monotonic())
            await asyncio.sleep(wait)


class AsyncReplays(_Namespace):
    """Replays, which `events.replay` starts: how far they have come, and steering them."""

    list = _sends(replays.list_replays)
    get = _sends(replays.get_replay)
    pause = _sends(replays.pause_replay)
    resume = _sends(replays.resume_replay)
    cancel = _sends(replays.cancel_replay)


class AsyncHooks(_Namespace):
    """The hook registry."""

    add = create = _sends(hooks.add_hook)
    get = _sends(hooks.get_hook)
    list = _whole(hooks.list_hooks)
    page = _sends(hooks.list_hooks)
    update = _sends(hooks.update_hook)
    delete = _sends(hooks.delete_hook)
    enable = _sends(hooks.enable_hook)
    disable = _sends(hooks.disable_hook)
    runs = _pages(hooks.hook_runs)
    run = _sends(hooks.get_run)
    test = _sends(hooks.check_hook)
    test_all = _pages(hooks.check_hooks)


class AsyncWebhooks(_Namespace):
    """The webhook registry and its deliveries."""

    create = add = _sends(webhooks.create_webhook)
    get = _sends(webhooks.get_webhook)
    list = _whole(webhooks.list_webhooks)
    page = _sends(webhooks.list_webhooks)
    update = _sends(webhooks.update_webhook)
    rotate_secret = _sends(webhooks.rotate_webhook_secret)
    enable = _sends(webhooks.enable_webhook)
    disable = _sends(webhooks.disable_webhook)
    delete = _sends(webhooks.delete_webhook)
    attempts = _pages(webhooks.webhook_attempts)
    test = _sends(webhooks.check_webhook)
    test_all = _pages(webhooks.check_webhooks)


class AsyncMemory(_Namespace):
    """Memories: keep, find, change."""

    create = add = _sends(memory.create_memory)
    get = _sends(memory.get_memory)
    list = _sends(memory.list_memories)
    update = _sends(memory.update_memory)
    delete = _sends(memory.delete_memory)
    query = _sends(memory.query_memory)
    status = _sends(memory.memory_status)


class AsyncWorlds(_Namespace):
    """The worlds that events belong to."""

    create = add = _sends(worlds.create_world)
    get = _sends(worlds.get_world)
    list = _pages(worlds.list_worlds)
    delete = _sends(worlds.delete_world)


class AsyncRooms(_Namespace):
    """The rooms of each world."""

    create = add = _sends(worlds.create_room)
    list = _sends(worlds.list_rooms)
    delete = _sends(worlds.delete_room)


class AsyncRetention(_Namespace):
    """The rules of retention."""

    get = _sends(worlds.get_retention)
    set = put = _sends(worlds.put_retention)


class AsyncLosses(_Namespace):
    """Events that the log has lost."""

    list = _sends(worlds.list_losses)
    accept = _sends(worlds.accept_losses)
