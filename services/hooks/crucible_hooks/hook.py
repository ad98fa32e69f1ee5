"""Definitions of hooks: read from requests and files with their scripts inlined, checked, and compiled to hooks that
are ready to run."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from crucible_core.decode import convert
from crucible_core.definition import (
    Action,
    Condition,
    HookDefinition,
    HttpAction,
    ScriptAction,
    ShellAction,
    timeout_ms,
    trigger_filters,
)
from crucible_core.errors import InvalidError
from crucible_core.filters.matcher import CompiledFilters, compile_filters
from crucible_core.hookfile import script_file
from crucible_core.limits import HOOK_PRE_TIMEOUT_MS, SCRIPT_BYTES, TEMPLATES
from crucible_core.types.catalogue import CATALOGUE, Catalogue
from crucible_hooks.actions.functions import EFFECTS, READING, signatures
from crucible_hooks.actions.http import Http, compile_http
from crucible_hooks.actions.shell import Shell, compile_shell, working_directory
from crucible_hooks.expressions.expression import Expression, expression
from crucible_hooks.expressions.templates import Template, compile_value
from crucible_hooks.texts import Text

_PRE_ONLY_DECIDES = "a Pre hook only decides; effects belong into a Post hook, which runs once the event is committed"
_NO_SHELL = "hooks that arrive over the API may not use Shell unless CRUCIBLE_HOOKS_ALLOW_API_SHELL permits it"
_TYPE_PATH = re.compile(r"^(trigger\.events\.\d+)\.event_type")
_FLOWS = "TriggerFlow is not available yet: use Script, HTTP or Shell"
ReadScript = Callable[[str], str]
"""Returns the text of a script file; raises InvalidError where it cannot be read."""


class Script(msgspec.Struct, frozen=True):
    source: str


class Hook(msgspec.Struct, frozen=True):
    """A hook that is ready to run. A `condition` of None holds always; a Shell command runs in `directory`."""

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
    """Raises InvalidError with the path of what is refused in the definition. `review`
    checks its expressions and scripts. `filters` are the definition's where they were compiled before."""
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
        raise InvalidError.field("action", f"a hook may have {TEMPLATES} templates")
    return hook


def handler_key(name: str, id: str) -> str:
    """The key by which the engine serves a hook and its runs are indexed. A hook from before there were ids has a name
    alone."""
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
    """Raises InvalidError for a hook that may not arrive over the API."""
    if isinstance(definition.action, ShellAction) and not allow_shell:
        raise InvalidError.field("action.type", _NO_SHELL)


def _filters(definition: Mapping[str, Any], catalogue: Catalogue) -> CompiledFilters:
    try:
        return compile_filters(trigger_filters(definition), at="trigger.events", catalogue=catalogue)
    except InvalidError as refused:
        errors = [
            msgspec.structs.replace(error, path=_TYPE_PATH.sub(r"\1.type", error.path)) for error in refused.errors
        ]
        first = errors[0]
        hint = f' (did you mean "{first.suggestion}"?)' if first.suggestion else ""
        raise InvalidError(f"{first.path}: {first.message}{hint}", errors=errors) from None


def _condition(condition: Condition | None) -> Expression | Script | None:
    if condition is None:
        return None
    if (condition.expr is None) == (condition.script is None):
        raise InvalidError.field("condition", "needs expr or script, one of them")
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
    raise InvalidError.field("action.type", _FLOWS)


def _script(source: str, at: str) -> Script:
    if len(source.encode(errors="surrogatepass")) > SCRIPT_BYTES:
        raise InvalidError.field(at, f"a script may have {SCRIPT_BYTES // 1024} KiB")
    return Script(source)


def _templates(action: Script | Shell | Http) -> tuple[Expression, ...]:
    return () if isinstance(action, Script) else action.values.expressions


def _check_options(definition: HookDefinition) -> None:
    timeout = definition.options.timeout_ms
    if definition.trigger.timing == "Pre" and timeout is not None and timeout > HOOK_PRE_TIMEOUT_MS:
        raise InvalidError.field(
            "options.timeout_ms", f"a Pre hook may take {HOOK_PRE_TIMEOUT_MS} ms, since a writer waits for it"
        )


def read_definition(source: Mapping[str, Any], read_script: ReadScript) -> HookDefinition:
    """The definition in `source`, with its script files inlined. Raises InvalidError with the path of each field
    that is refused and the nearest known name."""
    return convert(_inline_scripts(_normalize(source), read_script), HookDefinition, what="hook")


def refuse_files(name: str) -> str:
    """The `ReadScript` of definitions that do not come from a directory."""
    _check_language(name)
    raise InvalidError(f"{name} is a file: a hook that arrives over the API carries its script itself")


def _normalize(source: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces other accepted spellings by the one that is stored."""
    hook = dict(source)
    if type(hook.get("version")) in (int, float):
        hook["version"] = str(hook["version"])
    action = hook.get("action")
    if isinstance(action, dict):
        hook["action"] = _normalize_action(action)
    return hook


def _normalize_action(action: dict[str, Any]) -> dict[str, Any]:
    if action.get("type") == "RuneScript":
        return {**action, "type": "Script"}
    if action.get("type") == "TriggerFlow" and "flow_name" in action and "flow" not in action:
        return {("flow" if name == "flow_name" else name): value for name, value in action.items()}
    return action


def _inline_scripts(hook: dict[str, Any], read_script: ReadScript) -> dict[str, Any]:
    for part in ("action", "condition"):
        holder = hook.get(part)
        if not isinstance(holder, dict) or not isinstance(holder.get("script"), str):
            continue
        if name := script_file(holder["script"]):
            try:
                _check_language(name)
                hook = {**hook, part: {**holder, "script": read_script(name)}}
            except InvalidError as error:
                raise InvalidError.field(f"{part}.script", error.detail) from None
    return hook


def _check_language(name: str) -> None:
    if name.endswith(".rn"):
        raise InvalidError(f"{name} is a Rune script; scripts are Python here: rewrite it as a .py file")
