"""One attempt at a run: the event as hooks see it, the condition and the action under the hook's time-out, the decision
of a Pre hook, and the result."""

import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from crucible_core.decode import check_keys, check_text
from crucible_core.envelope import Event
from crucible_core.errors import CrucibleError, UnavailableError
from crucible_core.limits import HOOK_COMMANDS, HOOK_OUTPUT_BYTES, HOOK_REASON_CHARS, HOOK_REQUESTS
from crucible_core.subjects import TRACEPARENT
from crucible_hooks.actions.functions import Effects
from crucible_hooks.actions.http import Http, build_request, decode_answer, send
from crucible_hooks.actions.sandbox import Sandbox
from crucible_hooks.actions.shell import Shell, decode_output, run_shell
from crucible_hooks.errors import AbsentError, RunError
from crucible_hooks.expressions.expression import Context, Evaluator, Expression
from crucible_hooks.expressions.templates import Template
from crucible_hooks.hook import Hook, Script
from crucible_hooks.stopwatch import Stopwatch
from crucible_kit.clock import timestamp
from crucible_kit.fairness import Slots
from crucible_kit.http.exchange import Exchanger, chain_headers
from crucible_kit.nats.bus import Bus
from crucible_kit.principals import Principals
from crucible_kit.telemetry.metrics import Metrics
from crucible_kit.telemetry.spans import Attribute, Span, Telemetry, message_attributes

log = logging.getLogger(__name__)


_FORMS = 'a Pre hook answers nothing, {"deny": "reason"} or {"payload": {…}}'
_SHOWN = 200
INTERNAL = "the run failed inside the hooks service, whose log says why"


def event_view(event: Event, replay: bool = False) -> dict[str, Any]:
    """The public form, with `payload` and `id` at the top as well, and whether it is replayed."""
    view: dict[str, Any] = msgspec.to_builtins(event)
    return {**view, "id": event.metadata.id, "payload": view["data"]["payload"], "replay": replay}


def event_bytes(event: Event, replay: bool = False) -> bytes:
    """The public form as JSON, with `"replay": true` in a replayed one: the body of an HTTP action, a Shell command's
    standard input."""
    encoded = msgspec.json.encode(event)
    return b'%b,"replay":true}' % encoded[:-1] if replay else encoded


class Decision(msgspec.Struct, frozen=True):
    """Allowed where both are None."""

    deny: str | None = None
    payload: dict[str, Any] | None = None


def read_answer(raw: bytes, *, complete: bool, what: str) -> Any:
    """The value of a command's output or an endpoint's answer, which is one JSON document; None for nothing. Raises
    RunError for anything else, such as words beside the JSON; `what` names it."""
    if not complete:
        raise RunError(f"{what} is larger than an answer may be")
    if not raw.strip():
        return None
    try:
        check_text(raw, what)
        found = msgspec.json.decode(raw)
        check_keys(raw, what)
    except CrucibleError as error:
        raise RunError(error.detail) from None
    except (ValueError, RecursionError) as error:
        shown = raw.decode(errors="replace").strip()[:_SHOWN]
        raise RunError(f"{_FORMS}; {what} is not one JSON document ({error}): {shown}") from None
    return found


def read_decision(output: Any) -> Decision:
    """Raises RunError for an answer that is not understood."""
    if output is None:
        return Decision()
    if not isinstance(output, dict) or len(output) != 1 or not output.keys() & {"deny", "payload"}:
        raise RunError(f"{_FORMS}, not {_kind(output)}")
    if "payload" in output:
        if not isinstance(output["payload"], dict):
            raise RunError("the payload that a hook answers must be an object")
        return Decision(payload=output["payload"])
    reason = output["deny"]
    if reason is True or (isinstance(reason, str) and not reason.strip()):
        return Decision(deny="denied without a reason")
    if not isinstance(reason, str):
        raise RunError(f"{_FORMS}; deny is {_kind(reason)}")
    return Decision(deny=reason[:HOOK_REASON_CHARS])


def _kind(output: Any) -> str:
    if isinstance(output, dict):
        return f"an object with {', '.join(map(str, output))[:_SHOWN]}" if output else "an empty object"
    return {bool: "true or false", str: "a text", list: "a list", type(None): "null"}.get(type(output), "a number")


