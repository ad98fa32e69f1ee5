"""Interception: Pre hooks allow, change or deny an event before it is committed.

They run in one order (priority, then name), each on the payload as the one before left it. Once a hook has changed the
payload, every earlier hook that did not, and that the final event matches, runs again on the result: it may deny, and
fails where it would change it now.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from crucible_core.envelope import Data, Event, decode
from crucible_core.errors import CrucibleError, DeniedError, MalformedError, UnavailableError
from crucible_core.protocol.hooks import InterceptReply, InterceptRequest
from crucible_core.types.catalogue import CATALOGUE
from crucible_core.types.payloads import CATEGORIES
from crucible_hooks.errors import RunError, shorten_error
from crucible_hooks.hook import Hook
from crucible_hooks.records import (
    Recorder,
    RunEvent,
    attempt_message,
    bounded_error,
    bounded_output,
    run_event,
    run_id,
    run_record,
)
from crucible_hooks.registry import Registry
from crucible_hooks.runner import Decision, Result, Runner, read_decision
from crucible_kit.deadline import check_deadline
from crucible_kit.nats.bus import Bus
from crucible_kit.rpc import Context

_WAIT_S = 1.0


class Interceptor:
    def __init__(self, bus: Bus, registry: Registry, runner: Runner, recorder: Recorder) -> None:
        self._bus = bus
        self._registry = registry
        self._runner = runner
        self._recorder = recorder

    async def intercept(self, request: InterceptRequest, context: Context) -> InterceptReply:
        """Raises DeniedError, whose `extra` has `hook` and `reason`; UnavailableError where this replica is behind."""
        await self._registry.view.reach(request.revision, _WAIT_S)
        if not self._registry.inert.keys().isdisjoint(request.hooks):
            await self._registry.types.view.refresh()  # it may be that only an event type is not known here yet
        try:
            event = decode(bytes(request.event))
        except msgspec.DecodeError as error:
            raise MalformedError(f"hooks.intercept: {error}") from None
        final = await self._chain(event, frozenset(request.hooks))
        if final is event:
            return InterceptReply()
        return InterceptReply(payload=msgspec.Raw(msgspec.json.encode(final.data.payload)))

    async def _chain(self, event: Event, named: frozenset[str]) -> Event:
        self._check_loaded(named)
        order = self._registry.pre
        first, changed_by, last_change = event, set[str](), -1
        for index, hook in enumerate(order):
            if not (hook.name in named if event is first else self._registry.wants(hook, event)):
                continue
            payload = await self._ask(hook, event)
            if payload is not None:
                event, last_change = _replace_payload(event, payload), index
                changed_by.add(hook.name)
        for hook in order[: max(last_change, 0)]:
            if hook.name not in changed_by and self._registry.wants(hook, event):
                await self._ask(hook, event, recheck=True)
        return event

    def _check_loaded(self, named: frozenset[str]) -> None:
        """A Pre hook that `events` knows and this replica cannot load denies the event. Raises DeniedError."""
        for name in sorted(named):
            reason = self._registry.load_error(name)
            if reason is not None:
                reason = f"the hook cannot be loaded: {reason}"
                raise DeniedError(f"hook {name} denied the event: {reason}", hook=name, reason=reason)

    async def _ask(self, hook: Hook, event: Event, *, recheck: bool = False) -> dict[str, Any] | None:
        """The changed payload, or None. Raises DeniedError, and UnavailableError where nobody waits for the answer."""
        check_deadline(f"hook {hook.name}")
        run = run_id(hook.key, event, "judge" if recheck else "pre")
        result, answer = await self._answer(hook, event, run, recheck)
        await self._record(hook, event, run, result)
        if result.outcome == "failed" and hook.definition.options.failure_policy == "deny":
            raise _denied(hook, f"the hook failed: {shorten_error(result.error or '')}")
        if answer.deny is not None:
            raise _denied(hook, answer.deny)
        return answer.payload

    async def _answer(self, hook: Hook, event: Event, run: str, recheck: bool) -> tuple[Result, Decision]:
        result = await self._attempt(hook, event, run)
        if result.outcome != "ok":
            return result, Decision()
        try:
            answer = read_decision(result.output)
            if answer.payload is not None:
                answer = _validate_change(answer.payload, event, recheck)
        except (RunError, CrucibleError) as error:
            result.outcome, result.error = "failed", str(error)
            return result, Decision()
        if answer.deny is not None:
            result.outcome, result.error = "denied", answer.deny
        return result, answer

    async def _attempt(self, hook: Hook, event: Event, run: str) -> Result:
        try:
            return await self._runner.attempt(hook, event, run, 1)
        except UnavailableError as error:
            return self._runner.failed_result(event, f"something that it needs is away: {error.detail}")

    async def _record(self, hook: Hook, event: Event, run: str, result: Result) -> None:
        record = run_record(hook, event, run, 1, result.outcome, result.started_at)
        record.duration_ms, record.error = result.duration_ms, bounded_error(result.error)
        record.output, record.log = bounded_output(result.output), result.log
        # A Pre hook of the hooks' own records would otherwise make a record of each record, without end.
        executed = None if event.type == "Hook" else run_event(record, event, action_of(hook), result.traceparent)
        await self._recorder.add(
            attempt_message(self._bus.names, record) if executed is None else RunEvent(executed, record)
        )


def action_of(hook: Hook) -> str:
    return str(hook.definition.action.__struct_config__.tag)


def _validate_change(payload: Mapping[str, Any], event: Event, recheck: bool) -> Decision:
    """The decision for a valid payload. Raises InvalidError, or RunError for a change that comes too late."""
    if payload == event.data.payload:
        return Decision()
    if recheck:
        raise RunError("it would change the event again after a later hook has changed it")
    if event.type in CATEGORIES:  # of the types that users registered `events` has the validators
        payload = msgspec.json.decode(CATALOGUE.canonical(event.dotted, msgspec.json.encode(payload)))
    return Decision(payload=dict(payload))


def _replace_payload(event: Event, payload: dict[str, Any]) -> Event:
    return msgspec.structs.replace(event, data=Data(event.data.event, payload))


def _denied(hook: Hook, reason: str) -> DeniedError:
    return DeniedError(f"hook {hook.name} denied the event: {reason}", hook=hook.name, reason=reason)
