"""When an event happened, as the number that ids derived from it begin with."""

from crucible_core.envelope import Event
from crucible_core.errors import InvalidError
from crucible_core.times import parse_time


def moment_ms(event: Event) -> int:
    """Unix milliseconds, the same on every replica and in every attempt; 0 where the timestamp cannot be read."""
    try:
        return max(0, parse_time(event.metadata.timestamp, "timestamp") // 1000)
    except InvalidError:
        return 0