class Result(msgspec.Struct, kw_only=True):
    """The result of an attempt. `outcome` is ok, failed or skipped (the condition is false); `condition` is the
    value of the condition in words."""

    outcome: str
    started_at: str
    duration_ms: float
    traceparent: str
    output: Any = None
    error: str | None = None
    condition: str = "none"
    effects: list[str] = []
    log: list[str] = []
    retry_after_s: float = 0.0


class Runner:
    """Runs the attempts of Pre and Post hooks."""

    def __init__(
        self,
        bus: Bus,
        principals: Principals,
        evaluator: Evaluator,
        sandbox: Sandbox,
        exchanger: Exchanger,
        telemetry: Telemetry,
        metrics: Metrics,
    ) -> None:
        self._bus = bus
        self._principals = principals
        self.evaluator = evaluator
        self._sandbox = sandbox
        self._exchanger = exchanger
        self._slots = {
            (kind, pre): Slots(total, total // 4)
            for kind, total in (("requests", HOOK_REQUESTS), ("commands", HOOK_COMMANDS))
            for pre in (True, False)
        }
        self._telemetry = telemetry
        self._runs = metrics.counter("hook_runs", "Attempts at runs by outcome", ("timing", "outcome"))
        self._seconds = metrics.histogram("hook_run_seconds", "How long an attempt took", ("timing",))

    async def attempt(
        self, hook: Hook, event: Event, run: str, attempt: int, *, dry_run: bool = False, replay: bool = False
    ) -> Result:
        """Never fails for what the hook does. Raises UnavailableError where a service that it needs is away.

        A dry run has no effects; with a synthetic event, as all are but replayed ones, it runs the action whatever
        the condition says.
        """
        began, started_at = time.perf_counter(), timestamp()
        timing = hook.definition.trigger.timing
        about: dict[str, Attribute | None] = {
            "crucible.hook.name": hook.name,
            "crucible.event.id": event.metadata.id,
            "crucible.attempt": attempt,
        }
        with self._span(hook, event, run, about, queued=not (hook.pre or dry_run)) as span:
            owner = self._principals.of(hook.owner)
            effects = Effects(self._bus, owner, event, hook.name, run, span.traceparent, dry_run)
            result = Result(outcome="ok", started_at=started_at, duration_ms=0.0, traceparent=span.traceparent)
            try:
                async with Stopwatch(hook.timeout_ms / 1000) as watch:
                    work = _Attempt(self, hook, event, run, effects, span.traceparent, dry_run, replay, watch)
                    await work.perform(result)
            except TimeoutError:
                _fail(result, f"took longer than {hook.timeout_ms} ms", span, "timeout")
            except RunError as error:
                _fail(result, str(error), span, "run_failed")
                result.retry_after_s = error.retry_after_s
            except UnavailableError:
                raise
            except CrucibleError as error:
                _fail(result, error.detail, span, error.code)
            except Exception:
                log.exception("a run of %s failed", hook.name)
                _fail(result, INTERNAL, span, "internal")
            span.set("crucible.outcome", result.outcome)
        result.effects, result.log = effects.effects, effects.lines
        result.duration_ms = round((time.perf_counter() - began) * 1000, 3)
        if not dry_run:
            self._runs.labels(timing, result.outcome).inc()
            self._seconds.labels(timing).observe(result.duration_ms / 1000)
        return result

    def _span(self, hook: Hook, event: Event, run: str, about: dict[str, Attribute | None], *, queued: bool) -> Span:
        """The span of an attempt: the processing of a message from the queue, or a part of its caller's work."""
        parent = event.metadata.traceparent
        if not queued:
            return self._telemetry.span("hook.run", parent, "internal", {"crucible.run": run, **about})
        queue = self._bus.names.hook_runs
        about |= message_attributes("process", queue, message_id=run, group=self._bus.names.durable(hook.name))
        return self._telemetry.span(f"process {queue}", parent, "consumer", about, [parent])

    def failed_result(self, event: Event, error: str) -> Result:
        """The result of an attempt that cannot be made."""
        return Result(
            outcome="failed",
            started_at=timestamp(),
            duration_ms=0.0,
            traceparent=event.metadata.traceparent or "",
            error=error,
        )

    async def script(self, script: Script, context: Context, work: "_Attempt", *, reading: bool) -> Any:
        hook, effects = work.hook, work.effects
        return await self._sandbox.run(
            script.source,
            pool="pre" if hook.pre else "post",
            name=hook.name,
            watch=work.watch,
            timeout_s=hook.timeout_ms / 1000,
            values=dict(context),
            functions=effects.functions(reading=reading),
            printed=effects.print,
        )

    async def request(self, http: Http, values: Any, event: bytes, work: "_Attempt") -> Any:
        chain = chain_headers(work.event.metadata) | {TRACEPARENT: work.traceparent}
        request = build_request(http, values, event, work.run, chain)
        if work.dry_run:
            self._exchanger.guard.check(request.target)
            return f"would send {request.method} to {request.target.host}"
        async with self._slot("requests", work):
            # The time-out of the whole run comes first, with a better message.
            body = await send(self._exchanger, request, work.hook.timeout_ms / 1000 + 1)
        return read_answer(body, complete=True, what="the answer") if work.hook.pre else decode_answer(body)

    async def command(self, shell: Shell, values: Any, event: bytes, work: "_Attempt") -> Any:
        if work.dry_run:
            return "would run the command"
        async with self._slot("commands", work):
            directory, pre = work.hook.directory, work.hook.pre
            output = await run_shell(shell, values, event, work.traceparent, directory, answers=pre)
        if not work.hook.pre:
            return decode_output(output)
        return read_answer(output, complete=len(output) <= HOOK_OUTPUT_BYTES, what="what the command printed")

    @contextlib.asynccontextmanager
    async def _slot(self, kind: str, work: "_Attempt") -> AsyncIterator[None]:
        """A slot for a request or a command. Pre hooks have slots of their own: a writer waits for them."""
        slots = self._slots[kind, work.hook.pre]
        async with work.watch.enter(slots.take(work.hook.name)):
            try:
                yield
            finally:
                slots.record_turn(work.hook.name, greedy=work.watch.expired)


class _Attempt(msgspec.Struct, frozen=True):
    runner: Runner
    hook: Hook
    event: Event
    run: str
    effects: Effects
    traceparent: str
    dry_run: bool
    replay: bool
    watch: Stopwatch

    async def perform(self, result: Result) -> None:
        view = event_view(self.event, self.replay)
        holds = await self._condition({"event": view, "inputs": {}}, result)
        if not holds and (self.replay or not self.dry_run):
            result.outcome = "skipped"
            return
        context = {"event": view, "inputs": await self._fill(self.hook.inputs, {"event": view, "inputs": {}})}
        result.output = await self._action(context)

    async def _condition(self, context: Context, result: Result) -> bool:
        condition = self.hook.condition
        if condition is None:
            return True
        try:
            if isinstance(condition, Expression):
                [value] = await self.runner.evaluator.values([condition], context, self.hook.name, self.watch)
            else:
                value = await self.runner.script(condition, context, self, reading=True)
        except AbsentError as error:
            # As in a filter, an absent field fulfils nothing. A Pre hook must not be evaded that way.
            if self.hook.pre:
                raise RunError(f"condition: {error}") from None
            result.condition = f"false: {error}"
            return False
        except RunError as error:
            raise RunError(f"condition: {error}") from None
        if not isinstance(value, bool):
            raise RunError(f"condition: neither true nor false, but {type(value).__name__}")
        result.condition = str(value).lower()
        return value

    async def _fill(self, template: Template, context: Context) -> Any:
        found = await self.runner.evaluator.values(template.expressions, context, self.hook.name, self.watch)
        return template.fill(iter(found))

    async def _action(self, context: Context) -> Any:
        action = self.hook.action
        if isinstance(action, Script):
            return await self.runner.script(action, context, self, reading=self.hook.pre)
        values = await self._fill(action.values, context)
        event = event_bytes(self.event, self.replay)
        if isinstance(action, Http):
            return await self.runner.request(action, values, event, self)
        return await self.runner.command(action, values, event, self)


def _fail(result: Result, error: str, span: Span, error_type: str) -> None:
    result.outcome, result.error = "failed", error
    span.fail(error_type, error)
