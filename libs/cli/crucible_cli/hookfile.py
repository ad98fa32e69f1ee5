"""A hook file on this machine as the API takes it: with its name, and the script that lies beside it inlined."""

from pathlib import Path
from typing import Any

import typer

from crucible_core.errors import InvalidError
from crucible_core.hookfile import read_hook, script_file, with_default_name
from crucible_core.limits import HOOK_FILE_BYTES

from .files import read_text
from .given import json_of, stdin_text
from .summary import clean


def read_hook_file(file: Path) -> tuple[dict[str, Any] | None, str | None]:
    """(definition, None) where something was added to what the file says, else (None, the file's text).

    The gateway cannot see the files here, so scripts that the hook names are put in their places. Mistakes in the text
    are for the gateway to explain. `-` is stdin.
    """
    if str(file) == "-":
        return None, stdin_text("FILE")
    text = _read(file)
    try:
        given = read_hook(text)
    except InvalidError:
        return None, text
    if given is None:
        is_json = file.suffix.lower() == ".json"
        return (json_of(text, dict[str, Any], clean(file.name, 400)), None) if is_json else (None, text)
    complete = with_default_name(_inlined(given, file.parent), file.name)
    return (None, text) if complete == given else (complete, None)


def _inlined(given: dict[str, Any], beside: Path) -> dict[str, Any]:
    """The hook with scripts for their names in `condition` and `action`."""
    parts = {part: given[part] for part in ("condition", "action") if isinstance(given.get(part), dict)}
    names = {part: script_file(holder.get("script")) for part, holder in parts.items()}
    scripts = {part: _read(beside / name) for part, name in names.items() if name and not name.endswith(".rn")}
    return given | {part: parts[part] | {"script": script} for part, script in scripts.items()}


def _read(file: Path) -> str:
    try:
        return read_text(file, HOOK_FILE_BYTES)
    except InvalidError as error:
        raise typer.BadParameter(error.detail) from error
