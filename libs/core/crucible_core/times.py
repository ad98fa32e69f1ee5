"""Times as users write them, RFC 3339, and as they are compared: microseconds since 1970 in UTC."""

import functools
import re
from datetime import UTC, datetime, timedelta

from .errors import FieldError, InvalidError

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?P<fraction>\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SHOWN = 64
_STORED = len("2026-11-21T10:00:00.123456Z")
"""The form that `format_time` gives needs no preparation."""


def parse_time(text: str, path: str) -> int:
    """RFC 3339 to microseconds (finer digits are cut off). Raises InvalidError at `path`, with a suggestion."""
    parsed = _parsed(text) if len(text) <= _SHOWN else None
    if parsed is not None:
        return parsed
    suggestion = _suggestion(text)
    asked = f' (did you mean "{suggestion}"?)' if suggestion else ""
    message = f'"{text[:_SHOWN]}" is not an RFC 3339 time such as "2026-11-21T10:00:00Z"'
    raise InvalidError(f"{path}: {message}{asked}", errors=[FieldError(path, message, suggestion)])


@functools.lru_cache(maxsize=256)  # the events of one request have one time
def _parsed(text: str) -> int | None:
    found = _RFC3339.fullmatch(text)
    if found is None:
        return None
    try:
        if len(text) == _STORED and text[-1] == "Z" and text[10] == "T":
            return _microseconds(datetime.fromisoformat(text))
        return _microseconds(datetime.fromisoformat(_plain(text, found["fraction"])).astimezone(UTC))
    except (ValueError, OverflowError):
        return None


def format_time(microseconds: int) -> str:
    """RFC 3339 in UTC with microseconds and `Z`, the form of every stored timestamp."""
    return f"{(_EPOCH + microseconds * _MICROSECOND).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _plain(text: str, fraction: str | None) -> str:
    """The same with upper-case letters and at most six digits: what `datetime` reads."""
    text = text.upper().replace(" ", "T")
    return text.replace(fraction, fraction[:7]) if fraction else text


def _suggestion(text: str) -> str | None:
    """What the writer of another ISO 8601 form (a date alone, no offset) most likely meant."""
    try:
        moment = datetime.fromisoformat(text.strip()[:_SHOWN])
        return format_time(_microseconds(moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)))
    except (ValueError, OverflowError):
        return None
