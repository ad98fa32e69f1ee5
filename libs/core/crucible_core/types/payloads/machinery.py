"""Payloads of what Crucible does by itself: Flow and System."""

from typing import Any, ClassVar

from crucible_core.types.payloads.fields import (
    Closed,
    Count,
    Milliseconds,
    Name,
    Object,
    Payloads,
    Redacted,
    RoomId,
    RunId,
    Synonyms,
    Text,
    Time,
    Trigger,
    Url,
    Word,
    WorldId,
)

# ---- Flow ------------------------------------------------------------------------------------------------------------


class _Flow(Closed, kw_only=True):
    """`name` is the flow's."""

    name: Name
    version: Word | None = None
    metadata: Object | None = None


class _FlowDefinition(_Flow, kw_only=True):
    synonyms: ClassVar[Synonyms] = {"flow": ("name",)}

    description: Text | None = None
    origin: Text | None = None
    reason: Text | None = None


class FlowRegistered(_FlowDefinition):
    """A flow was added or replaced."""


class FlowUnregistered(_FlowDefinition):
    """A flow was removed."""


class _FlowRun(_Flow, kw_only=True):
    """`id` is the run's."""

    synonyms: ClassVar[Synonyms] = {
        "run_id": ("id",),
        "flow": ("name",),
        "flow_name": ("name",),
        "input": ("inputs",),
    }

    id: RunId | None = None
    inputs: Any = None
    event_id: Word | None = None
    event_type: Word | None = None
    started_at: Time | None = None


class FlowStarted(_FlowRun, kw_only=True):
    """A flow began a run; `trigger` is `manual`, `event`, `schedule`, `hook` or `flow`."""

    trigger: Trigger | Object | None = None


class _FlowProgress(_FlowRun, kw_only=True):
    status: Word | None = None
    duration_ms: Milliseconds | None = None
    output: Any = None
    error: Text | None = None
    reason: Text | None = None


class FlowStepCompleted(_FlowProgress, kw_only=True):
    """One step of a flow's run is done."""

    step: Word | None = None
    attempt: Count | None = None


class FlowPaused(_FlowProgress, kw_only=True):
    """A flow's run waits until somebody lets it go on."""

    step: Word | None = None


class FlowResumed(_FlowProgress, kw_only=True):
    """A flow's run goes on."""

    step: Word | None = None


class FlowCompleted(_FlowProgress, kw_only=True):
    """A flow's run is done."""

    steps: Count | None = None


class FlowFailed(_FlowProgress, kw_only=True):
    """A flow's run gave up."""

    step: Word | None = None
    steps: Count | None = None
    attempt: Count | None = None


class FlowCancelled(_FlowProgress, kw_only=True):
    """A flow's run was stopped by somebody."""

    step: Word | None = None
    steps: Count | None = None


# ---- System ----------------------------------------------------------------------------------------------------------


class _Service(Closed, kw_only=True):
    synonyms: ClassVar[Synonyms] = {"name": ("service",), "id": ("instance",)}

    service: Word | None = None
    instance: Word | None = None
    version: Word | None = None
    reason: Text | None = None
    message: Text | None = None
    metadata: Object | None = None


class SystemStarted(_Service):
    """A service, or all of Crucible, started."""


class SystemShutdown(_Service):
    """A service, or all of Crucible, shut down."""


class SystemFault(_Service, kw_only=True):
    """Something went wrong that nobody had asked for."""

    error: Text | None = None
    code: Word | None = None


class _World(Closed, kw_only=True):
    synonyms: ClassVar[Synonyms] = {"id": ("world_id",)}

    world_id: WorldId | None = None
    name: Word | None = None
    description: Text | None = None
    reason: Text | None = None
    metadata: Object | None = None


class SystemWorldCreated(_World):
    """A world was made."""


class SystemWorldDeleted(_World, kw_only=True):
    """A world was removed."""

    purged: bool | None = None


class _Room(_World, kw_only=True):
    synonyms: ClassVar[Synonyms] = {"id": ("room_id",)}

    room_id: RoomId | None = None


class SystemRoomCreated(_Room):
    """A room was made."""


class SystemRoomDeleted(_Room):
    """A room was removed."""


class SystemConfigChanged(Closed, kw_only=True):
    """A setting, a key or a grant changed."""

    synonyms: ClassVar[Synonyms] = {"name": ("setting",)}

    setting: Word | None = None
    old: Any = None
    new: Any = None
    changes: Object | list[Any] | None = None
    service: Word | None = None
    id: Word | None = None
    reason: Text | None = None
    message: Text | None = None
    metadata: Object | None = None


class SystemScheduleFired(Closed, kw_only=True):
    """The time of a schedule has come."""

    handler: Name | None = None
    schedule: Word | Object | None = None
    at: Time | None = None
    metadata: Object | None = None


class SystemAccessDenied(Closed, kw_only=True):
    """Somebody was refused for want of a grant; told of some of many."""

    principal: Word | None = None
    required: Word | list[Word] | None = None
    operation: Word | None = None
    path: Url | None = None
    count: Count | None = None
    reason: Text | None = None
    metadata: Object | None = None


class SystemRedacted(Redacted):
    """The payload of an event (other than Memory's and Graph's) was erased; `envelope` is what is left of it."""


FLOW: Payloads = {
    "Registered": FlowRegistered,
    "Unregistered": FlowUnregistered,
    "Started": FlowStarted,
    "StepCompleted": FlowStepCompleted,
    "Paused": FlowPaused,
    "Resumed": FlowResumed,
    "Completed": FlowCompleted,
    "Failed": FlowFailed,
    "Cancelled": FlowCancelled,
}
SYSTEM: Payloads = {
    "Started": SystemStarted,
    "Shutdown": SystemShutdown,
    "RoomCreated": SystemRoomCreated,
    "RoomDeleted": SystemRoomDeleted,
    "WorldCreated": SystemWorldCreated,
    "WorldDeleted": SystemWorldDeleted,
    "Error": SystemFault,
    "ConfigChanged": SystemConfigChanged,
    "ScheduleFired": SystemScheduleFired,
    "AccessDenied": SystemAccessDenied,
    "Redacted": SystemRedacted,
}
