"""Hook definitions as users send them, from Markdown, YAML or JSON, made whole and typed."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import yaml

from crucible_core.decode import convert
from crucible_core.errors import FieldError, InvalidError
from crucible_core.hooks import HookDefinition

MAX_FRONT_MATTER = 64 * 1024
ReadScript = Callable[[str], str]
"""The text of a script file; raises InvalidError where it cannot be had."""

_FRONT_MATTER = re.compile(r"\ufeff?---[ \t]*\r?\n(.*?)(?:^|\n)---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_SCRIPT_FILE = re.compile(r"[^\n\r(){}=\"']{1,250}\.(?:py|rn)")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def front_matter(text: str) -> dict[str, Any] | None:
    """The YAML between the `---` lines that a Markdown text begins with; None where there is none.

    Raises InvalidError for what is no YAML object. Aliases are refused: they can make a small text enormous.
    """
    found = _FRONT_MATTER.match(text)
    if found is None:
        return None
    if len(found[1]) > MAX_FRONT_MATTER:
        raise InvalidError(f"the front matter is larger than {MAX_FRONT_MATTER // 1024} KiB")
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(found[1], Loader=_LOADER)):
            raise InvalidError("the front matter has a YAML alias (*name): write the value out")
        document = msgspec.json.decode(msgspec.json.encode(yaml.load(found[1], Loader=_LOADER)))
    except yaml.YAMLError as error:
        raise InvalidError(f"the front matter is not YAML: {_problem(error)}") from None
    except (ValueError, TypeError, RecursionError, OverflowError, msgspec.MsgspecError) as error:
        raise InvalidError(f"the front matter cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise InvalidError("the front matter is not an object of names and values")
    return document


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
    if isinstance(action, dict) and action.get("type") == "RuneScript":
        hook["action"] = {**action, "type": "Script"}
    return hook


def _inlined(hook: dict[str, Any], read_script: ReadScript) -> dict[str, Any]:
    for part in ("action", "condition"):
        holder = hook.get(part)
        if not isinstance(holder, dict) or not isinstance(holder.get("script"), str):
            continue
        name = holder["script"].strip()
        if _SCRIPT_FILE.fullmatch(name):
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


def _problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    text = getattr(error, "problem", None) or str(error).splitlines()[0]
    # The mark counts from the line after the opening `---`.
    return f"line {mark.line + 2}: {text}" if mark else text
