"""Requests about hooks: the registry, runs and tests."""

from typing import Any

import msgspec
from litestar import Response, delete, get, patch, post

from crucible_core.definition import HookDefinition
from crucible_core.protocol.hooks import HookList, HookView, RegisterHook, RunList, RunsRequest, UpdateHook
from crucible_core.protocol.parts import Check, Checks, EnableHook, GetRequest, ListRequest, TestRequest
from crucible_core.text import decode_text
from crucible_gateway import examples
from crucible_gateway.body.body import JSON, Http, expect, read_if_any, strictly, whole
from crucible_gateway.context import ask
from crucible_gateway.openapi import Body, Operation, described
from crucible_gateway.params import HandlersParams, NoParams, PageParams, read_params
from crucible_gateway.routes.replies import passed

TAG = "Hooks"
MARKDOWN = "text/markdown"
MERGE = "application/merge-patch+json"
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
    opt=described(
        Operation(
            summary="The hooks, with their states and counters: Pre hooks in their order, then the others by name",
            tag=TAG,
            params=HandlersParams,
            reply=HookList,
            example=examples.HOOK_LIST,
            refusals=("invalid",),
        )
    ),
)
async def list_hooks(request: Http) -> Response[bytes]:
    params = read_params(request.scope["query_string"], HandlersParams)
    asked = ListRequest(limit=params.limit, cursor=params.cursor)
    return passed(await ask(request, "hooks", "list", asked, bytes))


@post(
    "/api/v1/hooks",
    opt=described(
        Operation(
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
            refusals=("malformed", "conflict", "too_large", "unsupported", "invalid"),
        )
    ),
)
async def register_hook(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    kind = expect(request, JSON, *TEXTS)
    raw = await whole(request)
    if kind == JSON:
        asked = RegisterHook(definition=strictly(raw, dict[str, Any]))
    else:
        asked = RegisterHook(markdown=decode_text(raw))
    return passed(await ask(request, "hooks", "register", asked, bytes), 201)


@get(
    "/api/v1/hooks/{name:str}",
    opt=described(
        Operation(summary="One hook", tag=TAG, reply=HookView, example=examples.HOOK_VIEW, refusals=("not_found",))
    ),
)
async def get_hook(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    return passed(await ask(request, "hooks", "get", GetRequest(request.path_params["name"]), bytes))


@patch(
    "/api/v1/hooks/{name:str}",
    opt=described(
        Operation(
            summary="Change a hook",
            description="A merge patch (RFC 7396) of the hook object: what is left out stays, `null` removes.",
            tag=TAG,
            bodies={kind: Body(HookChanges, {"options": {"timeout_ms": 5000}}, open=True) for kind in (JSON, MERGE)},
            reply=HookView,
            example=examples.HOOK_VIEW,
            refusals=("malformed", "not_found", "conflict", "too_large", "unsupported", "invalid"),
        )
    ),
)
async def update_hook(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    expect(request, JSON, MERGE)
    changes = strictly(await whole(request), dict[str, Any])
    return passed(await ask(request, "hooks", "update", UpdateHook(request.path_params["name"], changes), bytes))


@delete(
    "/api/v1/hooks/{name:str}",
    opt=described(Operation(summary="Remove a hook", tag=TAG, status=204, refusals=("not_found", "conflict"))),
)
async def delete_hook(request: Http) -> None:
    read_params(request.scope["query_string"], NoParams)
    await ask(request, "hooks", "delete", GetRequest(request.path_params["name"]), bytes)


@post(
    "/api/v1/hooks/{name:str}/enable",
    opt=described(Operation(summary="Let a hook fire again", tag=TAG, reply=HookView, refusals=("not_found",))),
)
async def enable_hook(request: Http) -> Response[bytes]:
    return await _enable(request, True)


@post(
    "/api/v1/hooks/{name:str}/disable",
    opt=described(Operation(summary="Keep a hook from firing", tag=TAG, reply=HookView, refusals=("not_found",))),
)
async def disable_hook(request: Http) -> Response[bytes]:
    return await _enable(request, False)


async def _enable(request: Http, enabled: bool) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    asked = EnableHook(name=request.path_params["name"], enabled=enabled)
    return passed(await ask(request, "hooks", "enable", asked, bytes))


@get(
    "/api/v1/hooks/{name:str}/runs",
    opt=described(
        Operation(
            summary="The attempts at a hook's runs, the latest first",
            tag=TAG,
            params=PageParams,
            reply=RunList,
            example=examples.RUN_LIST,
            refusals=("not_found", "invalid"),
        )
    ),
)
async def list_runs(request: Http) -> Response[bytes]:
    params = read_params(request.scope["query_string"], PageParams)
    asked = RunsRequest(name=request.path_params["name"], limit=params.limit, cursor=params.cursor)
    return passed(await ask(request, "hooks", "runs", asked, bytes))


@get(
    "/api/v1/runs/{id:str}",
    opt=described(
        Operation(
            summary="The attempts at one run of a hook, the latest first",
            description="The id, or a beginning of it that no other run has.",
            tag=TAG,
            reply=RunList,
            example=examples.RUN_LIST,
            refusals=("not_found", "conflict"),
        )
    ),
)
async def get_run(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    return passed(await ask(request, "hooks", "run", GetRequest(request.path_params["id"]), bytes))


@post(
    "/api/v1/hooks/{name:str}/test",
    opt=described(
        Operation(
            summary="Fire one synthetic event through a hook",
            tag=TAG,
            bodies={JSON: Body(TestBody, {"dry_run": True})},
            body_required=False,
            reply=Check,
            example=examples.CHECK,
            refusals=("malformed", "not_found", "invalid"),
        )
    ),
)
async def check_hook(request: Http) -> Response[bytes]:
    read_params(request.scope["query_string"], NoParams)
    body = await read_if_any(request, TestBody)
    asked = TestRequest(id=request.path_params["name"], dry_run=body.dry_run, payload=body.payload)
    return passed(await ask(request, "hooks", "test", asked, bytes))


@post(
    "/api/v1/hooks/test",
    opt=described(
        Operation(
            summary="Try all hooks, page by page",
            description="As `doctor` does: each with a synthetic event, dry. A page may have fewer than `limit`.",
            tag=TAG,
            params=HandlersParams,
            reply=Checks,
            refusals=("invalid",),
        )
    ),
)
async def check_hooks(request: Http) -> Response[bytes]:
    params = read_params(request.scope["query_string"], HandlersParams)
    asked = ListRequest(limit=params.limit, cursor=params.cursor)
    return passed(await ask(request, "hooks", "test_all", asked, bytes))
