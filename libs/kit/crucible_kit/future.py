"""Sequences that a reader waits for although the log has not come so far: how far ahead, and what is said otherwise."""

from crucible_core.errors import FieldError, InvalidError
from crucible_core.position import Position

AHEAD = 1000
"""A reader who knows a sequence got it from the log: what lies farther ahead than this is not worth waiting for."""


def is_near(sequence: int, end: Position) -> bool:
    """Whether a log that ends there may come to `sequence` while somebody waits."""
    return end.covers(max(0, sequence - AHEAD))


def past_end(end: Position) -> InvalidError:
    message = f"is past the end of the log, which is at {end.text}"
    return InvalidError(f"min_sequence {message}", errors=[FieldError("min_sequence", message)])
