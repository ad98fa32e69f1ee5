"""Replays into hooks: stored events become runs of their own of one Post hook, past its debounce, a bounded number at a
time, so that what is live never waits behind a long past."""

import logging

import msgspec

from crucible_core import subjects
from crucible_core.envelope import MAX_HOPS, Event, decode
from crucible_core.errors import FieldError, InvalidError, NotFoundError, UnavailableError
from crucible_core.protocol.replays import Replayable, ReplayBatch, ReplayedEvent, ReplayTaken
from crucible_core.protocol.shared import GetRequest
from crucible_core.suggest import nearest
from crucible_kit.bus import Bus
from crucible_kit.frames import Outgoing
from crucible_kit.metrics import Metrics
from crucible_kit.rpc import Context

from .hook import Hook
from .records import run_id
from .registry import Registry, hears
from .workers import durable

log = logging.getLogger(__name__)

MOST_WAITING = 1000
"""Runs of one hook, live ones among them, beyond which a replay waits."""
_AT = "target.hook"


class Replayer:
    def __init__(self, bus: Bus, registry: Registry, metrics: Metrics) -> None:
        self._bus = bus
        self._registry = registry
        self._replayed = metrics.counter("hook_runs_replayed", "Runs of replayed events put into the queue")

    async def replayable(self, request: GetRequest, context: Context) -> Replayable:
        """Raises NotFoundError with the nearest hook, or InvalidError that says why this one takes no replay."""
        await self._registry.view.refresh()
        name = request.id
        hook = self._hook(name)
        if hook is None:
            raise _refused(f"hook {name} is {self._registry.state(name)}")
        if not self._registry.records[name].enabled:
            raise _refused(f"hook {name} is disabled: enable it before events are replayed into it")
        if hook.definition.options.replay == "skip":
            raise _refused(f"hook {name} declares options.replay: skip, so it takes no replayed events")
        return Replayable(id=name)

    async def replay(self, request: ReplayBatch, context: Context) -> ReplayTaken:
        """Returns once the runs are stored. May be repeated: message ids and run ids tell what was done.

        Raises NotFoundError where the hook is gone, UnavailableError where it cannot be loaded here.
        """
        await self._registry.view.refresh()
        hook = self._hook(request.target)
        if hook is None:
            raise UnavailableError(f"hook {request.target} is {self._registry.state(request.target)}")
        waiting = await self._waiting(hook)
        runs: list[Outgoing] = []
        skipped = 0
        for replayed in request.events:
            event = _event(replayed)
            if event is None or not _takes(hook, event):
                skipped += 1
            elif len(runs) + waiting < MOST_WAITING:
                runs.append(_run(self._bus, hook, event, replayed, request.replay))
            else:
                break
        if runs:
            await self._bus.store_all(runs)
            self._replayed.inc(len(runs))
        taken = len(runs) + skipped
        reason = None if taken == len(request.events) else self._why(hook.name, waiting + len(runs))
        return ReplayTaken(taken=taken, sent=len(runs), skipped=skipped, waiting=reason)

    def _hook(self, name: str) -> Hook | None:
        """The Post hook of that name; None where its definition cannot be run."""
        if name not in self._registry.records:
            suggestion = nearest(name, self._registry.records)
            hint = f' (did you mean "{suggestion}"?)' if suggestion else ""
            error = FieldError(_AT, "there is no such hook", suggestion)
            raise NotFoundError(f"there is no hook {name[:100]!r}{hint}", errors=[error])
        hook = self._registry.hooks.get(name)
        if hook is not None and hook.pre:
            raise _refused(f"hook {name} is a Pre hook: it judges events before their commit, and these are committed")
        return hook

    async def _waiting(self, hook: Hook) -> int:
        """How many runs wait for the hook or are under way."""
        try:
            return sum(await self._bus.consumer_backlog(self._bus.names.hook_runs, durable(self._bus, hook.name)))
        except NotFoundError:
            raise UnavailableError(f"hook {hook.name} has no worker yet", retry_after=1) from None

    def _why(self, name: str, waiting: int) -> str:
        disabled = "" if self._registry.records[name].enabled else ", which is disabled"
        return f"{waiting} runs wait for hook {name}{disabled}"


def _takes(hook: Hook, event: Event) -> bool:
    """Whether the event would trigger the hook: a replay goes past debounce, and past nothing else."""
    wanted = hook.definition.options.replay != "skip" and event.metadata.hop < MAX_HOPS
    return wanted and hears(hook, event) and hook.filters.matches(event)


def _event(replayed: ReplayedEvent) -> Event | None:
    try:
        return decode(bytes(replayed.event), replayed.sequence)
    except msgspec.DecodeError as error:
        log.error("event %d cannot be read: %s", replayed.sequence, error)
        return None


def _run(bus: Bus, hook: Hook, event: Event, replayed: ReplayedEvent, replay: str) -> Outgoing:
    headers = {
        subjects.RUN: run_id(hook.name, event, replay),
        subjects.ATTEMPT: "1",
        subjects.EVENT_SEQUENCE: str(replayed.sequence),
        subjects.REPLAY: replay,
    }
    if event.metadata.traceparent:
        headers[subjects.TRACEPARENT] = event.metadata.traceparent
    msg_id = f"{replay}:{hook.name}:{replayed.sequence}"
    return Outgoing(bus.names.run(hook.name), bytes(replayed.event), headers, msg_id)


def _refused(message: str) -> InvalidError:
    return InvalidError(f"{_AT}: {message}", errors=[FieldError(_AT, message)])
