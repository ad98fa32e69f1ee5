"""A hook file on this machine as the API takes it: with the script that lies beside it inlined."""

from pathlib import Path
from typing import Any

import msgspec
import typer
import yaml

FENCE = "---"


def read_hook_file(file: Path) -> tuple[dict[str, Any] | None, str | None]:
    """(definition, None) where something had to be inlined or the file is JSON, else (None, the file's text).

    The gateway cannot see the files here, so scripts that the front matter names are put in their places.
    """
    text = _read(file)
    if file.suffix == ".json":
        try:
            return msgspec.json.decode(text, type=dict[str, Any]), None
        except msgspec.DecodeError as error:
            raise typer.BadParameter(f"{file}: not a JSON object: {error}") from error
    definition = front_matter(text)
    return (definition, None) if definition and _inlined(definition, file.parent) else (None, text)


def front_matter(text: str) -> dict[str, Any] | None:
    """The YAML between the first two `---` lines, or None; its errors are for the gateway to explain."""
    lines = text.removeprefix("\ufeff").splitlines()
    marks = [number for number, line in enumerate(lines) if line.rstrip() == FENCE]
    if len(marks) < 2 or marks[0] != 0:
        return None
    try:
        found = yaml.safe_load("\n".join(lines[1 : marks[1]]))
    except yaml.YAMLError:
        return None
    return found if isinstance(found, dict) else None


def _inlined(definition: dict[str, Any], beside: Path) -> bool:
    """Puts scripts for their names in `condition` and `action`; whether there was any."""
    done = False
    for part in (definition.get("condition"), definition.get("action")):
        name = part.get("script") if isinstance(part, dict) else None
        if isinstance(part, dict) and isinstance(name, str) and _is_beside(name, beside):
            part["script"] = _read(beside / name)
            done = True
    return done


def _is_beside(name: str, beside: Path) -> bool:
    return "\n" not in name and len(name) < 256 and Path(name).suffix == ".py" and (beside / name).is_file()


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"cannot read {file}: {error}") from error
