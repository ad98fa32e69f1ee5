"""Payloads of what reacts to events, and of what that has made: Hook, Webhook, Approval and Artifact."""

from typing import Any, ClassVar

from crucible_core.types.payloads.fields import (
    ApprovalId,
    ArtifactId,
    Closed,
    Count,
    Ids,
    Milliseconds,
    Name,
    Object,
    Payloads,
    RunId,
    Synonyms,
    Text,
    Time,
    Url,
    WebhookId,
    Word,
    Words,
)

# ---- Hook ------------------------------------------------------------------------------------------------------------


class _Hook(Closed, kw_only=True):
    synonyms: ClassVar[Synonyms] = {"name": ("hook",)}

    hook: Name
    hook_id: Word | None = None
    timing: Word | None = None
    metadata: Object | None = None


class _HookDefinition(_Hook, kw_only=True):
    priority: int | None = None
    version: Word | None = None
    description: Text | None = None
    origin: Text | None = None
    enabled: bool | None = None
    state: Text | None = None
    error: Text | None = None
    events: Words | None = None
    definition: Object | None = None
    reason: Text | None = None


class HookRegistered(_HookDefinition):
    """A hook was added or replaced."""


class HookUnregistered(_HookDefinition):
    """A hook was removed."""


class HookTriggered(_Hook, kw_only=True):
    """An event matched a hook."""

    run_id: Word | None = None
    event_id: Word | None = None
    event_type: Word | None = None
    event_sequence: Count | None = None
    correlation_id: Word | None = None
    hop: Count | None = None
    replay: bool | None = None
    dry_run: bool | None = None


class _HookRun(HookTriggered, kw_only=True):
    """The fields of `protocol.RunRecord`, and what the log hears besides."""

    run_id: RunId
    attempt: Count | None = None
    attempts: Count | None = None
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


class HookExecuted(_HookRun):
    """A hook ran."""


class HookFailed(_HookRun):
    """A hook's run failed for good, or was stopped."""


# ---- Webhook ---------------------------------------------------------------------------------------------------------


class _Webhook(Closed, kw_only=True):
    synonyms: ClassVar[Synonyms] = {"webhook_id": ("id",)}

    id: WebhookId
    name: Text | None = None
    url: Url | None = None
    reason: Text | None = None
    metadata: Object | None = None


class _WebhookDefinition(_Webhook, kw_only=True):
    state: Text | None = None
    auth_type: Word | None = None
    events: Words | None = None


class WebhookRegistered(_WebhookDefinition):
    """A webhook was added or changed."""


class WebhookUnregistered(_WebhookDefinition):
    """A webhook was removed."""


class _Delivery(_Webhook, kw_only=True):
    """The fields of `protocol.AttemptRecord`, and what the log hears besides."""

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


class WebhookExhausted(_Delivery):
    """A delivery failed at its last attempt."""


class WebhookFailing(_Delivery, kw_only=True):
    """Deliveries to a webhook began to fail."""

    state: Text | None = None
    since: Time | None = None


class WebhookDisabled(_Delivery, kw_only=True):
    """A webhook gets no more deliveries."""

    state: Text | None = None
    since: Time | None = None


class WebhookRecovered(_Webhook, kw_only=True):
    """A webhook that was failing answers again."""

    state: Text | None = None
    since: Time | None = None
    recovered: Count | None = None


# ---- Approval and Artifact -------------------------------------------------------------------------------------------


class _Approval(Closed, kw_only=True):
    """`id` is the approval's; `event_id` and `event_type` are of the event that waits for it."""

    id: ApprovalId
    hook: Name | None = None
    event_id: Word | None = None
    event_type: Word | None = None
    by: Word | None = None
    reason: Text | None = None
    expires_at: Time | None = None
    metadata: Object | None = None


class ApprovalRequested(_Approval):
    """An event waits for somebody's decision."""


class ApprovalGranted(_Approval):
    """A waiting event was let in."""


class ApprovalDenied(_Approval):
    """A waiting event was refused."""


class ApprovalExpired(_Approval):
    """Nobody decided on a waiting event in time."""


class _Artifact(Closed, kw_only=True):
    synonyms: ClassVar[Synonyms] = {"artifact_id": ("id",)}

    id: ArtifactId
    type: Word | None = None
    name: Text | None = None
    created_by: Word | None = None
    metadata: Object | None = None


class ArtifactCreated(_Artifact, kw_only=True):
    """An artifact was made."""

    content: Any = None


class ArtifactUpdated(_Artifact, kw_only=True):
    """An artifact changed."""

    content: Any = None
    changes: Object | list[Any] | None = None


class ArtifactDeleted(_Artifact, kw_only=True):
    """An artifact was removed."""

    reason: Text | None = None


class _Invocation(_Artifact, kw_only=True):
    method: Word | None = None
    arguments: Any = None
    run_id: Word | None = None
    trigger: Word | None = None
    duration_ms: Milliseconds | None = None


class ArtifactInvoked(_Invocation, kw_only=True):
    """A method of an artifact was called and answered."""

    output: Any = None


class ArtifactInvokeFailed(_Invocation, kw_only=True):
    """A method of an artifact was called and failed."""

    error: Text | None = None


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
APPROVAL: Payloads = {
    "Requested": ApprovalRequested,
    "Granted": ApprovalGranted,
    "Denied": ApprovalDenied,
    "Expired": ApprovalExpired,
}
ARTIFACT: Payloads = {
    "Created": ArtifactCreated,
    "Updated": ArtifactUpdated,
    "Deleted": ArtifactDeleted,
    "Invoked": ArtifactInvoked,
    "InvokeFailed": ArtifactInvokeFailed,
}
