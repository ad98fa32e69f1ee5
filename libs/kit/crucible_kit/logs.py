"""Logging: one line for each record, `time level service message key=value`, to stderr."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_FRAMES = 8


def setup_logging(service: str, level: str = "info") -> None:
    """Send every record to stderr: our own from `level` on (debug, info, warning, error), others' from warning on."""
    least = getattr(logging, level.upper())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(service))
    handler.addFilter(lambda record: record.name.startswith("crucible") or record.levelno >= logging.WARNING)
    logging.basicConfig(level=least, handlers=[handler], force=True)
    logging.captureWarnings(True)


class LineFormatter(logging.Formatter):
    """What is given as `extra=` becomes `key=value`; an exception becomes `error=` and `at=`, innermost frame first."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        pairs = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info and record.exc_info[1]:
            pairs |= {"error": describe_error(record.exc_info[1]), "at": _places(record.exc_info[1])}
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


def _places(error: BaseException) -> str:
    frames = traceback.extract_tb(leaves(error)[0].__traceback__)[-_FRAMES:]
    return " < ".join(f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in reversed(frames))


def _value(value: object) -> str:
    text = value if isinstance(value, str) else str(value)
    plain = text and text.isprintable() and not set(text) & set(' "=')
    return text if plain else json.dumps(text, ensure_ascii=False)
