"""Sequences that a reader waits for although the log has not come so far: how far ahead, and what is said otherwise."""

from crucible_core.errors import FieldError, InvalidError

AHEAD = 1000
"""A reader who knows a sequence got it from the log: what lies farther ahead than this is not worth waiting for."""


def is_near(sequence: int, last: int) -> bool:
    """Whether a log that ends at `last` may come to `sequence` while somebody waits."""
    return sequence <= last + AHEAD


def past_end(last: int) -> InvalidError:
    message = f"is past the end of the log, which is at {last}"
    return InvalidError(f"min_sequence {message}", errors=[FieldError("min_sequence", message)])
