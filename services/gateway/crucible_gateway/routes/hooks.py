"""Requests about hooks: the registry, runs and tests."""

from typing import Any

import msgspec
from litestar import Response, delete, get, patch, post

from crucible_core.definition import HookDefinition
from crucible_core.protocol.hooks import HookList, HookView, RegisterHook, RunList, RunsRequest, UpdateHook
from crucible_core.protocol.parts import Check, Checks, EnableHook, GetRequest, ListRequest, TestRequest
from crucible_core.text import decode_text
from crucible_gateway import examples
from crucible_gateway.body.json import (
    JSON,
    MERGE_PATCH,
    Http,
    decode_strictly,
    expect_type,
    read_body,
    read_optional_json,
)
from crucible_gateway.context import ask
from crucible_gateway.openapi import Body, Operation
from crucible_gateway.params import HandlersParams, PageParams, read_params
from crucible_gateway.routes.replies import forward

TAG = "Hooks"
MARKDOWN = "text/markdown"
YAML = "text/yaml"
TEXTS = (MARKDOWN, YAML, "application/yaml", "application/x-yaml", "text/x-yaml")
"""Media types of a hook file. RFC 9512 has application/yaml; the others are older and common."""


class TestBody(msgspec.Struct):
    """`dry_run`: nothing outside is changed. `payload` is the synthetic event's, else an example of its type."""

    dry_run: bool = True
    payload: dict[str, Any] | None = None


class HookChanges(msgspec.Struct):
    """The parts of a hook object that change; null removes one."""


@get(
    "/api/v1/hooks",
    operation=Operation(
        summary="The hooks, with their states and counters: Pre hooks in their order, then the others by name",
        tag=TAG,
        params=HandlersParams,
        reply=HookList,
        example=examples.HOOK_LIST,
    ),
)
async def list_hooks(request: Http) -> Response[bytes]:
    params = read_params(request, HandlersParams)
    question = ListRequest(limit=params.limit, cursor=params.cursor)
    return await forward(request, "hooks", "list", question)


@post(
    "/api/v1/hooks",
    operation=Operation(
        summary="Register a hook, or a new version of one",
        description="The hook object, or the text of a hook file: Markdown with YAML front matter, or YAML.",
        tag=TAG,
        status=201,
        bodies={
            JSON: Body(HookDefinition, examples.HOOK),
            MARKDOWN: Body({"type": "string"}, examples.HOOK_FILE),
            YAML: Body({"type": "string"}, examples.HOOK_YAML),
        },
        reply=HookView,
        example=examples.HOOK_VIEW,
        errors=("conflict",),
    ),
)
async def register_hook(request: Http) -> Response[bytes]:
    kind = expect_type(request, JSON, *TEXTS)
    raw = await read_body(request)
    if kind == JSON:
        question = RegisterHook(definition=decode_strictly(raw, dict[str, Any]))
    else:
        question = RegisterHook(markdown=decode_text(raw))
    return await forward(request, "hooks", "register", question, 201)


@get(
    "/api/v1/hooks/{name:str}",
    operation=Operation(summary="One hook", tag=TAG, reply=HookView, example=examples.HOOK_VIEW, errors=("not_found",)),
)
async def get_hook(request: Http) -> Response[bytes]:
    return await forward(request, "hooks", "get", GetRequest(request.path_params["name"]))


@patch(
    "/api/v1/hooks/{name:str}",
    operation=Operation(
        summary="Change a hook",
        description="A merge patch (RFC 7396) of the hook object: what is left out stays, `null` removes.",
        tag=TAG,
        bodies={kind: Body(HookChanges, {"options": {"timeout_ms": 5000}}, open=True) for kind in (JSON, MERGE_PATCH)},
        reply=HookView,
        example=examples.HOOK_VIEW,
        errors=("not_found", "conflict"),
    ),
)
async def update_hook(request: Http) -> Response[bytes]:
    expect_type(request, JSON, MERGE_PATCH)
    changes = decode_strictly(await read_body(request), dict[str, Any])
    return await forward(request, "hooks", "update", UpdateHook(request.path_params["name"], changes))


@delete(
    "/api/v1/hooks/{name:str}",
    operation=Operation(summary="Remove a hook", tag=TAG, status=204, errors=("not_found", "conflict")),
)
async def delete_hook(request: Http) -> None:
    await ask(request, "hooks", "delete", GetRequest(request.path_params["name"]), bytes)


@post(
    "/api/v1/hooks/{name:str}/enable",
    operation=Operation(summary="Let a hook fire again", tag=TAG, reply=HookView, errors=("not_found",)),
)
async def enable_hook(request: Http) -> Response[bytes]:
    return await _enable(request, True)


@post(
    "/api/v1/hooks/{name:str}/disable",
    operation=Operation(summary="Keep a hook from firing", tag=TAG, reply=HookView, errors=("not_found",)),
)
async def disable_hook(request: Http) -> Response[bytes]:
    return await _enable(request, False)


async def _enable(request: Http, enabled: bool) -> Response[bytes]:
    question = EnableHook(name=request.path_params["name"], enabled=enabled)
    return await forward(request, "hooks", "enable", question)


@get(
    "/api/v1/hooks/{name:str}/runs",
    operation=Operation(
        summary="The attempts at a hook's runs, the latest first",
        tag=TAG,
        params=PageParams,
        reply=RunList,
        example=examples.RUN_LIST,
        errors=("not_found",),
    ),
)
async def list_runs(request: Http) -> Response[bytes]:
    params = read_params(request, PageParams)
    question = RunsRequest(name=request.path_params["name"], limit=params.limit, cursor=params.cursor)
    return await forward(request, "hooks", "runs", question)


@get(
    "/api/v1/runs/{id:str}",
    operation=Operation(
        summary="The attempts at one run of a hook, the latest first",
        description="The id, or a beginning of it that no other run has.",
        tag=TAG,
        reply=RunList,
        example=examples.RUN_LIST,
        errors=("not_found", "conflict"),
    ),
)
async def get_run(request: Http) -> Response[bytes]:
    return await forward(request, "hooks", "run", GetRequest(request.path_params["id"]))


@post(
    "/api/v1/hooks/{name:str}/test",
    operation=Operation(
        summary="Fire one synthetic event through a hook",
        tag=TAG,
        bodies={JSON: Body(TestBody, {"dry_run": True})},
        body_required=False,
        reply=Check,
        example=examples.CHECK,
        errors=("not_found",),
    ),
)
async def check_hook(request: Http) -> Response[bytes]:
    body = await read_optional_json(request, TestBody)
    question = TestRequest(id=request.path_params["name"], dry_run=body.dry_run, payload=body.payload)
    return await forward(request, "hooks", "test", question)


@post(
    "/api/v1/hooks/test",
    operation=Operation(
        summary="Try all hooks, page by page",
        description="As `doctor` does: each with a synthetic event, dry. A page may have fewer than `limit`.",
        tag=TAG,
        params=HandlersParams,
        reply=Checks,
    ),
)
async def check_hooks(request: Http) -> Response[bytes]:
    params = read_params(request, HandlersParams)
    question = ListRequest(limit=params.limit, cursor=params.cursor)
    return await forward(request, "hooks", "test_all", question)


HANDLERS = (
    list_hooks,
    check_hooks,
    register_hook,
    get_hook,
    update_hook,
    delete_hook,
    enable_hook,
    disable_hook,
    list_runs,
    get_run,
    check_hook,
)
