"""Times as users write them (RFC 3339) and as HTTP does, and as they are compared: microseconds since 1970 in UTC."""

import functools
import re
from datetime import UTC, datetime, timedelta

from crucible_core.errors import InvalidError
from crucible_core.limits import RETENTION_S, RETRY_AFTER_S

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?P<fraction>\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SHOWN = 64
_STORED = len("2026-11-21T10:00:00.123456Z")
"""The form that `format_time` gives needs no preparation."""

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH, _CLOCK = f"(?P<month>{'|'.join(_MONTHS)})", r"(?P<clock>\d\d:\d\d:\d\d)"
_HTTP_DATES = [
    re.compile(form, re.ASCII)
    for form in (
        rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), (?P<day>\d\d) {_MONTH} (?P<year>\d{{4}}) {_CLOCK} GMT",
        rf"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, (?P<day>\d\d)-{_MONTH}-(?P<year>\d\d) {_CLOCK} GMT",
        rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) {_MONTH} (?P<day>[ \d]\d) {_CLOCK} (?P<year>\d{{4}})",
    )
]
"""IMF-fixdate, and the two obsolete forms that receivers must read: RFC 850 and asctime (RFC 9110, 5.6.7)."""


def parse_time(text: str, path: str) -> int:
    """RFC 3339 to microseconds (finer digits are cut off). Raises InvalidError at `path`, with a suggestion."""
    parsed = _parsed(text) if len(text) <= _SHOWN else None
    if parsed is not None:
        return parsed
    suggestion = _suggestion(text)
    message = f'"{text[:_SHOWN]}" is not an RFC 3339 time such as "2026-11-21T10:00:00Z"'
    raise InvalidError.field(path, message, suggestion)


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


def parse_retry_after(text: str | None, now_s: float) -> float | None:
    """Seconds to wait, at most a day, from a Retry-After (RFC 9110, 10.2.3): a number of them, or an HTTP date. `now_s`
    is Unix time. None where there is none, or it is neither."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:_SHOWN]), float(RETRY_AFTER_S))
    moment = _http_date(text, now_s) if len(text) <= _SHOWN else None
    return None if moment is None else min(max(0.0, moment - now_s), float(RETRY_AFTER_S))


def _http_date(text: str, now_s: float) -> float | None:
    """Unix time."""
    found = next(filter(None, (form.fullmatch(text) for form in _HTTP_DATES)), None)
    if found is None:
        return None
    year, month = int(found["year"]), _MONTHS.index(found["month"]) + 1
    if len(found["year"]) == 2:
        this_year = datetime.fromtimestamp(now_s, UTC).year
        year += this_year // 100 * 100
        year -= 100 if year > this_year + 50 else 0  # RFC 9110: more than 50 years ahead is the past
    hour, minute, second = map(int, found["clock"].split(":"))
    try:
        # RFC 9110 allows a leap second, Python none.
        leap = second == 60
        moment = datetime(year, month, int(found["day"]), hour, minute, second - leap, tzinfo=UTC)
    except ValueError:
        return None
    return moment.timestamp() + leap


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _plain(text: str, fraction: str | None) -> str:
    """The same with upper-case letters and at most six digits: what `datetime` reads."""
    text = text.upper().replace(" ", "T")
    return text.replace(fraction, fraction[:7]) if fraction else text


def _suggestion(text: str) -> str | None:
    """The likely meaning of another ISO 8601 form (a date alone, no offset)."""
    try:
        moment = datetime.fromisoformat(text.strip()[:_SHOWN])
        return format_time(_microseconds(moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)))
    except (ValueError, OverflowError):
        return None


FOREVER = "forever"
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_WRITTEN = re.compile(rf"(\d{{1,10}})([{''.join(_UNITS)}])", re.ASCII)


def parse_keep(text: str, path: str) -> int | None:
    """Seconds; None is for ever. Raises InvalidError at `path`."""
    if text == FOREVER:
        return None
    found = _WRITTEN.fullmatch(text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 1 <= seconds <= RETENTION_S:
        suggestion = FOREVER if text[:1].casefold() == "f" else None
        message = (
            f'"{text[:40]}" is neither {FOREVER} nor a time of 1s to {RETENTION_S // 86_400}d, such as 90d, 12h or 30m'
        )
        raise InvalidError.field(path, message, suggestion)
    return seconds


def format_keep(seconds: float) -> str:
    """The shortest way to write it, in whole seconds."""
    whole = max(1, round(seconds))
    unit, size = next((unit, size) for unit, size in reversed(_UNITS.items()) if whole % size == 0 and unit != "w")
    return f"{whole // size}{unit}"
