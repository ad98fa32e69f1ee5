"""Trying a hook out: a synthetic event that it listens to, sent through the real queue to who serves it, dry."""

import asyncio
import time
from typing import Any

import msgspec

from crucible_core import subjects
from crucible_core.envelope import Event, encode
from crucible_core.errors import CrucibleError
from crucible_core.hooks import trigger_filters
from crucible_core.protocol.shared import Check, CheckStep, TestRequest
from crucible_kit.bus import Bus
from crucible_kit.clock import fresh_id
from crucible_kit.handlers.pointers import trial
from crucible_kit.index import Index

from . import store
from .cel import plain
from .decisions import decision
from .failures import RunError, brief
from .hook import Hook, handler_key
from .registry import Registry
from .runner import Runner
from .runs import Trial
from .synthesis import synthetic

_SPARE_S = 2.0
_SHOWN = 300


class Checker:
    def __init__(self, bus: Bus, registry: Registry, runner: Runner, index: Index) -> None:
        self._bus = bus
        self._index = index
        self._registry = registry
        self._runner = runner

    async def check(self, request: TestRequest) -> Check:
        """Live when each link of the chain holds, failing when its latest real runs have all failed the same way. A
        disabled or inert hook is only reported."""
        record = self._registry.get(request.id)
        state = self._registry.state(record.name)
        hook = self._registry.hook(record.name)
        if state != "active" or hook is None:
            verdict, _, reason = state.partition(": ")
            return Check(name=record.name, verdict=verdict, reason=reason or state)
        began = time.perf_counter()
        steps = [CheckStep(step="registered", ok=True, detail=record.origin)]
        catalogue, world = self._registry.types.catalogue, self._registry.home_of(record)
        event = synthetic(trigger_filters(record.definition or {}), request.payload, catalogue, world)
        steps.append(matched(hook, event))
        steps += await (self._asked(hook, event) if hook.pre else self._queued(hook, event, request.dry_run))
        verdict = "inert" if not all(step.ok for step in steps) else "live"
        key = handler_key(record.name, record.id)
        if failing := await store.failing(self._index, key, record.updated_at):
            steps.append(CheckStep(step="its latest runs", ok=False, detail=failing))
            verdict = "failing"
        broken = next((step for step in steps if not step.ok), None)
        return Check(
            name=record.name,
            verdict=verdict,
            reason=f"{broken.step}: {broken.detail}" if broken else None,
            duration_ms=round((time.perf_counter() - began) * 1000, 3),
            steps=steps,
        )

    async def _asked(self, hook: Hook, event: Event) -> list[CheckStep]:
        """A Pre hook is asked as an interception does it, and its answer read the same way."""
        try:
            result = await self._runner.attempt(hook, event, fresh_id("run"), 1, dry_run=True)
            if result.outcome == "ok" and not _is_dry(hook):
                answer = decision(result.output)
                result.output = (
                    f"denies: {answer.deny}" if answer.deny else "changes it" if answer.payload else "allows"
                )
        except (CrucibleError, RunError) as error:
            result = self._runner.failed(event, str(error))
        return [_condition(result.condition), _action(result.outcome, result.error, result.output, result.effects)]

    async def _queued(self, hook: Hook, event: Event, dry_run: bool) -> list[CheckStep]:
        began = time.perf_counter()
        answer = await self._through_queue(hook, event, dry_run)
        if answer is None:
            detail = f"queued, but no worker answered within {hook.timeout_ms / 1000 + _SPARE_S:g} s"
            return [CheckStep(step="queued and picked up", ok=False, detail=detail)]
        took = (time.perf_counter() - began) * 1000
        record = answer.record
        return [
            CheckStep(step="queued and picked up", ok=True, detail=f"answered after {took:.0f} ms"),
            _condition(answer.condition),
            _action(record.outcome, record.error, record.output, record.effects, dry=dry_run),
        ]

    async def _through_queue(self, hook: Hook, event: Event, dry_run: bool) -> Trial | None:
        run = fresh_id("run")
        async with self._bus.inbox() as (reply, answers):
            headers = {subjects.REPLY_TO: reply} | ({subjects.DRY_RUN: "1"} if dry_run else {})
            await self._bus.store(trial(self._bus.names, subjects.RUN, hook.key, run, encode(event), headers))
            try:
                async with asyncio.timeout(hook.timeout_ms / 1000 + _SPARE_S):
                    return msgspec.json.decode((await answers.get()).data, type=Trial)
            except TimeoutError:
                return None


def matched(hook: Hook, event: Event) -> CheckStep:
    if hook.filters.matches(event):
        return CheckStep(step="matches a synthetic event", ok=True, detail=event.dotted)
    detail = f"{event.dotted}: the type; no event could be made up that its filter accepts"
    return CheckStep(step="matches a synthetic event", ok=True, detail=detail)


def _condition(came_to: str) -> CheckStep:
    detail = {"none": "none", "true": "true"}.get(
        came_to, f"{came_to} for this event; the action is tried all the same"
    )
    return CheckStep(step="condition", ok=True, detail=detail)


def _action(outcome: str, error: str | None, output: Any, effects: list[str], *, dry: bool = True) -> CheckStep:
    step = "action ran (dry run)" if dry else "action ran"
    if outcome not in ("ok", "skipped"):
        return CheckStep(step=step, ok=False, detail=brief(error or outcome)[-_SHOWN:])
    would = f"effects: {', '.join(effects)}; " if effects else ""
    shown = output if isinstance(output, str) else msgspec.json.encode(plain(output)).decode()
    return CheckStep(step=step, ok=True, detail=f"{would}{shown}"[:_SHOWN])


def _is_dry(hook: Hook) -> bool:
    """Whether a dry run of this action answers in words, as nothing was sent or started."""
    return hook.definition.action.__struct_config__.tag != "Script"
