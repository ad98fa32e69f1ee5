"""The requests of the hooks service."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from crucible_core.access import OPERATOR_ID
from crucible_core.definition import HookDefinition
from crucible_core.errors import ConflictError, InvalidError
from crucible_core.hookfile import NO_HOOK, read_hook
from crucible_core.merge import merge_patch
from crucible_core.protocol.hooks import (
    HookList,
    HookRecord,
    HookView,
    InterceptRequest,
    RegisterHook,
    RunList,
    RunRecord,
    RunsRequest,
    UpdateHook,
)
from crucible_core.protocol.parts import Check, Checks, Counters, EnableHook, GetRequest, ListRequest, TestRequest
from crucible_core.protocol.replays import ReplayBatch
from crucible_hooks import store
from crucible_hooks.hook import check_permitted, compile_hook, handler_key, read_definition, refuse_files
from crucible_hooks.intercept import Interceptor
from crucible_hooks.registry import API, HookEntry, Registry
from crucible_hooks.replays import Replayer
from crucible_hooks.review import Reviewer
from crucible_hooks.settings import Settings
from crucible_hooks.test import Tester
from crucible_kit.clock import timestamp
from crucible_kit.index.index import Index
from crucible_kit.nats.bus import Bus
from crucible_kit.pages import answer_bytes, check_page, list_page
from crucible_kit.rpc import Context, Endpoint


def endpoints(
    bus: Bus,
    registry: Registry,
    index: Index,
    interceptor: Interceptor,
    tester: Tester,
    replayer: Replayer,
    reviewer: Reviewer,
    settings: Settings,
) -> Mapping[str, Endpoint]:
    """By operation; see `crucible_core.protocol` for requests and replies."""

    async def list_all(request: ListRequest, context: Context) -> HookList:
        await registry.view.refresh()
        statistics = await store.statistics(index)
        shown, cursor = list_page(
            registry.visible_to(context.principal),
            lambda one: _list_key(registry, one),
            lambda one: view(registry, one.record, statistics),
            request,
            answer_bytes(bus),
        )
        return HookList(hooks=shown, next_cursor=cursor)

    async def view_of(record: HookRecord) -> HookView:
        return view(registry, record, await store.statistics(index, handler_key(record.name, record.id)))

    async def get(request: GetRequest, context: Context) -> HookView:
        await registry.view.refresh()
        return await view_of(registry.get(request.id, context.principal))

    async def register(request: RegisterHook, context: Context) -> HookView:
        return await save_definition(read_definition(await _read_registration(request), refuse_files), context)

    async def update(request: UpdateHook, context: Context) -> HookView:
        await registry.view.refresh()
        before = registry.find_owned(request.name, context.principal)
        definition = read_definition(merge_patch(before.definition or {}, request.changes), refuse_files)
        if definition.name != before.name:
            raise InvalidError.field("name", "cannot be changed", detail="name: a hook keeps its name")
        return await save_definition(definition, context)

    async def save_definition(definition: HookDefinition, context: Context) -> HookView:
        principal = context.principal
        hook = await registry.types.resolve(lambda catalogue: compile_hook(definition, catalogue=catalogue))
        # A command may do all that this process may, so that only the operator may allow it.
        check_permitted(definition, settings.hooks_allow_api_shell and principal.admin)
        await reviewer.review(hook, registry.types.catalogue)
        await registry.check_world(definition.world_id, principal)
        await registry.view.refresh()
        before = registry.records.get(definition.name)
        if before is not None and not principal.owns(before):
            if principal.may_see(before):
                principal.check_owns(before, f"hook {before.name}")
            raise ConflictError(f"another hook has the name {definition.name}")
        if before is not None and before.origin != API:
            raise ConflictError(f"hook {definition.name} comes from {before.origin}: change it there")
        record = HookRecord(
            name=definition.name,
            definition=msgspec.to_builtins(definition),
            enabled=definition.enabled,
            origin=API,
            updated_at=timestamp(),
            id=before.id if before else "",
            owner=before.owner if before else principal.id,
            world_id=definition.world_id,
        )
        await registry.save(record)
        return await view_of(registry.records.get(record.name, record))

    async def delete(request: GetRequest, context: Context) -> HookView:
        await registry.view.refresh()
        record = registry.find_owned(request.id, context.principal)
        if record.origin != API and _is_watched(record.origin, settings.root):
            raise ConflictError(f"hook {record.name} comes from {record.origin}: delete the file, or disable the hook")
        deleted = await view_of(record)
        await registry.delete(request.id)
        return deleted

    async def enable(request: EnableHook, context: Context) -> HookView:
        await registry.view.refresh()
        record = registry.find_owned(request.name, context.principal)
        return await view_of(await registry.set_enabled(record.name, request.enabled))

    async def runs(request: RunsRequest, context: Context) -> RunList:
        await registry.view.refresh()
        record = registry.get(request.name, context.principal)
        found = await store.runs(index, handler_key(record.name, record.id), request.limit, request.cursor)
        return RunList(runs=_visible_runs(found, context), next_cursor=found.next_cursor)

    async def run(request: GetRequest, context: Context) -> RunList:
        mine: list[str] | None = None
        if not context.principal.admin:
            await registry.view.refresh()
            mine = [entry.key for entry in registry.visible_to(context.principal)]
        runs = _visible_runs(await store.run(index, request.id, mine), context)
        if not runs:
            raise store.no_run_error(request.id)
        return RunList(runs=runs)

    async def test(request: TestRequest, context: Context) -> Check:
        await registry.catch_up(())
        registry.find_owned(request.id, context.principal)
        return await tester.test(request)

    async def test_all(request: ListRequest, context: Context) -> Checks:
        await registry.catch_up(())
        return await check_page(
            registry.owned_by(context.principal),
            lambda one: _list_key(registry, one),
            lambda one: one.name,
            lambda one: tester.test(TestRequest(id=one.name)),
            request,
        )

    return {
        "intercept": Endpoint(InterceptRequest, interceptor.intercept),
        "list": Endpoint(ListRequest, list_all),
        "get": Endpoint(GetRequest, get),
        "register": Endpoint(RegisterHook, register, stores=True),
        "update": Endpoint(UpdateHook, update, stores=True),
        "delete": Endpoint(GetRequest, delete),
        "enable": Endpoint(EnableHook, enable),
        "runs": Endpoint(RunsRequest, runs),
        "run": Endpoint(GetRequest, run),
        "test": Endpoint(TestRequest, test),
        "test_all": Endpoint(ListRequest, test_all),
        "replayable": Endpoint(GetRequest, replayer.replayable),
        "replay": Endpoint(ReplayBatch, replayer.replay),
        **registry.types.endpoints(),
    }


def _visible_runs(found: RunList, context: Context) -> list[RunRecord]:
    return [run for run in found.runs if context.scope.may_show(run.world_id, run.room_id, run.event_type)]


def view(registry: Registry, record: HookRecord, statistics: store.Statistics) -> HookView:
    """A hook as users see it; `order` counts from 1."""
    key, state = handler_key(record.name, record.id), registry.state(record.name)
    if state == "active" and (reason := statistics.failing(key, record.updated_at)):
        state = f"failing: {reason}"
    trigger = (record.definition or {}).get("trigger", {})
    return HookView(
        name=record.name,
        state=state,
        timing=trigger.get("timing"),
        priority=trigger.get("priority"),
        origin=record.origin,
        definition=record.definition,
        counters=statistics.counters.get(key, Counters()),
        updated_at=record.updated_at,
        id=record.id,
        owner=record.owner or OPERATOR_ID,
        world_id=record.world_id,
        order=registry.order.get(record.name),
        warnings=registry.warnings(record.name),
    )


def _list_key(registry: Registry, entry: HookEntry) -> list[Any]:
    """The order of lists: Pre hooks first, in their own order, then all others by name."""
    return [0, entry.pre, entry.name] if entry.name in registry.order else [1, 0, entry.name]


async def _read_registration(request: RegisterHook) -> dict[str, Any]:
    if request.definition is not None:
        return request.definition
    if request.markdown is None:
        raise InvalidError("definition or markdown is needed")
    definition = await asyncio.to_thread(read_hook, request.markdown)
    if definition is None:
        raise InvalidError(NO_HOOK)
    return definition


def _is_watched(origin: str, root: str | None) -> bool:
    return root is not None and Path(origin).is_relative_to(root)
