"""Payloads of the work around a knowledge base: Qa, Task, Kb and Schema; all open, nothing required."""

from typing import Annotated, Any, ClassVar

from msgspec import Meta

from crucible_core.types.payloads.fields import (
    Count,
    Milliseconds,
    Moment,
    Object,
    Open,
    OtherPath,
    Payloads,
    Synonyms,
    Text,
    Title,
    Word,
    Words,
)

KbName = Annotated[str, Meta(min_length=1, max_length=200, examples=["project-kb"])]
TaskId = Annotated[str, Meta(min_length=1, max_length=200, examples=["task_42"])]


class _Work(Open, kw_only=True):
    """The knowledge base and the entry that an event is about; `type` is the entry's."""

    synonyms: ClassVar[Synonyms] = {"entry_id": ("id",), "kb_name": ("kb",), "entry_type": ("type",)}

    id: Word | None = None
    kb: KbName | None = None
    type: Word | None = None
    name: Word | None = None
    path: OtherPath | None = None
    actor: Word | None = None
    at: Moment | None = None
    reason: Text | None = None
    metadata: Object | None = None


# ---- Qa --------------------------------------------------------------------------------------------------------------


class _Qa(_Work, kw_only=True):
    """`subject` is what is checked."""

    check: Word | None = None
    subject: Word | None = None


class QaStarted(_Qa):
    """A check began."""


class _QaResult(_Qa, kw_only=True):
    status: Word | None = None
    score: float | None = None
    duration_ms: Milliseconds | None = None


class QaValidationPassed(_QaResult):
    """A check found nothing wrong."""


class QaValidationFailed(_QaResult, kw_only=True):
    """A check found something wrong."""

    severity: Word | None = None
    issues: list[Any] | None = None
    error: Text | Object | None = None
    errors: list[Any] | None = None


class QaCompleted(_QaResult, kw_only=True):
    """A check is done."""

    issues: list[Any] | None = None


# ---- Task ------------------------------------------------------------------------------------------------------------


class _Task(_Work, kw_only=True):
    id: TaskId | None = None
    title: Title | None = None
    status: Word | None = None
    assignee: Word | None = None


class _TaskPlan(_Task, kw_only=True):
    description: str | None = None
    priority: int | Word | None = None
    due: Moment | None = None
    depends_on: Words | None = None


class TaskCreated(_TaskPlan):
    """A task was made."""


class TaskUpdated(_TaskPlan, kw_only=True):
    """A task changed."""

    progress: float | None = None
    changes: Object | list[Any] | None = None


class TaskClaimed(_Task, kw_only=True):
    """Somebody took a task."""

    claimed_by: Word | None = None


class TaskReleased(_Task):
    """A task was given back."""


class TaskBlocked(_Task, kw_only=True):
    """A task waits for something."""

    depends_on: Words | None = None


class TaskCompleted(_Task, kw_only=True):
    """A task is done."""

    claimed_by: Word | None = None
    result: Any = None
    duration_ms: Milliseconds | None = None


class TaskFailed(_Task, kw_only=True):
    """A task failed."""

    error: Text | Object | None = None
    errors: list[Any] | None = None
    duration_ms: Milliseconds | None = None


class TaskCancelled(_Task):
    """A task is not wanted any more."""


# ---- Kb --------------------------------------------------------------------------------------------------------------


class KbCreated(_Work):
    """A knowledge base was made."""


class KbUpdated(_Work, kw_only=True):
    """A knowledge base's content changed."""

    added: Count | None = None
    removed: Count | None = None


class KbIndexed(_Work, kw_only=True):
    """A knowledge base was indexed."""

    documents: Count | list[Any] | None = None
    chunks: Count | None = None
    added: Count | None = None
    removed: Count | None = None
    duration_ms: Milliseconds | None = None


class KbIndexFailed(_Work, kw_only=True):
    """A knowledge base could not be indexed."""

    error: Text | Object | None = None
    errors: list[Any] | None = None
    duration_ms: Milliseconds | None = None


class KbDeleted(_Work):
    """A knowledge base was removed."""


# ---- Schema ----------------------------------------------------------------------------------------------------------


class _Schema(_Work, kw_only=True):
    schema: Word | Object | None = None
    version: Word | int | None = None


class SchemaCreated(_Schema):
    """A schema was made."""


class SchemaChanged(_Schema, kw_only=True):
    """A schema changed."""

    old: Any = None
    new: Any = None
    changes: Object | list[Any] | None = None
    breaking: bool | None = None


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
