"""The test of a hook: a synthetic event that its filters accept, and a dry run of it, which goes through the real queue
for a Post hook."""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from crucible_core import subjects
from crucible_core.definition import trigger_filters
from crucible_core.envelope import DEFAULT_WORLD, Event, Metadata
from crucible_core.errors import CrucibleError
from crucible_core.filters.operators import SPELLINGS
from crucible_core.protocol.parts import Check, CheckStep, TestRequest, TypeFilter
from crucible_core.types.catalogue import ANY_CUSTOM, Catalogue
from crucible_core.types.shape import ITEM, Shape
from crucible_hooks import store
from crucible_hooks.errors import RunError, shorten_error
from crucible_hooks.expressions.cel import plain
from crucible_hooks.hook import Hook, handler_key
from crucible_hooks.registry import Registry
from crucible_hooks.runner import Runner, read_decision
from crucible_hooks.runs import TestReply
from crucible_kit.clock import fresh_id
from crucible_kit.handlers.test import event_message, summarize, synthetic_event
from crucible_kit.index.index import Index
from crucible_kit.nats.bus import Bus

_ANYTHING = "Memory.Created"
_PAYLOAD_ROOTS = ("event.payload.", "event.data.payload.")
_FILLER = "Crucible tries this hook with a synthetic event whose words mean nothing at all. "
_SPARE_S = 2.0
_SHOWN = 300


def synthetic(
    filters: Sequence[TypeFilter], payload: dict[str, Any] | None, catalogue: Catalogue, world: str = DEFAULT_WORLD
) -> Event:
    """An event for the first of `filters`, with `payload`, or with one that fits where it is None."""
    first = filters[0]
    dotted = one_type(first.event_type, catalogue)
    fields: dict[str, Any] = {}
    if payload is None:
        payload = catalogue.example(dotted)
        fit(first.filter, payload, fields, catalogue.fields(dotted))
    of_metadata = {name: value for name, value in fields.items() if name in Metadata.__struct_fields__}
    return synthetic_event("hooks", dotted, payload, world, of_metadata)


def one_type(pattern: str, catalogue: Catalogue) -> str:
    """One of the types that a pattern stands for."""
    types = catalogue.expand(pattern)
    if types is None or _ANYTHING in types:
        return _ANYTHING
    first = min(catalogue.members(types), default=ANY_CUSTOM)
    return "Custom.Test" if first == ANY_CUSTOM else first


def fit(spec: Mapping[str, Any], payload: dict[str, Any], metadata: dict[str, Any], shape: Shape | None) -> None:
    """Writes values into `payload` and `metadata` that `spec` accepts; a field that it cannot fit stays as it is."""
    for path, condition in spec.items():
        if path == "$and":
            for part in condition:
                fit(part, payload, metadata, shape)
        elif path == "$or":
            fit(condition[0], payload, metadata, shape)
        elif not path.startswith("$"):
            operators = condition if isinstance(condition, dict) else {"equals": condition}
            _fit_path(path, operators, payload, metadata, shape)


def _fit_path(
    path: str, operators: Mapping[str, Any], payload: dict[str, Any], metadata: dict[str, Any], shape: Shape | None
) -> None:
    target, inner = payload, path
    if path.startswith("event.metadata."):
        target, inner = metadata, path.removeprefix("event.metadata.")
    else:
        root = next((root for root in _PAYLOAD_ROOTS if path.startswith(root)), "")
        inner = path.removeprefix(root)
    for spelling, operand in operators.items():
        with contextlib.suppress(TypeError, KeyError, IndexError, ValueError):
            _write(target, inner.split("."), _value(SPELLINGS[spelling], operand, target, inner, shape))


def _value(operator: str, operand: Any, target: dict[str, Any], path: str, shape: Shape | None) -> Any:
    """A value that the operator accepts. Raises KeyError for an operator that no value is made for."""
    present = target.get(path)
    match operator:
        case "equals" | "gte" | "lte":
            return operand
        case "in":
            return operand[0]
        case "contains" if isinstance(present, list) or (present is None and _is_list(shape, path)):
            return [*(present or []), operand]
        case "contains" | "starts_with" | "ends_with":
            text = present if isinstance(present, str) else ""
            return operand + text if operator == "starts_with" else text + operand
        case "gt":
            return operand + 1
        case "lt":
            return operand - 1
        case "exists" if operand:
            return present if present is not None else "synthetic"
        case "matches":
            return (present if isinstance(present, str) else "") + _FILLER * 8
    raise KeyError(operator)


def _is_list(shape: Shape | None, path: str) -> bool:
    field = shape.get(path) if shape is not None else {}
    return field is not None and ITEM in field


def _write(target: dict[str, Any], segments: list[str], value: Any) -> None:
    *way, last = segments
    for segment in way:
        target = target.setdefault(segment, {})
    target[last] = value


