"""Failures of a run, as exceptions whose text is the error of the run's record."""

import re

_LINE = re.compile(r'^  File ".*", line (\d+)', re.MULTILINE)


class RunError(Exception):
    """This attempt has failed. `retry_after_s` is the least time until another one, where an endpoint asked for it."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class AbsentError(RunError):
    """An expression or a script reads a field or an element that is not there."""


def shorten_error(error: str) -> str:
    """A failure on one line: the last line of a traceback, with the number of the script's line."""
    if not (lines := _LINE.findall(error)):
        return error
    which = "condition: " if error.startswith("condition: ") else ""
    return f"{which}line {lines[-1]}: {error.splitlines()[-1]}"
