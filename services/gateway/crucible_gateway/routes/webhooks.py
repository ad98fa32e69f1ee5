"""Requests about webhooks: the registry, secrets, attempts and tests, and resending."""

from typing import Annotated, Any, Literal

import msgspec
from litestar import Response, delete, get, patch, post
from msgspec import UNSET, Meta, UnsetType

from crucible_core.limits import SECRET_GRACE_DEFAULT_S, SECRET_GRACE_S
from crucible_core.protocol.parts import Check, Checks, GetRequest, ListRequest, TestRequest, TypeFilter
from crucible_core.protocol.replays import ReplayPolicy
from crucible_core.protocol.webhooks import (
    AttemptList,
    AttemptsRequest,
    CreateWebhook,
    EnableWebhook,
    ResendEvent,
    Resent,
    RotateSecret,
    UpdateWebhook,
    WebhookList,
    WebhookView,
)
from crucible_gateway import examples
from crucible_gateway.body.json import (
    JSON,
    MERGE_PATCH,
    Http,
    decode_strictly,
    expect_type,
    read_body,
    read_json,
    read_optional_json,
)
from crucible_gateway.context import ask
from crucible_gateway.openapi import Body, Operation
from crucible_gateway.params import HandlersParams, PageParams, read_params
from crucible_gateway.routes.replies import forward

TAG = "Webhooks"


class AuthPatch(msgspec.Struct):
    type: Literal["hmac", "bearer", "basic"] | UnsetType = UNSET
    secret: str | UnsetType = UNSET
    algorithm: Literal["sha256"] | UnsetType = UNSET
    token: str | UnsetType | None = UNSET
    username: str | UnsetType | None = UNSET
    password: str | UnsetType | None = UNSET


class OptionsPatch(msgspec.Struct):
    """`null` is the default."""

    timeout_ms: int | UnsetType | None = UNSET
    retry_delays_s: list[float] | UnsetType | None = UNSET
    concurrency: int | UnsetType | None = UNSET
    replay: ReplayPolicy | UnsetType | None = UNSET


class WebhookPatch(msgspec.Struct):
    """A merge patch (RFC 7396): what is left out stays as it is, and `event_filters` are replaced as a whole."""

    name: str | UnsetType = UNSET
    url: str | UnsetType = UNSET
    event_filters: list[TypeFilter] | UnsetType = UNSET
    auth: AuthPatch | UnsetType = UNSET
    options: OptionsPatch | UnsetType | None = UNSET
    paused: bool | UnsetType = UNSET
    world_id: str | UnsetType | None = UNSET


class EnableBody(msgspec.Struct):
    """`missed`: the deliveries that have waited are sent, or skipped."""

    missed: Literal["deliver", "skip"] = "deliver"


class RotateBody(msgspec.Struct):
    """The secret before goes on signing, beside the new one, for `grace_s` seconds. A new one is made if none is
    given."""

    grace_s: Annotated[float, Meta(ge=0, le=SECRET_GRACE_S)] = SECRET_GRACE_DEFAULT_S
    secret: str | None = None


class WebhookTest(msgspec.Struct):
    """The synthetic event is of `type`, else of one that the webhook wants; `payload` is an example of it if none. With
    `dry_run` the endpoint is only connected to."""

    dry_run: bool = False
    payload: dict[str, Any] | None = None
    type: str | None = None


class ResendBody(msgspec.Struct):
    """A webhook's id or name."""

    webhook: str


@post(
    "/api/v1/webhooks",
    operation=Operation(
        summary="Register an endpoint",
        description="The answer has the `secret` that signs the deliveries, this once.",
        tag=TAG,
        status=201,
        bodies={JSON: Body(CreateWebhook, examples.WEBHOOK)},
        reply=WebhookView,
        example=examples.WEBHOOK_VIEW,
        errors=("conflict",),
    ),
)
async def create_webhook(request: Http) -> Response[bytes]:
    return await forward(request, "webhooks", "create", await read_json(request, CreateWebhook), 201)


@get(
    "/api/v1/webhooks",
    operation=Operation(
        summary="The webhooks, with their states and counters, in the order of their ids",
        tag=TAG,
        params=HandlersParams,
        reply=WebhookList,
    ),
)
async def list_webhooks(request: Http) -> Response[bytes]:
    params = read_params(request, HandlersParams)
    question = ListRequest(limit=params.limit, cursor=params.cursor)
    return await forward(request, "webhooks", "list", question)


@get(
    "/api/v1/webhooks/{id:str}",
    operation=Operation(
        summary="One webhook",
        description="By its id or name. `waiting` counts the deliveries that wait, now or for their time.",
        tag=TAG,
        reply=WebhookView,
        errors=("not_found",),
    ),
)
async def get_webhook(request: Http) -> Response[bytes]:
    return await forward(request, "webhooks", "get", GetRequest(request.path_params["id"]))


@patch(
    "/api/v1/webhooks/{id:str}",
    operation=Operation(
        summary="Change a webhook",
        description="A merge patch, whose result is checked as a new webhook is.",
        tag=TAG,
        bodies={
            JSON: Body(WebhookPatch, examples.WEBHOOK_PATCH),
            MERGE_PATCH: Body(WebhookPatch, examples.WEBHOOK_PATCH),
        },
        reply=WebhookView,
        errors=("not_found", "conflict"),
    ),
)
async def update_webhook(request: Http) -> Response[bytes]:
    expect_type(request, JSON, MERGE_PATCH)
    body = decode_strictly(await read_body(request), WebhookPatch)
    question = UpdateWebhook(id=request.path_params["id"], patch=msgspec.to_builtins(body))
    return await forward(request, "webhooks", "update", question)


