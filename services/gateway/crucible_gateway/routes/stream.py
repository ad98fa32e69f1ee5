"""The event stream: a WebSocket, and server-sent events on the same path."""

from typing import Any

from litestar import Response, WebSocket, get, websocket
from litestar.datastructures import Headers
from litestar.exceptions import WebSocketDisconnect
from litestar.response import Stream

from crucible_core.errors import InvalidError, NotAcceptableError
from crucible_core.filters.matcher import compile_filters
from crucible_core.protocol.parts import TypeFilter
from crucible_gateway import examples
from crucible_gateway.accept import accept_of, preferred
from crucible_gateway.auth import principal_of
from crucible_gateway.body.json import Http
from crucible_gateway.context import check_place, gateway_of
from crucible_gateway.correlation import correlation_of
from crucible_gateway.live import sse
from crucible_gateway.live.feed import follow
from crucible_gateway.live.hub import Hub
from crucible_gateway.live.subscription import Selection, Start, read_start
from crucible_gateway.live.websocket import Client, Session
from crucible_gateway.openapi import Operation
from crucible_gateway.params import NoParams, StreamParams, filter_param, read_params, restore_plus
from crucible_gateway.routes.events import TAG
from crucible_kit.http.websocket import WRITABLE
from crucible_kit.tasks import Turn

PATH = "/api/v1/events/stream"


@get(
    PATH,
    operation=Operation(
        summary="Live events, server-sent",
        description=(
            "For every `Accept` that `text/event-stream` fits, also one of any type, and for none. Frames: "
            "`subscribed` (with `from=now`, or `warnings` of types that nobody emits), `event` (its `id` is the "
            "sequence), `caught_up`, `gap` and "
            "`error`; with `frames=unnamed`, an event is a frame without a name, as `EventSource.onmessage` takes "
            "it. `Last-Event-ID` resumes. The same path is a WebSocket: send "
            '`{"action": "subscribe", "filters": [{"event_type": "Memory.*", "filter": {}}], "from": "now"}`, '
            '`{"action": "replay", "from": 0, "to": "now", "filters": […]}`, '
            '`{"action": "unsubscribe", "subscription": "sub_…"}` or `{"action": "ping"}`.'
        ),
        tag=TAG,
        params=StreamParams,
        headers={"Last-Event-ID": "The last sequence seen; goes before `from`"},
        reply={"type": "string"},
        reply_type=sse.MEDIA_TYPE,
        example=examples.SSE_FRAMES,
        errors=("malformed", "not_acceptable"),
    ),
)
async def stream_events(request: Http) -> Response[Any]:
    if preferred(accept_of(request.headers), [sse.MEDIA_TYPE]) is None:
        raise NotAcceptableError(f'send "Accept: {sse.MEDIA_TYPE}" for server-sent events, or open a WebSocket')
    gateway, principal = gateway_of(request), principal_of(request)
    params = read_params(request, StreamParams)
    spec = filter_param(params.filter)
    filters = [TypeFilter(event_type=name, filter=spec or {}) for name in params.type or ["*"]]
    compiled = await gateway.types.resolve(
        lambda catalogue: compile_filters(filters, at="filters", catalogue=catalogue)
    )
    selection = Selection(compiled, params.world_id, params.room_id, gateway.keys.sight(request.headers))
    await check_place(gateway.bus, principal, params.world_id, params.room_id)
    start = await _start(request.headers, params.start, gateway.hub)
    feed = follow(gateway.hub, selection, start, gateway.settings.stream_queue)
    frames = sse.frames(
        feed,
        start,
        gateway.settings.stream_heartbeat_s,
        request.app.state.stopping,
        correlation_of(request.scope),
        named=params.frames == "named",
        warning=gateway.types.catalogue.warning(entry.event_type for entry in filters),
    )
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return Stream(frames, media_type=sse.MEDIA_TYPE, headers=headers)


async def _start(headers: Headers, start: str, hub: Hub) -> Start:
    head = await hub.head()
    seen = headers.get("last-event-id", "").strip()
    if seen:
        if not seen.replace(".", "").isdecimal():
            message = "must be the id of an event of this stream"
            raise InvalidError.field("Last-Event-ID", message)
        return await read_start(seen, hub.bus, head, "Last-Event-ID")
    return await read_start(restore_plus(start), hub.bus, head)


@websocket(PATH)
async def stream_socket(socket: WebSocket[Any, Any, Any]) -> None:
    gateway = gateway_of(socket)
    principal = gateway.keys.authenticate(socket.headers)
    read_params(socket, NoParams)
    await socket.accept()
    sockets = gateway.metrics.gauge("open_sockets", "Open WebSockets")
    sockets.inc()
    queue, correlation_id = gateway.settings.stream_queue, correlation_of(socket.scope)
    session = Session(
        gateway.hub,
        gateway.recipients,
        gateway.types,
        principal,
        gateway.keys.sight(socket.headers),
        queue,
        _client(socket),
        correlation_id,
    )
    turn = Turn()
    try:
        while (raw := await _receive(socket)) is not None:
            await session.handle(raw)
            if turn.over:
                await turn.pass_on()
    finally:
        sockets.dec()
        await session.close()


def _client(socket: WebSocket[Any, Any, Any]) -> Client:
    async def send(raw: bytes) -> None:
        try:
            await socket.send({"type": "websocket.send", "bytes": None, "text": raw.decode()})
        except WebSocketDisconnect as error:
            raise ConnectionError("the client has left") from error

    extensions: dict[str, Any] = socket.scope.get("extensions") or {}
    return Client(send, extensions[WRITABLE]["wait"])


async def _receive(socket: WebSocket[Any, Any, Any]) -> bytes | None:
    """The next message; None when the client has left."""
    message: Any = await socket.receive()
    if message["type"] != "websocket.receive":
        return None
    text = message.get("text")
    return message.get("bytes") or b"" if text is None else text.encode("utf-8", "surrogatepass")


OPEN_HANDLERS = (stream_socket,)
"""It authenticates by itself: a handshake is refused in its own way."""
HANDLERS = (stream_events,)
