"""Payloads of the work around a knowledge base: Qa, Task, Kb and Schema; all open, nothing required."""

from typing import Annotated, Any

from msgspec import Meta

from .fields import Count, Milliseconds, Moment, Object, Open, OtherPath, Payloads, Text, Title, Word, Words

TaskId = Annotated[str, Meta(min_length=1, max_length=200, examples=["task_42"])]


class _Work(Open, kw_only=True):
    id: Word | None = None
    name: Word | None = None
    path: OtherPath | None = None
    status: Word | None = None
    reason: Text | None = None
    error: Text | Object | None = None
    errors: list[Any] | None = None
    duration_ms: Milliseconds | None = None
    at: Moment | None = None
    metadata: Object | None = None


# ---- Qa --------------------------------------------------------------------------------------------------------------


class _Qa(_Work, kw_only=True):
    check: Word | None = None
    subject: Word | None = None
    score: float | None = None
    issues: list[Any] | None = None
    severity: Word | None = None


class QaStarted(_Qa):
    """A check began."""


class QaValidationPassed(_Qa):
    """What was checked is sound."""


class QaValidationFailed(_Qa):
    """What was checked is not sound."""


class QaCompleted(_Qa):
    """A check is done."""


# ---- Task ------------------------------------------------------------------------------------------------------------


class _Task(_Work, kw_only=True):
    id: TaskId | None = None
    title: Title | None = None
    description: str | None = None
    assignee: Word | None = None
    claimed_by: Word | None = None
    priority: int | Word | None = None
    due: Moment | None = None
    depends_on: Words | None = None
    progress: float | None = None
    result: Any = None


class TaskCreated(_Task):
    """A task was made."""


class TaskUpdated(_Task):
    """A task changed."""


class TaskClaimed(_Task):
    """Somebody took a task."""


class TaskReleased(_Task):
    """A task was given back."""


class TaskBlocked(_Task):
    """A task waits for something."""


class TaskCompleted(_Task):
    """A task is done."""


class TaskFailed(_Task):
    """A task failed."""


class TaskCancelled(_Task):
    """A task is not wanted any more."""


# ---- Kb --------------------------------------------------------------------------------------------------------------


class _Kb(_Work, kw_only=True):
    kb: Word | None = None
    documents: Count | list[Any] | None = None
    chunks: Count | None = None
    added: Count | None = None
    removed: Count | None = None


class KbCreated(_Kb):
    """A knowledge base was made."""


class KbUpdated(_Kb):
    """A knowledge base's content changed."""


class KbIndexed(_Kb):
    """A knowledge base was indexed."""


class KbIndexFailed(_Kb):
    """A knowledge base could not be indexed."""


class KbDeleted(_Kb):
    """A knowledge base was removed."""


# ---- Schema ----------------------------------------------------------------------------------------------------------


class _Schema(_Work, kw_only=True):
    schema: Word | Object | None = None
    version: Word | int | None = None
    old: Any = None
    new: Any = None
    changes: Object | list[Any] | None = None
    breaking: bool | None = None


class SchemaCreated(_Schema):
    """A schema was made."""


class SchemaChanged(_Schema):
    """A schema changed."""


class SchemaDeprecated(_Schema):
    """A schema should not be used any more."""


class SchemaDeleted(_Schema):
    """A schema was removed."""


QA: Payloads = {
    "Started": QaStarted,
    "ValidationPassed": QaValidationPassed,
    "ValidationFailed": QaValidationFailed,
    "Completed": QaCompleted,
}
TASK: Payloads = {
    "Created": TaskCreated,
    "Updated": TaskUpdated,
    "Claimed": TaskClaimed,
    "Released": TaskReleased,
    "Blocked": TaskBlocked,
    "Completed": TaskCompleted,
    "Failed": TaskFailed,
    "Cancelled": TaskCancelled,
}
KB: Payloads = {
    "Created": KbCreated,
    "Updated": KbUpdated,
    "Indexed": KbIndexed,
    "IndexFailed": KbIndexFailed,
    "Deleted": KbDeleted,
}
SCHEMA: Payloads = {
    "Created": SchemaCreated,
    "Changed": SchemaChanged,
    "Deprecated": SchemaDeprecated,
    "Deleted": SchemaDeleted,
}