@delete(
    "/api/v1/webhooks/{id:str}",
    operation=Operation(
        summary="Remove a webhook",
        description="Waiting events are not delivered any more. Its attempts stay.",
        tag=TAG,
        status=204,
        errors=("not_found",),
    ),
)
async def delete_webhook(request: Http) -> None:
    await ask(request, "webhooks", "delete", GetRequest(request.path_params["id"]), bytes)


@post(
    "/api/v1/webhooks/{id:str}/enable",
    operation=Operation(
        summary="Deliver again",
        description="What has waited while the webhook was disabled or paused is delivered, or skipped.",
        tag=TAG,
        bodies={JSON: Body(EnableBody, {"missed": "deliver"})},
        body_required=False,
        reply=WebhookView,
        errors=("not_found",),
    ),
)
async def enable_webhook(request: Http) -> Response[bytes]:
    body = await read_optional_json(request, EnableBody)
    return await _enable(request, EnableWebhook(id=request.path_params["id"], enabled=True, missed=body.missed))


@post(
    "/api/v1/webhooks/{id:str}/disable",
    operation=Operation(
        summary="Deliver nothing for now",
        description="What the webhook wants waits for it.",
        tag=TAG,
        reply=WebhookView,
        errors=("not_found",),
    ),
)
async def disable_webhook(request: Http) -> Response[bytes]:
    return await _enable(request, EnableWebhook(id=request.path_params["id"], enabled=False))


async def _enable(request: Http, question: EnableWebhook) -> Response[bytes]:
    return await forward(request, "webhooks", "enable", question)


@post(
    "/api/v1/webhooks/{id:str}/rotate-secret",
    operation=Operation(
        summary="Sign with another secret",
        description=(
            "The answer has the new `secret`, this once. Until `old_secret_until` each request has a signature of "
            "both, with a space between them."
        ),
        tag=TAG,
        bodies={JSON: Body(RotateBody, {"grace_s": 86_400})},
        body_required=False,
        reply=WebhookView,
        example=examples.WEBHOOK_VIEW,
        errors=("not_found",),
    ),
)
async def rotate_secret(request: Http) -> Response[bytes]:
    body = await read_optional_json(request, RotateBody)
    question = RotateSecret(id=request.path_params["id"], grace_s=body.grace_s, secret=body.secret)
    return await forward(request, "webhooks", "rotate_secret", question)


@get(
    "/api/v1/webhooks/{id:str}/attempts",
    operation=Operation(
        summary="The attempts at a webhook's deliveries, the latest first",
        tag=TAG,
        params=PageParams,
        reply=AttemptList,
        example=examples.ATTEMPT_LIST,
        errors=("not_found",),
    ),
)
async def list_attempts(request: Http) -> Response[bytes]:
    params = read_params(request, PageParams)
    question = AttemptsRequest(id=request.path_params["id"], limit=params.limit, cursor=params.cursor)
    return await forward(request, "webhooks", "attempts", question)


@post(
    "/api/v1/webhooks/{id:str}/test",
    operation=Operation(
        summary="Fire one synthetic event through a webhook",
        description="It is sent, unless it is a dry run: that only connects to the endpoint.",
        tag=TAG,
        bodies={JSON: Body(WebhookTest, {"dry_run": True})},
        body_required=False,
        reply=Check,
        errors=("not_found",),
    ),
)
async def check_webhook(request: Http) -> Response[bytes]:
    body = await read_optional_json(request, WebhookTest)
    question = TestRequest(id=request.path_params["id"], dry_run=body.dry_run, payload=body.payload, type=body.type)
    return await forward(request, "webhooks", "test", question)


@post(
    "/api/v1/webhooks/test",
    operation=Operation(
        summary="Try all webhooks, page by page",
        description="As `doctor` does: each with a synthetic event, dry. A page may have fewer than `limit`.",
        tag=TAG,
        params=HandlersParams,
        reply=Checks,
    ),
)
async def check_webhooks(request: Http) -> Response[bytes]:
    params = read_params(request, HandlersParams)
    question = ListRequest(limit=params.limit, cursor=params.cursor)
    return await forward(request, "webhooks", "test_all", question)


@post(
    "/api/v1/events/{id:str}/resend",
    operation=Operation(
        summary="Send one event to one webhook once more",
        description="A delivery of its own, whatever the webhook's filters say; its `webhook-id` is the event's.",
        tag=TAG,
        status=202,
        bodies={JSON: Body(ResendBody, {"webhook": "ci"})},
        reply=Resent,
        example=examples.RESENT,
        errors=("not_found",),
    ),
)
async def resend_event(request: Http) -> Response[bytes]:
    body = await read_json(request, ResendBody)
    question = ResendEvent(event_id=request.path_params["id"], webhook=body.webhook)
    return await forward(request, "webhooks", "resend", question, 202)


HANDLERS = (
    create_webhook,
    list_webhooks,
    check_webhooks,
    get_webhook,
    update_webhook,
    delete_webhook,
    enable_webhook,
    disable_webhook,
    rotate_secret,
    list_attempts,
    check_webhook,
    resend_event,
)
