"""Payloads of what Crucible does: Flow, System, Hook and Webhook."""

from typing import Any

from .fields import (
    Closed,
    Count,
    Ids,
    Milliseconds,
    Name,
    Object,
    Payloads,
    Redacted,
    RunId,
    Text,
    Time,
    Url,
    WebhookId,
    Word,
    Words,
)

# ---- Flow ------------------------------------------------------------------------------------------------------------


class _Flow(Closed, kw_only=True):
    flow: Name
    run_id: Word | None = None
    step: Word | None = None
    steps: Count | None = None
    status: Word | None = None
    attempt: Count | None = None
    event_id: Word | None = None
    event_type: Word | None = None
    started_at: Time | None = None
    duration_ms: Milliseconds | None = None
    input: Any = None
    output: Any = None
    error: Text | None = None
    reason: Text | None = None
    metadata: Object | None = None


class FlowStarted(_Flow):
    """A flow began a run."""


class FlowStepCompleted(_Flow):
    """One step of a flow's run is done."""


class FlowCompleted(_Flow):
    """A flow's run is done."""


class FlowFailed(_Flow):
    """A flow's run gave up."""


class FlowCancelled(_Flow):
    """A flow's run was stopped by somebody."""


# ---- System ----------------------------------------------------------------------------------------------------------


class _System(Closed, kw_only=True):
    id: Word | None = None
    name: Word | None = None
    service: Word | None = None
    instance: Word | None = None
    version: Word | None = None
    world_id: Word | None = None
    room_id: Word | None = None
    description: Text | None = None
    reason: Text | None = None
    error: Text | None = None
    message: Text | None = None
    code: Word | None = None
    setting: Word | None = None
    old: Any = None
    new: Any = None
    changes: Object | None = None
    metadata: Object | None = None


class SystemStarted(_System):
    """A service, or all of Crucible, started."""


class SystemShutdown(_System):
    """A service, or all of Crucible, shut down."""


class SystemRoomCreated(_System):
    """A room was made."""


class SystemRoomDeleted(_System):
    """A room was removed."""


class SystemWorldCreated(_System):
    """A world was made."""


class SystemWorldDeleted(_System):
    """A world was removed."""

    purged: bool | None = None


class SystemFault(_System):
    """Something went wrong that nobody had asked for."""


class SystemConfigChanged(_System):
    """A setting changed."""


class SystemRedacted(Redacted):
    """The payload of an event (other than Memory's and Graph's) was erased; `envelope` is what is left of it."""


# ---- Hook ------------------------------------------------------------------------------------------------------------


class _Hook(Closed, kw_only=True):
    """The fields of `protocol.RunRecord`, and those of a hook's definition that its registration tells."""

    hook: Name
    run_id: Word | None = None
    timing: Word | None = None
    event_id: Word | None = None
    event_type: Word | None = None
    event_sequence: Count | None = None
    correlation_id: Word | None = None
    attempt: Count | None = None
    attempts: Count | None = None
    hop: Count | None = None
    outcome: Word | None = None
    started_at: Time | None = None
    duration_ms: Milliseconds | None = None
    action: Word | None = None
    output: Any = None
    error: Text | None = None
    reason: Text | None = None
    effects: Ids | None = None
    log: list[str] | None = None
    next_attempt_at: Time | None = None
    replay: bool | None = None
    dry_run: bool | None = None
    description: Text | None = None
    version: Word | None = None
    origin: Text | None = None
    state: Text | None = None
    enabled: bool | None = None
    priority: int | None = None
    events: Words | None = None
    definition: Object | None = None
    metadata: Object | None = None


class HookRegistered(_Hook):
    """A hook was added or replaced."""


class HookTriggered(_Hook):
    """An event matched a hook."""


class _HookRun(_Hook, kw_only=True):
    run_id: RunId


class HookExecuted(_HookRun):
    """A hook ran."""


class HookFailed(_HookRun):
    """A hook's run failed for good, or was stopped."""


class HookUnregistered(_Hook):
    """A hook was removed."""


# ---- Webhook ---------------------------------------------------------------------------------------------------------


class _Webhook(Closed, kw_only=True):
    """The fields of `protocol.AttemptRecord`, and those of a webhook that its owner may see."""

    id: WebhookId
    name: Text | None = None
    url: Url | None = None
    state: Text | None = None
    reason: Text | None = None
    delivery_id: Word | None = None
    event_id: Word | None = None
    event_type: Word | None = None
    event_sequence: Count | None = None
    correlation_id: Word | None = None
    attempt: Count | None = None
    attempts: Count | None = None
    outcome: Word | None = None
    status: int | None = None
    error: Text | None = None
    response: Text | None = None
    replay: bool | None = None
    started_at: Time | None = None
    duration_ms: Milliseconds | None = None
    next_attempt_at: Time | None = None
    since: Time | None = None
    recovered: Count | None = None
    auth_type: Word | None = None
    events: Words | None = None
    metadata: Object | None = None


class WebhookRegistered(_Webhook):
    """A webhook was added."""


class WebhookUnregistered(_Webhook):
    """A webhook was removed."""


class WebhookFailing(_Webhook):
    """Deliveries to a webhook began to fail."""


class WebhookExhausted(_Webhook):
    """A delivery failed at its last attempt."""


class WebhookDisabled(_Webhook):
    """A webhook gets no more deliveries."""


class WebhookRecovered(_Webhook):
    """A webhook that was failing answers again."""


FLOW: Payloads = {
    "Started": FlowStarted,
    "StepCompleted": FlowStepCompleted,
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
    "Redacted": SystemRedacted,
}
HOOK: Payloads = {
    "Registered": HookRegistered,
    "Triggered": HookTriggered,
    "Executed": HookExecuted,
    "Failed": HookFailed,
    "Unregistered": HookUnregistered,
}
WEBHOOK: Payloads = {
    "Registered": WebhookRegistered,
    "Unregistered": WebhookUnregistered,
    "Failing": WebhookFailing,
    "Exhausted": WebhookExhausted,
    "Disabled": WebhookDisabled,
    "Recovered": WebhookRecovered,
}
