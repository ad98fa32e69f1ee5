"""The text of a hook file as the object that it describes: Markdown with YAML front matter, plain YAML, or JSON."""

import json
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from crucible_core.decode import check_depth, malformed
from crucible_core.errors import CrucibleError, InvalidError
from crucible_core.limits import HOOK_FILE_BYTES
from crucible_core.suggest import nearest
from crucible_core.yaml import load, split_front_matter

SUFFIXES = (".md", ".markdown", ".yaml", ".yml", ".json")
NO_HOOK = (
    "there is no front matter: a hook file begins with YAML between two lines of ---, or is YAML or JSON as a whole,"
    " with `trigger` and `action`"
)

_PARTS = ("trigger", "action")
"""Keys that every hook has, and that nothing else in a hooks directory is likely to have."""

_TEXTS = ("name", "description", "version")
"""Fields that are texts whatever they look like: `version: 1.10` is not 1.1."""
_KEY = re.compile(r"^[\"']?([A-Za-z_-]{3,20})[\"']?[ \t]*:", re.MULTILINE)
_SCRIPT_FILE = re.compile(r"[^\n\r\0(){}=\"']{1,250}\.(?:py|rn)")


def is_hook_file(name: str) -> bool:
    """True if a file may describe a hook, by the end of its name in any case."""
    return name.lower().endswith(SUFFIXES)


def read_hook(text: str) -> dict[str, Any] | None:
    """The object that `text` describes; None where it is something else, such as a page of prose or another program's
    settings.

    Raises InvalidError, which names the line and a fix, for what is meant to be one and cannot be read.
    """
    if len(text) > HOOK_FILE_BYTES:
        raise InvalidError(f"the hook is larger than {HOOK_FILE_BYTES // 1024} KiB")
    head, _ = split_front_matter(text)
    if head is not None:
        return _object(_named("front matter", head, 2), "front matter")
    if text.lstrip("\ufeff \t\r\n")[:1] == "{":
        return _claimed(_json(text.removeprefix("\ufeff")))
    try:
        return _claimed(load(text.removeprefix("\ufeff"), as_text=_TEXTS))
    except InvalidError as error:
        if not _claims(_KEY.findall(text[:HOOK_FILE_BYTES])):
            return None
        raise InvalidError(f"the hook is not YAML: {error.detail}", errors=error.errors) from None


def with_default_name(given: dict[str, Any], name: str) -> dict[str, Any]:
    """A hook without a name is called like its file: `tidy` in tidy.md or tidy.hook.yaml."""
    return given if "name" in given else {"name": name.rpartition("/")[2].partition(".")[0], **given}


def script_file(value: Any) -> str | None:
    """The file name that a `script` consists of; None where it is the script itself."""
    name = value.strip() if isinstance(value, str) else ""
    return name if _SCRIPT_FILE.fullmatch(name) else None


def _named(what: str, text: str, first_line: int) -> Any:
    try:
        return load(text, first_line=first_line, as_text=_TEXTS)
    except InvalidError as error:
        raise InvalidError(f"the {what} is not YAML: {error.detail}", errors=error.errors) from None


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidError(f"the {what} is not an object of names and values")
    return value


def _claimed(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) and _claims(value) else None


def _claims(keys: Iterable[str]) -> bool:
    """True if an object with these keys is meant to be a hook, slips of the pen included."""
    return any(nearest(key, _PARTS) for key in keys)


def _json(text: str) -> Any:
    """JSON, or a YAML mapping in braces."""
    try:
        check_depth(text.encode("utf-8", "surrogatepass"), "the hook")
        found = msgspec.json.decode(text)
        _check_keys(text)
    except InvalidError:
        raise
    except CrucibleError as error:
        raise InvalidError(error.detail) from None
    except (msgspec.DecodeError, UnicodeError, ValueError, RecursionError) as error:
        if re.match(r'\s*\{\s*"', text):
            raise InvalidError(malformed(error, "the hook").detail) from None
        return _named("hook", text, 1)
    return found


def _check_keys(text: str) -> None:
    """Raises InvalidError, which names the line, where an object in some JSON has a key twice."""
    repeated = _repeated(text)
    if repeated is not None:
        raise InvalidError(f"{_place(text, repeated)}the key {repeated!r} stands twice: keep one of them")


def _place(text: str, key: str) -> str:
    """The line of a key's second occurrence, which YAML's reader knows and JSON's does not."""
    try:
        load(text)
    except InvalidError as error:
        found = re.match(rf"(line \d+: )the key {re.escape(repr(key))} stands twice", error.detail)
        return found[1] if found else ""
    return ""


class _Repeated(Exception):
    """An object has a key twice; the key is its argument."""


def _repeated(text: str) -> str | None:
    def check(pairs: list[tuple[str, Any]]) -> None:
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise _Repeated(key)
            seen.add(key)

    try:
        json.loads(text, object_pairs_hook=check, parse_int=str, parse_float=str)
    except _Repeated as repeated:
        return str(repeated.args[0])[:100]
    return None
