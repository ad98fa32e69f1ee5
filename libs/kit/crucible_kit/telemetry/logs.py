"""Logging: one line for each record, `time level service message key=value`, to stderr."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime

from crucible_kit.telemetry.spans import current_traceparent, parse_traceparent

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_FRAMES = 8


def setup_logging(service: str, level: str = "info") -> None:
    """Send every record to stderr: our own from `level` on (debug, info, warning, error), others' from warning on."""
    least = getattr(logging, level.upper())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(service))
    handler.addFilter(is_ours)
    logging.basicConfig(level=least, handlers=[handler], force=True)
    logging.captureWarnings(True)


def is_ours(record: logging.LogRecord) -> bool:
    """Returns True for records that are logged: all of our own, and warnings of others."""
    return record.name.startswith("crucible") or record.levelno >= logging.WARNING


def extra_of(record: logging.LogRecord) -> list[tuple[str, object]]:
    """The `extra=` fields of a record."""
    return [(key, value) for key, value in vars(record).items() if key not in _STANDARD]


class LineFormatter(logging.Formatter):
    """Formats `extra=` fields as `key=value`, and an exception as `error=` and `at=`, innermost frame first. A line
    within a trace has its `trace_id=` and `span_id=`."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        pairs = dict(extra_of(record))
        if record.exc_info and record.exc_info[1]:
            pairs |= {"error": describe_error(record.exc_info[1]), "at": _frames(record.exc_info[1])}
        if (context := parse_traceparent(current_traceparent())) is not None:
            pairs |= {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
        words = [moment, record.levelname.lower(), self._service, " ".join(record.getMessage().split())]
        return " ".join(words + [f"{key}={_value(value)}" for key, value in pairs.items()])


def describe_error(error: BaseException) -> str:
    """`Kind: message` of an error; of a group, those of all its members."""
    return "; ".join(f"{type(leaf).__name__}: {leaf}".rstrip(": ") for leaf in leaves(error))


def leaves(error: BaseException) -> list[BaseException]:
    """The errors inside nested groups, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for member in error.exceptions for leaf in leaves(member)]
    return [error]


def _frames(error: BaseException) -> str:
    frames = traceback.extract_tb(leaves(error)[0].__traceback__)[-_FRAMES:]
    return " < ".join(f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in reversed(frames))


def _value(value: object) -> str:
    text = value if isinstance(value, str) else str(value)
    plain = text and text.isprintable() and not set(text) & set(' "=')
    return text if plain else json.dumps(text, ensure_ascii=False)
