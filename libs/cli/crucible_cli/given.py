"""What people give on the command line: JSON, files, stdin."""

import sys
from pathlib import Path
from typing import Any

import msgspec
import typer


def text_of(given: str, what: str) -> str:
    """The text itself, the content of `@FILE`, or stdin for `-`. A usage error where it cannot be read."""
    try:
        if given == "-":
            return sys.stdin.read()
        return Path(given[1:]).expanduser().read_text() if given.startswith("@") else given
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{what}: cannot read {given}: {error}") from error


def payload_of(given: str, what: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        return msgspec.json.decode(text_of(given, what), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise typer.BadParameter(f"{what}: not a JSON object: {error}") from error


def json_object(given: str | None, what: str) -> dict[str, Any] | None:
    return None if given is None else payload_of(given, what)
