"""Replays into hooks: stored events become new runs of one Post hook, past its debounce."""

from crucible_core.access import Principal
from crucible_core.envelope import Event
from crucible_core.errors import FieldError, InvalidError, NotFoundError, UnavailableError
from crucible_core.limits import HOPS
from crucible_core.protocol.parts import GetRequest
from crucible_core.protocol.replays import Replayable, ReplayBatch, ReplayedEvent, ReplayTaken
from crucible_core.subjects import REPLAY, RUN
from crucible_core.suggest import nearest
from crucible_hooks.hook import Hook
from crucible_hooks.records import run_id
from crucible_hooks.registry import Registry
from crucible_kit.handlers.pointers import Queue, enqueue, pointer
from crucible_kit.nats.bus import Bus
from crucible_kit.nats.frames import Outgoing
from crucible_kit.rpc import Context
from crucible_kit.telemetry.metrics import Metrics

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
        hook = self._hook(name, context.principal)
        if hook is None:
            raise InvalidError.field(_AT, f"hook {name} is {self._registry.state(name)}")
        if not self._registry.records[name].enabled:
            raise InvalidError.field(_AT, f"hook {name} is disabled: enable it before events are replayed into it")
        if hook.definition.options.replay == "skip":
            raise InvalidError.field(_AT, f"hook {name} declares options.replay: skip, so it takes no replayed events")
        return Replayable(id=name)

    async def replay(self, request: ReplayBatch, context: Context) -> ReplayTaken:
        """Returns once the runs are stored. May be repeated: message ids and run ids prevent doubles.

        Raises NotFoundError where the hook is gone, UnavailableError where it cannot be loaded here.
        """
        await self._registry.catch_up(())
        hook = self._hook(request.target, context.principal)
        if hook is None:
            raise UnavailableError(f"hook {request.target} is {self._registry.state(request.target)}")
        enabled = self._registry.records[hook.name].enabled
        names = self._bus.names
        queue = Queue(names.hook_runs, RUN, hook.key, f"hook {hook.name}", "runs", enabled=enabled)

        def run(event: Event, replayed: ReplayedEvent) -> Outgoing | None:
            if not self._takes(hook, event):
                return None
            id = run_id(hook.key, event, request.replay)
            return pointer(names, RUN, hook.key, id, replayed.sequence, **{REPLAY: request.replay})

        taken = await enqueue(self._bus, queue, request, run)
        self._replayed.inc(taken.sent)
        return taken

    def _takes(self, hook: Hook, event: Event) -> bool:
        """True where the event would trigger the hook: a replay goes past debounce, and past nothing else."""
        takes_replays = hook.definition.options.replay != "skip" and event.metadata.hop < HOPS
        return takes_replays and hook.filters.matches(event) and self._registry.is_triggered(hook, event)

    def _hook(self, name: str, principal: Principal) -> Hook | None:
        """The principal's Post hook of that name; None where its definition cannot be run."""
        record = self._registry.records.get(name)
        if record is None or not principal.owns(record):
            if record is not None and principal.may_see(record):
                principal.check_owns(record, f"hook {name}")
            suggestion = nearest(name, [entry.name for entry in self._registry.visible_to(principal)])
            hint = f' (did you mean "{suggestion}"?)' if suggestion else ""
            error = FieldError(_AT, "there is no such hook", suggestion)
            raise NotFoundError(f"there is no hook {name[:100]!r}{hint}", errors=[error])
        hook = self._registry.hook(name)
        if hook is not None and hook.pre:
            raise InvalidError.field(
                _AT, f"hook {name} is a Pre hook: it decides on events before their commit, and these are committed"
            )
        return hook
