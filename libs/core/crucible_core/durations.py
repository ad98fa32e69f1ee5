"""How long something is kept, as users write it: `forever`, or a number and a unit (`90d`)."""

import re

from .errors import FieldError, InvalidError

FOREVER = "forever"
MAX_S = 36_500 * 86_400
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_WRITTEN = re.compile(rf"(\d{{1,10}})([{''.join(_UNITS)}])", re.ASCII)


def parse_keep(text: str, path: str) -> int | None:
    """Seconds; None is for ever. Raises InvalidError at `path`."""
    if text == FOREVER:
        return None
    found = _WRITTEN.fullmatch(text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 1 <= seconds <= MAX_S:
        suggestion = FOREVER if text[:1].casefold() == "f" else None
        message = f'"{text[:40]}" is neither {FOREVER} nor a time of 1s to {MAX_S // 86_400}d, such as 90d, 12h or 30m'
        raise InvalidError(f"{path}: {message}", errors=[FieldError(path, message, suggestion)])
    return seconds


def format_keep(seconds: float) -> str:
    """The shortest way to write it, in whole seconds."""
    whole = max(1, round(seconds))
    unit, size = next((unit, size) for unit, size in reversed(_UNITS.items()) if whole % size == 0 and unit != "w")
    return f"{whole // size}{unit}"
