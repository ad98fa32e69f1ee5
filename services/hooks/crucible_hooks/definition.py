"""Hook definitions as users send them, made whole and typed."""

from collections.abc import Callable, Mapping
from typing import Any

from crucible_core.decode import convert
from crucible_core.errors import FieldError, InvalidError
from crucible_core.hookfile import script_file
from crucible_core.hooks import HookDefinition

ReadScript = Callable[[str], str]
"""The text of a script file; raises InvalidError where it cannot be had."""


def typed(given: Mapping[str, Any], read_script: ReadScript) -> HookDefinition:
    """The definition in `given`, with the files that it names inlined. Raises InvalidError with the path of each field
    that is refused and the nearest known name."""
    return convert(_inlined(_normal(given), read_script), HookDefinition, what="hook")


def no_files(name: str) -> str:
    """For definitions that do not come from a directory."""
    _check_language(name)
    raise InvalidError(f"{name} is a file: a hook that arrives over the API carries its script itself")


def _normal(given: Mapping[str, Any]) -> dict[str, Any]:
    """The other spellings that are accepted, as the one that is kept."""
    hook = dict(given)
    if type(hook.get("version")) in (int, float):
        hook["version"] = str(hook["version"])
    action = hook.get("action")
    if isinstance(action, dict):
        hook["action"] = _normal_action(action)
    return hook


def _normal_action(action: dict[str, Any]) -> dict[str, Any]:
    if action.get("type") == "RuneScript":
        return {**action, "type": "Script"}
    if action.get("type") == "TriggerFlow" and "flow_name" in action and "flow" not in action:
        return {("flow" if name == "flow_name" else name): value for name, value in action.items()}
    return action


def _inlined(hook: dict[str, Any], read_script: ReadScript) -> dict[str, Any]:
    for part in ("action", "condition"):
        holder = hook.get(part)
        if not isinstance(holder, dict) or not isinstance(holder.get("script"), str):
            continue
        if name := script_file(holder["script"]):
            try:
                hook = {**hook, part: {**holder, "script": _read(name, read_script)}}
            except InvalidError as error:
                where = f"{part}.script"
                raise InvalidError(f"{where}: {error.detail}", errors=[FieldError(where, error.detail)]) from None
    return hook


def _read(name: str, read_script: ReadScript) -> str:
    _check_language(name)
    return read_script(name)


def _check_language(name: str) -> None:
    if name.endswith(".rn"):
        raise InvalidError(f"{name} is a Rune script; scripts are Python here: rewrite it as a .py file")
