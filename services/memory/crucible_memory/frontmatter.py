"""The YAML front matter of a note: found, read, and made plain JSON. Pure."""

import datetime
import math
from itertools import count
from typing import Any

import yaml

from .state import refused

FENCE = "---"
MAX_BYTES = 64 * 1024
MAX_DEPTH = 16
MAX_VALUES = 10_000
_PATH = "front matter"


class _Loader(yaml.SafeLoader):
    """YAML without merge keys (`<<`), of which a few lines could fill the memory."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        pass


def split(text: str) -> tuple[dict[str, Any], str]:
    """The front matter and the text after it. A note that begins with `---` but has no mapping there has none, since
    that is a line across the page too. Raises InvalidError for YAML that cannot be read."""
    text = text.removeprefix("\ufeff")
    first, _, rest = text.partition("\n")
    if first.rstrip() != FENCE:
        return {}, text
    head, body = _fenced(rest)
    if head is None:
        return {}, text
    found = _load(head)
    if found is None and not head.strip():
        return {}, body
    if not isinstance(found, dict):
        return {}, text
    return _plain(found), body


def _fenced(rest: str) -> tuple[str | None, str]:
    place = 0
    while place < len(rest) and place <= MAX_BYTES:
        end = rest.find("\n", place)
        line = rest[place:] if end < 0 else rest[place:end]
        after = len(rest) if end < 0 else end + 1
        if line.rstrip() in (FENCE, "..."):
            return rest[:place], rest[after:]
        place = after
    return None, rest


def _load(head: str) -> Any:
    try:
        return yaml.load(head, _Loader)
    except yaml.MarkedYAMLError as error:
        where = f" (line {error.problem_mark.line + 2})" if error.problem_mark else ""
        raise refused(_PATH, f"{error.problem or 'is not YAML'}{where}") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        # PyYAML lets its constructors' own errors through, such as that of a date that does not exist.
        raise refused(_PATH, f"cannot be read: {str(error)[:200]}") from None


def _plain(found: dict[Any, Any]) -> dict[str, Any]:
    seen = count()

    def plain(value: Any, depth: int) -> Any:
        # Counted, since YAML's references make a few lines into more than any memory holds.
        if depth > MAX_DEPTH or next(seen) >= MAX_VALUES:
            raise refused(_PATH, f"may hold {MAX_VALUES} values, {MAX_DEPTH} deep")
        match value:
            case None | bool() | str():
                return value
            case int():
                return value if -(2**63) <= value < 2**63 else str(value)
            case float():
                return value if math.isfinite(value) else str(value)
            case datetime.date() | datetime.time():
                return value.isoformat()
            case dict():
                return {_key(key): plain(inner, depth + 1) for key, inner in value.items()}
            case list() | tuple() | set():
                return [plain(inner, depth + 1) for inner in value]
            case bytes():
                return value.hex()
        return str(value)

    try:
        return {_key(key): plain(value, 1) for key, value in found.items()}
    except ValueError as error:  # a number of thousands of digits cannot be written
        raise refused(_PATH, f"cannot be read: {str(error)[:200]}") from None


def _key(key: Any) -> str:
    return key if isinstance(key, str) else str(key)
