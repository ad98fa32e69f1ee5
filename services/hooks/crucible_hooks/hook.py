"""A hook ready to run: its definition with filters, expressions, templates and scripts checked and compiled."""

from collections.abc import Mapping
from typing import Any

import msgspec

from crucible_core.catalogue import CATALOGUE, Catalogue
from crucible_core.decode import convert
from crucible_core.errors import FieldError, InvalidError
from crucible_core.hooks import (
    MAX_PRE_TIMEOUT_MS,
    Action,
    Condition,
    HookDefinition,
    HttpAction,
    ScriptAction,
    ShellAction,
    timeout_ms,
    trigger_filters,
)
from crucible_core.matcher import CompiledFilters, compile_filters

from .expressions import Expression, compile_expression
from .http import Http, compile_http
from .sandbox import check_script
from .shell import Shell, compile_shell
from .templates import Render, compile_value

_PRE_ONLY_DECIDES = "a Pre hook only decides; effects belong into a Post hook, which runs once the event is committed"
EFFECTS = ("emit", "memory_link", "memory_tag")
_NO_SHELL = "hooks that arrive over the API may not use Shell unless CRUCIBLE_HOOKS_ALLOW_API_SHELL permits it"
_FLOWS = "TriggerFlow is not available yet: use Script, HTTP or Shell"


class Script(msgspec.Struct, frozen=True):
    source: str


class Hook(msgspec.Struct, frozen=True):
    """`condition` holds always where it is None. `directory` is where a Shell command runs."""

    name: str
    definition: HookDefinition
    filters: CompiledFilters
    condition: Expression | Script | None
    action: Script | Shell | Http
    inputs: Render
    timeout_ms: int
    directory: str | None = None

    @property
    def pre(self) -> bool:
        return self.definition.trigger.timing == "Pre"


def compile_hook(definition: HookDefinition, directory: str | None = None, *, catalogue: Catalogue = CATALOGUE) -> Hook:
    """Raises InvalidError with the path of what is refused in the definition."""
    trigger, plain = definition.trigger, msgspec.to_builtins(definition)
    _check_options(definition)
    return Hook(
        name=definition.name,
        definition=definition,
        filters=_filters(plain, catalogue),
        condition=_condition(definition.condition),
        action=_action(definition.action, trigger.timing == "Pre"),
        inputs=compile_value(definition.action.inputs, "action.inputs"),
        timeout_ms=timeout_ms(plain),
        directory=directory,
    )


def load_hook(definition: Mapping[str, Any], directory: str | None = None, *, catalogue: Catalogue) -> Hook:
    """The hook that a record's definition describes. Raises InvalidError."""
    return compile_hook(convert(dict(definition), HookDefinition, what="hook"), directory, catalogue=catalogue)


def check_permitted(definition: HookDefinition, allow_shell: bool) -> None:
    """What a hook may not do when it arrives over the API. Raises InvalidError."""
    if isinstance(definition.action, ShellAction) and not allow_shell:
        raise _refused("action.type", _NO_SHELL)


def _filters(definition: Mapping[str, Any], catalogue: Catalogue) -> CompiledFilters:
    try:
        return compile_filters(trigger_filters(definition), at="trigger.events", catalogue=catalogue)
    except InvalidError as refused:
        errors = [
            msgspec.structs.replace(error, path=error.path.replace(".event_type", ".type", 1))
            for error in refused.errors
        ]
        first = errors[0]
        hint = f' (did you mean "{first.suggestion}"?)' if first.suggestion else ""
        raise InvalidError(f"{first.path}: {first.message}{hint}", errors=errors) from None


def _condition(condition: Condition | None) -> Expression | Script | None:
    if condition is None:
        return None
    if (condition.expr is None) == (condition.script is None):
        raise _refused("condition", "needs expr or script, one of them")
    if condition.expr is not None:
        return compile_expression(condition.expr, "condition.expr")
    assert condition.script is not None
    check_script(condition.script, "condition.script", dict.fromkeys(EFFECTS, "a condition has no effects"))
    return Script(condition.script)


def _action(action: Action, pre: bool) -> Script | Shell | Http:
    if isinstance(action, ScriptAction):
        check_script(action.script, "action.script", dict.fromkeys(EFFECTS, _PRE_ONLY_DECIDES) if pre else {})
        return Script(action.script)
    if isinstance(action, ShellAction):
        return compile_shell(action, "action")
    if isinstance(action, HttpAction):
        return compile_http(action, "action")
    raise _refused("action.type", _FLOWS)


def _check_options(definition: HookDefinition) -> None:
    given = definition.options.timeout_ms
    if definition.trigger.timing == "Pre" and given is not None and given > MAX_PRE_TIMEOUT_MS:
        raise _refused(
            "options.timeout_ms", f"a Pre hook may take {MAX_PRE_TIMEOUT_MS} ms, since a writer waits for it"
        )


def _refused(at: str, message: str) -> InvalidError:
    return InvalidError(f"{at}: {message}", errors=[FieldError(at, message)])