class Tester:
    def __init__(self, bus: Bus, registry: Registry, runner: Runner, index: Index) -> None:
        self._bus = bus
        self._index = index
        self._registry = registry
        self._runner = runner

    async def test(self, request: TestRequest) -> Check:
        """Live when each link of the chain holds, failing when its latest real runs have all failed the same way. A
        disabled or inert hook is only reported."""
        record = self._registry.get(request.id)
        state = self._registry.state(record.name)
        hook = self._registry.hook(record.name)
        if state != "active" or hook is None:
            state, _, reason = state.partition(": ")
            return Check(name=record.name, verdict=state, reason=reason or state)
        began = time.perf_counter()
        steps = [CheckStep(step="registered", ok=True, detail=record.origin)]
        catalogue, world = self._registry.types.catalogue, self._registry.home_of(record)
        event = synthetic(trigger_filters(record.definition or {}), request.payload, catalogue, world)
        steps.append(match_step(hook, event))
        steps += await (self._test_pre(hook, event) if hook.pre else self._test_post(hook, event, request.dry_run))
        key = handler_key(record.name, record.id)
        if failing := await store.failing(self._index, key, record.updated_at):
            steps.append(CheckStep(step="its latest runs", ok=False, detail=failing))
        return summarize(record.name, began, steps, bad="failing" if failing else "inert")

    async def _test_pre(self, hook: Hook, event: Event) -> list[CheckStep]:
        """Runs a Pre hook, and reads its decision, as an interception does."""
        try:
            result = await self._runner.attempt(hook, event, fresh_id("run"), 1, dry_run=True)
            if result.outcome == "ok" and not _is_dry(hook):
                answer = read_decision(result.output)
                result.output = (
                    f"denies: {answer.deny}" if answer.deny else "changes it" if answer.payload else "allows"
                )
        except (CrucibleError, RunError) as error:
            result = self._runner.failed_result(event, str(error))
        return [
            _condition_step(result.condition),
            _action_step(result.outcome, result.error, result.output, result.effects),
        ]

    async def _test_post(self, hook: Hook, event: Event, dry_run: bool) -> list[CheckStep]:
        began = time.perf_counter()
        answer = await self._through_queue(hook, event, dry_run)
        if answer is None:
            detail = f"queued, but no worker answered within {hook.timeout_ms / 1000 + _SPARE_S:g} s"
            return [CheckStep(step="queued and picked up", ok=False, detail=detail)]
        took = (time.perf_counter() - began) * 1000
        record = answer.record
        return [
            CheckStep(step="queued and picked up", ok=True, detail=f"answered after {took:.0f} ms"),
            _condition_step(answer.condition),
            _action_step(record.outcome, record.error, record.output, record.effects, dry=dry_run),
        ]

    async def _through_queue(self, hook: Hook, event: Event, dry_run: bool) -> TestReply | None:
        run = fresh_id("run")
        async with self._bus.inbox() as (reply, answers):
            headers = {subjects.REPLY_TO: reply} | ({subjects.DRY_RUN: "1"} if dry_run else {})
            await self._bus.store(event_message(self._bus.names, subjects.RUN, hook.key, run, event, headers))
            try:
                async with asyncio.timeout(hook.timeout_ms / 1000 + _SPARE_S):
                    return msgspec.json.decode((await answers.get()).data, type=TestReply)
            except TimeoutError:
                return None


def match_step(hook: Hook, event: Event) -> CheckStep:
    if hook.filters.matches(event):
        return CheckStep(step="matches a synthetic event", ok=True, detail=event.dotted)
    detail = f"{event.dotted}: the type; no synthetic event fits its filter"
    return CheckStep(step="matches a synthetic event", ok=True, detail=detail)


def _condition_step(value: str) -> CheckStep:
    detail = {"none": "none", "true": "true"}.get(value, f"{value} for this event; the action is tried all the same")
    return CheckStep(step="condition", ok=True, detail=detail)


def _action_step(outcome: str, error: str | None, output: Any, effects: list[str], *, dry: bool = True) -> CheckStep:
    step = "action ran (dry run)" if dry else "action ran"
    if outcome not in ("ok", "skipped"):
        return CheckStep(step=step, ok=False, detail=shorten_error(error or outcome)[-_SHOWN:])
    would = f"effects: {', '.join(effects)}; " if effects else ""
    shown = output if isinstance(output, str) else msgspec.json.encode(plain(output)).decode()
    return CheckStep(step=step, ok=True, detail=f"{would}{shown}"[:_SHOWN])


def _is_dry(hook: Hook) -> bool:
    """True where a dry run of the action answers in words, as it sends and starts nothing."""
    return hook.definition.action.__struct_config__.tag != "Script"
