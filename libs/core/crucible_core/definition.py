"""The hook definition of the contract as typed Structs, and what other services read from a stored one."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from crucible_core.limits import (
    CONCURRENCY,
    DESCRIPTION_CHARS,
    HANDLER_FILTERS,
    HOOK_ATTEMPTS,
    HOOK_CONCURRENCY,
    HOOK_DEBOUNCE_MS,
    HOOK_DEFAULT_PRE_TIMEOUT_MS,
    HOOK_DEFAULT_TIMEOUT_MS,
    HOOK_DELAY_MS,
    HOOK_PRE_TIMEOUT_MS,
    HOOK_PRIORITY,
    HOOK_PRIORITY_MOST,
    HOOK_SOURCE_CHARS,
    HOOK_TIMEOUT_MS,
    ID_CHARS,
    NAME_CHARS,
)
from crucible_core.protocol.parts import TypeFilter
from crucible_core.protocol.replays import ReplayPolicy

Timing = Literal["Pre", "Post"]
FailurePolicy = Literal["deny", "allow"]


HookName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,63}\Z",
        extra={"form": "must be 1 to 64 small letters, digits, _ and -, and begin with a letter or digit"},
    ),
]
Directory = Annotated[
    str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00]*\Z", extra={"form": "must not hold a zero byte"})
]
Source = Annotated[str, Meta(min_length=1, max_length=HOOK_SOURCE_CHARS)]


class EventFilter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`type` is a category with `event` beside it, or alone a whole name, alias or wildcard."""

    type: Annotated[str, Meta(min_length=1, max_length=NAME_CHARS)]
    event: Annotated[str, Meta(min_length=1, max_length=NAME_CHARS)] | None = None
    filter: dict[str, Any] = {}


class Trigger(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`priority` orders the Pre hooks, lower first."""

    events: Annotated[list[EventFilter], Meta(min_length=1, max_length=HANDLER_FILTERS)]
    timing: Timing = "Post"
    priority: Annotated[int, Meta(ge=-HOOK_PRIORITY_MOST, le=HOOK_PRIORITY_MOST)] = HOOK_PRIORITY


class Condition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A CEL expression or a sandboxed script, true or false: exactly one of them."""

    expr: Source | None = None
    script: Source | None = None


class ScriptAction(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="Script", tag_field="type"
):
    """`script` is Python source; in a hook file it may be the name of a `.py` file beside it."""

    script: Source
    inputs: dict[str, Any] = {}


class ShellAction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="Shell", tag_field="type"):
    """`command` goes to `/bin/sh -c`; its templates and those of `env` reach it as values, never as text of it.

    `cwd` is where it runs: a directory beside the hook file, or an absolute one."""

    command: Source
    env: dict[str, Any] = {}
    cwd: Directory | None = None
    inputs: dict[str, Any] = {}


class HttpAction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="HTTP", tag_field="type"):
    """Without `body` the event is sent as JSON."""

    url: Annotated[str, Meta(min_length=1, max_length=4096)]
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "POST"
    headers: dict[str, str] = {}
    body: Any = None
    inputs: dict[str, Any] = {}


class TriggerFlowAction(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="TriggerFlow", tag_field="type"
):
    flow: Annotated[str, Meta(min_length=1, max_length=NAME_CHARS)]
    inputs: dict[str, Any] = {}


Action = ScriptAction | ShellAction | HttpAction | TriggerFlowAction


class Retry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`max_attempts` counts the first one; `delay_ms` is the first wait, doubled each time where it is exponential."""

    max_attempts: Annotated[int, Meta(ge=1, le=HOOK_ATTEMPTS)] = 3
    backoff: Literal["exponential", "fixed"] = "exponential"
    delay_ms: Annotated[int, Meta(ge=0, le=HOOK_DELAY_MS)] = 1_000


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"async_": "async"}):
    """`async` is accepted and decides nothing: a Pre hook always runs before the commit and a Post hook after it.

    Without `retry` a run has one attempt. `timeout_ms` None is the timing's default. `replay` says what becomes of
    replayed events.
    """

    async_: bool | None = None
    timeout_ms: Annotated[int, Meta(ge=1, le=HOOK_TIMEOUT_MS)] | None = None
    debounce_ms: Annotated[int, Meta(ge=0, le=HOOK_DEBOUNCE_MS)] = 0
    failure_policy: FailurePolicy = "deny"
    retry: Retry = Retry(max_attempts=1)
    concurrency: Annotated[int, Meta(ge=1, le=CONCURRENCY)] = HOOK_CONCURRENCY
    replay: ReplayPolicy = "run"


class HookDefinition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A hook as users write it; `HookRecord.definition` holds it as a plain dict, with script files inlined. With a
    `world_id` it is for the events of that world."""

    name: HookName
    description: Annotated[str, Meta(max_length=DESCRIPTION_CHARS)] = ""
    version: Annotated[str, Meta(max_length=ID_CHARS)] = "1.0.0"
    enabled: bool = True
    trigger: Trigger
    condition: Condition | None = None
    action: Action
    options: Options = Options()
    world_id: Annotated[str, Meta(min_length=1, max_length=ID_CHARS)] | None = None


# ---- of a stored definition ------------------------------------------------------------------------------------------


def event_type(type: str, event: str | None = None) -> str:
    """The name, alias, wildcard or category that a trigger's `type` and `event` mean together."""
    return type if event is None else f"{type}.{event}"


def trigger_filters(definition: Mapping[str, Any]) -> list[TypeFilter]:
    """The filters of a hook, for `matcher.compile_filters`."""
    return [
        TypeFilter(event_type=event_type(wanted["type"], wanted.get("event")), filter=wanted.get("filter") or {})
        for wanted in definition["trigger"]["events"]
    ]


def timing(definition: Mapping[str, Any]) -> Timing:
    return "Pre" if definition["trigger"].get("timing") == "Pre" else "Post"


def priority(definition: Mapping[str, Any]) -> int:
    return int(definition["trigger"].get("priority", HOOK_PRIORITY))


def failure_policy(definition: Mapping[str, Any]) -> FailurePolicy:
    """The decision about an event whose Pre hook cannot be asked, fails or is late."""
    return "allow" if (definition.get("options") or {}).get("failure_policy") == "allow" else "deny"


def timeout_ms(definition: Mapping[str, Any]) -> int:
    """Milliseconds of one attempt; a Pre hook's are bounded, since a writer waits for it."""
    given = (definition.get("options") or {}).get("timeout_ms")
    if timing(definition) == "Pre":
        return min(given or HOOK_DEFAULT_PRE_TIMEOUT_MS, HOOK_PRE_TIMEOUT_MS)
    return given or HOOK_DEFAULT_TIMEOUT_MS


def intercept_budget_s(definitions: Iterable[Mapping[str, Any]]) -> float:
    """Seconds that a caller waits for `hooks.intercept` with these Pre hooks: each may run twice, once to
    change the event and once to decide about the event as later hooks left it."""
    return 2.0 + 2 * sum(timeout_ms(definition) for definition in definitions) / 1000
