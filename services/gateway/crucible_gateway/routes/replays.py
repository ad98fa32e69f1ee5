"""Requests about replays: starting one, and what becomes of it."""

from typing import Annotated, Literal

import msgspec
from litestar import Response, get, post
from msgspec import Meta

from crucible_core.protocol.parts import GetRequest, TypeFilter
from crucible_core.protocol.replays import Replay, ReplayList, ReplayTarget, StartReplay, SteerReplay
from crucible_gateway import examples
from crucible_gateway.auth import principal_of
from crucible_gateway.body.events import idempotency_key
from crucible_gateway.body.json import JSON, Http, read_json
from crucible_gateway.context import Nothing, ask
from crucible_gateway.openapi import Body, Operation
from crucible_gateway.params import Name
from crucible_gateway.routes.replies import forward, reply_json

TAG = "Replays"


class ReplayBody(msgspec.Struct, rename={"start": "from"}):
    """`from` (exclusive) and `to` (inclusive) are sequences or RFC 3339 times; also `start` and `now`. The target is
    one of a hook's name, a webhook's id or name, and a live subscription's id. `rate` is in events a second."""

    target: ReplayTarget
    start: int | str = 0
    to: int | str = "now"
    filters: list[TypeFilter] | None = None
    rate: Annotated[float, Meta(gt=0)] | None = None
    world_id: Name | None = None
    room_id: Name | None = None


@post(
    "/api/v1/events/replay",
    operation=Operation(
        summary="Replay events into one hook, webhook or live subscription",
        description=(
            "Answered once the replay is durable; it goes on by itself, across restarts. Its events are marked: "
            '`event.replay` in hooks, `X-Crucible-Replay: true` and `"replay": true` in deliveries and frames.'
        ),
        tag=TAG,
        status=202,
        instead="The same Idempotency-Key has started it before",
        headers={"Idempotency-Key": "The same key again is answered with the replay that it started"},
        bodies={JSON: Body(ReplayBody, examples.REPLAY_BODY)},
        reply=Replay,
        example=examples.REPLAY,
        errors=("not_found",),
    ),
)
async def start_replay(request: Http) -> Response[bytes]:
    key = idempotency_key(request.headers.get("idempotency-key"))
    body = await read_json(request, ReplayBody)
    question = StartReplay(
        target=body.target,
        start=body.start,
        to=body.to,
        filters=body.filters,
        rate=body.rate,
        world_id=body.world_id,
        room_id=body.room_id,
        idempotency_key=None if key is None else f"{principal_of(request).id} {key}",
    )
    replay = await ask(request, "events", "replay", question, Replay)
    return reply_json(replay, 200 if replay.duplicate else 202)


@get(
    "/api/v1/replays",
    operation=Operation(
        summary="All replays, the newest first", tag=TAG, reply=ReplayList, example=examples.REPLAY_LIST
    ),
)
async def list_replays(request: Http) -> Response[bytes]:
    return await forward(request, "events", "replays", Nothing())


@get(
    "/api/v1/replays/{id:str}",
    operation=Operation(
        summary="One replay, with its progress", tag=TAG, reply=Replay, example=examples.REPLAY, errors=("not_found",)
    ),
)
async def get_replay(request: Http) -> Response[bytes]:
    return await forward(request, "events", "replay_get", GetRequest(request.path_params["id"]))


@post(
    "/api/v1/replays/{id:str}/pause",
    operation=Operation(
        summary="Pause a replay",
        description="Events that its target's queue holds already still go out.",
        tag=TAG,
        reply=Replay,
        example=examples.REPLAY,
        errors=("not_found", "conflict"),
    ),
)
async def pause_replay(request: Http) -> Response[bytes]:
    return await _steer(request, "pause")


@post(
    "/api/v1/replays/{id:str}/resume",
    operation=Operation(
        summary="Go on with a replay that is paused or has failed",
        tag=TAG,
        reply=Replay,
        example=examples.REPLAY,
        errors=("not_found", "conflict"),
    ),
)
async def resume_replay(request: Http) -> Response[bytes]:
    return await _steer(request, "resume")


@post(
    "/api/v1/replays/{id:str}/cancel",
    operation=Operation(
        summary="End a replay",
        description="Events that its target's queue holds already still go out.",
        tag=TAG,
        reply=Replay,
        example=examples.REPLAY,
        errors=("not_found", "conflict"),
    ),
)
async def cancel_replay(request: Http) -> Response[bytes]:
    return await _steer(request, "cancel")


async def _steer(request: Http, action: Literal["pause", "resume", "cancel"]) -> Response[bytes]:
    question = SteerReplay(id=request.path_params["id"], action=action)
    return await forward(request, "events", "replay_steer", question)


HANDLERS = (start_replay, list_replays, get_replay, pause_replay, resume_replay, cancel_replay)
