"""A log of a million events: how fast the index catches up on it, how it is replayed, and how it is queried."""

from bench.running import Row


def run() -> list[Row]:
    return []
