"""Requests about webhooks: the registry, attempts and tests."""

from litestar import Response, delete, get, post

from crucible_core.protocol.shared import Check, EnableHook, GetRequest, TestRequest
from crucible_core.protocol.webhooks import AttemptList, AttemptsRequest, CreateWebhook, WebhookList, WebhookView
from crucible_gateway import examples
from crucible_gateway.bodies import JSON, Http, read, read_if_any
from crucible_gateway.context import Nothing, ask
from crucible_gateway.openapi import Body, Operation, described
from crucible_gateway.params import NoParams, PageParams, read_params

from .hooks import TestBody
from .replies import passed

TAG = "Webhooks"


@post(
    "/api/v1/webhooks",
    opt=described(
        Operation(
            summary="Register an endpoint",
            description="The answer has the `secret` that signs the deliveries, this once.",
            tag=TAG,
            status=201,
            bodies={JSON: Body(CreateWebhook, examples.WEBHOOK)},
            reply=WebhookView,
            example=examples.WEBHOOK_VIEW,
            refusals=("malformed", "too_large", "unsupported", "invalid"),
        )
    ),
)
async def create_webhook(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    return passed(await ask(request, "webhooks", "create", await read(request, CreateWebhook), bytes), 201)


@get(
    "/api/v1/webhooks",
    opt=described(Operation(summary="All webhooks, with their states and counters", tag=TAG, reply=WebhookList)),
)
async def list_webhooks(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    return passed(await ask(request, "webhooks", "list", Nothing(), bytes))


@get(
    "/api/v1/webhooks/{id:str}",
    opt=described(Operation(summary="One webhook", tag=TAG, reply=WebhookView, refusals=("not_found",))),
)
async def get_webhook(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    return passed(await ask(request, "webhooks", "get", GetRequest(request.path_params["id"]), bytes))


@delete(
    "/api/v1/webhooks/{id:str}",
    opt=described(Operation(summary="Remove a webhook", tag=TAG, status=204, refusals=("not_found",))),
)
async def delete_webhook(request: Http) -> None:
    read_params(request.scope["query_string"], NoParams)
    await ask(request, "webhooks", "delete", GetRequest(request.path_params["id"]), bytes)


@post(
    "/api/v1/webhooks/{id:str}/enable",
    opt=described(Operation(summary="Deliver again", tag=TAG, reply=WebhookView, refusals=("not_found",))),
)
async def enable_webhook(request: Http) -> Response[bytes]:
    return await _enable(request, True)


@post(
    "/api/v1/webhooks/{id:str}/disable",
    opt=described(Operation(summary="Deliver nothing for now", tag=TAG, reply=WebhookView, refusals=("not_found",))),
)
async def disable_webhook(request: Http) -> Response[bytes]:
    return await _enable(request, False)


async def _enable(request: Http, enabled: bool) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    asked = EnableHook(name=request.path_params["id"], enabled=enabled)
    return passed(await ask(request, "webhooks", "enable", asked, bytes))


@get(
    "/api/v1/webhooks/{id:str}/attempts",
    opt=described(
        Operation(
            summary="The attempts at a webhook's deliveries, the latest first",
            tag=TAG,
            params=PageParams,
            reply=AttemptList,
            example=examples.ATTEMPT_LIST,
            refusals=("not_found", "invalid"),
        )
    ),
)
async def list_attempts(request: Http) -> Response[bytes]:
    params = read_params(request.scope["query_string"], PageParams)
    asked = AttemptsRequest(id=request.path_params["id"], limit=params.limit, cursor=params.cursor)
    return passed(await ask(request, "webhooks", "attempts", asked, bytes))


@post(
    "/api/v1/webhooks/{id:str}/test",
    opt=described(
        Operation(
            summary="Fire one synthetic event through a webhook",
            description="A dry run only connects to the endpoint.",
            tag=TAG,
            bodies={JSON: Body(TestBody, {"dry_run": True})},
            body_required=False,
            reply=Check,
            refusals=("malformed", "not_found", "invalid"),
        )
    ),
)
async def check_webhook(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    body = await read_if_any(request, TestBody)
    asked = TestRequest(id=request.path_params["id"], dry_run=body.dry_run, payload=body.payload)
    return passed(await ask(request, "webhooks", "test", asked, bytes))
