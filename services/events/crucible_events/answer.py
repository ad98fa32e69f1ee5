"""The answer to a query: as many events as were asked for, and as there is room and budget for."""

import msgspec

from crucible_core.protocol.events import QueryReply
from crucible_kit.index import Index
from crucible_kit.tasks import Turn

from . import store
from .query import Query, cursor_at
from .scan import chunks, pages, plan

PAGE = 1000
BUDGET = 200_000
"""What one request may cost: a row that is looked at costs 1, one that is decoded for the filter as `_cost` says. Then
it is answered with what was found, and a cursor."""


class Answer:
    """The events of one answer, as long as there is room and budget for more."""

    def __init__(self, query: Query, most_bytes: int) -> None:
        self.events: list[msgspec.Raw] = []
        self._query = query
        self._room = most_bytes
        self._budget = BUDGET

    @property
    def spent(self) -> bool:
        return self._budget <= 0

    def passed(self) -> None:
        self._budget -= 1

    def takes(self, sequence: int, raw: bytes, forever: bool = False) -> bool:
        """False where there is no room for a match; it is for the next answer then. There is always room for one."""
        if self._query.predicate is not None:
            self._budget -= _cost(len(raw))
            if not self._query.predicate(store.decoded(sequence, raw)):
                return True
        event = store.public(sequence, raw, forever)
        size = len(memoryview(event))
        if self.events and (len(self.events) >= self._query.limit or size > self._room):
            return False
        self.events.append(event)
        self._room -= size
        return True


def _cost(size: int) -> int:
    return 10 + size // 200


async def run(index: Index, query: Query, most_bytes: int) -> QueryReply:
    """Answers with at most `limit` events and `most_bytes`. A cursor says that there may be more: either a match is
    left over, or the budget of one request is spent."""
    scan = await plan(index, query)
    answer, turn, at = Answer(query, most_bytes), Turn(), scan.position
    async for rows in pages(index, scan, PAGE, first=query.limit + 1):
        for chunk in chunks(rows, query.limit + 1 if query.predicate is None else PAGE):
            wanted = [row.sequence for row in chunk if row.size is not None]
            fetched = dict(await store.raws(index, wanted))
            kept = await store.kept_forever(index, wanted) if query.with_retention else frozenset()
            sequences = [row.sequence for row in chunk]
            for place, sequence in enumerate(sequences):
                if turn.over:
                    await turn.pass_on()
                raw = fetched.get(sequence)
                if raw is not None and not answer.takes(sequence, raw, sequence in kept):
                    return QueryReply(events=answer.events, next_cursor=cursor_at(query, at.past(sequences[:place])))
                answer.passed()
                if answer.spent:
                    cursor = cursor_at(query, at.past(sequences[: place + 1]))
                    return QueryReply(events=answer.events, next_cursor=cursor)
            at = at.past(sequences)
    return QueryReply(events=answer.events)
