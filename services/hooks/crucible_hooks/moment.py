"""When an event happened, as the number that ids derived from it begin with."""

from datetime import datetime

from crucible_core.envelope import Event


def moment_ms(event: Event) -> int:
    """Unix milliseconds, the same on every replica and in every attempt; 0 where the timestamp cannot be read."""
    try:
        return max(0, int(datetime.fromisoformat(event.metadata.timestamp).timestamp() * 1000))
    except (ValueError, OverflowError):
        return 0
