"""Counting a log that is too long for one answer: the parts added up. No I/O."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from crucible_core.protocol.events import CountBy, CountReply

from .calls.events import Wanted, count_events
from .request import Call


class Count(msgspec.Struct, frozen=True):
    """`groups` is empty where nothing was to be grouped by; else the largest is the first."""

    count: int
    groups: dict[str, int]


class Tally:
    """Asks for one part after another until all is counted."""

    def __init__(self, types: Sequence[str], by: CountBy | None, wanted: Wanted) -> None:
        self._types = tuple(types)
        self._by = by
        self._wanted = wanted
        self._groups: Counter[str] = Counter()
        self._count = 0

    def call(self) -> Call[CountReply]:
        return count_events(self._types, self._by, self._wanted)

    def take(self, reply: CountReply) -> Count | None:
        """The whole count, or None while there is more to ask for."""
        self._count += reply.count
        for group in reply.groups:
            self._groups[group.key] += group.count
        if not reply.complete:
            self._wanted = {**self._wanted, "after": reply.counted_to}
            return None
        ranked = sorted(self._groups.items(), key=lambda group: (-group[1], group[0]))
        return Count(self._count, dict(ranked))
