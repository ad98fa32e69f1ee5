"""A hook ready to run: its definition with filters and templates compiled, expressions and scripts told apart."""

import re
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
from crucible_core.limits import SCRIPT_BYTES, TEMPLATES
from crucible_core.matcher import CompiledFilters, compile_filters

from .effects import EFFECTS, READING, signatures
from .expressions import Expression, expression
from .http import Http, compile_http
from .shell import Shell, compile_shell, working_directory
from .templates import Template, compile_value
from .texts import Text

_PRE_ONLY_DECIDES = "a Pre hook only decides; effects belong into a Post hook, which runs once the event is committed"
_NO_SHELL = "hooks that arrive over the API may not use Shell unless CRUCIBLE_HOOKS_ALLOW_API_SHELL permits it"
_TYPE_PLACE = re.compile(r"^(trigger\.events\.\d+)\.event_type")
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
    inputs: Template
    timeout_ms: int
    directory: str | None = None
    id: str = ""
    owner: str = ""

    @property
    def key(self) -> str:
        return handler_key(self.name, self.id)

    @property
    def pre(self) -> bool:
        return self.definition.trigger.timing == "Pre"

    def texts(self) -> list[Text]:
        """Everything in it that is parsed before it runs."""
        found = [Text(one.at, one.source) for one in (*self.inputs.expressions, *_templates(self.action))]
        if isinstance(self.condition, Expression):
            found.append(Text(self.condition.at, self.condition.source))
        elif self.condition is not None:
            forbidden = dict.fromkeys(EFFECTS, "a condition has no effects")
            found.append(Text("condition.script", self.condition.source, signatures(READING), forbidden))
        if isinstance(self.action, Script):
            functions = READING if self.pre else (*READING, *EFFECTS)
            forbidden = dict.fromkeys(EFFECTS, _PRE_ONLY_DECIDES) if self.pre else {}
            found.append(Text("action.script", self.action.source, signatures(functions), forbidden))
        return found


def compile_hook(
    definition: HookDefinition,
    directory: str | None = None,
    id: str = "",
    *,
    catalogue: Catalogue = CATALOGUE,
    filters: CompiledFilters | None = None,
) -> Hook:
    """Raises InvalidError with the path of what is refused in the definition. What its expressions and scripts say is
    for `review` to judge. `filters` are the definition's where they were compiled before."""
    plain = msgspec.to_builtins(definition)
    _check_options(definition)
    hook = Hook(
        name=definition.name,
        definition=definition,
        filters=filters or _filters(plain, catalogue),
        condition=_condition(definition.condition),
        action=_action(definition.action),
        inputs=compile_value(definition.action.inputs, "action.inputs"),
        timeout_ms=timeout_ms(plain),
        directory=_directory(definition.action, directory),
        id=id,
    )
    if len(hook.inputs.expressions) + len(_templates(hook.action)) > TEMPLATES:
        raise _refused("action", f"a hook may have {TEMPLATES} templates")
    return hook


def handler_key(name: str, id: str) -> str:
    """By which a hook is served, and to which its runs belong as long as it is registered. One from before there were
    ids has a name alone."""
    return id or name


def _directory(action: Action, beside: str | None) -> str | None:
    return working_directory(action, beside, "action") if isinstance(action, ShellAction) else beside


def load_hook(
    definition: Mapping[str, Any],
    directory: str | None = None,
    id: str = "",
    owner: str = "",
    *,
    catalogue: Catalogue,
    filters: CompiledFilters | None = None,
) -> Hook:
    """The hook that a record's definition describes. Raises InvalidError."""
    typed = convert(dict(definition), HookDefinition, what="hook")
    hook = compile_hook(typed, directory, id, catalogue=catalogue, filters=filters)
    return msgspec.structs.replace(hook, owner=owner)


def check_permitted(definition: HookDefinition, allow_shell: bool) -> None:
    """What a hook may not do when it arrives over the API. Raises InvalidError."""
    if isinstance(definition.action, ShellAction) and not allow_shell:
        raise _refused("action.type", _NO_SHELL)


def _filters(definition: Mapping[str, Any], catalogue: Catalogue) -> CompiledFilters:
    try:
        return compile_filters(trigger_filters(definition), at="trigger.events", catalogue=catalogue)
    except InvalidError as refused:
        errors = [
            msgspec.structs.replace(error, path=_TYPE_PLACE.sub(r"\1.type", error.path)) for error in refused.errors
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
        return expression(condition.expr, "condition.expr")
    return _script(condition.script or "", "condition.script")


def _action(action: Action) -> Script | Shell | Http:
    if isinstance(action, ScriptAction):
        return _script(action.script, "action.script")
    if isinstance(action, ShellAction):
        return compile_shell(action, "action")
    if isinstance(action, HttpAction):
        return compile_http(action, "action")
    raise _refused("action.type", _FLOWS)


def _script(source: str, at: str) -> Script:
    if len(source.encode(errors="surrogatepass")) > SCRIPT_BYTES:
        raise _refused(at, f"a script may have {SCRIPT_BYTES // 1024} KiB")
    return Script(source)


def _templates(action: Script | Shell | Http) -> tuple[Expression, ...]:
    return () if isinstance(action, Script) else action.values.expressions


def _check_options(definition: HookDefinition) -> None:
    given = definition.options.timeout_ms
    if definition.trigger.timing == "Pre" and given is not None and given > MAX_PRE_TIMEOUT_MS:
        raise _refused(
            "options.timeout_ms", f"a Pre hook may take {MAX_PRE_TIMEOUT_MS} ms, since a writer waits for it"
        )


def _refused(at: str, message: str) -> InvalidError:
    return InvalidError(f"{at}: {message}", errors=[FieldError(at, message)])
